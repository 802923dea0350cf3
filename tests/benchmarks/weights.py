"""Compare a step of AdaMerging by a hook for each weight with one by `functional_call`.

    python tests/benchmarks/weights.py FOLDER --size 0.2B

Three fine-tuned models of the random checkpoints are merged at density 0.2, with a weight for each
model and block. Both ways begin with the base, the deltas and one merged copy in memory. The script
measures the peak memory that a step needs on top of that, for one short prompt, so that activations
are small. Hooks read the deltas from the checkpoints' own files; `functional_call` builds the
merged weights under autograd from dense deltas in memory. Each way runs in its own process.
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
from random_models import Family, write_missing
from tables import format_gigabytes, format_table

from dppa_mergekit.adamerging.learnable import coefficients_of
from dppa_mergekit.adamerging.losses import Entropy
from dppa_mergekit.live.placement import AS_STORED, Placement
from dppa_mergekit.live.weighted_merge import WeightedMerge
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.tensor_names import block_of

PROMPT = [[11, 12, 13, 14, 15, 16, 17, 18]]
INDICES = torch.tensor([0])
STEPS = 3
SAMPLE_SECONDS = 0.002
WAYS = ("hooks", "functional_call")


def read_anonymous() -> int:
    """Return the bytes of memory that this process has allocated."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("The kernel does not report RssAnon.")


def measure_peak(work: Callable[[], object]) -> int:
    """Return the largest bytes of allocated memory during some work."""
    samples, ended = [read_anonymous()], threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            samples.append(read_anonymous())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        work()
    finally:
        ended.set()
        sampler.join()
    return max(samples)


def load(family: Family, method: str = "dppa", placement: Placement = AS_STORED) -> WeightedMerge:
    """Load the live merge by a method."""
    models = [
        {
            "model": str((family.path / name).resolve()),
            "parameters": {"weight": 0.3, "density": 0.2},
        }
        for name in family.names
        if name != "base"
    ]
    base = str((family.path / "base").resolve())
    recipe = Recipe({"merge_method": method, "base_model": base, "models": models})
    return WeightedMerge.load(recipe, family.path, placement)


def make_hook_step(merge: WeightedMerge) -> Callable[[], object]:
    """Return a step as `adamerge` makes it."""
    learned = coefficients_of(merge, "block")
    loss = Entropy(PROMPT)

    def step() -> None:
        learned.set(learned.start)
        with learned.gradients(learned.start), torch.enable_grad():
            torch.autograd.backward(loss.of(merge.model, INDICES))

    return step


def make_functional_step(merge: WeightedMerge) -> Callable[[], object]:
    """Return the same step by autograd through the merge."""
    models, blocks = merge.recipe.fine_tuned(), merge.blocks
    zeros = dict.fromkeys(models, 0.0)
    merge.set_weights(zeros)
    live = dict(merge.model.named_parameters())
    base = {name: parameter.clone() for name, parameter in live.items()}
    deltas = []
    for model in models:
        merge.set_weights({**zeros, model: 1.0})
        deltas.append({name: parameter - base[name] for name, parameter in live.items()})
    table = torch.full((len(models), len(blocks)), 0.3, requires_grad=True)

    class Functional(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, **inputs: object) -> object:
            columns = {block: index for index, block in enumerate(blocks)}
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
        loss = Entropy(PROMPT).of(Functional(), INDICES)  # type: ignore[arg-type]
        torch.autograd.backward(loss)

    return step


def measure_steps(family: Family, way: str) -> dict[str, float]:
    """Return the bytes of the model, the extra bytes of steps, and the seconds of a step."""
    merge = load(family)
    # The merged copy must count before the steps; until it is written, it is a file's pages.
    merge.set_weights(merge.weights())
    step = (make_hook_step if way == "hooks" else make_functional_step)(merge)
    before = read_anonymous()
    begun = time.perf_counter()

    def run_steps() -> None:
        for _ in range(STEPS):
            step()

    peak = measure_peak(run_steps)
    return {
        "model": sum(parameter.nbytes for parameter in merge.model.parameters()),
        "extra": peak - before,
        "seconds": (time.perf_counter() - begun) / STEPS,
    }


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--size", type=click.Choice(list(SIZES)), default="0.2B", show_default=True)
@click.option(
    "--way", type=click.Choice(WAYS), help="Only measure this way, in this process, and print JSON."
)
def main(folder: Path, size: str, way: str | None) -> None:
    """Measure the checkpoints below FOLDER; missing ones are written first."""
    family = write_missing(Family(folder, size, 3))
    if way is not None:
        click.echo(json.dumps(measure_steps(family, way)))
        return
    rows = []
    for step in WAYS:
        command = [sys.executable, __file__, str(folder), "--size", size, "--way", step]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(ended.stdout)
        rows.append(
            [
                step,
                format_gigabytes(found["extra"]),
                f"{found['extra'] / found['model']:.2f} x",
                f"{found['seconds']:.1f} s",
            ]
        )
    click.echo(f"{size}, {torch.get_num_threads()} threads, peak of {STEPS} steps\n")
    click.echo(format_table(["a step by", "on top, GB", "of the model", "time"], rows))


if __name__ == "__main__":
    main()
