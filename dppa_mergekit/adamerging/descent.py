"""AdaMerging (paper 3.4, arXiv 2310.02575): the coefficients of a merge by gradient descent.

The derivative of a loss in a weight is <dL/dW, amplified pruned delta>, over the tensors that have
the weight, so one backward pass through the merged model gives it for all models and scopes. In a
merge by inputs, whose coefficients are factors, the regression applied to that delta takes its
place; for the factor of a partition, that partition of the delta.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NoReturn

import torch
from tqdm import tqdm

from dppa_mergekit.adamerging.batches import draw_batches
from dppa_mergekit.adamerging.coefficients import split
from dppa_mergekit.adamerging.learnable import coefficients_of
from dppa_mergekit.adamerging.states import (
    DevScore,
    LearningResult,
    State,
    StateStore,
    best_state,
    describe,
    is_out_of_patience,
    states_until,
)
from dppa_mergekit.errors import DppaError, ParameterError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dppa_mergekit.adamerging.coefficients import Coefficients, Table
    from dppa_mergekit.adamerging.losses import DomainLoss
    from dppa_mergekit.live.weighted_merge import WeightedMerge

START_BATCHES = 8
"""The largest number of batches of a domain over which its loss at the start is taken."""


class LossError(DppaError):
    """A loss is not finite."""


@dataclass(frozen=True)
class Descent:
    """The settings of gradient descent on coefficients.

    Attributes:
        steps: The number of steps of Adam.
        learning_rate: That of Adam, in units of a coefficient.
        batch_size: The number of examples of every domain in a step.
        anchor: The factor of the mean squared distance of the coefficients from their start, which
            is added to a loss that is 1 at the start.
        granularity: What has coefficients of its own: every `model`, `block`, `linear`, or
            `partition` of a linear.
        every: The number of steps from one state that is kept and evaluated to the next.
        patience: The number of dev scores in a row without improvement after which learning ends.
        checkpointing: Whether to recompute activations in the backward pass: less memory, more
            time.
        seed: The seed of the order of the examples.

    Raises:
        ParameterError: A number is not allowed.

    Example:
        >>> from dppa_mergekit import Descent
        >>> Descent(steps=50, granularity="partition").learning_rate
        0.01
    """

    steps: int = 200
    learning_rate: float = 1e-2
    batch_size: int = 8
    anchor: float = 1.0
    granularity: str = "linear"
    every: int = 20
    patience: int = 3
    checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ParameterError for a number that is not allowed."""
        for name, number in (
            ("steps", self.steps),
            ("batch_size", self.batch_size),
            ("every", self.every),
            ("patience", self.patience),
        ):
            if number < 1:
                raise ParameterError(f"{name} is {number}; allowed is 1 or more.")
        if not 0 < self.learning_rate < math.inf:
            raise ParameterError(
                f"learning_rate is {self.learning_rate:g}; allowed is a finite number above 0."
            )
        if not 0 <= self.anchor < math.inf:
            raise ParameterError(
                f"anchor is {self.anchor:g}; allowed is a finite number of at least 0."
            )


def descend(
    merge: WeightedMerge,
    losses: Mapping[str, DomainLoss],
    descent: Descent,
    store: StateStore | None = None,
    evaluate: Callable[[], DevScore] | None = None,
) -> LearningResult:
    """Learn the coefficients of a live merge by descending the losses of its domains.

    Every step draws equally from the domains, and the loss of every domain counts by its ratio to
    its loss at the start. If the merge is evaluated, the result is the best state, the start
    included; else it is the last state.

    Args:
        merge: The live merge; it ends with the learned coefficients.
        losses: Domain -> its loss.
        descent: The settings.
        store: Keeps the states; the run goes on after the last one that it has.
        evaluate: Returns the dev score of the live merge.

    Raises:
        LossError: A loss is not finite; the states before that are in the store.
        DppaError: A coefficient of the recipe is not within its range.
    """
    run = _Run(merge, losses, descent, evaluate)
    states = [] if store is None else states_until(store.states(), descent.steps)

    def keep(state: State) -> None:
        states.append(state)
        if store is not None:
            store.add(state)

    if not states:
        keep(run.start())
    for state in run.steps(states):
        keep(state)
    result = _take_best(run.learned, states)
    run.learned.set(result.best.settled)
    return result


def take_best(merge: WeightedMerge, granularity: str, states: Sequence[State]) -> LearningResult:
    """Return the coefficients of the best of some states."""
    return _take_best(coefficients_of(merge, granularity), states)


def _take_best(learned: Coefficients, states: Sequence[State]) -> LearningResult:
    best = best_state(states)
    return LearningResult(
        learned.recipe(best.settled), learned.rows, learned.numbers(best.settled), best, states
    )


class _Run:
    """The steps of one run."""

    def __init__(
        self,
        merge: WeightedMerge,
        losses: Mapping[str, DomainLoss],
        descent: Descent,
        evaluate: Callable[[], DevScore] | None,
    ) -> None:
        self._merge, self._losses = merge, losses
        self._descent, self._evaluate = descent, evaluate
        self.learned = coefficients_of(merge, descent.granularity)
        for row in self.learned.rows:
            for value in row.start.values():
                if not 0 <= value <= row.largest:
                    raise DppaError(
                        f"{merge.recipe.origin}: the {row.name} of {row.model} starts at "
                        f"{value:g}; allowed is a number from 0 to {row.largest:g}."
                    )

    def start(self) -> State:
        """Return the state before the first step."""
        begun = time.perf_counter()
        table = self.learned.start
        zeros = [[0.0] * len(row) for row in table]
        state = State(0, table, (zeros, zeros), {}, None, 0.0)
        self.learned.set(state.settled)
        losses = self._start_losses()
        evaluation = None if self._evaluate is None else self._evaluate()
        return State(0, table, state.moments, losses, evaluation, time.perf_counter() - begun)

    def _start_losses(self) -> dict[str, float]:
        """Domain -> its mean loss over the first batches, one round or START_BATCHES at most."""
        means = {}
        for name, batches in self._batches(0).items():
            loss = self._losses[name]
            number = min(math.ceil(loss.number / self._descent.batch_size), START_BATCHES)
            with torch.no_grad():
                found = [
                    float(loss.of(self._merge.model, indices))
                    for indices in islice(batches, number)
                ]
            means[name] = math.fsum(found) / len(found)
            _check_finite(means[name], name, 0)
        return means

    def steps(self, states: Sequence[State]) -> Iterator[State]:
        """Yield the states after the last of some, until steps or patience end.

        Args:
            states: The states so far, at least the start. The caller adds a state that is yielded
                before it asks for the next one.
        """
        descent, first, last = self._descent, states[0], states[-1]
        begun = time.perf_counter() - last.seconds
        values, origin = _flat(last.coefficients), _flat(first.coefficients)
        largest = _flat([[row.largest] * len(row.start) for row in self.learned.rows])
        optimizer = _resume_adam(values, last, descent.learning_rate)
        scales = _scales(first.losses)
        batches = self._batches(last.step)
        sums = dict.fromkeys(self._losses, 0.0)
        bar: tqdm[NoReturn] = tqdm(
            total=descent.steps, initial=last.step, desc="adamerge", unit="step", delay=2
        )
        with bar:
            for step in range(last.step + 1, descent.steps + 1):
                if is_out_of_patience(states, descent.patience):
                    return
                gradients, losses = self._backward(values, scales, batches, step)
                pull = 2 * descent.anchor * (values - origin) / values.numel()
                values.grad = gradients + pull
                optimizer.step()
                values.clamp_(min=0).clamp_(max=largest)
                bar.update()
                sums = {name: total + losses[name] for name, total in sums.items()}
                if step % descent.every and step < descent.steps:
                    continue
                since = step - states[-1].step
                means = {name: total / since for name, total in sums.items()}
                sums = dict.fromkeys(self._losses, 0.0)
                yield self._state(step, values, optimizer, means, begun)
                bar.set_postfix_str(describe(states[-1]), refresh=False)

    def _backward(
        self,
        values: torch.Tensor,
        scales: Mapping[str, float],
        batches: Mapping[str, Iterator[torch.Tensor]],
        step: int,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Compute the gradient of the scaled losses in the coefficients, on the next batches.

        Args:
            values: (coefficients,).
            scales: Domain -> the factor of its loss.
            batches: Domain -> its batches.
            step: The number of the step, for messages.

        Returns:
            The gradient, float32 of the same shape, and domain -> its loss.
        """
        table = split(values.tolist(), self.learned.start)
        self.learned.set(table)
        losses = {}
        with (
            self.learned.gradients(table) as gradients,
            # Not while the merge is evaluated: some releases of transformers then generate
            # without keys and values.
            _checkpointing(self._merge.model) if self._descent.checkpointing else nullcontext(),
            torch.enable_grad(),
        ):
            for name, domain in self._losses.items():
                loss = domain.of(self._merge.model, next(batches[name]))
                losses[name] = float(loss.detach())
                _check_finite(losses[name], name, step)
                torch.autograd.backward(loss * scales[name])
        return gradients.float(), losses

    def _state(
        self,
        step: int,
        values: torch.Tensor,
        optimizer: torch.optim.Adam,
        losses: Mapping[str, float],
        begun: float,
    ) -> State:
        """Return the state after a step, evaluated if there is something to evaluate it by."""
        adam, shape = optimizer.state[values], self.learned.start
        moments = (
            split(adam["exp_avg"].tolist(), shape),
            split(adam["exp_avg_sq"].tolist(), shape),
        )
        state = State(step, split(values.tolist(), shape), moments, losses, None, 0.0)
        evaluation = None
        if self._evaluate is not None:
            self.learned.set(state.settled)
            evaluation = self._evaluate()
        seconds = time.perf_counter() - begun
        return State(step, state.coefficients, moments, losses, evaluation, seconds)

    def _batches(self, step: int) -> dict[str, Iterator[torch.Tensor]]:
        """Domain -> its batches from a step on."""
        size, seed = self._descent.batch_size, self._descent.seed
        return {
            name: islice(draw_batches(loss.number, size, seed + index), step, None)
            for index, (name, loss) in enumerate(self._losses.items())
        }


def _flat(table: Table) -> torch.Tensor:
    """Return the numbers of a table, row after row, (coefficients,) float32."""
    return torch.tensor([number for row in table for number in row], dtype=torch.float32)


def _resume_adam(values: torch.Tensor, state: State, learning_rate: float) -> torch.optim.Adam:
    """Return Adam with the moments of a state."""
    optimizer = torch.optim.Adam([values], lr=learning_rate)
    if state.step:
        mean, square = map(_flat, state.moments)
        optimizer.state[values] = {
            "step": torch.tensor(float(state.step)),
            "exp_avg": mean,
            "exp_avg_sq": square,
        }
    return optimizer


def _scales(losses: Mapping[str, float]) -> dict[str, float]:
    """Domain -> the factor of its loss that makes the sum over domains 1 at the start."""
    return {name: 1 / (max(loss, 1e-6) * len(losses)) for name, loss in losses.items()}


def _check_finite(loss: float, domain: str, step: int) -> None:
    if not math.isfinite(loss):
        raise LossError(f"The loss of domain {domain} is {loss} at step {step}.")


@contextmanager
def _checkpointing(model: PreTrainedModel) -> Iterator[None]:
    """Recompute activations in backward passes, for as long as the context is open.

    transformers does this only for a model in training mode. Here the layers alone are in training
    mode and not the modules inside them, so that dropout stays off.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    try:
        for layer in layers:
            layer.training = True
        yield
    finally:
        for layer in layers:
            layer.training = False
        model.gradient_checkpointing_disable()  # type: ignore[no-untyped-call]
