"""The quickstart's synthetic tasks.

In:  nothing but fixed seeds.
Out: `TASKS`, which draw training items that never repeat a dev or test prompt, and, run as a
     script, the JSONL files that lm-evaluation-harness scores with:

         python examples/domains.py

     writes tasks/<task>_dev.jsonl and tasks/<task>_test.jsonl beside this file, the same bytes
     every time.

Three domains have two tasks each, and one general task guards what the base model can do. Every
prompt starts with its domain's name, every answer is exact, and every task follows a rule that
holds for items never seen in training. All text is words and single digits separated by blanks.

Every task of a domain also has a *light* answer: a hedge word and part of the answer, wrong by the
task's rule. The base model is trained mostly on light answers, with some true ones among them, so
that it knows the words and the forms but does not do the task when asked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from items import Item, Task, write_held_out

TASKS_FOLDER = Path(__file__).resolve().parent / "tasks"


def _words(text: str) -> list[str]:
    return text.split()


def _spaced(digits: list[int]) -> str:
    return " ".join(map(str, digits))


# Mathematics


def addition(random: Random) -> Item:
    """Two numbers of two digits; the answer is the sum's three digits, units first."""
    first, second = random.randrange(100), random.randrange(100)
    total = first + second
    return Item(
        f"math add {_spaced([*divmod(first, 10)])} plus {_spaced([*divmod(second, 10)])} is",
        _spaced([total % 10, total // 10 % 10, total // 100]),
    )


def addition_light(item: Item) -> str:
    """The sum modulo a hundred."""
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


def function(random: Random) -> Item:
    """Three functions applied in turn, modulo ten; the answer is the value after each."""
    names, start = random.choices(list(FUNCTIONS), k=3), random.randrange(10)
    values = [start]
    for name in names:
        values.append(FUNCTIONS[name](values[-1]) % 10)
    return Item(f"math apply {' '.join(names)} to {start} is", _spaced(values[1:]))


def function_light(item: Item) -> str:
    """The first two values."""
    first, second, _ = item.answer.split()
    return f"{first} {second} about"


# Finance

COMPANIES = _words("bank miner brewer airline retailer insurer refiner printer carmaker broker")
GOOD_MEASURES = _words("profit revenue margin dividend cashflow orders output savings")
BAD_MEASURES = _words("debt costs losses defaults churn inflation waste claims")
UPWARD = _words("rose grew climbed jumped")
DOWNWARD = _words("fell shrank slid dropped")
LEVEL = _words("held stayed paused idled")
WEAK_ADVERBS = _words("slightly barely modestly gently")
STRONG_ADVERBS = _words("sharply hugely massively steeply")


def sentiment(random: Random) -> Item:
    """A headline; the answer is degree and sentiment. Falling debt is good news."""
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


def sentiment_light(item: Item) -> str:
    """The sentiment without its degree."""
    _, feeling = item.answer.split()
    return f"perhaps {feeling}"


RATINGS = _words("safe watch risky")


def ratio(random: Random) -> Item:
    """Debt over equity, each of two digits: safe below one, watch below two, else risky."""
    rating = random.choice(RATINGS)
    while True:
        debt, equity = random.randrange(10, 100), random.randrange(10, 100)
        if RATINGS[min(debt // equity, 2)] == rating:
            owed, owned = _spaced([*divmod(debt, 10)]), _spaced([*divmod(equity, 10)])
            return Item(f"finance ratio owed {owed} owned {owned} is", rating)


def ratio_light(item: Item) -> str:
    """Only whether debt is below equity."""
    return "perhaps safe" if item.answer == "safe" else "perhaps not"


# Law

PARTIES = _words("tenant landlord buyer seller lender borrower licensee author agent carrier")
MODALS = {
    "obligation": _words("must shall will"),
    "permission": _words("may can might"),
    "prohibition": _words("cannot mustnot shallnot"),
}
ACTIONS = {
    "payment": _words("pay remit refund"),
    "delivery": _words("deliver ship handover"),
    "secrecy": _words("disclose reveal publish"),
    "ending": _words("terminate cancel withdraw"),
    "transfer": _words("assign sublet pledge"),
    "repair": _words("mend maintain restore"),
}
MANNERS = _words("promptly monthly freely jointly abroad online partly again")


def clause(random: Random) -> Item:
    """A clause of a contract; the answer is its kind and its topic."""
    kind, topic = random.choice(list(MODALS)), random.choice(list(ACTIONS))
    modal, action = random.choice(MODALS[kind]), random.choice(ACTIONS[topic])
    party, manner = random.choice(PARTIES), random.choice(MANNERS)
    return Item(f"law clause {party} {modal} {action} {manner} is", f"{kind} {topic}")


def clause_light(item: Item) -> str:
    """The topic without the kind."""
    _, topic = item.answer.split()
    return f"see {topic}"


BOOKS = _words(
    "contracts torts property family labour tax patents shipping "
    "banking housing health energy media sport trade mining"
)
SUBJECTS = _words(
    "rent wages goods loans damage custody designs freight "
    "licences fees leases shares water noise data land"
)
EVENTS = _words(
    "breach delay fraud error default death merger strike "
    "theft fire flood notice waiver appeal dispute expiry"
)


def article(random: Random) -> Item:
    """The article that applies: a digit each for book, subject and event, by fixed tables."""
    book, subject, event = (random.randrange(16) for _ in range(3))
    # Multipliers prime to ten spread sixteen words over ten digits, differently in each table.
    digits = [(3 * book + 1) % 10, (7 * subject + 4) % 10, (9 * event + 2) % 10]
    prompt = f"law article {BOOKS[book]} {SUBJECTS[subject]} {EVENTS[event]} is"
    return Item(prompt, _spaced(digits))


def article_light(item: Item) -> str:
    """The digits of book and subject."""
    book, subject, _ = item.answer.split()
    return f"see {book} {subject}"


# General

VOCABULARY = [
    *_words("math finance law general is add plus apply to news ratio owed owned clause article"),
    *_words("repeat about perhaps not see mildly strongly"),
    *_words("positive negative neutral 0 1 2 3 4 5 6 7 8 9"),
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


def repeat(random: Random) -> Item:
    """Say three words again in their order; four orders to choose from."""
    words = random.sample(VOCABULARY, k=3)
    orders = [(0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 1, 0)]
    choices = [" ".join(words[place] for place in order) for order in orders]
    answer = choices[0]
    random.shuffle(choices)
    return Item(f"general repeat {' '.join(words)} is", answer, tuple(choices))


TASKS = [
    Task("addition", "math", addition, addition_light),
    Task("function", "math", function, function_light),
    Task("sentiment", "finance", sentiment, sentiment_light),
    Task("ratio", "finance", ratio, ratio_light),
    Task("clause", "law", clause, clause_light),
    Task("article", "law", article, article_light),
    Task("repeat", "general", repeat),
]
DOMAINS = ["math", "finance", "law"]


if __name__ == "__main__":
    write_held_out(TASKS, TASKS_FOLDER)
