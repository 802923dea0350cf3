"""Gradients of live weights, reduced one by one to what is wanted of them, and dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Reduce = Callable[[torch.Tensor], None]
"""Is handed the gradient of one parameter, in its shape."""


@contextmanager
def reduce_gradients(model: PreTrainedModel, reductions: Mapping[str, Reduce]) -> Iterator[None]:
    """While open, backward passes hand over each gradient as soon as it is complete.

    No two of them are held at a time.

    Args:
        model: Without gradients, before and after.
        reductions: Name of a parameter -> what takes its gradient; others get none.
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
