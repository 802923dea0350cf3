"""The outputs and inputs of a linear, and how its checkpoint stores them."""

from dataclasses import dataclass

import torch

from dppa_mergekit.deltas.delta import chunk_length


@dataclass(frozen=True)
class LinearShape:
    """The shape of a linear as a matrix that maps inputs to outputs.

    Attributes:
        outputs: The number of outputs.
        inputs: The number of inputs.
        inputs_first: Whether the checkpoint stores (inputs, outputs), as GPT-2 does, and not
            (outputs, inputs).
    """

    outputs: int
    inputs: int
    inputs_first: bool = False

    @classmethod
    def of(cls, shape: tuple[int, int], inputs_first: bool) -> "LinearShape":
        """Return the shape of a linear that is stored in two axes of these sizes."""
        first, second = shape
        return cls(second, first, True) if inputs_first else cls(first, second)

    def rows(self, device: torch.device) -> list[tuple[int, int]]:
        """Return (start, stop) of pieces of the outputs that are as large as a delta's chunks."""
        length = max(1, chunk_length(device) // self.inputs)
        return [
            (start, min(start + length, self.outputs)) for start in range(0, self.outputs, length)
        ]

    def matrix(self, flat: torch.Tensor) -> torch.Tensor:
        """Return a stored linear, (numel,), as a view of shape (outputs, inputs)."""
        if self.inputs_first:
            return flat.view(self.inputs, self.outputs).t()
        return flat.view(self.outputs, self.inputs)
