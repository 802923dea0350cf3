"""The items of the six tasks, from their public datasets, and the rules for right answers.

Test items come from the test parts, dev items from the training parts. If `LLAMA2_7B_STAND_INS` is
set, a few rows with the same columns, in the folder `stand_ins` beside this one, replace the
datasets, and nothing is downloaded.
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
"""Abel's prompt format."""

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
"""About 1,800 tokens; with the question and 2,048 new tokens they fit LLaMA-2's context."""


def load(name: str, part: str, **_: Any) -> dict[str, datasets.Dataset]:
    """Return the items of a task as the only split: a prompt and its right answers."""
    split = "train" if part == "dev" else "test"
    rows = _read_stand_ins(name, split) if os.environ.get(STAND_INS) else _load_rows(name, split)
    items = [item for row in rows for item in [ITEMS[name](row)] if item is not None]
    if part == "dev":
        dataset = datasets.Dataset.from_list(items).shuffle(seed=0)
        return {"test": dataset.select(range(min(DEV_ITEMS, len(dataset))))}
    return {"test": datasets.Dataset.from_list(items)}


def _read_stand_ins(name: str, split: str) -> list[Row]:
    path = Path(__file__).parents[1] / "stand_ins" / f"{name}_{split}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _load_rows(name: str, split: str) -> list[Row]:
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


def _make_gsm8k_item(row: Row) -> Row:
    return {
        "prompt": PROBLEM.format(row["question"]),
        "right": [_find_number(_find_result(row["answer"]))],
    }


def _make_math_item(row: Row) -> Row:
    answer = remove_boxed(last_boxed_only_string(row["solution"]))
    return {"prompt": PROBLEM.format(row["problem"]), "right": [answer]}


def _make_sentiment_item(row: Row) -> Row:
    return {"prompt": row["query"], "right": [row["choices"][row["gold"]]]}


def _make_scotus_item(row: Row) -> Row | None:
    """Return an item, or None if the opinion is too long."""
    if len(row["text"]) > OPINION_CHARACTERS:
        return None
    prompt = (
        f"Read this opinion of the Supreme Court of the USA:\n{row['text']}\n"
        f"What is its issue area? Options: {', '.join(AREAS)}.\nAnswer:"
    )
    return {"prompt": prompt, "right": [AREAS[row["label"]]]}


def _make_unfair_tos_item(row: Row) -> Row | None:
    """Return an item, or None for a fair sentence: the paper's 172 items are unfair ones."""
    if not row["labels"]:
        return None
    prompt = (
        f"This sentence of terms of service may be unfair:\n{row['text']}\n"
        f"In what way? Options: {', '.join(UNFAIR)}.\nAnswer:"
    )
    return {"prompt": prompt, "right": [UNFAIR[label] for label in row["labels"]]}


ITEMS: dict[str, Callable[[Row], Row | None]] = {
    "gsm8k": _make_gsm8k_item,
    "math": _make_math_item,
    "fpb": _make_sentiment_item,
    "fiqa_sa": _make_sentiment_item,
    "scotus": _make_scotus_item,
    "unfair_tos": _make_unfair_tos_item,
}


def _find_result(answer: str) -> str:
    """Return the text after the last `####` on its line, or an empty text.

    A model that does not stop may ask a question of its own; the answer ends before it.
    """
    own = answer.split("Question:")[0]
    return own.rpartition("####")[2].split("\n")[0].strip() if "####" in own else ""


def _find_number(text: str) -> str:
    """Return the first number without currency, commas and a zero fraction, or an empty text."""
    found = re.search(r"(-?)\s*\$?\s*(-?)(\d[\d,]*(?:\.\d+)?|(?<![\w.])\.\d+)", text)
    if found is None:
        return ""
    sign, number = found[1] + found[2], found[3].replace(",", "")
    if "." in number:
        number = number.lstrip("0").rstrip("0").rstrip(".")
    return sign + (f"0{number}" if number.startswith(".") else number or "0")


def _remove_commas(expression: str) -> str:
    """Return an expression without commas between thousands."""
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", expression)


def right_number(item: Row, results: list[str]) -> dict[str, float]:
    """Rate an answer to GSM8K: 1 if the number after `####` is right, else 0."""
    (answer,) = results
    given = _find_number(_find_result(answer))
    return {"right": float(given != "" and given == item["right"][0])}


def right_expression(item: Row, results: list[str]) -> dict[str, float]:
    """Rate an answer to MATH: 1 if the text after `####` is the right expression, else 0."""
    (answer,) = results
    given = _remove_commas(_find_result(answer).rstrip(".").strip("$ "))
    right = _remove_commas(item["right"][0])
    return {"right": float(given != "" and is_equiv(given, right))}


def right_choice(item: Row, results: list[str]) -> dict[str, float]:
    """Rate an answer to another task by the paper's rule: 1 if it has a right choice, else 0."""
    (answer,) = results
    return {"right": float(any(choice.lower() in answer.lower() for choice in item["right"]))}
