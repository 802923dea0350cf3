"""The compiled passes over deltas, in packages that were installed where there is a C compiler.

They do in one loop what PyTorch and NumPy do elsewhere in the package with a loop for each
operation, and write the same bytes. They work on float32, bfloat16 and float16 tensors on the CPU.

passes.c and passes_of_dtype.h are the C sources, compile.py builds passes.so from them, and
library.py loads it.
"""

from dppa_mergekit.deltas.kernel.combine_pass import AmplifiedDelta, CombinePass
from dppa_mergekit.deltas.kernel.delta_passes import DeltaPasses, PassBuffers, passes_over
from dppa_mergekit.deltas.kernel.library import BLOCK
from dppa_mergekit.deltas.kernel.random_pass import randomize

__all__ = [
    "BLOCK",
    "AmplifiedDelta",
    "CombinePass",
    "DeltaPasses",
    "PassBuffers",
    "passes_over",
    "randomize",
]
