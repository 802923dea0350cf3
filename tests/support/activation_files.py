"""Activations files of tiny checkpoints, with moments that are drawn at random."""

import json
from pathlib import Path

import numpy as np
import oracle
import torch
from checkpoints import tensors_of
from mergekit.io.lazy_tensor_loader import ShardedTensorIndex
from numpy.typing import NDArray
from safetensors import safe_open

from dppa_mergekit.checkpoints.headers import Checkpoint
from dppa_mergekit.moments.activations_file import (
    Observation,
    ObservedInputs,
    ObservedLinear,
    write_activations,
)
from dppa_mergekit.moments.second_moment import SecondMoment

Moments = dict[str, NDArray[np.float64]]
"""Tensor -> the second moments of its inputs."""


def inputs_first(architecture: str) -> bool:
    return architecture == "gpt2"


def linears_of(folder: Path) -> dict[str, torch.Tensor]:
    """The linears of a checkpoint, each 2-D."""
    return {
        name: tensor
        for name, tensor in tensors_of(folder).items()
        if oracle.classify(name, tensor.shape).linears == 1
    }


def draw_moments(folder: Path, model: str, seed: int, extra: tuple[str, ...] = ()) -> Moments:
    """Full-rank moments of every linear, and of some tensors more."""
    generator = np.random.default_rng(seed)
    tensors = tensors_of(folder / model)
    found = {}
    for name in [*linears_of(folder / model), *extra]:
        axis = 0 if inputs_first(folder.name) and name not in extra else 1
        vectors = generator.normal(size=(tensors[name].shape[axis],) * 2)
        # Exact in the file's float16.
        vectors = vectors.astype(np.float16).astype(np.float64)
        found[name] = vectors @ vectors.T / len(vectors)
    return found


def write_moments(path: Path, folder: Path, model: str, moments: Moments) -> str:
    """An activations file of these moments, by their eigenvectors."""
    index = ShardedTensorIndex.from_disk(str(folder / model))
    entries, written = [], []
    for name, moment in moments.items():
        values, vectors = np.linalg.eigh(moment)
        stored = ObservedLinear(
            tensor=name, inputs_first=inputs_first(folder.name) and "lm_head" not in name
        )
        entries.append(ObservedInputs(linears=(stored,), tokens=10))
        written.append(
            SecondMoment(
                torch.from_numpy(vectors),
                torch.from_numpy(values.clip(0)),
                torch.zeros(len(values), dtype=torch.float64),
            )
        )
    observation = Observation(
        model=str(folder / model),
        weights=Checkpoint(model, index).weights_digest(),
        reads="",
        dtype="None",
        prompts=1,
        prompts_sha256="",
        answered=0,
        tokens=10,
        rank=len(values),
        inputs=tuple(entries),
    )
    write_activations(path, observation, written)
    return str(path)


def read_moments(path: Path) -> Moments:
    """The moments in a file, by its bytes alone."""
    with safe_open(path, framework="np") as file:
        described = json.loads(file.metadata()["dppa_activations"])
        found = {}
        for number, inputs in enumerate(described["inputs"]):
            vectors, values, rest = (
                file.get_tensor(f"{number}.{part}").astype(np.float64)
                for part in ("vectors", "values", "rest")
            )
            for linear in inputs["linears"]:
                found[linear["tensor"]] = (vectors * values) @ vectors.T + np.diag(rest)
    return found
