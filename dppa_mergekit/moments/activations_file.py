"""The file of what enters the linears of one model: `TUNED.activations/NAME.safetensors`.

Linears that share their inputs, such as Q, K and V, share one entry of three tensors: `N.vectors`
(inputs, rank) float16, `N.values` (rank,) and `N.rest` (inputs,) float32, as in `SecondMoment`, of
the mean over all observed tokens. The metadata says which linears these are, of which model, and
how they were observed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Literal

import pydantic
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from dppa_mergekit.errors import CheckpointError, first_line
from dppa_mergekit.moments.second_moment import SecondMoment
from dppa_mergekit.recipes.references import short_name
from dppa_mergekit.storage.output_files import stage_file
from dppa_mergekit.tensor_names import Linear

_KEY = "dppa_activations"
"""The key of the metadata."""

_PARTS = ("vectors", "values", "rest")
_DTYPES = (torch.float16, torch.float32, torch.float32)


RECENT = 4
"""Moments that are kept: those of one block, whose linears share them."""


class ObservedLinear(pydantic.BaseModel, frozen=True):
    """A linear whose inputs were observed.

    Attributes:
        tensor: The name of its tensor.
        expert: The number of its expert, if the tensor stacks experts.
        inputs_first: Whether the checkpoint stores (inputs, outputs).
    """

    tensor: str
    expert: int = 0
    inputs_first: bool = False


class ObservedInputs(pydantic.BaseModel, frozen=True):
    """Inputs that some linears share.

    Attributes:
        linears: The linears.
        tokens: The number of tokens that they were observed on.
    """

    linears: tuple[ObservedLinear, ...]
    tokens: int


class Observation(pydantic.BaseModel, frozen=True):
    """What was observed, and how.

    Attributes:
        version: The version of the format.
        model: The model, as the recipe spelt it.
        weights: Hash of the model's weights (`Checkpoint.weights_digest`).
        reads: Hash of the weights and of all files by which the model reads and answers.
        dtype: The dtype in which the model was observed, as asked for.
        prompts: The number of prompts.
        prompts_sha256: Hash of the prompts and completions.
        answered: The number of prompts that the model answered itself.
        tokens: The number of tokens of prompts and answers.
        rank: The largest rank of the moments.
        inputs: The inputs that were observed, in the order of their entries.
        unused: Tensors with linears that no token reached.
        content_sha256: Hash of the tensors of the file; None in files of earlier releases.
    """

    version: Literal[1] = 1
    model: str
    weights: str
    reads: str
    dtype: str
    prompts: int
    prompts_sha256: str
    answered: int
    tokens: int
    rank: int
    inputs: tuple[ObservedInputs, ...]
    unused: tuple[str, ...] = ()
    content_sha256: str | None = None


@dataclass(frozen=True)
class ActivationsFile:
    """An existing file; its header is read, its tensors are read when they are asked for.

    Attributes:
        path: The file, as it was named.
        observation: Its metadata.
    """

    path: str
    observation: Observation

    @classmethod
    def open(cls, path: str) -> ActivationsFile:
        """Read the metadata of a file.

        Raises:
            CheckpointError: The file is missing, damaged, or not such a file.
        """
        if not Path(path).is_file():
            raise CheckpointError(f"activations: there is no file {path}.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                names = set(file.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"activations: {path} is damaged, or not a safetensors file ({first_line(error)})."
            ) from error
        try:
            observation = Observation.model_validate_json(metadata.get(_KEY, ""))
        except pydantic.ValidationError as error:
            raise CheckpointError(
                f"activations: {path} was not written by this version's mergekit-dppa activations."
            ) from error
        wanted = {
            f"{number}.{part}" for number in range(len(observation.inputs)) for part in _PARTS
        }
        if wanted != names:
            raise CheckpointError(f"activations: {path} is damaged (tensors are missing).")
        return cls(path, observation)

    @cached_property
    def entries(self) -> Mapping[Linear, tuple[int, ObservedLinear]]:
        """Linear -> the number of its inputs' entry, and how it is stored."""
        return {
            Linear(linear.tensor, linear.expert): (number, linear)
            for number, inputs in enumerate(self.observation.inputs)
            for linear in inputs.linears
        }

    def moment(self, linear: Linear) -> SecondMoment | None:
        """Return the moments of a linear's inputs; None if they were not observed.

        Linears that share inputs get the same object, if asked for one soon after the other.
        """
        entry = self.entries.get(linear)
        return None if entry is None else self._recent(entry[0])

    @cached_property
    def _recent(self) -> Callable[[int], SecondMoment]:
        """Reads an entry, and keeps those that were read last."""
        return lru_cache(maxsize=RECENT)(partial(_read, self.path))

    def sizes(self) -> Mapping[Linear, int]:
        """Return linear -> the number of its inputs, from the file's header."""
        with safe_open(self.path, framework="pt") as file:
            inputs = [
                file.get_slice(f"{number}.rest").get_shape()[0]
                for number in range(len(self.observation.inputs))
            ]
        return {linear: inputs[number] for linear, (number, _) in self.entries.items()}

    def other_weights(self, model: object) -> str:
        """Return the sentence that refuses the file for a model that has other weights."""
        return (
            f"activations: {self.path} was observed in {self.observation.model}, and {model} has "
            f"other weights, or was trained since: observe it again with mergekit-dppa activations."
        )

    def other_size(self, tensor: str, observed: int, inputs: int) -> str:
        """Return the sentence that refuses the file for a tensor of another number of inputs."""
        return f"activations: {self.path} has {observed} inputs for {tensor}, which has {inputs}."

    def check_content(self) -> None:
        """Read all tensors, and refuse a file that was changed or makes no sense.

        Raises:
            CheckpointError: There are no linears, shapes or dtypes do not fit, a number is NaN,
                infinite, or negative where it must not be, or a byte has changed.
        """
        if not self.entries:
            raise CheckpointError(f"activations: {self.path} is damaged: it has no linears.")
        for number in range(len(self.observation.inputs)):
            moment = _read(self.path, number)
            parts = (moment.vectors, moment.values, moment.rest)
            positive = (moment.values, moment.rest)
            if (
                tuple(part.dtype for part in parts) != _DTYPES
                or any(part.ndim != 1 for part in positive)
                or tuple(moment.vectors.shape) != (len(moment.rest), len(moment.values))
                or not bool(moment.vectors.isfinite().all())
                or not all(bool((part >= 0).all() and part.isfinite().all()) for part in positive)
            ):
                name = self.observation.inputs[number].linears[0].tensor
                raise CheckpointError(
                    f"activations: {self.path} is damaged: the moments of {name} are not finite, "
                    f"or not of one shape."
                )
        written = self.observation.content_sha256
        if written is not None and written != _digest(safetensors.torch.load_file(self.path)):
            raise CheckpointError(
                f"activations: {self.path} is damaged: its tensors are not those that were written."
            )


def write_activations(
    path: Path, observation: Observation, moments: Iterable[SecondMoment]
) -> None:
    """Write a file whole or not at all.

    Args:
        path: The file.
        observation: Its metadata.
        moments: One for each entry of the observation's `inputs`, in order.
    """
    tensors = {}
    for number, moment in enumerate(moments):
        rounded = moment.vectors.to("cpu", torch.float16)
        values = moment.values.to("cpu", torch.float32)
        diagonal = moment.vectors.double().square().mv(moment.values.double()) + moment.rest
        # The diagonal stays what it was, although the vectors are rounded.
        rest = (diagonal.cpu() - rounded.double().square().mv(values.double())).clamp(min=0)
        parts = (rounded.contiguous(), values, rest.float())
        tensors.update(
            {f"{number}.{part}": tensor for part, tensor in zip(_PARTS, parts, strict=True)}
        )
    with stage_file(path) as staged:
        _save(tensors, staged, observation)


def rename_observed_model(path: str, target: Path, names: Mapping[str, str]) -> None:
    """Copy a file, with another name for its model.

    Args:
        path: The file.
        target: The copy.
        names: Model -> its name in the copy; the last part of its path where it has none.

    Raises:
        CheckpointError: The file is damaged.
    """
    file = ActivationsFile.open(path)
    file.check_content()
    observation = file.observation
    name = names.get(observation.model, short_name(observation.model))
    tensors = safetensors.torch.load_file(path)
    _save(tensors, target, observation.model_copy(update={"model": name}))


def _save(tensors: dict[str, torch.Tensor], path: Path, observation: Observation) -> None:
    observation = observation.model_copy(update={"content_sha256": _digest(tensors)})
    # One key, since safetensors writes several in any order.
    metadata = {_KEY: observation.model_dump_json()}
    safetensors.torch.save_file(tensors, path, metadata=metadata)


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _read(path: str, number: int) -> SecondMoment:
    try:
        with safe_open(path, framework="pt") as file:
            vectors, values, rest = (file.get_tensor(f"{number}.{part}") for part in _PARTS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"activations: {path} is damaged ({first_line(error)}).") from error
    return SecondMoment(vectors, values, rest)
