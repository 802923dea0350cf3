"""What an item of a task is, how training items are drawn, and which are held out.

In:  a function that draws an item of a task.
Out: training items whose prompts are never those of the dev or the test part, and those parts as
     JSONL files, the same bytes every time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

PARTS = ("dev", "test")


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
    """A task of a domain.

    Attributes:
        name: As in the tasks file, without the part.
        domain: To which it belongs.
        draw: Makes an item by the task's rule.
        light_answer: The light answer to an item; the true one where the task has no other.
        items: In each of the held-out parts.
    """

    name: str
    domain: str
    draw: Callable[[Random], Item]
    light_answer: Callable[[Item], str] = lambda item: item.answer
    items: int = 250

    @cached_property
    def held_out(self) -> dict[str, list[Item]]:
        """The dev and the test items: all prompts different, the same on every call."""
        random = Random(f"held out: {self.name}")
        items: dict[str, Item] = {}
        while len(items) < len(PARTS) * self.items:
            item = self.draw(random)
            items.setdefault(item.prompt, item)
        in_order = list(items.values())
        return {
            part: in_order[number * self.items : (number + 1) * self.items]
            for number, part in enumerate(PARTS)
        }

    @cached_property
    def held_out_prompts(self) -> frozenset[str]:
        """The prompts that training must not see."""
        return frozenset(item.prompt for part in self.held_out.values() for item in part)

    def draw_for_training(self, random: Random, light: bool = False) -> Item:
        """An item whose prompt is in neither the dev nor the test part."""
        while True:
            item = self.draw(random)
            if item.prompt not in self.held_out_prompts:
                return Item(item.prompt, self.light_answer(item)) if light else item


def write_held_out(tasks: Sequence[Task], folder: Path) -> None:
    """Write the dev and the test part of every task to `folder`."""
    for task in tasks:
        for part, items in task.held_out.items():
            lines = "".join(item.as_json() + "\n" for item in items)
            (folder / f"{task.name}_{part}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
