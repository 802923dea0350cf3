"""States of AdaMerging: where learning is after some steps, and which state is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dppa_mergekit.scoring.ratios import Estimate

if TYPE_CHECKING:
    from dppa_mergekit.recipes import Weight

DIGITS = 6
"""Decimal places of the weights that are evaluated and written."""

GONE = 0.01
"""A mean weight below which a model is not in the merge any more."""

Table = list[list[float]]
"""(models, blocks), or (models, 1)."""


@dataclass(frozen=True)
class Evaluation:
    """What a state of the merge is worth on dev tasks.

    Attributes:
        value: The more, the better.
        estimate: What people are shown.
        parts: Domain by domain.
    """

    value: float
    estimate: Estimate
    parts: Mapping[str, Estimate]


@dataclass(frozen=True)
class State:
    """Learning after some steps: all that is needed to go on from there.

    Attributes:
        step: How many were made.
        weights: As they are.
        moments: Adam's means of the gradients, and of their squares.
        losses: Domain -> mean loss of the steps since the state before; at step 0, of the start.
        evaluation: On dev tasks, where there are any.
        seconds: Of all so far.
    """

    step: int
    weights: Table
    moments: tuple[Table, Table]
    losses: Mapping[str, float]
    evaluation: Evaluation | None
    seconds: float

    @property
    def settled(self) -> Table:
        """The weights as they are evaluated and written."""
        return [[round(weight, DIGITS) for weight in row] for row in self.weights]


class Keep(Protocol):
    """Where states go, and where they come from."""

    def states(self) -> Sequence[State]:
        """Those of a run that this one goes on with."""
        ...

    def add(self, state: State) -> None:
        """Keep one more."""
        ...


@dataclass(frozen=True)
class Learned:
    """What was learned.

    Attributes:
        weights: Fine-tuned model, as the recipe spells it -> its weight.
        best: The state that these are of.
        states: All, from the start on.
    """

    weights: Mapping[str, Weight]
    best: State
    states: Sequence[State]


def within(states: Sequence[State], steps: int) -> list[State]:
    """States in order, without those of a longer run."""
    by_step = {state.step: state for state in states if state.step <= steps}
    return [by_step[step] for step in sorted(by_step)]


def best(states: Sequence[State]) -> State:
    """The best of some states, the first of equals; without evaluations the last."""
    return states[-1] if states[-1].evaluation is None else max(states, key=_value)


def _value(state: State) -> float:
    return -math.inf if state.evaluation is None else state.evaluation.value


def is_spent(states: Sequence[State], patience: int) -> bool:
    """Whether the last evaluations brought nothing better than the best before them."""
    if states[-1].evaluation is None or len(states) <= patience:
        return False
    before = max(_value(state) for state in states[:-patience])
    return all(_value(state) <= before for state in states[-patience:])


def said(state: State) -> str:
    """Losses, the weights' range and the dev score, for people."""
    every = [weight for row in state.weights for weight in row]
    parts = [", ".join(f"{name} {loss:.3g}" for name, loss in state.losses.items())]
    parts.append(f"weights {min(every):.2f} to {max(every):.2f}")
    if state.evaluation is not None:
        parts.append(f"dev {state.evaluation.estimate}")
    return "; ".join(parts)


def warnings_of(found: Learned, is_entropy: bool) -> list[str]:
    """What looks wrong about what was learned, in sentences.

    Args:
        found: What was learned.
        is_entropy: Whether the losses are entropies, which may fall where the merge gets worse.
    """
    first, last = found.states[0], found.states[-1]
    sentences = []
    for place, model in enumerate(found.weights):
        before, after = (_mean(state.weights[place]) for state in (first, found.best))
        if after < GONE <= before:
            sentences.append(
                f"The mean weight of {model} fell from {before:.2f} to {after:.3f}: it is hardly "
                f"in the merge any more; try a larger --anchor."
            )
    if is_entropy and first.evaluation is not None and last.evaluation is not None:
        entropies = [_mean(list(state.losses.values())) for state in (first, last)]
        if entropies[1] < entropies[0] and last.evaluation.value < first.evaluation.value:
            sentences.append(
                f"The entropy fell from {entropies[0]:.2f} to {entropies[1]:.2f} while the dev "
                f"score fell from {first.evaluation.estimate} to {last.evaluation.estimate}: the "
                f"merge got surer, not better; try objective distill."
            )
    return sentences


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
