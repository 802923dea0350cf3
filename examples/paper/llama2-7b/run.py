"""LLaMA-2-7B with Abel, finance-chat and law-chat: from the check of a recipe to its publication.

    python examples/paper/llama2-7b/run.py FOLDER --dry-run
    python examples/paper/llama2-7b/run.py FOLDER --recipe three_80 --device cuda

With `--dry-run` every command is printed with what it will take, and the recipes are checked
against files in FOLDER that have the headers of these models and no weights. Without it the
commands are run one after the other; what has ended is not run again unless its recipe, its tasks
or something before it changes.
"""

from __future__ import annotations

import json
import math
import shlex
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import yaml
from huggingface_hub import get_token

from dppa_mergekit.scoring.tasks import folder_hash

HERE = Path(__file__).resolve().parent
RECIPES = ("three_80", "three_90", "two_80", "two_90")

LAYERS, HIDDEN, INTERMEDIATE, CONTEXT = 32, 4096, 11008, 4096
BYTES = 2  # of an element in float16, in which models are merged and run
SHARD_BYTES = 5e9  # of the inputs and, as mergekit's default, of the output


@dataclass(frozen=True)
class Stored:
    """How a model is published.

    Attributes:
        rows: Of its embedding.
        words: Of its tokenizer.
        dtype: As safetensors names it.
    """

    rows: int
    words: int
    dtype: str

    @property
    def element(self) -> int:
        """Bytes of an element."""
        return {"F16": 2, "F32": 4}[self.dtype]

    @property
    def bytes(self) -> int:
        """Of all weights."""
        return self.element * sum(math.prod(shape) for shape in shapes(self.rows).values())


MODELS = {
    "meta-llama/Llama-2-7b-hf": Stored(32000, 32000, "F16"),
    "GAIR/Abel-7B-001": Stored(32032, 32001, "F32"),
    "AdaptLLM/finance-chat": Stored(32001, 32001, "F32"),
    "AdaptLLM/law-chat": Stored(32001, 32001, "F32"),
}
"""By their configurations and files on the Hub."""

CANDIDATES, STEPS, LEARNING_RATE = 40, 200, 5e-3
DEV_ITEMS = 200  # of a task
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

BATCH_SIZE = 8  # as the tasks files say
LONGEST = 2.0
"""Tokens of the answer with which a batch ends, against those of a usual one. One that does not end
makes all of them wait for 2,048."""

CORES = 16
WRITTEN, REDUCED = 1.2e-9, 1.4e-9
"""Core seconds of AdaMerging for each parameter and model: to write new weights in a step, and to
turn a domain's gradient into those of weights (measured on SmolLM2-135M, in bfloat16)."""

PICKLED = 9.9e9  # bytes of Abel's largest file, which mergekit reads as a whole

CARRIED = 2e10  # bytes a second between memory and GPU
OPERATIONS = 1e14  # a second, of forward and backward passes on the GPU
LESSON_TOKENS = 300  # of a prompt and the teacher's answer


def shapes(rows: int = 32000) -> dict[str, tuple[int, ...]]:
    """Tensors of LLaMA-2-7B, with so many words, and their shapes."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, HIDDEN)}
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
    found["lm_head.weight"] = (rows, HIDDEN)
    return found


PARAMETERS = sum(math.prod(shape) for shape in shapes().values())
MODEL_BYTES = BYTES * PARAMETERS


def write_headers(folder: Path, stored: Stored) -> None:
    """Write a checkpoint with the shapes of a model whose weights are holes in its files."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": {"F16": "float16", "F32": "float32"}[stored.dtype],
        "num_hidden_layers": LAYERS,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": stored.rows,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    _write_json(folder / "config.json", config)
    words = {f"word {number}": number for number in range(min(stored.words, 32000))}
    words |= {f"[PAD {number}]": number for number in range(32000, stored.words)}
    _write_json(folder / "tokenizer.json", {"model": {"type": "WordLevel", "vocab": words}})
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    held = 0
    for name, shape in shapes(stored.rows).items():
        size = stored.element * math.prod(shape)
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
            start, end = end, end + stored.element * math.prod(shape)
            place = {"dtype": stored.dtype, "shape": list(shape), "data_offsets": [start, end]}
            header[name], index[name] = place, file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as written:
            written.write(struct.pack("<Q", len(text)) + text)
            written.truncate(8 + len(text) + end)
    content = {"metadata": {"total_size": stored.bytes}, "weight_map": index}
    _write_json(folder / "model.safetensors.index.json", content)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


@dataclass(frozen=True)
class Step:
    """One command and what it takes.

    Attributes:
        command: As typed.
        writes: A file or folder; empty for none.
        seconds: As estimated.
        memory: Bytes at its peak.
        device_memory: Bytes at its peak, of the GPU; 0 where none is used.
        disk: Bytes that it leaves, or needs meanwhile.
    """

    command: tuple[str, ...]
    writes: str
    seconds: float
    memory: float = 0
    device_memory: float = 0
    disk: float = 0

    @property
    def needs(self) -> tuple[str, str, str, str]:
        """Memory, that of the GPU, disk and time, to be read; empty for hardly any."""
        every = (self.memory, self.device_memory, self.disk)
        memory, device_memory, disk = (
            f"{each / 1e9:.0f} GB" if each >= 0.5e9 else "" for each in every
        )
        return memory, device_memory, disk, duration(self.seconds)

    def __str__(self) -> str:
        names = ("of memory", "on the GPU", "of disk", "")
        every = zip(self.needs, names, strict=True)
        needs = [f"{each} {name}".rstrip() for each, name in every if each]
        return f"{shlex.join(self.command)}\n    # about {', '.join(needs)}"


def duration(seconds: float) -> str:
    """Minutes, or hours where there are many."""
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def steps(name: str, device: str, rate: float, repository: str | None) -> list[Step]:
    """All commands for one recipe.

    Memory and time of merges follow the fits in the README, "Larger models", by the bytes that are
    read; memory of the others follows from what they hold: on the GPU the model, its kept deltas,
    and the keys and values of a batch whose texts are as long as the context.

    Args:
        name: Of the recipe, without its ending.
        device: Where models are evaluated: cpu, cuda, ...
        rate: New tokens a second, of all the items of a batch together.
        repository: For the upload; None for a dry run of it.
    """
    tasks_of = domains_of(name)
    in_recipe = recipe_of(name)["models"]
    density = in_recipe[0]["parameters"]["density"]
    models = [each["model"] for each in in_recipe]
    read = sum(MODELS[model].bytes for model in inputs_of(name))
    merge_seconds = 4.9 + 27.9e-9 * read / (4 * BYTES)  # fitted on four models of two bytes
    reading_memory = 0.4e9 + 2.7 * max(math.prod(shape) for shape in shapes().values())
    kept = 2.55 * density * MODEL_BYTES  # values, places and base values: 0.51 x at density 0.2
    every = [task for of_domain in tasks_of.values() for task in of_domain]
    item_of_each = sum(TOKENS[task] for task in every) * LONGEST / rate
    texts = BATCH_SIZE * CONTEXT * 2 * LAYERS * HIDDEN * BYTES
    test = sum(TEST_ITEMS[task] * TOKENS[task] for task in every) * LONGEST / rate
    domains = len(tasks_of)
    step_seconds = (
        PARAMETERS * len(models) * (WRITTEN + domains * REDUCED) / CORES
        + (1 + domains) * MODEL_BYTES / CARRIED
        # Forward, the same once more for gradient checkpointing, and backward.
        + domains * BATCH_SIZE * LESSON_TOKENS * PARAMETERS * 8 / OPERATIONS
    )
    tasks = str(HERE / f"{name.split('_')[0]}.yml")
    recipe = str(HERE / "recipes" / f"{name}.yml")
    factors, weights, merged = f"factors/{name}.yml", f"weights/{name}.yml", f"merged/{name}"
    on = ("--device", device, "--dtype", "float16")
    tool = "mergekit-dppa"
    published = (repository,) if repository else (f"owner/{name}", "--dry-run")
    return [
        Step((tool, "check", recipe, "--output", merged), "", 60),
        Step(
            (tool, "analyze", recipe, "--output", f"analysis/{name}"),
            f"analysis/{name}",
            1.5 * merge_seconds,
            reading_memory + PICKLED,
        ),
        Step(
            (
                *(tool, "search", recipe, "--tasks", tasks, "--output", factors),
                *("--max-evaluations", str(CANDIDATES), *on),
            ),
            factors,
            domains * merge_seconds + (CANDIDATES + 1) * DEV_ITEMS * item_of_each,
            # While it is loaded, a fine-tuned model in float16 is there beside the merge.
            *placed(device, 2 * MODEL_BYTES + kept, 0, MODEL_BYTES + kept + texts),
            MODEL_BYTES,
        ),
        Step(
            (
                *(tool, "adamerge", factors, "--tasks", tasks, "--output", weights),
                *("--steps", str(STEPS), "--lr", f"{LEARNING_RATE:g}"),
                *("--gradient-checkpointing", *on),
            ),
            weights,
            # Scores of the fine-tuned models, of the start, and of ten states.
            merge_seconds + STEPS * step_seconds + 12 * DEV_ITEMS * item_of_each,
            *placed(
                device,
                (len(models) + 1) * MODEL_BYTES,
                len(models) * MODEL_BYTES,
                1.07 * MODEL_BYTES + texts,
            ),
            MODEL_BYTES,
        ),
        Step(
            ("mergekit-yaml", weights, merged, "--lazy-unpickle"),
            merged,
            merge_seconds,
            reading_memory + SHARD_BYTES,
            0,
            MODEL_BYTES,
        ),
        Step((tool, "check", merged, "--verify", "sample"), "", 60, 2e9 + PICKLED),
        Step(
            (
                *(tool, "evaluate", *models, merged, "--tasks", tasks, "--output", merged),
                *on,
            ),
            f"{merged}/evaluation.json",
            (len(models) + 1) * test,
            *placed(device, MODEL_BYTES, 0, MODEL_BYTES + texts),
        ),
        Step(
            # Abel's repository has no card, and so names no licence.
            (tool, "publish", merged, *published, "--recipe", weights, "--license", "llama2"),
            "",
            60 if repository is None else MODEL_BYTES / 5e7,
        ),
    ]


def placed(device: str, loading: float, beside: float, held: float) -> tuple[float, float]:
    """Bytes of memory, and of the GPU's.

    Args:
        device: Where models are evaluated.
        loading: What is in memory until the model is there.
        beside: What then stays in memory.
        held: The model, and what is on its device with it.
    """
    return (max(loading, beside + held), 0) if device == "cpu" else (loading, held)


def recipe_of(name: str) -> dict[str, Any]:
    """Content of a recipe."""
    found: dict[str, Any] = yaml.safe_load(
        (HERE / "recipes" / f"{name}.yml").read_text(encoding="utf-8")
    )
    return found


def inputs_of(name: str) -> list[str]:
    """The models that a recipe reads."""
    recipe = recipe_of(name)
    return [recipe["base_model"], *(each["model"] for each in recipe["models"])]


def domains_of(name: str) -> dict[str, list[str]]:
    """The domains that a recipe merges, and the tasks of each without their part."""
    tasks = yaml.safe_load((HERE / f"{name.split('_')[0]}.yml").read_text(encoding="utf-8"))
    return {
        domain: [task.removesuffix("_test") for task in given["test"]]
        for domain, given in tasks["domains"].items()
    }


def check_headers(folder: Path) -> None:
    """Check all recipes against checkpoints of these shapes, as `check` would on the real ones.

    Raises:
        click.ClickException: A check has found errors.
    """
    for model, stored in MODELS.items():
        write_headers(headers_of(folder, model), stored)
    for name in RECIPES:
        recipe = recipe_of(name)
        recipe["base_model"] = str(headers_of(folder, recipe["base_model"]))
        for each in recipe["models"]:
            each["model"] = str(headers_of(folder, each["model"]))
        path = folder / "headers" / f"{name}.yml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        click.echo(f"# {name}, on headers")
        run(("mergekit-dppa", "check", str(path)), folder)


def headers_of(folder: Path, model: str) -> Path:
    """Where the headers of a model are written."""
    return folder / "headers" / model.replace("/", "--")


def run(command: Sequence[str], folder: Path) -> None:
    """Run a command of this environment in a folder.

    Raises:
        click.ClickException: It has failed.
    """
    tool = Path(sys.executable).with_name(command[0])
    if subprocess.run([tool, *command[1:]], cwd=folder, check=False).returncode:
        raise click.ClickException(f"{' '.join(command[:2])} has failed.")


def line_of(step: Step, folder: Path) -> str:
    """A command, with a digest of the recipes and tasks that it reads."""
    digest = sha256(folder_hash(HERE / "tasks").encode())
    for each in step.command:
        path = folder / each  # an absolute one stays what it is
        if each.endswith(".yml") and each != step.writes and path.exists():
            digest.update(path.read_bytes())
    return f"{shlex.join(step.command)}  # {digest.hexdigest()[:12]}"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--recipe", "chosen", multiple=True, type=click.Choice(RECIPES), default=RECIPES)
@click.option("--dry-run", is_flag=True, help="Print the commands, and check headers only.")
@click.option("--device", default="cuda", show_default=True, help="cpu, cuda, ...")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    default=250.0,
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
    if repository is not None and not dry_run and get_token() is None:
        raise click.UsageError("--repository needs a login to the Hub: run `hf auth login` first.")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if dry_run:
        check_headers(folder)
    inputs = {model: MODELS[model].bytes for name in chosen for model in inputs_of(name)}
    click.echo(f"# inputs: {len(inputs)} models, {sum(inputs.values()) / 1e9:.0f} GB")
    for name in chosen:
        listed = folder / "ended" / f"{name}.txt"
        ended = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
        for number, step in enumerate(steps(name, device, rate, repository)):
            click.echo(str(step))
            line = line_of(step, folder)
            there = (folder / step.writes).exists()
            if dry_run or (there and ended[number : number + 1] == [line]):
                continue
            # What follows reads what this step writes, so it has not ended either.
            ended = ended[:number]
            listed.parent.mkdir(exist_ok=True)
            listed.write_text("".join(f"{each}\n" for each in ended), encoding="utf-8")
            for kind in ("factors", "weights", "merged"):
                (folder / kind).mkdir(exist_ok=True)
            run(step.command, folder)
            ended.append(line)
            listed.write_text("".join(f"{each}\n" for each in ended), encoding="utf-8")


if __name__ == "__main__":
    main()
