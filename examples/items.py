"""Items of tasks: drawn for training, or held out as the dev and the test part.

In:  a function that draws an item of a task.
Out: training items whose prompts are in neither held-out part, and those parts as JSONL files, with
     the same bytes every time.
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
    """A question with its exact answer; only multiple-choice tasks have `choices`."""

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the line of a JSONL file, without a line break."""
        record: dict[str, object] = {"prompt": self.prompt, "answer": self.answer}
        if self.choices:
            record["choices"] = self.choices
        return json.dumps(record)


@dataclass(frozen=True)
class Task:
    """A task of a domain.

    Attributes:
        name: Its name in the tasks file, without the part.
        domain: The domain to which it belongs.
        draw: Draws an item by the task's rule.
        light_answer: Returns the light answer to an item, or the true one if the task has no light
            answers.
        items: Number of items in each held-out part.
    """

    name: str
    domain: str
    draw: Callable[[Random], Item]
    light_answer: Callable[[Item], str] = lambda item: item.answer
    items: int = 250

    @cached_property
    def held_out(self) -> dict[str, list[Item]]:
        """The dev and the test items: all prompts differ, and the items are the same every time."""
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
        """The prompts that training never sees."""
        return frozenset(item.prompt for part in self.held_out.values() for item in part)

    def draw_for_training(self, random: Random, light: bool = False) -> Item:
        """Draw an item whose prompt is not held out, with its true or its light answer."""
        while True:
            item = self.draw(random)
            if item.prompt not in self.held_out_prompts:
                return Item(item.prompt, self.light_answer(item)) if light else item


def choose_draw(tasks: Sequence[Task], domain: str) -> Callable[[Random], Item]:
    """Return a function that draws training items of a domain, equally often from its tasks."""
    own = [task for task in tasks if task.domain == domain]
    return lambda random: random.choice(own).draw_for_training(random)


def draw_prompts(tasks: Sequence[Task], domain: str, number: int) -> list[str]:
    """Return prompts of a domain's training, without answers, the same ones every time."""
    draw, random = choose_draw(tasks, domain), Random(f"observed {domain}")
    return [draw(random).prompt for _ in range(number)]


def write_held_out(tasks: Sequence[Task], folder: Path) -> None:
    """Write the dev and the test part of every task to JSONL files in `folder`."""
    for task in tasks:
        for part, items in task.held_out.items():
            lines = "".join(item.to_json() + "\n" for item in items)
            (folder / f"{task.name}_{part}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
