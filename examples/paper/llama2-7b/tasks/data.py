"""Items of the six tasks, from their public datasets, and when an answer is right.

Test items are those of the test parts. Dev items come from the training parts. With
`LLAMA2_7B_STAND_INS` set, a few rows of the same columns beside this folder take the datasets'
place, and nothing is fetched.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from lm_eval.tasks.hendrycks_math.utils import is_equiv, last_boxed_only_string, remove_boxed

Row = dict[str, Any]

STAND_INS = "LLAMA2_7B_STAND_INS"
DEV_ITEMS = 200

PROBLEM = "Question:\n{}\nAnswer:\nLet's think step by step.\n"
"""Abel's."""

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)

AREAS = (
    "Criminal Procedure",
    "Civil Rights",
    "First Amendment",
    "Due Process",
    "Privacy",
    "Attorneys",
    "Unions",
    "Economic Activity",
    "Judicial Power",
    "Federalism",
    "Interstate Relations",
    "Federal Taxation",
    "Miscellaneous",
)
"""Issue areas of the Supreme Court Database, in the order of LexGLUE's labels."""

UNFAIR = (
    "Limitation of liability",
    "Unilateral termination",
    "Unilateral change",
    "Content removal",
    "Contract by using",
    "Choice of law",
    "Jurisdiction",
    "Arbitration",
)

OPINION_CHARACTERS = 7000
"""About 1,800 tokens: with the question and 2,048 new ones that fits LLaMA-2's context."""


def load(name: str, part: str, **_: Any) -> dict[str, datasets.Dataset]:
    """The items of a task as the only split: a prompt, and the answers that are right."""
    split = "train" if part == "dev" else "test"
    rows = _stand_ins(name, split) if os.environ.get(STAND_INS) else _rows(name, split)
    items = [item for row in rows for item in [ITEMS[name](row)] if item is not None]
    if part == "dev":
        dataset = datasets.Dataset.from_list(items).shuffle(seed=0)
        return {"test": dataset.select(range(min(DEV_ITEMS, len(dataset))))}
    return {"test": datasets.Dataset.from_list(items)}


def _stand_ins(name: str, split: str) -> list[Row]:
    path = Path(__file__).parents[1] / "stand_ins" / f"{name}_{split}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _rows(name: str, split: str) -> list[Row]:
    sources = {
        "gsm8k": [("openai/gsm8k", "main")],
        "math": [("EleutherAI/hendrycks_math", subject) for subject in SUBJECTS],
        "fpb": [("TheFinAI/en-fpb", None)],
        "fiqa_sa": [("TheFinAI/flare-fiqasa", None)],
        "scotus": [("coastalcph/lex_glue", "scotus")],
        "unfair_tos": [("coastalcph/lex_glue", "unfair_tos")],
    }
    return [
        dict(row)
        for path, configuration in sources[name]
        for row in datasets.load_dataset(path, configuration, split=split)
    ]


def _gsm8k(row: Row) -> Row:
    return {"prompt": PROBLEM.format(row["question"]), "right": [_number(_result(row["answer"]))]}


def _math(row: Row) -> Row:
    answer = remove_boxed(last_boxed_only_string(row["solution"]))
    return {"prompt": PROBLEM.format(row["problem"]), "right": [answer]}


def _sentiment(row: Row) -> Row:
    return {"prompt": row["query"], "right": [row["choices"][row["gold"]]]}


def _scotus(row: Row) -> Row | None:
    """None for an opinion that is too long."""
    if len(row["text"]) > OPINION_CHARACTERS:
        return None
    prompt = (
        f"Read this opinion of the Supreme Court of the USA:\n{row['text']}\n"
        f"What is its issue area? Options: {', '.join(AREAS)}.\nAnswer:"
    )
    return {"prompt": prompt, "right": [AREAS[row["label"]]]}


def _unfair_tos(row: Row) -> Row | None:
    """None for a fair sentence: the paper's 172 items are about what the unfair ones are."""
    if not row["labels"]:
        return None
    prompt = (
        f"This sentence of terms of service may be unfair:\n{row['text']}\n"
        f"In what way? Options: {', '.join(UNFAIR)}.\nAnswer:"
    )
    return {"prompt": prompt, "right": [UNFAIR[label] for label in row["labels"]]}


ITEMS: dict[str, Callable[[Row], Row | None]] = {
    "gsm8k": _gsm8k,
    "math": _math,
    "fpb": _sentiment,
    "fiqa_sa": _sentiment,
    "scotus": _scotus,
    "unfair_tos": _unfair_tos,
}


def _result(answer: str) -> str:
    """What stands behind the last `####` on its line; or nothing.

    A model that does not stop goes on with a question of its own: that is no part of the answer.
    """
    own = answer.split("Question:")[0]
    return own.rpartition("####")[2].split("\n")[0].strip() if "####" in own else ""


def _number(text: str) -> str:
    """The first number, without currency, commas and a zero fraction; or nothing."""
    found = re.search(r"(-?)\s*\$?\s*(-?)(\d[\d,]*(?:\.\d+)?|(?<![\w.])\.\d+)", text)
    if found is None:
        return ""
    sign, number = found[1] + found[2], found[3].replace(",", "")
    if "." in number:
        number = number.lstrip("0").rstrip("0").rstrip(".")
    return sign + (f"0{number}" if number.startswith(".") else number or "0")


def _without_commas(expression: str) -> str:
    """The same without commas between thousands."""
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", expression)


def right_number(item: Row, results: list[str]) -> dict[str, float]:
    """Of GSM8K: the number behind `####` is the right one."""
    (answer,) = results
    given = _number(_result(answer))
    return {"right": float(given != "" and given == item["right"][0])}


def right_expression(item: Row, results: list[str]) -> dict[str, float]:
    """Of MATH: what stands behind `####` on its line is equal but for its spelling."""
    (answer,) = results
    given = _without_commas(_result(answer).rstrip(".").strip("$ "))
    right = _without_commas(item["right"][0])
    return {"right": float(given != "" and is_equiv(given, right))}


def right_choice(item: Row, results: list[str]) -> dict[str, float]:
    """The paper's rule for the others: the answer contains a right choice."""
    (answer,) = results
    return {"right": float(any(each.lower() in answer.lower() for each in item["right"]))}
