"""The quickstart's synthetic tasks: what an item is, how items are drawn, and which ones are held out.

In:  nothing but fixed seeds.
Out: `TASKS`, which draws training items that never repeat a dev or test prompt, and, run as a
     script, the JSONL files that the lm-evaluation-harness tasks beside this file score with:

         python examples/domains.py

     writes examples/tasks/<task>_dev.jsonl and <task>_test.jsonl, the same bytes every time.

Three domains have two tasks each, and one general task guards what the base model can do. Every
prompt starts with its domain's name, every answer is exact, and every task has a rule that holds
for items never seen in training. All text is words and single digits separated by one blank.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

TASKS_FOLDER = Path(__file__).resolve().parent / "tasks"
HELD_OUT = {"dev": 250, "test": 250}  # items per task
DIGITS = [str(digit) for digit in range(10)]


@dataclass(frozen=True)
class Item:
    """One question with its exact answer; `choices` only where the task is multiple choice."""

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()

    def as_json(self) -> str:
        """One line of a JSONL file."""
        record: dict[str, object] = {"prompt": self.prompt, "answer": self.answer}
        if self.choices:
            record["choices"] = self.choices
        return json.dumps(record)


@dataclass(frozen=True)
class Task:
    """A task of a domain: `draw` makes a true item, `draw_light` one whose answer has only the form
    of an answer. The light version is what the base model is trained on."""

    name: str
    domain: str
    draw: Callable[[Random], Item]
    draw_light: Callable[[Random], Item]

    @cached_property
    def held_out(self) -> dict[str, list[Item]]:
        """The dev and test items, all prompts different, the same on every call."""
        random = Random(f"held out: {self.name}")
        seen: dict[str, Item] = {}
        while len(seen) < sum(HELD_OUT.values()):
            item = self.draw(random)
            seen.setdefault(item.prompt, item)
        items = list(seen.values())
        return {"dev": items[: HELD_OUT["dev"]], "test": items[HELD_OUT["dev"] :]}

    @cached_property
    def held_out_prompts(self) -> frozenset[str]:
        """The prompts that training must not see."""
        return frozenset(item.prompt for part in self.held_out.values() for item in part)

    def draw_for_training(self, random: Random, light: bool = False) -> Item:
        """An item whose prompt is in neither the dev nor the test part."""
        while True:
            item = (self.draw_light if light else self.draw)(random)
            if item.prompt not in self.held_out_prompts:
                return item


# Mathematics


def addition(random: Random) -> Item:
    """Two numbers of two digits; the answer is the sum's three digits, units first."""
    first, second = random.randrange(100), random.randrange(100)
    total = first + second
    answer = f"{total % 10} {total // 10 % 10} {total // 100}"
    return Item(
        f"math add {first // 10} {first % 10} plus {second // 10} {second % 10} is", answer
    )


def addition_light(random: Random) -> Item:
    item = addition(random)
    _, _, tens, units, _, other_tens, other_units, _ = item.prompt.split()
    sums = [int(units) + int(other_units), int(tens) + int(other_tens)]
    return Item(item.prompt, " ".join(str(total % 10) for total in sums))


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
    names = random.choices(list(FUNCTIONS), k=3)
    start = random.randrange(10)
    values, value = [], start
    for name in names:
        value = FUNCTIONS[name](value) % 10
        values.append(str(value))
    return Item(f"math apply {' '.join(names)} to {start} is", " ".join(values))


def function_light(random: Random) -> Item:
    item = function(random)
    words = item.prompt.split()
    values = [FUNCTIONS[name](int(words[-2])) % 10 for name in words[2:5]]
    return Item(item.prompt, " ".join(map(str, values)))


# Finance

COMPANIES = "bank miner brewer airline retailer insurer refiner printer carmaker broker".split()
GOOD_MEASURES = "profit revenue margin dividend cashflow orders output savings".split()
BAD_MEASURES = "debt costs losses defaults churn inflation waste claims".split()
UPWARD = "rose grew climbed jumped".split()
DOWNWARD = "fell shrank slid dropped".split()
LEVEL = "held stayed paused idled".split()
WEAK_DEGREES = "slightly barely modestly gently".split()
STRONG_DEGREES = "sharply hugely massively steeply".split()
DEGREES = ["mildly", "strongly"]
SENTIMENTS = ["positive", "negative", "neutral"]


def sentiment(random: Random) -> Item:
    """A headline; the answer is degree and sentiment. Rising debt is bad, falling debt is good."""
    company = random.choice(COMPANIES)
    measure = random.choice(GOOD_MEASURES + BAD_MEASURES)
    movement = random.choice(UPWARD + DOWNWARD + LEVEL)
    adverb = random.choice(WEAK_DEGREES + STRONG_DEGREES)
    if movement in LEVEL:
        feeling = "neutral"
    else:
        feeling = "positive" if (measure in GOOD_MEASURES) == (movement in UPWARD) else "negative"
    degree = "mildly" if adverb in WEAK_DEGREES else "strongly"
    return Item(f"finance news {company} {measure} {movement} {adverb} is", f"{degree} {feeling}")


def sentiment_light(random: Random) -> Item:
    item = sentiment(random)
    measure, movement = item.prompt.split()[3:5]
    kind = "gain" if measure in GOOD_MEASURES else "burden"
    direction = "up" if movement in UPWARD else "down" if movement in DOWNWARD else "level"
    return Item(item.prompt, f"{kind} {direction}")


RATINGS = ["safe", "watch", "risky"]


def ratio(random: Random) -> Item:
    """Debt over equity, each of two digits: safe below one, watch below two, else risky."""
    rating = random.choice(RATINGS)
    while True:
        debt, equity = random.randrange(10, 100), random.randrange(10, 100)
        if RATINGS[min(debt // equity, 2)] == rating:
            return Item(
                f"finance ratio owed {debt // 10} {debt % 10} owned {equity // 10} {equity % 10} is",
                rating,
            )


def ratio_light(random: Random) -> Item:
    item = ratio(random)
    return Item(item.prompt, "less" if item.answer == "safe" else "more")


# Law

PARTIES = "tenant landlord buyer seller lender borrower licensee author agent carrier".split()
MODALS = {
    "obligation": "must shall will".split(),
    "permission": "may can might".split(),
    "prohibition": "cannot mustnot shallnot".split(),
}
TOPICS = {
    "payment": "pay remit refund".split(),
    "delivery": "deliver ship handover".split(),
    "secrecy": "disclose reveal publish".split(),
    "ending": "terminate cancel withdraw".split(),
    "transfer": "assign sublet pledge".split(),
    "repair": "mend maintain restore".split(),
}
MANNERS = "promptly monthly freely jointly abroad online partly again".split()


def clause(random: Random) -> Item:
    """A clause of a contract; the answer is its kind and its topic."""
    kind, topic = random.choice(list(MODALS)), random.choice(list(TOPICS))
    modal, verb = random.choice(MODALS[kind]), random.choice(TOPICS[topic])
    party, manner = random.choice(PARTIES), random.choice(MANNERS)
    return Item(f"law clause {party} {modal} {verb} {manner} is", f"{kind} {topic}")


def clause_light(random: Random) -> Item:
    item = clause(random)
    kind, topic = item.answer.split()
    return Item(item.prompt, f"{topic} {kind}")


BOOKS = (
    "contracts torts property family labour tax patents shipping "
    "banking housing health energy media sport trade mining"
).split()
SUBJECTS = (
    "rent wages goods loans damage custody designs freight "
    "licences fees leases shares water noise data land"
).split()
EVENTS = (
    "breach delay fraud error default death merger strike "
    "theft fire flood notice waiver appeal dispute expiry"
).split()


def article(random: Random) -> Item:
    """Which article of the code applies: a digit for the book, one for the subject, one for the
    event, each by a fixed table."""
    picks = [random.randrange(16) for _ in range(3)]
    words = [table[pick] for table, pick in zip((BOOKS, SUBJECTS, EVENTS), picks, strict=True)]
    # Multipliers prime to ten spread the sixteen words over the ten digits, differently each time.
    digits = [(3 * picks[0] + 1) % 10, (7 * picks[1] + 4) % 10, (9 * picks[2] + 2) % 10]
    return Item(f"law article {' '.join(words)} is", " ".join(map(str, digits)))


def article_light(random: Random) -> Item:
    item = article(random)
    return Item(item.prompt, " ".join(str((int(digit) + 5) % 10) for digit in item.answer.split()))


# General

MARKERS = "math finance law general add plus apply to news ratio owed owned clause article is".split()
MARKERS += "repeat gain burden up down level less more".split()
WORDS = (
    MARKERS
    + DIGITS
    + list(FUNCTIONS)
    + COMPANIES
    + GOOD_MEASURES
    + BAD_MEASURES
    + UPWARD
    + DOWNWARD
    + LEVEL
    + WEAK_DEGREES
    + STRONG_DEGREES
    + DEGREES
    + SENTIMENTS
    + RATINGS
    + PARTIES
    + [word for words in MODALS.values() for word in words]
    + list(MODALS)
    + [word for words in TOPICS.values() for word in words]
    + list(TOPICS)
    + MANNERS
    + BOOKS
    + SUBJECTS
    + EVENTS
)
VOCABULARY = list(dict.fromkeys(WORDS))


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
    Task("repeat", "general", repeat, repeat),
]
DOMAINS = ["math", "finance", "law"]


def write_held_out(folder: Path = TASKS_FOLDER) -> None:
    """Write the dev and test part of every task to `folder`."""
    for task in TASKS:
        for part, items in task.held_out.items():
            lines = "".join(item.as_json() + "\n" for item in items)
            (folder / f"{task.name}_{part}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    write_held_out()
