"""The sets of large models: headers, recipes and commands, without models of that size."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
import run
import run_mergebench
import set_runner
import steps
import stored_models
import torch
import yaml
from click.testing import CliRunner
from llama2_models import LLAMA2
from mergebench_models import MERGEBENCH
from mergekit.scripts.run_yaml import main as mergekit_yaml
from model_sets import ModelSet
from transformers import AutoConfig, AutoModelForCausalLM

from dppa_mergekit.cli.main import main
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.scoring.tasks import TasksFile

SETS = {"llama2-7b": LLAMA2, "mergebench": MERGEBENCH}
RECIPES = [(model_set, name) for model_set in SETS.values() for name in model_set.recipes]
DIFFERENT = {
    # A dataclass with a mapping has no hash.
    repr(stored): (model, stored)
    for model_set in SETS.values()
    for model, stored in reversed(model_set.models.items())
}.values()

each_recipe = pytest.mark.parametrize(
    ("model_set", "name"), RECIPES, ids=[name for _, name in RECIPES]
)

PARAMETERS = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
}


@pytest.mark.parametrize(
    "stored", [stored for _, stored in DIFFERENT], ids=[model for model, _ in DIFFERENT]
)
def test_shapes_are_those_of_transformers(
    stored: stored_models.StoredModel, tmp_path: Path
) -> None:
    stored_models.write_headers(tmp_path, stored)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    shapes = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    if stored.architecture.tied:
        # transformers saves a tied head once.
        assert shapes.pop("lm_head.weight") == shapes["model.embed_tokens.weight"]
    assert shapes == stored.shapes()
    written = yaml.safe_load((tmp_path / "model.safetensors.index.json").read_text())
    assert set(written["weight_map"]) == set(shapes)
    # Sparse: a tokenizer of 256,000 words has 6 MB, and the headers have less than one.
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir()) < 9e6


@pytest.mark.parametrize("base", PARAMETERS)
def test_the_number_of_parameters(base: str) -> None:
    stored = {**LLAMA2.models, **MERGEBENCH.models}[base]
    assert stored.bytes == PARAMETERS[base] * stored.element_bytes


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the dry runs of this module."""
    return tmp_path_factory.mktemp("runs")


@each_recipe
def test_a_dry_run_checks_headers_and_runs_nothing(
    model_set: ModelSet, name: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a dry run runs nothing")

    monkeypatch.setattr(set_runner, "run", refuse)
    folder = runs / model_set.pool_name(name)
    command = run.main if model_set is LLAMA2 else run_mergebench.main
    done = CliRunner().invoke(command, [str(folder), "--dry-run", "--recipe", name])
    assert done.exit_code == 0, done.output
    assert "error: " not in done.output
    # A machine may lack the room.
    warnings = [line for line in done.output.splitlines() if line.startswith("warning: ")]
    assert all(line.startswith(("warning: disk", "warning: memory")) for line in warnings)
    for step in steps.list_steps(model_set, name, "cuda", 250, None):
        assert str(step) in done.output
    assert {path.name for path in folder.iterdir()} == {"headers", "recipes", "tasks"}
    # The weights are holes, and tokenizers of 256,000 words take 6 MB.
    assert sum(path.stat().st_blocks * 512 for path in folder.rglob("*")) < 6e7


@pytest.mark.parametrize(
    ("model_set", "pool"),
    [(LLAMA2, "three"), (MERGEBENCH, "llama-3.2-3b"), (MERGEBENCH, "gemma-2-2b")],
)
def test_a_wrong_shape_is_found_on_headers(
    model_set: ModelSet,
    pool: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    expert = model_set.pools[pool].experts[0]
    width = model_set.models[expert].architecture.intermediate - 1
    shapes = stored_models.StoredModel.shapes
    name = "model.layers.1.mlp.up_proj.weight"

    def narrow(stored: stored_models.StoredModel) -> dict[str, tuple[int, ...]]:
        found = shapes(stored)
        return {**found, name: (width, found[name][1])}

    write = set_runner.write_headers

    def write_wrongly(folder: Path, stored: stored_models.StoredModel) -> None:
        with monkeypatch.context() as patched:
            if folder.name == expert.replace("/", "--"):
                patched.setattr(stored_models.StoredModel, "shapes", narrow)
            write(folder, stored)

    monkeypatch.setattr(set_runner, "write_headers", write_wrongly)
    with pytest.raises(click.ClickException, match="does not fit"):
        set_runner.check_headers(model_set, tmp_path, [f"{pool}_80_by_inputs"])
    said = capfd.readouterr().out
    assert str(width) in said
    assert name in said


@each_recipe
def test_recipes_and_tasks_fit(model_set: ModelSet, name: str, tmp_path: Path) -> None:
    model_set.write_files(tmp_path)
    recipe = Recipe.read(tmp_path / "recipes" / f"{name}.yml")
    pool = model_set.pool(name)
    assert recipe.fine_tuned() == pool.experts
    assert (recipe.method == "dppa_regmean") == name.endswith("by_inputs")
    (rate,) = [part for part in name.split("_") if part in ("80", "90")]
    for model in pool.experts:
        assert recipe.parameters(model)["density"] == pytest.approx(1 - int(rate) / 100)
    tasks = TasksFile.read(tmp_path / "tasks" / f"{model_set.pool_name(name)}.yml")
    assert {domain.model for domain in tasks.domains.values()} <= set(pool.experts)
    assert tasks.batch_size == model_set.batch_size
    assert not set(tasks.metrics("dev")) & set(tasks.metrics("test"))


@each_recipe
def test_every_command_exists(model_set: ModelSet, name: str) -> None:
    for step in steps.list_steps(model_set, name, "cuda", 250, "me/merged"):
        tool, *arguments = step.command
        if tool in ("python", "lm_eval"):
            continue
        command = mergekit_yaml
        if tool == "mergekit-dppa":
            command = main.get_command(click.Context(main), arguments.pop(0))
        assert command is not None
        with click.Context(command) as context:
            command.make_parser(context).parse_args(list(arguments))


@each_recipe
def test_every_step_reads_what_earlier_steps_wrote(model_set: ModelSet, name: str) -> None:
    written = {f"recipes/{name}.yml", f"tasks/{model_set.pool_name(name)}.yml"}
    for step in steps.list_steps(model_set, name, "cuda", 250, None):
        for argument in step.command:
            folder = argument.split("/")[0]
            if argument != step.writes and folder in ("recipes", "tasks", "tuned", "learned"):
                assert argument in written
            if folder == "prompts" and argument.endswith(".jsonl"):
                assert argument.rpartition("/")[0] in written
        written.add(step.writes)


@each_recipe
def test_on_a_cpu_all_memory_is_main_memory(model_set: ModelSet, name: str) -> None:
    cuda, cpu = (steps.list_steps(model_set, name, device, 250, None) for device in ("cuda", "cpu"))
    assert any(step.device_memory for step in cuda)
    assert not any(step.device_memory for step in cpu)
    for there, here in zip(cuda, cpu, strict=True):
        assert here.memory >= max(there.memory, there.device_memory)


@pytest.mark.parametrize(
    ("model_set", "names"),
    [
        (LLAMA2, ["three_80", "three_80_by_inputs"]),
        (MERGEBENCH, ["llama-3.2-3b_80", "llama-3.2-3b_80_by_inputs"]),
    ],
    ids=SETS,
)
def test_the_readmes_state_the_needs_of_all_steps(model_set: ModelSet, names: list[str]) -> None:
    text = (model_set.folder / "README.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("| `")]
    cells = [tuple(cell.strip() for cell in row) for row in rows]
    listed = [
        step for name in names for step in steps.list_steps(model_set, name, "cuda", 250, None)
    ]
    steps_of_tables = cells[: len(listed)]
    assert [row[1:] for row in steps_of_tables] == [step.needs for step in listed]
    for row, step in zip(steps_of_tables, listed, strict=True):
        assert row[0].split("`")[1] in " ".join(step.command)
    for name in names:
        read = model_set.pool(name).inputs
        size = sum(model_set.models[model].bytes for model in read)
        assert f"| {size / 1e9:.0f} GB |" in text


def test_the_readme_states_the_needs_of_every_pool_of_mergebench() -> None:
    text = (MERGEBENCH.folder / "README.md").read_text(encoding="utf-8")
    for name, pool in MERGEBENCH.pools.items():
        listed = steps.list_steps(MERGEBENCH, f"{name}_80_by_inputs", "cuda", 250, None)
        sizes = (
            sum(MERGEBENCH.models[model].bytes for model in pool.inputs),
            max(step.memory for step in listed),
            max(step.device_memory for step in listed),
        )
        needs = " | ".join(f"{size / 1e9:.0f} GB" for size in sizes)
        hours = steps.format_duration(sum(step.seconds for step in listed))
        assert f"| {name} | {needs} | {hours} |" in text


def list_all(model_set: ModelSet, name: str) -> list[steps.Step]:
    runs = (("cuda", None), ("cuda", "me/merged"), ("cpu", None))
    listed = [
        step
        for device, repository in runs
        for step in steps.list_steps(model_set, name, device, 1, repository)
    ]
    return list({step.command: step for step in listed}.values())


def test_ended_steps_do_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed: list[str] = []
    failing: list[str] = []
    all_steps = list_all(LLAMA2, "two_80_by_inputs")

    def note(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        by_name = {"mergekit-dppa": command[1], "python": "prompts"}
        typed.append(by_name.get(Path(command[0]).name, "merge"))
        if typed[-1] not in failing:
            (step,) = [step for step in all_steps if list(step.command[1:]) == command[1:]]
            if step.writes:
                written = tmp_path / step.writes
                written.parent.mkdir(parents=True, exist_ok=True)
                written.touch() if written.suffix else written.mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, int(typed[-1] in failing))

    monkeypatch.setattr(set_runner.subprocess, "run", note)

    def start(*options: str) -> list[str]:
        typed.clear()
        arguments = [str(tmp_path), "--recipe", "two_80_by_inputs", *options]
        found = CliRunner().invoke(run.main, arguments)
        assert (found.exit_code == 1) == bool(failing), found.output
        return list(typed)

    end = ["merge", "check", "evaluate", "publish"]
    failing.append("adamerge")
    assert start() == ["check", "analyze", "prompts", "activations", "adamerge"]
    failing.clear()
    assert start() == ["adamerge", *end]
    assert start() == []
    monkeypatch.setattr(set_runner, "get_token", lambda: "hf_token")
    assert start("--repository", "me/merged") == ["publish"]
    # On another device the command is another one, and all later steps run again, although they
    # have ended once and the run is stopped in between.
    failing.append("merge")
    assert start("--device", "cpu") == ["activations", "adamerge", "merge"]
    failing.clear()
    assert start("--device", "cpu") == end
    # They run again, too, when a recipe changes or is missing, here the one that AdaMerging writes.
    (tmp_path / "learned" / "two_80_by_inputs.yml").write_text("merge_method: dppa")
    assert start("--device", "cpu") == end
    (tmp_path / "learned" / "two_80_by_inputs.yml").unlink()
    assert start("--device", "cpu") == ["adamerge", *end]


def test_code_is_run_only_where_lm_eval_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switches: list[str | None] = []

    def note(
        command: Sequence[str], env: dict[str, str], **_: object
    ) -> subprocess.CompletedProcess[str]:
        switches.append(env.get(set_runner.CODE_SWITCH))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(set_runner.subprocess, "run", note)
    monkeypatch.delenv(set_runner.CODE_SWITCH, raising=False)
    set_runner.run(("lm_eval", "--model", "hf"), tmp_path)
    set_runner.run(("mergekit-dppa", "check"), tmp_path)
    assert switches == ["1", None]


def test_an_upload_needs_a_login_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_runner, "get_token", lambda: None)
    arguments = [str(tmp_path), "--recipe", "two_80", "--repository", "me/merged"]
    found = CliRunner().invoke(run.main, arguments)
    assert found.exit_code == 2
    assert "hf auth login" in found.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rate", ["0", "-1"])
def test_rates_are_positive(rate: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(run.main, [str(tmp_path), "--dry-run", "--rate", rate])
    assert found.exit_code == 2
    assert "--rate" in found.output
