"""The sizes of what `activations` and a combination by inputs hold, from shapes alone.

With n the width of an input of linears, r the rank (at most n), K models, and R = K r:

- An activations file has, for every input, vectors (n, r) in float16, values (r,) and a diagonal
  (n,) in float32: `2 n r + 4 r + 4 n` bytes.
- While a model is observed, every input has a buffer of 2 r rows of n in float32, and a diagonal in
  float64: `8 n r + 8 n` bytes; where n <= 2 r, a matrix (n, n): `4 n^2 + 8 n`.
- The solution for an input has shares (K, n), vectors (n, r) of each model and a correction (R, n),
  all in float32: `8 n R + 4 n K` bytes.
- Solving takes three matrices (R, n) in float64 and two in float32 at its peak, and a system (R, R)
  and its inverse in float64: `32 n R + 16 R^2` bytes. So many unknowns are solved only where R < n.

`tests/examples/test_input_costs.py` compares the first three with real files and tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RANK = 96
"""The default of `activations`."""


@dataclass(frozen=True)
class InputCosts:
    """The bytes of the inputs of the linears of models of one architecture.

    Attributes:
        widths: The width of every input of linears.
        models: The number of fine-tuned models.
        rank: The largest rank of the moments.
    """

    widths: Sequence[int]
    models: int
    rank: int = RANK

    @property
    def file_bytes(self) -> int:
        """Bytes of the tensors of one model's activations file."""
        return sum(2 * width * rank + 4 * rank + 4 * width for width, rank in self._ranked)

    @property
    def sketch_bytes(self) -> int:
        """Bytes beside the model while its inputs are observed."""
        return sum(
            (4 * width * width if width <= 2 * rank else 8 * width * rank) + 8 * width
            for width, rank in self._ranked
        )

    @property
    def solution_bytes(self) -> int:
        """Bytes of the solutions for all inputs, which AdaMerging keeps."""
        return sum(
            8 * width * rank * self.models + 4 * width * self.models for width, rank in self._ranked
        )

    @property
    def solving_bytes(self) -> int:
        """Bytes at the peak of solving for the widest input."""
        width = max(self.widths)
        together = min(self.rank, width) * self.models
        return 32 * width * together + 16 * together**2

    @property
    def learning_bytes(self) -> int:
        """Bytes of all moments and solutions, which stay in memory while factors are learned."""
        return self.models * self.file_bytes + self.solution_bytes

    def merging_bytes(self, block: Sequence[int]) -> int:
        """Bytes that a merge takes beside those of a sum.

        A file is read as a whole once, to check it. Then the moments and the solutions of a block
        stay in memory, and one system is solved at a time.

        Args:
            block: The widths of the inputs of a block.
        """
        of_block = InputCosts(block, self.models, self.rank)
        return max(self.file_bytes, of_block.learning_bytes + self.solving_bytes)

    @property
    def _ranked(self) -> list[tuple[int, int]]:
        """The width and the rank of every input."""
        return [(width, min(self.rank, width)) for width in self.widths]
