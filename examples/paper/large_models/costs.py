"""Estimates of the time and memory of each step; none of them is measured at this size.

Time and memory of merges follow the fits in the guide "Performance", by the bytes
that are read. Memory of the other steps follows from what they hold: on the GPU the model, its kept
deltas, and the keys and values of a batch of the longest texts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from input_costs import RANK, InputCosts
from model_sets import ModelSet, Pool, Task

CANDIDATES, STEPS = 40, 200

DEV_ITEMS = 200
"""Items of each dev task."""

PROMPTS = 32
"""Prompts of a domain that `activations` observes, and that AdaMerging learns from where there are
no dev tasks."""

OBSERVED_TOKENS = 64
"""New tokens of an answer that is observed, the default of `activations`."""

LONGEST = 2.0
"""Tokens of the longest answer of a batch, relative to a usual one. An answer that does not end
makes its whole batch wait until it is cut."""

CORES = 16

WRITTEN, REDUCED = 1.2e-9, 1.4e-9
"""Core seconds of AdaMerging for each parameter and model: to write new weights in a step, and to
turn a domain's gradient into gradients of weights (measured on SmolLM2-135M, in bfloat16)."""

BY_PARTITIONS = 1.29
"""Time of a step that learns the factor of every partition, relative to one by blocks (measured on
three models of 0.22 B parameters)."""

REGRESSED = 20e-9 / (3 * 96)
"""Seconds for each parameter and column of all moments together: to combine by inputs on two cores
(measured with three models of rank 96). A gradient takes as many products."""

MEASURED_CORES = 2
"""Cores of the machine on which `REGRESSED` was measured."""

DECOMPOSED = 0.01
"""Seconds to compress the buffer of one input (a guess: an eigendecomposition in float64)."""

READ = 1e9
"""Bytes a second from the disk (a guess)."""

CARRIED = 2e10
"""Bytes a second between memory and GPU."""

OPERATIONS = 1e14
"""Operations a second of forward and backward passes on the GPU."""

LESSON_TOKENS = 300
"""Tokens of a prompt and an answer."""

LOGITS = 4
"""Arrays of the size of the logits, in float32, in a step of AdaMerging: the logits, their float32
copy, their logarithms and the gradient (a guess)."""


@dataclass(frozen=True)
class Costs:
    """The bytes and seconds that steps take for one recipe.

    Attributes:
        model_set: The set of models.
        name: Name of the recipe.
        device: Where models are evaluated: cpu, cuda, ...
        rate: New tokens a second, of all the items of a batch together.
    """

    model_set: ModelSet
    name: str
    device: str
    rate: float

    @property
    def model_bytes(self) -> int:
        """Bytes of a model with the base's vocabulary, in the dtype of the merge."""
        return self.model_set.element_bytes * self._parameters

    @property
    def pickled_bytes(self) -> float:
        """Bytes of the largest .bin file of the models that are merged."""
        return max(self.model_set.models[model].pickled_bytes for model in self._pool.inputs)

    @property
    def prompts_seconds(self) -> float:
        """Seconds to download datasets and to draw prompts (a guess)."""
        return 60.0 * len(self._pool.domains)

    @property
    def sum_seconds(self) -> float:
        """Seconds of a sum of deltas: a fit on four models, by the bytes that are read.

        The guide's fit is 4.9 s, and 27.9 s for each 1e9 parameters of a base and three models, of
        two bytes an element.
        """
        read = sum(self.model_set.models[model].bytes for model in self._pool.inputs)
        return 4.9 + 27.9e-9 * read / (4 * 2)

    @property
    def merge_seconds(self) -> float:
        """Seconds of a merge.

        By inputs, 20 s for each 1e9 parameters come on top with three models of rank 96, and in
        proportion to the columns of all moments otherwise.
        """
        combined = self._columns * REGRESSED * self._parameters if self._by_inputs else 0
        return self.sum_seconds + combined

    @property
    def merge_memory(self) -> float:
        """Bytes that a merge takes beside the output shard."""
        return self.reading_memory + (self._inputs.merging_bytes(self._block) * self._by_inputs)

    @property
    def reading_memory(self) -> float:
        """Bytes to read the models' tensors and to combine the largest, which is the embedding."""
        largest = max(
            math.prod(shape)
            for model in self._pool.inputs
            for shape in self.model_set.models[model].shapes().values()
        )
        return 0.4e9 + 2.7 * largest

    @property
    def search_seconds(self) -> float:
        """Seconds of a search in which no candidate is dropped early."""
        merges = self._scored * self.merge_seconds
        return merges + (CANDIDATES + 1) * DEV_ITEMS * self._dev_item_seconds

    @property
    def search_memory(self) -> tuple[float, float]:
        """Bytes of a search in memory and on the GPU."""
        density = self.model_set.variant(self.name).density
        # Values, indices, base values: 0.51 x at density 0.2.
        kept = 2.55 * density * self.model_bytes
        # While the merge is loaded, a fine-tuned model in two bytes an element is in memory, too.
        held = self.model_bytes + kept + self._text_bytes
        return self._divide(2 * self.model_bytes + kept, 0, held)

    @property
    def activations_seconds(self) -> float:
        """Seconds to observe all models.

        Every model is read, answers its prompts, and reads every text once more. The buffer of
        every input is compressed whenever as many tokens as the rank have come.
        """
        read = sum(self.model_set.models[model].bytes for model in self._pool.experts) / READ
        answered = self._models * PROMPTS * OBSERVED_TOKENS / self.rate
        tokens = self._models * PROMPTS * LESSON_TOKENS
        compressed = tokens / RANK * len(self._inputs.widths) * DECOMPOSED
        return read + answered + tokens * 2 * self._parameters / OPERATIONS + compressed

    @property
    def activations_memory(self) -> tuple[float, float]:
        """Bytes of an observation in memory and on the GPU.

        Beside one model and the buffers of its inputs there are the keys and values of a batch of
        the longest texts, and the logits of every new token in float32. The moments move into
        memory when the model is done, in float32 and float16.
        """
        batch = self.model_set.batch_size
        logits = 4 * batch * OBSERVED_TOKENS * self._rows
        held = self.model_bytes + self._inputs.sketch_bytes + self._text_bytes + logits
        return self._divide(self.model_bytes, 3 * self._inputs.file_bytes, held)

    @property
    def activations_bytes(self) -> float:
        """Bytes of the activations files of all models."""
        return self._models * self._inputs.file_bytes

    @property
    def adamerge_seconds(self) -> float:
        """Seconds of AdaMerging: a merge, the teachers' answers, all steps and all dev scores.

        With dev tasks, the fine-tuned models, the start and ten states are scored on them.
        """
        steps = STEPS * self._step_seconds
        if self._pool.has_dev:
            return self.merge_seconds + steps + 12 * DEV_ITEMS * self._dev_item_seconds
        read = sum(self.model_set.models[model].bytes for model in self._pool.experts) / READ
        return self.merge_seconds + read + steps

    @property
    def adamerge_memory(self) -> tuple[float, float]:
        """Bytes of AdaMerging in memory and on the GPU.

        The fine-tuned models stay in memory, and by inputs all moments and solutions, too. On the
        GPU there are the merge, and whichever is larger: the keys and values of a batch of dev
        items, or the logits of a batch of lessons.
        """
        loading = (self._models + 1) * self.model_bytes
        inputs = self._inputs.learning_bytes if self._by_inputs else 0
        logits = LOGITS * 4 * self.model_set.batch_size * LESSON_TOKENS * self._rows
        texts = max(self._text_bytes * self._pool.has_dev, logits)
        kept = self._models * self.model_bytes + inputs
        return self._divide(loading + inputs, kept, 1.07 * self.model_bytes + texts)

    @property
    def evaluate_seconds(self) -> float:
        """Seconds to score the experts that have tasks, and the merge, on all test items."""
        tasks = self._pool.tasks
        answered = sum(task.items * task.new_tokens for task in tasks) * LONGEST / self.rate
        read = sum(task.requests * task.request_tokens for task in tasks)
        return (self._scored + 1) * (answered + read * 2 * self._parameters / OPERATIONS)

    @property
    def evaluate_memory(self) -> tuple[float, float]:
        """Bytes of an evaluation in memory and on the GPU.

        For a task of choices lm-eval holds the logits of a batch and their logarithms.
        """
        longest = max(task.request_tokens for task in self._pool.tasks)
        # The longest text of a batch has about four times as many tokens as a usual one.
        logits = 2 * self.model_set.element_bytes * 4 * longest * self._rows
        texts = max(self._text_bytes, self.model_set.batch_size * logits)
        return self._divide(self.model_bytes, 0, self.model_bytes + texts)

    @property
    def code_seconds(self) -> float:
        """Seconds of one model's answers to the tasks that run code."""
        tasks = self._pool.code_tasks
        return sum(task.items * task.new_tokens for task in tasks) * LONGEST / self.rate

    @property
    def _pool(self) -> Pool:
        return self.model_set.pool(self.name)

    @property
    def _by_inputs(self) -> bool:
        return self.model_set.variant(self.name).by_inputs

    @property
    def _parameters(self) -> int:
        return self.model_set.architecture(self.name).parameters()

    @property
    def _rows(self) -> int:
        """The size of the vocabulary."""
        return self.model_set.architecture(self.name).vocabulary

    @property
    def _models(self) -> int:
        """The number of fine-tuned models."""
        return len(self._pool.experts)

    @property
    def _scored(self) -> int:
        """The number of fine-tuned models with tasks."""
        return sum(bool(domain.tasks) for domain in self._pool.domains.values())

    @property
    def _block(self) -> tuple[int, ...]:
        """The widths of the inputs of a block."""
        return self.model_set.architecture(self.name).block_inputs()

    @property
    def _inputs(self) -> InputCosts:
        widths = self.model_set.architecture(self.name).input_widths()
        return InputCosts(widths, self._models)

    @property
    def _columns(self) -> int:
        """The columns of the moments of all models together."""
        return self._models * RANK

    @property
    def _dev_item_seconds(self) -> float:
        """Seconds to answer an item of every task."""
        tasks: list[Task] = self._pool.tasks
        return sum(task.new_tokens for task in tasks) * LONGEST / self.rate

    @property
    def _text_bytes(self) -> float:
        """Bytes of the keys and values of a batch of the longest texts."""
        token = self.model_set.architecture(self.name).token_bytes(self.model_set.element_bytes)
        return self.model_set.batch_size * self.model_set.text_tokens * token

    @property
    def _step_seconds(self) -> float:
        """Seconds of a step of AdaMerging.

        By inputs, new weights and every domain's gradient take the products of the combination.
        """
        domains = self._models
        learned = WRITTEN + domains * REDUCED
        passes = self._models * learned * (1 if self._pool.has_dev else BY_PARTITIONS)
        if self._by_inputs:
            passes = self._models * learned
            passes += (1 + domains) * self._columns * REGRESSED * MEASURED_CORES
        return (
            self._parameters * passes / CORES
            + (1 + domains) * self.model_bytes / CARRIED
            # Forward, the same once more for gradient checkpointing, and backward.
            + domains
            * self.model_set.batch_size
            * LESSON_TOKENS
            * self._parameters
            * 8
            / OPERATIONS
        )

    def _divide(self, loading: float, kept: float, held: float) -> tuple[float, float]:
        """Return the peak bytes of memory and of the GPU; 0 for the GPU if there is none.

        Args:
            loading: Bytes in memory until the model is on its device.
            kept: Bytes that stay in memory afterwards.
            held: Bytes of the model, and of everything on its device with it.
        """
        if self.device == "cpu":
            return max(loading, kept + held), 0
        return max(loading, kept), held
