"""Estimates of the time and memory of each step; none of them is measured at this size.

Time and memory of merges follow the fits in the README, "Larger models", by the bytes that are
read. Memory of the other steps follows from what they hold: on the GPU the model, its kept deltas,
and the keys and values of a batch whose texts fill the context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from model_headers import (
    BYTES,
    CONTEXT,
    HIDDEN,
    LAYERS,
    MODELS,
    count_parameters,
    list_shapes,
)
from recipe_files import list_inputs, list_tasks, read_recipe

CANDIDATES, STEPS, LEARNING_RATE = 40, 200, 5e-3

DEV_ITEMS = 200
"""Items of each dev task."""

TEST_ITEMS = {
    "gsm8k": 1319,
    "math": 5000,
    "fpb": 970,
    "fiqa_sa": 235,
    "scotus": 150,
    "unfair_tos": 172,
}
"""Items of each test task, by the datasets' cards. The number of SCOTUS's opinions that are short
enough is a guess."""

TOKENS = {
    "gsm8k": 150,
    "math": 250,
    "fpb": 30,
    "fiqa_sa": 30,
    "scotus": 50,
    "unfair_tos": 50,
}
"""New tokens of a usual answer. An answer that does not end takes 2,048."""

BATCH_SIZE = 8
"""The batch size in the tasks files."""

LONGEST = 2.0
"""Tokens of the longest answer of a batch, relative to a usual one. An answer that does not end
makes its whole batch wait for 2,048 tokens."""

CORES = 16

WRITTEN, REDUCED = 1.2e-9, 1.4e-9
"""Core seconds of AdaMerging for each parameter and model: to write new weights in a step, and to
turn a domain's gradient into gradients of weights (measured on SmolLM2-135M, in bfloat16)."""

PICKLED = 9.9e9
"""Bytes of Abel's largest file, which mergekit reads as a whole."""

CARRIED = 2e10
"""Bytes a second between memory and GPU."""

OPERATIONS = 1e14
"""Operations a second of forward and backward passes on the GPU."""

LESSON_TOKENS = 300
"""Tokens of a prompt and the teacher's answer."""

PARAMETERS = count_parameters()
MODEL_BYTES = BYTES * PARAMETERS


@dataclass(frozen=True)
class Costs:
    """The bytes and seconds that steps take for one recipe.

    Attributes:
        name: Name of the recipe.
        device: Where models are evaluated: cpu, cuda, ...
        rate: New tokens a second, of all the items of a batch together.
    """

    name: str
    device: str
    rate: float

    @property
    def merge_seconds(self) -> float:
        """Seconds of a merge, fitted on four models of two bytes an element."""
        read = sum(MODELS[model].bytes for model in list_inputs(self.name))
        return 4.9 + 27.9e-9 * read / (4 * BYTES)

    @property
    def reading_memory(self) -> float:
        """Bytes that a merge takes beside the output shard."""
        return 0.4e9 + 2.7 * max(math.prod(shape) for shape in list_shapes().values())

    @property
    def search_seconds(self) -> float:
        """Seconds of a search in which no candidate is dropped early."""
        merges = len(list_tasks(self.name)) * self.merge_seconds
        return merges + (CANDIDATES + 1) * DEV_ITEMS * self._item_seconds

    @property
    def adamerge_seconds(self) -> float:
        """Seconds of AdaMerging, with scores of the fine-tuned models, the start and ten states."""
        steps = STEPS * self._step_seconds
        return self.merge_seconds + steps + 12 * DEV_ITEMS * self._item_seconds

    @property
    def evaluate_seconds(self) -> float:
        """Seconds to score the fine-tuned models and the merge on all test items."""
        tokens = sum(TEST_ITEMS[task] * TOKENS[task] for task in self._tasks)
        return (self._models + 1) * (tokens * LONGEST / self.rate)

    @property
    def search_memory(self) -> tuple[float, float]:
        """Bytes of a search in memory and on the GPU."""
        density = read_recipe(self.name)["models"][0]["parameters"]["density"]
        kept = 2.55 * density * MODEL_BYTES  # values, indices, base values: 0.51 x at density 0.2
        # While the merge is loaded, a fine-tuned model in float16 is in memory, too.
        return self._divide(2 * MODEL_BYTES + kept, 0, MODEL_BYTES + kept + self._text_bytes)

    @property
    def adamerge_memory(self) -> tuple[float, float]:
        """Bytes of AdaMerging in memory and on the GPU."""
        loading = (self._models + 1) * MODEL_BYTES
        held = 1.07 * MODEL_BYTES + self._text_bytes
        return self._divide(loading, self._models * MODEL_BYTES, held)

    @property
    def evaluate_memory(self) -> tuple[float, float]:
        """Bytes of an evaluation in memory and on the GPU."""
        return self._divide(MODEL_BYTES, 0, MODEL_BYTES + self._text_bytes)

    @property
    def _models(self) -> int:
        """The number of fine-tuned models."""
        return len(read_recipe(self.name)["models"])

    @property
    def _tasks(self) -> list[str]:
        return [task for tasks in list_tasks(self.name).values() for task in tasks]

    @property
    def _item_seconds(self) -> float:
        """Seconds to answer an item of every task."""
        return sum(TOKENS[task] for task in self._tasks) * LONGEST / self.rate

    @property
    def _text_bytes(self) -> float:
        """Bytes of the keys and values of a batch whose texts fill the context."""
        return BATCH_SIZE * CONTEXT * 2 * LAYERS * HIDDEN * BYTES

    @property
    def _step_seconds(self) -> float:
        """Seconds of a step of AdaMerging."""
        domains = len(list_tasks(self.name))
        return (
            PARAMETERS * self._models * (WRITTEN + domains * REDUCED) / CORES
            + (1 + domains) * MODEL_BYTES / CARRIED
            # Forward, the same once more for gradient checkpointing, and backward.
            + domains * BATCH_SIZE * LESSON_TOKENS * PARAMETERS * 8 / OPERATIONS
        )

    def _divide(self, loading: float, kept: float, held: float) -> tuple[float, float]:
        """Return the peak bytes of memory and of the GPU; 0 for the GPU if there is none.

        Args:
            loading: Bytes in memory until the model is on its device.
            kept: Bytes that stay in memory afterwards.
            held: Bytes of the model, and of everything on its device with it.
        """
        return (max(loading, kept + held), 0) if self.device == "cpu" else (loading, held)
