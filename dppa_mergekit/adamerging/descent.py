"""AdaMerging (paper 3.4, arXiv 2310.02575): the weights of a merge by gradient descent.

The derivative of a loss in the weight of a model and block is <dL/dW, amplified pruned delta>, so
one backward pass through the merged model gives it for all of them.
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

from dppa_mergekit.adamerging.states import (
    Evaluation,
    Keep,
    Learned,
    State,
    Table,
    best,
    is_spent,
    said,
    within,
)
from dppa_mergekit.adamerging.teacher import batches
from dppa_mergekit.errors import DppaError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dppa_mergekit.adamerging.losses import DomainLoss
    from dppa_mergekit.live.weighted_merge import WeightedMerge
    from dppa_mergekit.recipes import Weight
    from dppa_mergekit.tensor_names import Block

START_BATCHES = 8
"""Batches of a domain by which its starting loss is taken, at most."""


class LossError(DppaError):
    """A loss is not finite."""


@dataclass(frozen=True)
class Descent:
    """How weights are learned.

    Attributes:
        steps: Of Adam.
        learning_rate: How far a weight moves in a step, at most.
        batch_size: Examples of each domain in a step.
        anchor: What the mean squared distance of the weights from their start counts, beside a
            loss that is 1 at the start.
        per_block: A weight for each model and block; one for each model if not.
        every: Steps from one state that is kept, and evaluated, to the next.
        patience: Evaluations in a row without gain after which learning ends.
        checkpointing: Recompute activations in the backward pass: less memory, more time.
        seed: Of the order of the examples.
    """

    steps: int = 200
    learning_rate: float = 1e-3
    batch_size: int = 8
    anchor: float = 1.0
    per_block: bool = True
    every: int = 20
    patience: int = 3
    checkpointing: bool = False
    seed: int = 0


def learn(
    merge: WeightedMerge,
    domains: Mapping[str, DomainLoss],
    descent: Descent,
    kept: Keep,
    evaluate: Callable[[], Evaluation] | None = None,
) -> Learned:
    """Learn the weights of a merge on the prompts of its domains.

    Every step draws equally from the domains, and every domain's loss counts by its ratio to the
    loss at the start. Where the merge is evaluated, the best state is the result, the start
    included; the last one if not.

    Args:
        merge: Its weights are changed.
        domains: Their losses.
        descent: How to learn.
        kept: Where states go, and come from.
        evaluate: Scores the merge as it is.

    Raises:
        LossError: A loss is not finite; states before that are kept.
    """
    run = _Run(merge, domains, descent, evaluate)
    states = within(kept.states(), descent.steps)
    if not states:
        states.append(run.start())
        kept.add(states[0])
    for state in run.steps(states):
        states.append(state)
        kept.add(state)
    found = result(merge, states)
    merge.set_weights(found.weights)
    return found


def result(merge: WeightedMerge, states: Sequence[State]) -> Learned:
    """What was learned by some states: the weights of the best of them."""
    found = best(states)
    return Learned(_weights(merge, found.settled), found, states)


def _weights(merge: WeightedMerge, table: Table) -> dict[str, Weight]:
    blocks: list[Block | None] = merge.blocks
    return {
        model: dict(zip(blocks, row, strict=True)) if len(row) == len(blocks) > 1 else row[0]
        for model, row in zip(merge.recipe.fine_tuned(), table, strict=True)
    }


class _Run:
    """The steps of one run."""

    def __init__(
        self,
        merge: WeightedMerge,
        domains: Mapping[str, DomainLoss],
        descent: Descent,
        evaluate: Callable[[], Evaluation] | None,
    ) -> None:
        self._merge, self._domains = merge, domains
        self._descent, self._evaluate = descent, evaluate
        by_block = merge.weights()
        self._table = [list(by_block[model].values()) for model in merge.recipe.fine_tuned()]
        if not descent.per_block:
            self._table = [[sum(row) / len(row)] for row in self._table]
        for model, row in zip(merge.recipe.fine_tuned(), self._table, strict=True):
            for weight in row:
                if not 0 <= weight <= 1:
                    raise DppaError(
                        f"{merge.recipe.origin}: the weight of {model} begins at {weight:g}; "
                        f"weights are learned from 0 to 1."
                    )

    def start(self) -> State:
        """The state before the first step."""
        begun = time.perf_counter()
        nothing = [[0.0] * len(row) for row in self._table]
        state = State(0, self._table, (nothing, nothing), {}, None, 0.0)
        self._merge.set_weights(_weights(self._merge, state.settled))
        losses = {}
        for name, drawn in self._drawn(0).items():
            number = math.ceil(self._domains[name].number / self._descent.batch_size)
            with torch.no_grad():
                found = [
                    float(self._domains[name].of(self._merge.model, places))
                    for places in islice(drawn, min(number, START_BATCHES))
                ]
            losses[name] = math.fsum(found) / len(found)
            _check(losses[name], name, 0)
        evaluation = None if self._evaluate is None else self._evaluate()
        return State(0, self._table, state.moments, losses, evaluation, time.perf_counter() - begun)

    def steps(self, states: Sequence[State]) -> Iterator[State]:
        """The states after the last of some, until steps or patience end.

        Args:
            states: At least the start; what is yielded is to be there before the next is asked for.
        """
        descent, first, last = self._descent, states[0], states[-1]
        begun = time.perf_counter() - last.seconds
        weights = torch.tensor(last.weights, dtype=torch.float32)
        origin = torch.tensor(first.weights, dtype=torch.float32)
        optimizer = _optimizer(weights, last, descent.learning_rate)
        drawn = self._drawn(last.step)
        scales = {
            name: 1 / (max(loss, 1e-6) * len(first.losses)) for name, loss in first.losses.items()
        }
        sums = dict.fromkeys(self._domains, 0.0)
        bar: tqdm[NoReturn] = tqdm(
            total=descent.steps, initial=last.step, desc="adamerge", unit="step", delay=2
        )
        with bar:
            for step in range(last.step, descent.steps):
                if is_spent(states, descent.patience):
                    return
                live = _weights(self._merge, weights.tolist())
                self._merge.set_weights(live)
                with (
                    self._merge.weight_gradients(live) as gradients,
                    # Not while the merge is evaluated: some releases of transformers then generate
                    # without keys and values.
                    _checkpointing(self._merge.model) if descent.checkpointing else nullcontext(),
                    torch.enable_grad(),
                ):
                    for name, domain in self._domains.items():
                        loss = domain.of(self._merge.model, next(drawn[name]))
                        _check(float(loss.detach()), name, step + 1)
                        torch.autograd.backward(loss * scales[name])
                        sums[name] += float(loss.detach())
                if not descent.per_block:
                    gradients = gradients.sum(1, keepdim=True)
                pull = 2 * descent.anchor * (weights - origin) / weights.numel()
                weights.grad = gradients.float() + pull
                optimizer.step()
                weights.clamp_(0, 1)
                bar.update()
                if (step + 1) % descent.every and step + 1 < descent.steps:
                    continue
                since = step + 1 - states[-1].step
                losses = {name: total / since for name, total in sums.items()}
                sums = dict.fromkeys(self._domains, 0.0)
                yield self._state(step + 1, weights, optimizer, losses, begun)
                bar.set_postfix_str(said(states[-1]), refresh=False)

    def _state(
        self,
        step: int,
        weights: torch.Tensor,
        optimizer: torch.optim.Adam,
        losses: Mapping[str, float],
        begun: float,
    ) -> State:
        held = optimizer.state[weights]
        moments = (held["exp_avg"].tolist(), held["exp_avg_sq"].tolist())
        state = State(step, weights.tolist(), moments, losses, None, 0.0)
        evaluation = None
        if self._evaluate is not None:
            self._merge.set_weights(_weights(self._merge, state.settled))
            evaluation = self._evaluate()
        seconds = time.perf_counter() - begun
        return State(step, state.weights, moments, losses, evaluation, seconds)

    def _drawn(self, step: int) -> dict[str, Iterator[torch.Tensor]]:
        """The batches of every domain from a step on."""
        descent = self._descent
        return {
            name: islice(
                batches(domain.number, descent.batch_size, descent.seed + place), step, None
            )
            for place, (name, domain) in enumerate(self._domains.items())
        }


def _optimizer(weights: torch.Tensor, state: State, learning_rate: float) -> torch.optim.Adam:
    """Adam, with the moments of a state."""
    optimizer = torch.optim.Adam([weights], lr=learning_rate)
    if state.step:
        mean, square = (torch.tensor(each, dtype=weights.dtype) for each in state.moments)
        optimizer.state[weights] = {
            "step": torch.tensor(float(state.step)),
            "exp_avg": mean,
            "exp_avg_sq": square,
        }
    return optimizer


def _check(loss: float, domain: str, step: int) -> None:
    if not math.isfinite(loss):
        raise LossError(f"The loss of domain {domain} is {loss} at step {step}.")


@contextmanager
def _checkpointing(model: PreTrainedModel) -> Iterator[None]:
    """While open, activations are recomputed in backward passes.

    transformers does it only for a model in training mode; here the layers alone are, and nothing
    that is in them, so that nothing is dropped out.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
    model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    try:
        for layer in layers:
            layer.training = True
        yield
    finally:
        for layer in layers:
            layer.training = False
        model.gradient_checkpointing_disable()  # type: ignore[no-untyped-call]
