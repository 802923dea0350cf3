"""Reduce the gradients of live weights one by one, so that they are never held together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Reduce = Callable[[torch.Tensor], None]
"""Takes the gradient of one parameter, in the parameter's shape, and keeps no reference to it."""


@contextmanager
def reduce_gradients(model: PreTrainedModel, reductions: Mapping[str, Reduce]) -> Iterator[None]:
    """Pass every gradient to its reduction as soon as backward has completed it, then drop it.

    At no time are two gradients of parameters in memory.

    Args:
        model: No parameter of it requires a gradient, before and after the context.
        reductions: Name of a parameter -> the function that takes its gradient. Parameters that
            are not named get no gradient.
    """
    hooks = []
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in reductions)
            if name in reductions:
                hook = _hook(reductions[name])
                hooks.append(parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
        yield
    finally:
        for hook in hooks:
            hook.remove()
        model.requires_grad_(False)


def _hook(reduce: Reduce) -> Callable[[torch.Tensor], None]:
    def hook(parameter: torch.Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        reduce(gradient)

    return hook
