"""Hashes of merges, to be compared before and after a change that must not move a byte.

    python tests/support/golden_merges.py > hashes.json
    python tests/support/golden_merges.py --without-library > hashes.json

Every method that combines element by element, in float32, bfloat16 and float16, of Llama, GPT-2 and
Mixtral (a tensor an expert, and stacked), by mergekit's own command. All weights come from integers
of NumPy's frozen legacy generator, so the inputs are the same on every machine. Merges by inputs
are not among them: the rounding of a matrix product depends on the processor and on PyTorch.
"""

import argparse
import ctypes
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy
import safetensors.torch
import torch
import yaml
from checkpoints import new_model, stack_experts, tensors_of, tokenizer

METHODS = ("dppa", "dppa_ties", "dp", "owl", "dare_dpa")
DTYPES = ("float32", "bfloat16", "float16")
ARCHITECTURES = ("llama", "gpt2", "mixtral", "mixtral_stacked")

MODELS: Mapping[str, Mapping[str, float]] = {
    "math": {"weight": 0.6, "density": 0.2, "amplify_90": 2.1, "amplify_80": 1.4},
    "law": {"weight": 0.5, "density": 0.35, "amplify_70": 0.7, "amplify_dense": 0.9},
}
"""Two partitions; three and a half, of which the first two have one factor."""

_SIZES: Mapping[str, Mapping[str, object]] = {
    # Larger than a chunk of 2^19 elements: 256 x 2304.
    "llama": {
        "hidden_size": 256,
        "intermediate_size": 2304,
        "head_dim": 64,
        "num_hidden_layers": 2,
    }
}


def save_models(folder: Path, architecture: str, dtype: str) -> None:
    """Save folder/base, folder/math and folder/law."""
    family, _, stacked = architecture.partition("_")
    base: dict[str, numpy.ndarray] = {}
    for seed, name in enumerate(("base", *MODELS)):
        model = new_model(family, 0, **_SIZES.get(family, {}))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                generator = numpy.random.RandomState([seed, *key.encode()])
                values = generator.randint(-(2**20), 2**20, tuple(parameter.shape)) / 2.0**25
                if name == "base":
                    base[key] = values
                else:
                    # Heavier tails in some tensors than in others; a tenth does not move.
                    power = 1 + 2 * generator.randint(1, 4)
                    moved = generator.randint(0, 10, values.shape) > 0
                    values = base[key] + (values * 2.0**5) ** power * moved / 2.0**8
                parameter.copy_(torch.from_numpy(values))
        model.to(getattr(torch, dtype)).save_pretrained(folder / name)
        if stacked:
            path = folder / name / "model.safetensors"
            tensors = stack_experts(safetensors.torch.load_file(path))
            safetensors.torch.save_file(tensors, path, {"format": "pt"})
        tokenizer().save_pretrained(folder / name)


def merge_hash(folder: Path, method: str, output: Path) -> str:
    """Merge the models of a folder by `mergekit-yaml` and hash the output's tensors."""
    from click.testing import CliRunner
    from mergekit.io.tasks import LoaderCache
    from mergekit.scripts.run_yaml import main as mergekit_yaml

    recipe = {
        "merge_method": method,
        "base_model": "./base",
        "parameters": {"lambda": 0.9},
        "models": [
            {"model": f"./{name}", "parameters": dict(parameters)}
            for name, parameters in MODELS.items()
        ],
    }
    path = output.with_suffix(".yml")
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    LoaderCache.loaders.clear()
    before = Path.cwd()
    os.chdir(folder)  # random partitions are keyed on the model's name
    try:
        ended = CliRunner().invoke(mergekit_yaml, [str(path), str(output)])
    finally:
        os.chdir(before)
    if ended.exit_code:
        raise RuntimeError(ended.output) from ended.exception
    LoaderCache.loaders.clear()
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors_of(output).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def golden_merges(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (architecture dtype method, hash) of all merges; models are saved into the folder."""
    for architecture in ARCHITECTURES:
        for dtype in DTYPES:
            models = folder / f"{architecture}_{dtype}"
            save_models(models, architecture, dtype)
            for method in METHODS:
                key = f"{architecture} {dtype} {method}"
                yield key, merge_hash(models, method, folder / key.replace(" ", "_"))


def remove_library() -> None:
    """Let the compiled passes be absent, as where there was no compiler."""
    load = ctypes.CDLL

    class Missing(load):  # type: ignore[misc, valid-type]
        def __init__(self, name: str | None, *arguments: object, **options: object) -> None:
            if name is not None and name.endswith("passes.so"):
                raise OSError("left out")
            super().__init__(name, *arguments, **options)

    ctypes.CDLL = Missing


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without-library", action="store_true")
    if parser.parse_args().without_library:
        remove_library()
    with tempfile.TemporaryDirectory() as temporary:
        hashes = dict(golden_merges(Path(temporary)))
    json.dump(hashes, sys.stdout, indent=1)
