"""What a step of AdaMerging takes: by a hook for each weight, and by `functional_call`.

    python tests/benchmarks/weights.py FOLDER --size 0.2B

Three fine-tuned models of the random checkpoints are merged at density 0.2, with a weight for each
model and block. Either way begins with the base, the deltas and one merged copy in memory; what a
step needs on top of that, at its peak, is measured, for one short prompt, so that activations are
little. By hooks the deltas are the checkpoints' own files; `functional_call` builds the merged
weights under autograd, from deltas that are held as they are. Each way is a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from model_sizes import SIZES
from random_models import Family, ensured
from tables import gigabytes, markdown

from dppa_mergekit.adamerging.losses import Entropy
from dppa_mergekit.live.weighted_merge import WeightedMerge
from dppa_mergekit.recipes import Recipe
from dppa_mergekit.tensor_names import block_of

PROMPT = [[11, 12, 13, 14, 15, 16, 17, 18]]
PLACES = torch.tensor([0])
STEPS = 3
SAMPLE_SECONDS = 0.002
WAYS = ("hooks", "functional_call")


def anonymous() -> int:
    """The memory that this process has allocated, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not tell RssAnon")


def peak_during(work: Callable[[], object]) -> int:
    """The largest allocated memory while something works, in bytes."""
    found, ended = [anonymous()], threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            found.append(anonymous())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        work()
    finally:
        ended.set()
        sampler.join()
    return max(found)


def load(family: Family) -> WeightedMerge:
    """The live merge."""
    models = [
        {
            "model": str((family.path / name).resolve()),
            "parameters": {"weight": 0.3, "density": 0.2},
        }
        for name in family.names
        if name != "base"
    ]
    base = str((family.path / "base").resolve())
    recipe = Recipe({"merge_method": "dppa", "base_model": base, "models": models})
    return WeightedMerge.load(recipe, family.path)


def by_hooks(merge: WeightedMerge) -> Callable[[], object]:
    """A step as `adamerge` makes it."""
    weights = merge.weights()
    loss = Entropy(PROMPT)

    def step() -> None:
        merge.set_weights(weights)
        with merge.weight_gradients(weights), torch.enable_grad():
            torch.autograd.backward(loss.of(merge.model, PLACES))

    return step


def by_functional_call(merge: WeightedMerge) -> Callable[[], object]:
    """The same step by autograd through the merge."""
    models, blocks = merge.recipe.fine_tuned(), merge.blocks
    nothing = dict.fromkeys(models, 0.0)
    merge.set_weights(nothing)
    live = dict(merge.model.named_parameters())
    base = {name: tensor.clone() for name, tensor in live.items()}
    deltas = []
    for model in models:
        merge.set_weights({**nothing, model: 1.0})
        deltas.append({name: tensor - base[name] for name, tensor in live.items()})
    table = torch.full((len(models), len(blocks)), 0.3, requires_grad=True)

    class Functional(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, **inputs: object) -> object:
            columns = {block: place for place, block in enumerate(blocks)}
            merged = {
                name: origin
                + sum(
                    table[row, columns[block_of(name)]].to(origin.dtype) * delta[name]
                    for row, delta in enumerate(deltas)
                )
                for name, origin in base.items()
            }
            return torch.func.functional_call(merge.model, merged, (), inputs)

    def step() -> None:
        loss = Entropy(PROMPT).of(Functional(), PLACES)  # type: ignore[arg-type]
        torch.autograd.backward(loss)

    return step


def measured(family: Family, way: str) -> dict[str, float]:
    """What steps take in this process: bytes on top, and seconds."""
    merge = load(family)
    # The copy that is merged counts as there: until it is written, it is a file's pages.
    merge.set_weights(merge.weights())
    step = (by_hooks if way == "hooks" else by_functional_call)(merge)
    before = anonymous()
    begun = time.perf_counter()

    def steps() -> None:
        for _ in range(STEPS):
            step()

    peak = peak_during(steps)
    return {
        "model": sum(each.nbytes for each in merge.model.parameters()),
        "extra": peak - before,
        "seconds": (time.perf_counter() - begun) / STEPS,
    }


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--size", type=click.Choice(list(SIZES)), default="0.2B", show_default=True)
@click.option("--way", type=click.Choice(WAYS), help="Measure one, here, and print JSON.")
def main(folder: Path, size: str, way: str | None) -> None:
    """Measure with the checkpoints below FOLDER, which are written if need be."""
    family = ensured(Family(folder, size, 3))
    if way is not None:
        click.echo(json.dumps(measured(family, way)))
        return
    rows = []
    for each in WAYS:
        command = [sys.executable, __file__, str(folder), "--size", size, "--way", each]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(ended.stdout)
        rows.append(
            [
                each,
                gigabytes(found["extra"]),
                f"{found['extra'] / found['model']:.2f} x",
                f"{found['seconds']:.1f} s",
            ]
        )
    click.echo(f"{size}, {torch.get_num_threads()} threads, the most of {STEPS} steps\n")
    click.echo(markdown(["a step by", "on top, GB", "of the model", "time"], rows))


if __name__ == "__main__":
    main()
