"""States of AdaMerging: all that is needed to go on from a step, and which state is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dppa_mergekit.adamerging.coefficients import Numbers, Row, Table
from dppa_mergekit.parameters import AMPLIFICATION_NAMES, WEIGHT
from dppa_mergekit.scoring.ratios import Estimate

if TYPE_CHECKING:
    from dppa_mergekit.recipes.recipe import Recipe

DIGITS = 4
"""Decimal places of the coefficients that are evaluated and written: finer than the steps of bf16,
which rounds a weight of 0.3 to 0.001."""

GONE = 0.01
"""Below this mean coefficient a model has practically left the merge."""


@dataclass(frozen=True)
class DevScore:
    """The score of a live merge on dev tasks.

    Attributes:
        value: The number by which states are compared; higher is better.
        estimate: The number that is shown, with its standard error.
        parts: Domain -> its own estimate.
    """

    value: float
    estimate: Estimate
    parts: Mapping[str, Estimate]


@dataclass(frozen=True)
class State:
    """Learning after some steps: all that is needed to go on from there.

    Attributes:
        step: The number of steps made.
        coefficients: (rows, scopes of the row) the coefficients.
        moments: The same twice: Adam's means of the gradients and of their squares.
        losses: Domain -> mean loss over the steps since the state before; at step 0, the loss at
            the start.
        evaluation: The score on dev tasks; None without dev tasks.
        seconds: The time of all steps and evaluations so far.
    """

    step: int
    coefficients: Table
    moments: tuple[Table, Table]
    losses: Mapping[str, float]
    evaluation: DevScore | None
    seconds: float

    @property
    def settled(self) -> list[list[float]]:
        """The coefficients as they are evaluated and written, to DIGITS."""
        return [[round(value, DIGITS) for value in row] for row in self.coefficients]


class StateStore(Protocol):
    """Keeps the states of a run, so that an interrupted run can go on."""

    def states(self) -> Sequence[State]:
        """Return the states kept so far, those of an earlier run included."""
        ...

    def add(self, state: State) -> None:
        """Keep one more state."""
        ...


@dataclass(frozen=True)
class LearningResult:
    """The learned weights, or factors of a merge by inputs.

    Attributes:
        recipe: The recipe with what was learned.
        rows: What was learned, and where it started.
        coefficients: Fine-tuned model, as the recipe spells it -> name of a row -> the coefficients
            of the best state: `weight` -> its weight, from 0 to 1; `factor` -> the factor by which
            those of the recipe are multiplied; `amplify_90`, ... -> the factor of a partition. Each
            is a number, or scope -> number.
        best: The state that has these coefficients.
        states: All states, from the start on.
    """

    recipe: Recipe
    rows: Sequence[Row]
    coefficients: Numbers
    best: State
    states: Sequence[State]

    @property
    def words(self) -> str:
        """What was learned, in words: weights, factors, or both."""
        kinds = ["weights" if row.name == WEIGHT.name else "factors" for row in self.rows]
        return " and ".join(dict.fromkeys(kinds))


def states_until(states: Sequence[State], steps: int) -> list[State]:
    """Return the states of at most so many steps, in order of their steps."""
    by_step = {state.step: state for state in states if state.step <= steps}
    return [by_step[step] for step in sorted(by_step)]


def best_state(states: Sequence[State]) -> State:
    """Return the state with the best dev score, the first of equals; without scores the last."""
    return states[-1] if states[-1].evaluation is None else max(states, key=_value)


def _value(state: State) -> float:
    return -math.inf if state.evaluation is None else state.evaluation.value


def is_out_of_patience(states: Sequence[State], patience: int) -> bool:
    """Tell whether the last `patience` dev scores are no better than the best before them."""
    if states[-1].evaluation is None or len(states) <= patience:
        return False
    before = max(_value(state) for state in states[:-patience])
    return all(_value(state) <= before for state in states[-patience:])


def describe(state: State) -> str:
    """Return the losses, the range of the coefficients and the dev score as one line of text."""
    values = [value for row in state.coefficients for value in row]
    parts = [", ".join(f"{name} {loss:.3g}" for name, loss in state.losses.items())]
    parts.append(f"coefficients {min(values):.2f} to {max(values):.2f}")
    if state.evaluation is not None:
        parts.append(f"dev {state.evaluation.estimate}")
    return "; ".join(parts)


def warnings_about(result: LearningResult, is_entropy: bool) -> list[str]:
    """Return a sentence for everything that looks wrong about learned coefficients.

    Args:
        result: The learned weights.
        is_entropy: Whether the losses are entropies, which may fall while the merge gets worse.
    """
    first, last = result.states[0], result.states[-1]
    sentences = []
    for number, row in enumerate(result.rows):
        before, after = (_mean(state.coefficients[number]) for state in (first, result.best))
        if after < GONE <= before:
            sentences.append(
                f"The mean {row.name} of {row.model} fell from {before:.2f} to {after:.3f}, so "
                f"{'a partition' if row.name in AMPLIFICATION_NAMES.values() else 'it'} has "
                f"practically left the merge; try a larger --anchor."
            )
    if is_entropy and first.evaluation is not None and last.evaluation is not None:
        entropies = [_mean(list(state.losses.values())) for state in (first, last)]
        if entropies[1] < entropies[0] and last.evaluation.value < first.evaluation.value:
            sentences.append(
                f"The entropy fell from {entropies[0]:.2f} to {entropies[1]:.2f} while the dev "
                f"score fell from {first.evaluation.estimate} to {last.evaluation.estimate}: the "
                f"merge became more certain, not better; try objective distill."
            )
    return sentences


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
