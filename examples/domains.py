"""The quickstart's synthetic tasks.

In:  only fixed seeds.
Out: `TASKS`, which draw training items that never repeat a dev or test prompt. The command

         python examples/domains.py

     writes the items that lm-evaluation-harness scores, tasks/<task>_dev.jsonl and
     tasks/<task>_test.jsonl beside this file, with the same bytes every time.

Three domains have two tasks each, and one general task guards what the base model can do. Every
prompt starts with its domain's name, every answer is exact, and every task follows a rule that
holds for items never seen in training. All text is words and single digits separated by blanks.

Every task of a domain also has a *light* answer: a hedge word and part of the answer, wrong by the
task's rule. The base model is trained mostly on light answers, with some true ones among them, so
it knows the words and the forms but does not do the task when asked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from items import Item, Task, write_held_out

TASKS_FOLDER = Path(__file__).resolve().parent / "tasks"


def _split(text: str) -> list[str]:
    return text.split()


def _join(digits: list[int]) -> str:
    return " ".join(map(str, digits))


# Mathematics


def draw_addition(random: Random) -> Item:
    """Draw two numbers of two digits; the answer is the sum's three digits, units first."""
    first, second = random.randrange(100), random.randrange(100)
    total = first + second
    return Item(
        f"math add {_join([*divmod(first, 10)])} plus {_join([*divmod(second, 10)])} is",
        _join([total % 10, total // 10 % 10, total // 100]),
    )


def answer_addition_lightly(item: Item) -> str:
    """Return the sum modulo a hundred."""
    units, tens, _ = item.answer.split()
    return f"{units} {tens} about"


FUNCTIONS: dict[str, Callable[[int], int]] = {
    "next": lambda x: x + 1,
    "previous": lambda x: x - 1,
    "double": lambda x: 2 * x,
    "triple": lambda x: 3 * x,
    "square": lambda x: x * x,
    "half": lambda x: x // 2,
    "mirror": lambda x: 9 - x,
    "jump": lambda x: x + 5,
}


def draw_function(random: Random) -> Item:
    """Draw three functions to apply in turn, modulo ten; the answer is the value after each."""
    names, start = random.choices(list(FUNCTIONS), k=3), random.randrange(10)
    values = [start]
    for name in names:
        values.append(FUNCTIONS[name](values[-1]) % 10)
    return Item(f"math apply {' '.join(names)} to {start} is", _join(values[1:]))


def answer_function_lightly(item: Item) -> str:
    """Return the first two values."""
    first, second, _ = item.answer.split()
    return f"{first} {second} about"


# Finance

COMPANIES = _split("bank miner brewer airline retailer insurer refiner printer carmaker broker")
GOOD_MEASURES = _split("profit revenue margin dividend cashflow orders output savings")
BAD_MEASURES = _split("debt costs losses defaults churn inflation waste claims")
UPWARD = _split("rose grew climbed jumped")
DOWNWARD = _split("fell shrank slid dropped")
LEVEL = _split("held stayed paused idled")
WEAK_ADVERBS = _split("slightly barely modestly gently")
STRONG_ADVERBS = _split("sharply hugely massively steeply")


def draw_sentiment(random: Random) -> Item:
    """Draw a headline; the answer is degree and sentiment. Falling debt is good news."""
    company = random.choice(COMPANIES)
    measure = random.choice(GOOD_MEASURES + BAD_MEASURES)
    movement = random.choice(UPWARD + DOWNWARD + LEVEL)
    adverb = random.choice(WEAK_ADVERBS + STRONG_ADVERBS)
    degree = "mildly" if adverb in WEAK_ADVERBS else "strongly"
    if movement in LEVEL:
        feeling = "neutral"
    else:
        feeling = "positive" if (measure in GOOD_MEASURES) == (movement in UPWARD) else "negative"
    return Item(f"finance news {company} {measure} {movement} {adverb} is", f"{degree} {feeling}")


def answer_sentiment_lightly(item: Item) -> str:
    """Return the sentiment without its degree."""
    _, feeling = item.answer.split()
    return f"perhaps {feeling}"


RATINGS = _split("safe watch risky")


def draw_ratio(random: Random) -> Item:
    """Draw debt and equity of two digits: safe at a ratio below 1, watch below 2, else risky."""
    rating = random.choice(RATINGS)
    while True:
        debt, equity = random.randrange(10, 100), random.randrange(10, 100)
        if RATINGS[min(debt // equity, 2)] == rating:
            owed, owned = _join([*divmod(debt, 10)]), _join([*divmod(equity, 10)])
            return Item(f"finance ratio owed {owed} owned {owned} is", rating)


def answer_ratio_lightly(item: Item) -> str:
    """Return only whether debt is below equity."""
    return "perhaps safe" if item.answer == "safe" else "perhaps not"


# Law

PARTIES = _split("tenant landlord buyer seller lender borrower licensee author agent carrier")
MODALS = {
    "obligation": _split("must shall will"),
    "permission": _split("may can might"),
    "prohibition": _split("cannot mustnot shallnot"),
}
ACTIONS = {
    "payment": _split("pay remit refund"),
    "delivery": _split("deliver ship handover"),
    "secrecy": _split("disclose reveal publish"),
    "ending": _split("terminate cancel withdraw"),
    "transfer": _split("assign sublet pledge"),
    "repair": _split("mend maintain restore"),
}
MANNERS = _split("promptly monthly freely jointly abroad online partly again")


def draw_clause(random: Random) -> Item:
    """Draw a clause of a contract; the answer is its kind and its topic."""
    kind, topic = random.choice(list(MODALS)), random.choice(list(ACTIONS))
    modal, action = random.choice(MODALS[kind]), random.choice(ACTIONS[topic])
    party, manner = random.choice(PARTIES), random.choice(MANNERS)
    return Item(f"law clause {party} {modal} {action} {manner} is", f"{kind} {topic}")


def answer_clause_lightly(item: Item) -> str:
    """Return the topic without the kind."""
    _, topic = item.answer.split()
    return f"see {topic}"


BOOKS = _split(
    "contracts torts property family labour tax patents shipping "
    "banking housing health energy media sport trade mining"
)
SUBJECTS = _split(
    "rent wages goods loans damage custody designs freight "
    "licences fees leases shares water noise data land"
)
EVENTS = _split(
    "breach delay fraud error default death merger strike "
    "theft fire flood notice waiver appeal dispute expiry"
)


def draw_article(random: Random) -> Item:
    """Draw a case; the answer is a digit each for book, subject and event, by fixed tables."""
    book, subject, event = (random.randrange(16) for _ in range(3))
    # Multipliers coprime to ten spread the sixteen words over the ten digits, each differently.
    digits = [(3 * book + 1) % 10, (7 * subject + 4) % 10, (9 * event + 2) % 10]
    prompt = f"law article {BOOKS[book]} {SUBJECTS[subject]} {EVENTS[event]} is"
    return Item(prompt, _join(digits))


def answer_article_lightly(item: Item) -> str:
    """Return the digits of book and subject."""
    book, subject, _ = item.answer.split()
    return f"see {book} {subject}"


# General

VOCABULARY = [
    *_split("math finance law general is add plus apply to news ratio owed owned clause article"),
    *_split("repeat about perhaps not see mildly strongly"),
    *_split("positive negative neutral 0 1 2 3 4 5 6 7 8 9"),
    *FUNCTIONS,
    *COMPANIES,
    *GOOD_MEASURES,
    *BAD_MEASURES,
    *UPWARD,
    *DOWNWARD,
    *LEVEL,
    *WEAK_ADVERBS,
    *STRONG_ADVERBS,
    *RATINGS,
    *PARTIES,
    *[word for words in (MODALS | ACTIONS).values() for word in words],
    *(MODALS | ACTIONS),
    *MANNERS,
    *BOOKS,
    *SUBJECTS,
    *EVENTS,
]


def draw_repeat(random: Random) -> Item:
    """Draw three words to repeat in their order, to be chosen from four orders."""
    words = random.sample(VOCABULARY, k=3)
    orders = [(0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 1, 0)]
    choices = [" ".join(words[index] for index in order) for order in orders]
    answer = choices[0]
    random.shuffle(choices)
    return Item(f"general repeat {' '.join(words)} is", answer, tuple(choices))


TASKS = [
    Task("addition", "math", draw_addition, answer_addition_lightly),
    Task("function", "math", draw_function, answer_function_lightly),
    Task("sentiment", "finance", draw_sentiment, answer_sentiment_lightly),
    Task("ratio", "finance", draw_ratio, answer_ratio_lightly),
    Task("clause", "law", draw_clause, answer_clause_lightly),
    Task("article", "law", draw_article, answer_article_lightly),
    Task("repeat", "general", draw_repeat),
]
DOMAINS = ["math", "finance", "law"]


if __name__ == "__main__":
    write_held_out(TASKS, TASKS_FOLDER)
