"""LLaMA-2-7B with Abel, finance-chat and law-chat: from the check of a recipe to its publication.

    python examples/paper/llama2-7b/run.py FOLDER --dry-run
    python examples/paper/llama2-7b/run.py FOLDER --recipe three_80 --device cuda

With `--dry-run` every command is printed with what it will take, and the recipes are checked
against files in FOLDER that have the headers of these models and no weights. Without it the
commands are run one after the other; what has ended is not run again unless something before it is.
"""

from __future__ import annotations

import json
import math
import shlex
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

HERE = Path(__file__).resolve().parent
RECIPES = ("three_80", "three_90", "two_80", "two_90")

LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY, CONTEXT = 32, 4096, 11008, 32000, 4096
BATCH_SIZE = 8  # as the tasks files say
BYTES = 2  # of an element in float16 or bfloat16
SHARD_BYTES = 5e9  # of the inputs
OUTPUT_SHARD_BYTES = 1e10  # mergekit's default, 5e9 parameters

CANDIDATES, STEPS = 40, 200
DEV_ITEMS, DEV_ITEMS_SEARCHED = 500, 200
TEST_ITEMS = {
    "gsm8k": 1319,
    "math": 5000,
    "fpb": 970,
    "fiqa_sa": 235,
    "scotus": 150,
    "unfair_tos": 172,
}
"""By the datasets' cards; how many of SCOTUS's opinions are short enough is a guess."""

TOKENS = {
    "gsm8k": 150,
    "math": 250,
    "fpb": 30,
    "fiqa_sa": 30,
    "scotus": 50,
    "unfair_tos": 50,
}
"""New tokens of a usual answer. An answer that does not end takes 2,048."""


def shapes() -> dict[str, tuple[int, ...]]:
    """Tensors of LLaMA-2-7B and their shapes."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        for name in "qkvo":
            found[f"{block}.self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
        found[f"{block}.mlp.gate_proj.weight"] = (INTERMEDIATE, HIDDEN)
        found[f"{block}.mlp.up_proj.weight"] = (INTERMEDIATE, HIDDEN)
        found[f"{block}.mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        found[f"{block}.input_layernorm.weight"] = (HIDDEN,)
        found[f"{block}.post_attention_layernorm.weight"] = (HIDDEN,)
    found["model.norm.weight"] = (HIDDEN,)
    found["lm_head.weight"] = (VOCABULARY, HIDDEN)
    return found


MODEL_BYTES = BYTES * sum(math.prod(shape) for shape in shapes().values())


def write_headers(folder: Path) -> None:
    """Write a checkpoint with these shapes whose weights are holes in its files."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float16",
        "num_hidden_layers": LAYERS,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    held = 0
    for name, shape in shapes().items():
        size = BYTES * math.prod(shape)
        if held + size > SHARD_BYTES:
            shards.append({})
            held = 0
        shards[-1][name] = shape
        held += size
    index = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, end = {}, 0
        for name, shape in shard.items():
            start, end = end, end + BYTES * math.prod(shape)
            header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
            index[name] = file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as written:
            written.write(struct.pack("<Q", len(text)) + text)
            written.truncate(8 + len(text) + end)
    content = {"metadata": {"total_size": MODEL_BYTES}, "weight_map": index}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


@dataclass(frozen=True)
class Step:
    """One command and what it takes.

    Attributes:
        command: As typed.
        memory: Bytes at its peak, of the device where there is one.
        disk: Bytes that it leaves, or needs meanwhile.
        seconds: As estimated.
    """

    command: tuple[str, ...]
    memory: float
    disk: float
    seconds: float

    def __str__(self) -> str:
        needs = (
            f"{self.memory / 1e9:.0f} GB of memory, {self.disk / 1e9:.0f} GB of disk, "
            f"{duration(self.seconds)}"
        )
        return f"{shlex.join(self.command)}\n    # about {needs}"


def duration(seconds: float) -> str:
    """Minutes, or hours where there are many."""
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def steps(name: str, device: str, rate: float, repository: str | None) -> list[Step]:
    """All commands for one recipe.

    Memory and time of merges follow the fits in the README, "Larger models"; memory of the search,
    of AdaMerging and of evaluations is the model's bytes by what they hold, and the keys and values
    of a batch whose texts are as long as the context.

    Args:
        name: Of the recipe, without its ending.
        device: Where models are evaluated: cpu, cuda, ...
        rate: New tokens a second, of all the items of a batch together.
        repository: For the upload; None for a dry run of it.
    """
    tasks_of = domains_of(name)
    in_recipe = recipe_of(name)["models"]
    density = in_recipe[0]["parameters"]["density"]
    parameters = MODEL_BYTES / BYTES
    merge_seconds = 4.9 + 27.9e-9 * parameters
    reading_memory = 0.4e9 + 2.7 * VOCABULARY * HIDDEN
    merge_memory = reading_memory + OUTPUT_SHARD_BYTES
    kept = 2.55 * density * MODEL_BYTES  # values, places and base values: 0.51 x at density 0.2
    every = [task for of_domain in tasks_of.values() for task in of_domain]
    item_of_each = sum(TOKENS[task] for task in every) / rate
    evaluation_memory = BATCH_SIZE * CONTEXT * 2 * LAYERS * HIDDEN * BYTES
    test = sum(TEST_ITEMS[task] * TOKENS[task] for task in every) / rate
    tasks = str(HERE / f"{name.split('_')[0]}.yml")
    recipe = str(HERE / "recipes" / f"{name}.yml")
    factors, weights, merged = f"factors/{name}.yml", f"weights/{name}.yml", f"merged/{name}"
    on = ("--device", device)
    models = [each["model"] for each in in_recipe]
    tool = "mergekit-dppa"
    published = (repository,) if repository else (f"owner/{name}", "--dry-run")
    return [
        Step((tool, "check", recipe, "--output", merged), 0.3e9, 0, 60),
        Step(
            (tool, "analyze", recipe, "--output", f"analysis/{name}"),
            reading_memory,
            0,
            1.5 * merge_seconds,
        ),
        Step(
            (
                *(tool, "search", recipe, "--tasks", tasks, "--output", factors),
                *("--max-evaluations", str(CANDIDATES), "--limit", str(DEV_ITEMS_SEARCHED), *on),
            ),
            MODEL_BYTES + kept + evaluation_memory,
            MODEL_BYTES,
            len(tasks_of) * merge_seconds + (CANDIDATES + 1) * DEV_ITEMS_SEARCHED * item_of_each,
        ),
        Step(
            (
                *(tool, "adamerge", factors, "--tasks", tasks, "--output", weights),
                *("--steps", str(STEPS), "--gradient-checkpointing", *on),
            ),
            2.07 * MODEL_BYTES + len(tasks_of) * kept + evaluation_memory,
            MODEL_BYTES,
            # Of a step, forward and backward passes of eight prompts of each domain; scores of the
            # fine-tuned models, of the start, and of ten states.
            merge_seconds
            + STEPS * 8 * len(tasks_of) * 300 * 4 / rate
            + 12 * DEV_ITEMS * item_of_each,
        ),
        Step(("mergekit-yaml", weights, merged), merge_memory, MODEL_BYTES, merge_seconds),
        Step((tool, "check", merged, "--verify", "sample"), 2e9, 0, 60),
        Step(
            (tool, "evaluate", *models, merged, "--tasks", tasks, "--output", merged, *on),
            1.2 * MODEL_BYTES + evaluation_memory,
            0,
            (len(models) + 1) * test,
        ),
        Step(
            (tool, "publish", merged, *published, "--recipe", weights),
            0.3e9,
            0,
            60,
        ),
    ]


def recipe_of(name: str) -> dict[str, Any]:
    """Content of a recipe."""
    found: dict[str, Any] = yaml.safe_load(
        (HERE / "recipes" / f"{name}.yml").read_text(encoding="utf-8")
    )
    return found


def domains_of(name: str) -> dict[str, list[str]]:
    """The domains that a recipe merges, and the tasks of each without their part."""
    tasks = yaml.safe_load((HERE / f"{name.split('_')[0]}.yml").read_text(encoding="utf-8"))
    return {
        domain: [task.removesuffix("_test") for task in given["test"]]
        for domain, given in tasks["domains"].items()
    }


def check_headers(folder: Path) -> None:
    """Check all recipes against checkpoints of these shapes, as `check` would on the real ones."""
    names: dict[str, str] = {}

    def stand_in(model: str) -> str:
        if model not in names:
            names[model] = str(folder / "headers" / model.replace("/", "--"))
            write_headers(Path(names[model]))
        return names[model]

    for name in RECIPES:
        recipe = recipe_of(name)
        recipe["base_model"] = stand_in(recipe["base_model"])
        for model in recipe["models"]:
            model["model"] = stand_in(model["model"])
        del recipe["tokenizer"]  # headers come without one
        path = folder / "headers" / f"{name}.yml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        tool = Path(sys.executable).with_name("mergekit-dppa")
        click.echo(f"# {name}, on headers")
        subprocess.run([tool, "check", path], check=True)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--recipe", "chosen", multiple=True, type=click.Choice(RECIPES), default=RECIPES)
@click.option("--dry-run", is_flag=True, help="Print the commands, and check headers only.")
@click.option("--device", default="cuda", show_default=True, help="cpu, cuda, ...")
@click.option(
    "--rate",
    default=1000.0,
    show_default=True,
    help="New tokens a second, to estimate times by.",
)
@click.option("--repository", help="Upload to this name on the Hub; a dry run if not given.")
def main(
    folder: Path,
    chosen: tuple[str, ...],
    dry_run: bool,
    device: str,
    rate: float,
    repository: str | None,
) -> None:
    """Check, analyze, search, adamerge, merge, evaluate and publish, all in FOLDER."""
    if repository is not None and len(chosen) != 1:
        raise click.UsageError("--repository is for one merge: name it by --recipe.")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if dry_run:
        check_headers(folder)
    inputs = len({each["model"] for name in chosen for each in recipe_of(name)["models"]}) + 1
    click.echo(f"# inputs: {inputs} models of {MODEL_BYTES / 1e9:.1f} GB")
    for name in chosen:
        listed = folder / "ended" / f"{name}.txt"
        ended = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
        for number, step in enumerate(steps(name, device, rate, repository)):
            click.echo(str(step))
            if dry_run or ended[number : number + 1] == [shlex.join(step.command)]:
                continue
            # What follows reads what this step writes, so it has not ended either.
            ended = ended[:number]
            listed.parent.mkdir(exist_ok=True)
            listed.write_text("".join(f"{line}\n" for line in ended), encoding="utf-8")
            for kind in ("factors", "weights", "merged"):
                (folder / kind).mkdir(exist_ok=True)
            tool = Path(sys.executable).with_name(step.command[0])
            if subprocess.run([tool, *step.command[1:]], cwd=folder, check=False).returncode:
                raise click.ClickException(f"{step.command[0]} {step.command[1]} has failed.")
            ended.append(shlex.join(step.command))
            listed.write_text("".join(f"{line}\n" for line in ended), encoding="utf-8")


if __name__ == "__main__":
    main()
