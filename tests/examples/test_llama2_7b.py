"""The full-size experiment: its recipes, tasks and commands, without models of that size."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import costs
import model_headers
import pytest
import recipe_files
import run
import steps
import torch
import yaml
from click.testing import CliRunner
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from mergekit.scripts.run_yaml import main as mergekit_yaml
from transformers import AutoConfig, AutoModelForCausalLM

from dppa_mergekit.cli.main import main
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.scoring.tasks import TasksFile

FOLDER = Path(run.__file__).parent


def load_data() -> ModuleType:
    """Load the module of the tasks folder, as lm-eval does."""
    path = FOLDER / "tasks" / "data.py"
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


data = load_data()

NAMES = ("gsm8k", "math", "fpb", "fiqa_sa", "scotus", "unfair_tos")


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(data.STAND_INS, "1")


@pytest.mark.parametrize("model", model_headers.MODELS)
def test_shapes_are_those_of_transformers(model: str, tmp_path: Path) -> None:
    stored = model_headers.MODELS[model]
    model_headers.write_headers(tmp_path, stored)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    shapes = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    assert shapes == model_headers.list_shapes(stored.rows)
    parameters = 6_738_415_616 + 2 * 4096 * (stored.rows - 32000)
    assert sum(tensor.numel() for tensor in empty.parameters()) == parameters
    assert stored.bytes == parameters * (2 if "Llama-2" in model else 4)
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir()) < 3e6


def test_a_dry_run_checks_headers_and_runs_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "run.py"), str(tmp_path), "--dry-run"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("no errors") == 4
    # A machine may lack the room.
    warnings = [line for line in finished.stdout.splitlines() if line.startswith("warning: ")]
    assert all(line.startswith(("warning: disk", "warning: memory")) for line in warnings)
    assert finished.stdout.count("its weights are F32, those of the base model F16") == 10
    # 0.4 GB, 2.7 bytes for each element of an embedding, and a shard of 5e9 bytes.
    assert finished.stdout.count("memory: the merge needs about 5.8 GB") == 4
    for name in recipe_files.RECIPES:
        for tool in ("check", "analyze", "search", "adamerge", "evaluate", "publish"):
            assert f"mergekit-dppa {tool} " in finished.stdout
        assert f"mergekit-yaml weights/{name}.yml merged/{name}" in finished.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"headers"}


def test_a_wrong_shape_is_found_on_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write = model_headers.write_headers

    def narrow(folder: Path, stored: object) -> None:
        width = 11007 if "Abel" in folder.name else 11008
        monkeypatch.setattr(model_headers, "INTERMEDIATE", width)
        write(folder, stored)

    monkeypatch.setattr(run, "write_headers", narrow)
    with pytest.raises(click.ClickException, match="mergekit-dppa check has failed"):
        run.check_headers(tmp_path)
    assert "11007" in capfd.readouterr().out


def test_the_readme_states_the_needs_of_all_steps() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("| `")]
    cells = [tuple(cell.strip() for cell in row) for row in rows]
    listed = steps.list_steps("three_80", "cuda", 250, None)
    assert [row[1:] for row in cells] == [step.needs for step in listed]
    for row, step in zip(cells, listed, strict=True):
        assert row[0].split("`")[1] in step.command
    inputs = recipe_files.list_inputs("three_80")
    read = {model: model_headers.MODELS[model].bytes for model in inputs}
    assert f"| {sum(read.values()) / 1e9:.0f} GB |" in text
    assert costs.DEV_ITEMS == data.DEV_ITEMS


@pytest.mark.parametrize("name", recipe_files.RECIPES)
def test_recipes_prune_as_their_names_say(name: str) -> None:
    rate = int(name.split("_")[1])
    models = recipe_files.read_recipe(name)["models"]
    densities = {model["parameters"]["density"] for model in models}
    (density,) = densities
    assert density == pytest.approx(1 - rate / 100)


def test_ended_steps_do_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed: list[str] = []
    failing: list[str] = []

    def note(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        typed.append(command[1] if str(command[0]).endswith("dppa") else "merge")
        if typed[-1] not in failing:
            (step,) = [step for step in list_all() if list(step.command[1:]) == command[1:]]
            if step.writes:
                written = tmp_path / step.writes
                written.parent.mkdir(parents=True, exist_ok=True)
                written.touch() if written.suffix else written.mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, int(typed[-1] in failing))

    def list_all() -> list[steps.Step]:
        runs = (("cuda", None), ("cuda", "me/merged"), ("cpu", None))
        listed = [
            step for device, name in runs for step in steps.list_steps("two_80", device, 1, name)
        ]
        return list({step.command: step for step in listed}.values())

    monkeypatch.setattr(run.subprocess, "run", note)

    def start(*options: str) -> list[str]:
        typed.clear()
        arguments = [str(tmp_path), "--recipe", "two_80", *options]
        found = CliRunner().invoke(run.main, arguments)
        assert (found.exit_code == 1) == bool(failing), found.output
        return list(typed)

    failing.append("adamerge")
    assert start() == ["check", "analyze", "search", "adamerge"]
    failing.clear()
    assert start() == ["adamerge", "merge", "check", "evaluate", "publish"]
    assert start() == []
    monkeypatch.setattr(run, "get_token", lambda: "hf_token")
    assert start("--repository", "me/merged") == ["publish"]
    # On another device the command is another one, and all later steps run again, although they
    # have ended once and the run is stopped in between.
    failing.append("merge")
    assert start("--device", "cpu") == ["search", "adamerge", "merge"]
    failing.clear()
    assert start("--device", "cpu") == ["merge", "check", "evaluate", "publish"]
    # They run again, too, when a recipe changes or is missing, here the one that AdaMerging writes.
    (tmp_path / "weights" / "two_80.yml").write_text("merge_method: dppa")
    assert start("--device", "cpu") == ["merge", "check", "evaluate", "publish"]
    (tmp_path / "weights" / "two_80.yml").unlink()
    assert start("--device", "cpu") == ["adamerge", "merge", "check", "evaluate", "publish"]


@pytest.mark.parametrize("name", recipe_files.RECIPES)
def test_every_command_exists(name: str) -> None:
    for step in steps.list_steps(name, "cuda", 250, "me/merged"):
        tool, *arguments = step.command
        command = mergekit_yaml
        if tool == "mergekit-dppa":
            command = main.get_command(click.Context(main), arguments.pop(0))
        assert command is not None
        with click.Context(command) as context:
            command.make_parser(context).parse_args(list(arguments))


def test_on_a_cpu_all_memory_is_main_memory() -> None:
    cuda, cpu = (steps.list_steps("three_80", device, 250, None) for device in ("cuda", "cpu"))
    assert any(step.device_memory for step in cuda)
    assert not any(step.device_memory for step in cpu)
    for there, here in zip(cuda, cpu, strict=True):
        assert here.memory >= max(there.memory, there.device_memory)


def test_an_upload_needs_a_login_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "get_token", lambda: None)
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


@pytest.mark.parametrize("part", ["dev", "test"])
def test_which_datasets_are_loaded(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(data.STAND_INS)
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(path: str, configuration: str | None, split: str) -> list[dict[str, object]]:
        asked.append((path, configuration, split))
        known = {"main": "gsm8k", "scotus": "scotus", "unfair_tos": "unfair_tos"}
        others = {"TheFinAI/en-fpb": "fpb", "TheFinAI/flare-fiqasa": "fiqa_sa"}
        name = known.get(str(configuration)) or others.get(path, "math")
        return data._read_stand_ins(name, split)

    monkeypatch.setattr(data.datasets, "load_dataset", load_dataset)
    split = "train" if part == "dev" else "test"
    subjects = (
        *("algebra", "counting_and_probability", "geometry", "intermediate_algebra"),
        *("number_theory", "prealgebra", "precalculus"),
    )
    hub = {
        "gsm8k": [("openai/gsm8k", "main")],
        "math": [("EleutherAI/hendrycks_math", subject) for subject in subjects],
        "fpb": [("TheFinAI/en-fpb", None)],
        "fiqa_sa": [("TheFinAI/flare-fiqasa", None)],
        "scotus": [("coastalcph/lex_glue", "scotus")],
        "unfair_tos": [("coastalcph/lex_glue", "unfair_tos")],
    }
    for name, sources in hub.items():
        asked.clear()
        assert len(data.load(name, part)["test"]) > 0
        assert asked == [(*source, split) for source in sources]


@pytest.mark.parametrize("name", ["three_80", "three_90", "two_80", "two_90"])
def test_recipes_and_tasks_name_the_same_models(name: str) -> None:
    recipe = Recipe.read(FOLDER / "recipes" / f"{name}.yml")
    tasks = TasksFile.read(FOLDER / f"{name.split('_')[0]}.yml")
    models = [model["model"] for model in yaml.safe_load(recipe.to_yaml())["models"]]
    assert models == [domain.model for domain in tasks.domains.values()]
    assert tasks.batch_size == costs.BATCH_SIZE
    assert set(tasks.domains) == {"math", "finance", "law"} - ({"law"} if "two" in name else set())
    for domain in tasks.domains.values():
        assert all(task.endswith("_dev") for task in domain.dev)
        assert all(task.endswith("_test") for task in domain.test)


class Knowing(LM):
    """Gives a right answer to every prompt, or to none, in the form that the tasks expect."""

    def __init__(self, knows: bool) -> None:
        super().__init__()
        self._knows = knows
        self.settings: list[dict[str, object]] = []
        self._right = {
            item["prompt"]: (name, item["right"])
            for name in NAMES
            for part in ("dev", "test")
            for item in data.load(name, part)["test"]
        }

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        self.settings += [request.args[1] for request in requests]
        answers = []
        for request in requests:
            name, right = self._right[request.args[0]]
            if name in ("gsm8k", "math"):
                answers.append(f"So it is.\n#### {right[0] if self._knows else '-77'}")
            else:
                answers.append(f"I think it is {right[-1].lower() if self._knows else 'so'}.")
        return answers

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError


@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.parametrize("part", ["dev", "test"])
def test_every_task_runs_offline(part: str, knows: bool, tmp_path: Path) -> None:
    tasks = TasksFile.read(FOLDER / "three.yml")
    metrics = tasks.metrics(part)  # type: ignore[arg-type]
    assert [task.removesuffix(f"_{part}") for task in metrics] == list(NAMES)
    manager = TaskManager(include_path=str(tasks.include_path), include_defaults=False)
    model = Knowing(knows)
    loaded = manager.load(list(metrics))
    found = evaluate(model, loaded, log_samples=False, bootstrap_iters=0)["results"]
    assert {found[task][metric] for task, metric in metrics.items()} == {float(knows)}
    assert all(settings["max_gen_toks"] == 2048 for settings in model.settings)
    assert all(settings["do_sample"] is False for settings in model.settings)
    ends = [tuple(settings["until"]) for settings in model.settings]
    assert set(ends) == {(), ("Question:",)}


@pytest.mark.parametrize("name", NAMES)
def test_dev_and_test_have_nothing_in_common(name: str) -> None:
    dev, test = (
        {item["prompt"] for item in data.load(name, part)["test"]} for part in ("dev", "test")
    )
    assert dev
    assert test
    assert not set(dev) & set(test)


def test_long_opinions_and_fair_sentences_are_left_out() -> None:
    assert all(len(item["prompt"]) < 8000 for item in data.load("scotus", "dev")["test"])
    assert len(data.load("unfair_tos", "test")["test"]) == 2


@pytest.mark.parametrize(
    ("rule", "right", "answer", "expected"),
    [
        ("number", "1200", "so 3.\n#### 1,200", 1),
        ("number", "12", "#### $12.00 dollars", 1),
        ("number", "12", "#### 12.50", 0),
        ("number", "-3", "#### -3", 1),
        ("number", "0.5", "#### $.50", 1),
        ("number", "0.5", "#### 0.5", 1),
        ("number", "50", "#### $.50", 0),
        ("number", "500", "#### Rs.500", 1),
        ("number", "50", "#### ...50", 1),
        ("number", "0", "#### 0.0", 1),
        ("number", "100", "#### 100.00", 1),
        ("number", "5", "the answer is 5", 0),
        ("number", "5", "#### 4\n#### 5", 1),
        ("number", "5", "####", 0),
        ("number", "18", "#### 18\n\nQuestion:\nHow many?\nAnswer:\n#### 5", 1),
        ("number", "5", "#### 18\n\nQuestion:\nHow many?\nAnswer:\n#### 5", 0),
        ("number", "-38000", "#### -$38,000", 1),
        ("number", "38000", "#### -$38,000", 0),
        ("number", "38000", "#### $38,000", 1),
        ("expression", "\\frac{1}{2}", "#### $\\dfrac12$.", 1),
        ("expression", "\\frac{1}{2}", "#### \\frac{1}{2}\nThanks", 1),
        ("expression", "\\frac{1}{2}", "#### \\frac{1}{3}", 0),
        ("expression", "x^2", "it is x^2", 0),
        ("expression", "1000", "#### 1,000", 1),
        ("expression", "1,000", "#### 1000", 1),
        ("expression", "(1,2)", "#### (1,2)", 1),
        ("expression", "(1,2)", "#### (12)", 0),
        ("expression", "7", "#### 7\nQuestion:\n#### 8", 1),
        ("choice", "Civil Rights", "This is about civil rights.", 1),
        ("choice", "Civil Rights", "This is about privacy.", 0),
        # Lenient, as the paper is.
        ("choice", "Privacy", "It is one of: Civil Rights, Privacy.", 1),
    ],
)
def test_when_an_answer_is_right(rule: str, right: str, answer: str, expected: float) -> None:
    judge = getattr(data, f"right_{rule}")
    assert judge({"right": [right]}, [answer]) == {"right": expected}
