"""Scoring by vLLM: with a stand-in that runs transformers, and with vLLM where it is installed."""

import json
import shutil
import sys
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from lm_eval.models.huggingface import HFLM
from search_models import save_search
from search_runs import changed, evaluated

from dppa_mergekit.cli.main import main
from dppa_mergekit.errors import DppaError
from dppa_mergekit.live.placement import AS_STORED, Placement
from dppa_mergekit.scoring import vllm_engine
from dppa_mergekit.scoring.lm_eval_harness import Harness
from dppa_mergekit.scoring.tasks import TasksFile
from dppa_mergekit.scoring.vllm_engine import VllmEngine


class StandIn(HFLM):
    """Has the interface of lm-eval's model for vLLM, as far as the engine uses it."""

    started: list[dict]
    running: int

    def __init__(
        self,
        pretrained: str,
        tokenizer: str,
        dtype: str,
        trust_remote_code: bool,
        batch_size: str,
        use_tqdm_on_load: bool,
        **arguments: object,
    ) -> None:
        if arguments.pop("broken", False):
            raise RuntimeError("Engine core initialization failed.\nSee above.")
        super().__init__(
            pretrained=pretrained, tokenizer=tokenizer, dtype=dtype, batch_size=8, device="cpu"
        )
        thinking = arguments.get("chat_template_args", {})
        thinks = thinking.pop("enable_thinking", None)  # type: ignore[attr-defined]
        self.started.append({"folder": pretrained, "dtype": dtype, **arguments, "thinks": thinks})
        assert StandIn.running == 0
        StandIn.running += 1
        core = SimpleNamespace(shutdown=self._end)
        self.model.llm_engine = SimpleNamespace(engine_core=core)

    @staticmethod
    def _end() -> None:
        StandIn.running -= 1


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_search(tmp_path_factory.mktemp("vllm"))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    module = ModuleType("lm_eval.models.vllm_causallms")
    module.VLLM = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(vllm_engine, "version", lambda name: "0.32.0")
    monkeypatch.setattr(StandIn, "started", [], raising=False)
    monkeypatch.setattr(StandIn, "running", 0, raising=False)
    return StandIn


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def engine_of(
    saved: Path, placement: Placement = AS_STORED, **arguments: object
) -> tuple[VllmEngine, dict[str, range]]:
    tasks = TasksFile.read(saved / "tasks.yml")
    harness = Harness(tasks, {"math_dev": "acc,none"})
    return VllmEngine(harness, placement, arguments), {
        "math_dev": range(harness.item_count("math_dev"))
    }


def test_models_and_merges_score_as_by_transformers(
    saved: Path, stand_in: type[StandIn], tmp_path: Path
) -> None:
    found = {}
    for engine in ("transformers", "vllm"):
        output = tmp_path / engine
        given = [saved / "base", saved / "math", "--recipe", saved / "recipe.yml"]
        given += ["--tasks", saved / "tasks.yml", "--output", output, "--engine", engine]
        done = run("evaluate", *given)
        assert done.exit_code == 0, done.output
        found[engine] = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    assert found["vllm"] == found["transformers"]
    scores = found["vllm"]["models"]
    assert scores[str(saved / "base")] != scores[str(saved / "math")]
    # Each model has an engine, which ends before the next one starts.
    names = [Path(engine["folder"]).name for engine in stand_in.started[:3]]
    assert names == ["math", "law", "base"]
    assert stand_in.running == 0


@pytest.mark.parametrize("tune", ["factors", "weights"])
def test_a_search_scores_merged_folders(
    tune: str, saved: Path, stand_in: type[StandIn], tmp_path: Path
) -> None:
    output = tmp_path / "tuned.yml"
    arguments = {"vllm_args": {"max_model_len": 32}}
    tasks = changed(saved, tmp_path, "tasks.yml", lambda content: content.update(arguments))
    given = [saved / "recipe.yml", "--tasks", tasks, "--output", output]
    done = run("search", *given, "--engine=vllm", f"--tune={tune}", "--max-evaluations=4")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))
    results = record["tuned.yml"]["results"]
    # Of 48 items, two thirds score each candidate once; the best and the start meet on the rest.
    most = sum(1 + result["evaluations"] + 2 for result in results) + 2
    assert 2 + 4 <= len(stand_in.started) <= most
    assert stand_in.running == 0
    assert not list(tmp_path.glob(".dppa-*"))
    assert record["tuned.yml"]["engine"] == "vllm"
    assert all(engine["max_model_len"] == 32 for engine in stand_in.started)


def test_reported_ratios_are_those_of_the_recipe(
    saved: Path, stand_in: type[StandIn], tmp_path: Path
) -> None:
    # A task with few items is scored as a whole, so that the reported ratio can be made anew.
    tasks = changed(saved, tmp_path, "tasks.yml", lambda content: content.update(limit=7))
    given = [saved / "recipe.yml", "--tasks", tasks, "--output", tmp_path / "tuned.yml"]
    done = run("search", *given, "--engine=vllm", "--tune=weights", "--max-evaluations=3")
    assert done.exit_code == 0, done.output
    reported = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))
    after = reported["tuned.yml"]["results"][0]["after"]
    again = run(
        "evaluate",
        "--recipe",
        tmp_path / "tuned.yml",
        "--tasks",
        tasks,
        "--part=dev",
        "--output",
        tmp_path / "again",
    )
    assert again.exit_code == 0, again.output
    plain = json.loads((tmp_path / "again" / "evaluation.json").read_text(encoding="utf-8"))
    ratio = plain["models"][str(tmp_path / "tuned.yml")]["mean_ratio"]
    assert after["value"] == pytest.approx(ratio["value"])


def test_weights_in_another_dtype(saved: Path, stand_in: type[StandIn]) -> None:
    stored = yaml.safe_load((saved / "math" / "config.json").read_text(encoding="utf-8"))["dtype"]
    for placement, dtype in (
        (AS_STORED, stored),
        (Placement(dtype=torch.float16), "float16"),
    ):
        engine, items = engine_of(saved, placement)
        engine.run(saved / "math", items)
        assert stand_in.started[-1]["dtype"] == dtype


def test_a_config_without_dtype(saved: Path, stand_in: type[StandIn], tmp_path: Path) -> None:
    shutil.copytree(saved / "math", tmp_path / "math")
    config = tmp_path / "math" / "config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    dtype = content.pop("dtype")
    config.write_text(json.dumps(content), encoding="utf-8")
    engine, items = engine_of(saved)
    engine.run(tmp_path / "math", items)
    assert stand_in.started[-1]["dtype"] == dtype


def test_arguments_stay_as_they_are(saved: Path, stand_in: type[StandIn]) -> None:
    """lm-eval takes entries out of the dictionaries that it is given."""
    engine, items = engine_of(saved, chat_template_args={"enable_thinking": False})
    for name in ("math", "law"):
        engine.run(saved / name, items)
    assert [started["thinks"] for started in stand_in.started] == [False, False]


def test_a_model_without_chat_template(
    saved: Path, stand_in: type[StandIn], tmp_path: Path
) -> None:
    change = {"apply_chat_template": True}
    tasks = changed(saved, tmp_path, "tasks.yml", lambda content: content.update(change))
    given = [saved / "recipe.yml", "--tasks", tasks, "--output", tmp_path / "tuned.yml"]
    done = run("search", *given, "--engine=vllm", "--tune=weights", "--max-evaluations=2")
    assert done.exit_code == 1
    assert "has no chat template" in done.output
    assert not stand_in.started


def test_arguments_of_the_tasks_file(saved: Path, stand_in: type[StandIn], tmp_path: Path) -> None:
    tasks = changed(
        saved,
        tmp_path,
        "tasks.yml",
        lambda content: content.update(vllm_args={"max_model_len": 32}),
    )
    done = run("evaluate", saved / "base", "--tasks", tasks, "--engine=vllm")
    assert done.exit_code == 0, done.output
    assert stand_in.started[0]["max_model_len"] == 32


def test_a_model_that_vllm_cannot_run(saved: Path, stand_in: type[StandIn], tmp_path: Path) -> None:
    engine, items = engine_of(saved, broken=True)
    with pytest.raises(DppaError, match=r"math: vLLM cannot load the model \(Engine core init"):
        engine.run(saved / "math", items)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine=vllm"], "--engine vllm needs a package named vllm"),
        (["--engine=vllm", "--score-command=score {model}"], "it needs scoring by lm-eval"),
        (["--engine=vllm", "--strategy=distill"], "give no --score-command and no --engine vllm"),
        (["--engine=vllm", "--workers=2"], "--engine vllm takes no --workers"),
        (["--engine=vllm", "--batch-size=4"], "--batch-size has no effect here"),
        (["--engine=vllm", "--device=cuda"], "--device has no effect here"),
        (["--engine=llama.cpp"], "'llama.cpp' is not one of"),
    ],
)
def test_mistakes(
    options: list[str], message: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_none(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(vllm_engine, "version", find_none)
    output = tmp_path / "tuned.yml"
    given = [saved / "recipe.yml", "--tasks", saved / "tasks.yml", "--output", output]
    done = run("search", *given, *options)
    assert done.exit_code != 0
    assert message in done.output
    assert "Traceback" not in done.output
    assert not output.exists()


def test_arguments_that_are_the_commands(saved: Path, stand_in: type[StandIn]) -> None:
    for name, way in (("dtype", "give --dtype"), ("data_parallel_size", "tensor_parallel_size")):
        with pytest.raises(DppaError, match=f"vllm_args: {name} is not allowed: .*{way}"):
            engine_of(saved, **{name: 2})
    assert not stand_in.started


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_itself(saved: Path) -> None:
    engine, items = engine_of(saved, enforce_eager=True)
    for name in ("math", "law", "base"):
        value = engine.run(saved / name, items)["math_dev"].value
        # In another order of additions, near ties may turn.
        assert value == pytest.approx(evaluated(saved, saved / name, "math_dev"), abs=0.05), name
