"""See every product of an input with a linear of a live model, whatever module makes it.

Experts that a checkpoint stacks have no module of their own, and GPT-2 stores its linears as
(inputs, outputs). So this does not look at modules, but at torch's functions: whichever of them
multiplies with a linear's weight, or a view of it, shows the inputs and how the weight is stored.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.overrides import TorchFunctionMode

from dppa_mergekit.tensor_names import Linear

OnProduct: TypeAlias = Callable[[Linear, bool, torch.Tensor], None]
"""Called with the linear, whether it is stored as (inputs, outputs), and (vectors, inputs)."""

_BY_TRANSPOSE = frozenset({torch.nn.functional.linear})
"""Functions of (x, W) that compute x W^T."""

_PLAIN = frozenset(
    {
        torch.matmul,
        torch.mm,
        torch.bmm,
        torch.Tensor.matmul,
        torch.Tensor.mm,
        torch.Tensor.bmm,
        torch.Tensor.__matmul__,
    }
)
"""Functions of (x, W) that compute x W."""

_ADDING = frozenset({torch.addmm, torch.Tensor.addmm, torch.baddbmm, torch.Tensor.baddbmm})
"""Functions of (b, x, W) that compute b + x W."""


@dataclass(frozen=True)
class _Stored:
    """The memory of a tensor that holds linears.

    Attributes:
        begin: The address of its first byte.
        end: The address after its last byte.
        name: The name of the tensor.
        shape: Its shape: two axes, or three if it stacks experts.
    """

    begin: int
    end: int
    name: str
    shape: Sequence[int]


class ProductObserver(TorchFunctionMode):
    """While open, calls a function with every input of every linear."""

    def __init__(self, weights: Mapping[str, torch.Tensor], on_product: OnProduct) -> None:
        """Prepare to observe.

        Args:
            weights: Name -> live tensor that holds a linear, or stacks those of experts.
            on_product: Called for every product.
        """
        super().__init__()
        self._stored = sorted(
            (
                _Stored(
                    tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes, name, tuple(tensor.shape)
                )
                for name, tensor in weights.items()
            ),
            key=lambda stored: stored.begin,
        )
        self._begins = [stored.begin for stored in self._stored]
        self._on_product = on_product

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Look at the operands of one call, then make it."""
        given = kwargs or {}
        if func in _BY_TRANSPOSE:
            self._look(_operands(args, given, 0, ("input", "weight")), transposes=True)
        elif func in _PLAIN:
            self._look(_operands(args, given, 0, ("input", "other")), transposes=False)
        elif func in _ADDING:
            self._look(_operands(args, given, 1, ("mat1", "mat2")), transposes=False)
        return func(*args, **given)

    def _look(self, operands: tuple[object, object], transposes: bool) -> None:
        vectors, weight = operands
        if not isinstance(vectors, torch.Tensor) or not isinstance(weight, torch.Tensor):
            return
        stored = self._find(weight)
        if stored is None or weight.dim() not in (2, 3):
            return
        # A weight of one row or column has no order of its axes.
        is_row_major = weight.stride(-1) == 1
        inputs_first = is_row_major != transposes
        rows, columns = stored.shape[-2:]
        expert = (weight.data_ptr() - stored.begin) // (rows * columns * weight.element_size())
        if weight.dim() == 2:
            flat = vectors.reshape(-1, vectors.shape[-1])
            self._on_product(Linear(stored.name, expert), inputs_first, flat)
            return
        if len(stored.shape) == 3 and vectors.dim() == 3:
            for offset, of_expert in enumerate(vectors):
                self._on_product(Linear(stored.name, expert + offset), inputs_first, of_expert)

    def _find(self, weight: torch.Tensor) -> _Stored | None:
        """Return the tensor that a weight is, or is a view of."""
        address = weight.data_ptr()
        index = bisect.bisect_right(self._begins, address) - 1
        if index < 0 or address >= self._stored[index].end:
            return None
        return self._stored[index]


def _operands(
    args: Sequence[object], given: Mapping[str, object], first: int, names: tuple[str, str]
) -> tuple[object, object]:
    """Return the factors of a product, given by position or by name."""
    left, right = (
        args[position] if position < len(args) else given.get(name)
        for position, name in zip((first, first + 1), names, strict=True)
    )
    return left, right
