"""The oracle's merge of a family of checkpoints, for comparison with mergekit's."""

import functools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import oracle
import safetensors.torch
import torch
from checkpoints import tensors_of

from dppa_mergekit import method_table

Tensors = dict[str, torch.Tensor]
Parameters = Mapping[str, Any]
MODELS: dict[str, dict[str, float]] = {
    "math": {"weight": 0.6, "density": 0.2, "amplify_90": 2.1, "amplify_80": 1.4},
    "law": {"weight": 0.5, "density": 0.3, "amplify_dense": 0.9},
}
METHODS = [name for name in method_table.names() if not method_table.is_by_inputs(name)]
"""The methods that combine element by element, whose bytes are those of the oracle."""


def expected(
    models: Sequence[Mapping[str, torch.Tensor]],
    parameters: Sequence[Parameters],
    method: str = "dppa",
    shared: Parameters | None = None,
    dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensors:
    """The oracle's merge of base and tuned tensors, cast as mergekit casts.

    `dtype`: of all tensors before the merge. A merged tensor has the widest dtype of its inputs,
    and is cast from that to `out_dtype`.
    """
    names = list(models[0])
    cast = [{n: t.to(dtype) if dtype else t for n, t in tensors.items()} for tensors in models]
    outputs = {name: cast[0][name].dtype for name in names}
    for tensors in cast[1:]:
        for name in names:
            outputs[name] = torch.promote_types(outputs[name], tensors[name].dtype)
    wide = {n: torch.promote_types(torch.float32, dtype) for n, dtype in outputs.items()}
    arrays = [{n: tensors[n].to(wide[n]).numpy() for n in names} for tensors in cast]
    merged = oracle.merge(arrays[0], arrays[1:], method, parameters, shared)
    result = {name: torch.from_numpy(array).to(outputs[name]) for name, array in merged.items()}
    return {name: tensor.to(out_dtype) for name, tensor in result.items()} if out_dtype else result


def base_and_tuned(folder: Path) -> list[Tensors]:
    return [tensors_of(folder / name) for name in ("base", *MODELS)]


@functools.cache
def of_family(folder: Path, **options: Any) -> Tensors:
    """As `expected`, for the models of a folder and the parameters that the recipes here give."""
    return expected(base_and_tuned(folder), list(MODELS.values()), **options)


def converted(source: Path, folder: Path, convert: Callable[[str, Tensors], Tensors]) -> Path:
    """The family with the tensors of every model replaced: convert(model, its tensors)."""
    for name in ("base", *MODELS):
        shutil.copytree(source / name, folder / name)
        path = folder / name / "model.safetensors"
        safetensors.torch.save_file(
            convert(name, safetensors.torch.load_file(path)), path, {"format": "pt"}
        )
    return folder


def pickled(source: Path, folder: Path, shards: int) -> Path:
    """The family as PyTorch's own files, with an index where there is more than one."""
    for name in ("base", *MODELS):
        ignored = shutil.ignore_patterns("*.safetensors")
        shutil.copytree(source / name, folder / name, ignore=ignored)
        tensors = tensors_of(source / name)
        if shards == 1:
            torch.save(tensors, folder / name / "pytorch_model.bin")
            continue
        places: dict[str, str] = {}
        for number in range(shards):
            file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
            part = {n: tensors[n] for n in list(tensors)[number::shards]}
            torch.save(part, folder / name / file)
            places.update(dict.fromkeys(part, file))
        index = {"metadata": {}, "weight_map": places}
        (folder / name / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder
