"""`mergekit-dppa search` on tiny models: what it writes, how it goes on, what it refuses."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from conftest import Merge
from search_models import save_search, save_task

from dppa_mergekit.cli.main import main
from dppa_mergekit.live.amplified_model import AmplifiedModel
from dppa_mergekit.recipes import Recipe
from dppa_mergekit.scoring.lm_eval_harness import Harness
from dppa_mergekit.search.factor_search import search_amplification
from dppa_mergekit.search.options import Options

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_search(tmp_path_factory.mktemp("search"))


@pytest.fixture
def command(saved: Path, tmp_path: Path) -> Command:
    """command(*options, recipe=..., tasks=...) writes tmp_path/tuned.yml."""

    def run(
        *options: str,
        recipe: Path | str = "recipe.yml",
        tasks: Path | str = "tasks.yml",
        output: Path | str | None = None,
    ) -> Result:
        arguments = [
            str(saved / recipe),
            f"--tasks={saved / tasks}",
            f"--output={tmp_path / 'tuned.yml' if output is None else output}",
        ]
        return CliRunner().invoke(main, ["search", *arguments, *options])

    return run


def changed(saved: Path, tmp_path: Path, name: str, change: Callable[[dict], object]) -> Path:
    content = yaml.safe_load((saved / name).read_text(encoding="utf-8"))
    if name == "tasks.yml":
        content["include_path"] = str(saved / "tasks")
    change(content)
    path = tmp_path / f"changed_{name}"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def journal(tmp_path: Path) -> list[dict]:
    text = (tmp_path / "tuned.yml.journal.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def evaluated(saved: Path, model: Path, task: str) -> float:
    """The accuracy of a checkpoint by lm-eval's own entry point."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    scored = simple_evaluate(
        "hf",
        model_args={"pretrained": str(model)},
        tasks=[task],
        task_manager=TaskManager(include_path=str(saved / "tasks"), include_defaults=False),
        batch_size=8,
        device="cpu",
        bootstrap_iters=0,
    )
    return float(scored["results"][task]["acc,none"])


@pytest.mark.parametrize("strategy", ["joint", "paper", "distill"])
def test_what_it_writes(
    strategy: str, command: Command, saved: Path, tmp_path: Path, merge: Merge
) -> None:
    result = command(f"--strategy={strategy}", "--max-evaluations=8", "--html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "tuned.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 1
    assert "dev Domain-Ratio" in page
    assert (
        result.stdout.splitlines()[-1] == f"{tmp_path / 'tuned.yml'}: the recipe with these factors"
    )
    before = yaml.safe_load((saved / "recipe.yml").read_text(encoding="utf-8"))
    tuned = yaml.safe_load((tmp_path / "tuned.yml").read_text(encoding="utf-8"))
    # Down to the density of each model, and nothing else has changed.
    names = [["amplify_90", "amplify_80"], ["amplify_90"]]
    for entry, wanted in zip(tuned["models"], names, strict=True):
        found = {name: entry["parameters"].pop(name) for name in wanted}
        assert all(0 < factor <= 3 for factor in found.values())
    assert tuned == before
    assert list(tuned) == list(before)
    merge(yaml.safe_load((tmp_path / "tuned.yml").read_text(encoding="utf-8")))
    record = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))["tuned.yml"]
    assert [each["domain"] for each in record["results"]] == ["math", "law"]
    assert "| math " in (tmp_path / "tuned.md").read_text(encoding="utf-8")
    # Test tasks are never seen, and no merged folder is left.
    assert "_test" not in (tmp_path / "tuned.yml.journal.jsonl").read_text(encoding="utf-8")
    assert not list(tmp_path.glob(".dppa-*"))
    for line in journal(tmp_path)[1:]:
        if line["candidate"] == "dense":
            assert next(iter(line["scores"].values()))[0] == 1.0


def test_scores_are_those_of_the_merged_checkpoint(
    command: Command, saved: Path, tmp_path: Path, merge: Merge
) -> None:
    assert command("--strategy=paper", "--max-evaluations=6").exit_code == 0
    tuned = Recipe.read(tmp_path / "tuned.yml")
    record = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))["tuned.yml"]
    for name, result in zip(("math", "law"), record["results"], strict=True):
        merge(tuned.alone(str(saved / name)).content, output=f"alone_{name}")
        score = evaluated(saved, tmp_path / f"alone_{name}", f"{name}_dev")
        assert result["after"]["value"] == pytest.approx(100 * score, abs=1e-9)


def test_goes_on_where_it_was(command: Command, tmp_path: Path) -> None:
    assert command("--max-evaluations=6").exit_code == 0
    whole = (tmp_path / "tuned.yml").read_text(encoding="utf-8")
    lines = (tmp_path / "tuned.yml.journal.jsonl").read_text(encoding="utf-8").splitlines(True)
    cut = tmp_path / "tuned.yml.journal.jsonl"
    cut.write_text("".join(lines[: len(lines) // 2]), encoding="utf-8")
    (tmp_path / "tuned.yml").unlink()
    assert command("--max-evaluations=6").exit_code == 0
    assert (tmp_path / "tuned.yml").read_text(encoding="utf-8") == whole
    strip = [{**line, "seconds": 0} for line in journal(tmp_path)]
    assert strip == [{**json.loads(line), "seconds": 0} for line in lines]
    # With all of it there, nothing is evaluated.
    assert command("--max-evaluations=6").exit_code == 0
    assert len(journal(tmp_path)) == len(lines)


def test_another_search_has_another_journal(command: Command) -> None:
    assert command("--max-evaluations=2").exit_code == 0
    result = command("--max-evaluations=2", "--seed=1", "--limit=40")
    assert result.exit_code == 1
    assert "differs in tasks, options" in result.stderr


def test_a_score_command(command: Command, tmp_path: Path) -> None:
    script = tmp_path / "score.py"
    # The norm of a weight stands for a score: 0.4 is best.
    script.write_text(
        "import json, sys, pathlib, safetensors.torch as s\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "norm = sum(float(t.norm()) for f in folder.glob('*.safetensors')\n"
        "           for n, t in s.load_file(f).items() if 'up_proj' in n)\n"
        "print(json.dumps({'math_dev': norm, 'law_dev': 1.0}))\n",
        encoding="utf-8",
    )
    result = command(
        f"--score-command={sys.executable} {script} {{model}}",
        "--max-evaluations=4",
    )
    assert result.exit_code == 0, result.output
    tuned = yaml.safe_load((tmp_path / "tuned.yml").read_text(encoding="utf-8"))
    # A larger factor is a larger norm, as far as the budget goes.
    assert tuned["models"][0]["parameters"]["amplify_90"] > 1.0
    assert not list(tmp_path.glob(".dppa-*"))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo nothing", "allowed is JSON"),
        ("echo '{}'", "printed no score for task 'math_dev'"),
        ("echo no file >&2; exit 3", "ended with 3: no file"),
        ("echo '{\"math_dev\": NaN}'", "printed nan for task math_dev"),
    ],
)
def test_a_score_command_that_fails(script: str, message: str, command: Command) -> None:
    result = command(f"--score-command={script} # {{model}}")
    assert result.exit_code == 1
    assert message in result.stderr


def test_from_python(saved: Path, tmp_path: Path) -> None:
    seen = []

    def score(model, tokenizer) -> dict[str, float]:
        norm = sum(float(tensor.norm()) for tensor in model.parameters())
        seen.append((norm, len(tokenizer)))
        return {"norm": norm}

    recipe = Recipe.read(saved / "recipe.yml")
    tuned = search_amplification(
        recipe, str(saved / "math"), score, Options("joint", 6), workspace=tmp_path
    )
    assert tuned.factors["amplify_90"] > 1.0
    # The dense model, and every candidate once.
    assert len(seen) == tuned.evaluations + 1
    resident = AmplifiedModel.load(recipe.alone(str(saved / "math")), tmp_path)
    resident.set_factors({90: tuned.factors["amplify_90"], 80: tuned.factors["amplify_80"]})
    assert max(norm for norm, _ in seen[1:]) == pytest.approx(
        score(resident.model, resident.tokenizer)["norm"]
    )


def test_factors_for_each_block(
    command: Command, saved: Path, tmp_path: Path, merge: Merge
) -> None:
    arguments = ("--strategy=distill", "--per-block", "--max-evaluations=8")
    result = command(*arguments)
    assert result.exit_code == 0, result.output
    tuned = yaml.safe_load((tmp_path / "tuned.yml").read_text(encoding="utf-8"))
    record = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))["tuned.yml"]
    for name, entry, found in zip(("math", "law"), tuned["models"], record["results"], strict=True):
        factors = entry["parameters"]["amplify_90"]
        assert len(factors) == 3
        assert len(set(factors)) > 1 or set(factors) == {1.0}
        assert found["after"]["value"] >= found["before"]["value"]
        alone = Recipe.read(tmp_path / "tuned.yml").alone(str(saved / name))
        merge(alone.content, output=f"alone_{name}")
        score = evaluated(saved, tmp_path / f"alone_{name}", f"{name}_dev")
        assert found["after"]["value"] == pytest.approx(100 * score, abs=1e-9)
    lines = len(journal(tmp_path))
    before = (tmp_path / "tuned.yml").read_text(encoding="utf-8")
    # Gone on with, it asks no teacher and evaluates nothing.
    assert command(*arguments).exit_code == 0
    assert (tmp_path / "tuned.yml").read_text(encoding="utf-8") == before
    assert len(journal(tmp_path)) == lines


def weights_of(path: Path) -> list[float]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [each["parameters"]["weight"] for each in content["models"]]


@pytest.mark.parametrize(("method", "start"), [("dppa", 0.1), ("ties", 1.3), ("dare_linear", 0.1)])
def test_weights_of_the_whole_merge(
    method: str, start: float, command: Command, saved: Path, tmp_path: Path, merge: Merge
) -> None:
    def change(content: dict) -> None:
        content["merge_method"] = method
        # With it, as TIES has it, equal weights cancel out.
        content["parameters"] = {"normalize": False}
        for each in content["models"]:
            each["parameters"]["weight"] = start

    recipe = changed(saved, tmp_path, "recipe.yml", change)
    result = command("--tune=weights", "--max-evaluations=16", recipe=recipe)
    assert result.exit_code == 0, result.output
    assert ("--random-seed 0 makes the draw" in result.stdout) == method.startswith("dare")
    before, tuned = (
        yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in (recipe, tmp_path / "tuned.yml")
    )
    assert weights_of(tmp_path / "tuned.yml") != weights_of(recipe)
    for content in (before, tuned):
        for each in content["models"]:
            del each["parameters"]["weight"]
    assert tuned == before
    record = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))["tuned.yml"]
    (found,) = record["results"]
    assert found["after"]["value"] > found["before"]["value"]
    ratios = [after["value"] for _, after in found["parts"].values()]
    assert found["after"]["value"] == pytest.approx(sum(ratios) / 2)
    assert "  math: " in result.stdout
    # The scores are those of the checkpoint that the recipe gives.
    content = yaml.safe_load((tmp_path / "tuned.yml").read_text(encoding="utf-8"))
    merge(content, "--random-seed", "0", output="whole")
    for name in ("math", "law"):
        score = evaluated(saved, tmp_path / "whole", f"{name}_dev")
        assert found["parts"][name][1]["value"] == pytest.approx(100 * score, abs=1e-9)


def test_one_weight_by_the_worst_domain(command: Command, saved: Path, tmp_path: Path) -> None:
    result = command("--tune=weights", "--shared", "--by=worst", "--max-evaluations=9")
    assert result.exit_code == 0, result.output
    first, second = weights_of(tmp_path / "tuned.yml")
    assert first == second
    record = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))["tuned.yml"]
    (found,) = record["results"]
    ratios = [after["value"] for _, after in found["parts"].values()]
    assert found["after"]["value"] == min(ratios)
    summary = (tmp_path / "tuned.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| every model +\| +{first:g} \|$", summary, flags=re.MULTILINE)


def test_a_guard_that_may_lose_nothing(command: Command, saved: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    shutil.copytree(saved / "tasks", tasks)
    save_task(tasks, "guard_dev", saved / "base", 48, seed=3)

    def change(content: dict) -> None:
        content["guard"] = {"dev": {"guard_dev": "acc,none"}}
        content["include_path"] = str(tasks)

    path = changed(saved, tmp_path, "tasks.yml", change)
    results = {}
    for loss in ("0", "1"):
        output = tmp_path / f"tuned{loss}.yml"
        arguments = ("--tune=weights", "--max-evaluations=12", f"--guard-loss={loss}")
        assert command(*arguments, tasks=path, output=output).exit_code == 0
        record = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))
        (results[loss],) = record[output.name]["results"]
    lost = {loss: 100 - found["parts"]["guard"][1]["value"] for loss, found in results.items()}
    # The base answers as itself where weights are small; where all may be lost, more is gained.
    assert lost["0"] < lost["1"]
    assert results["0"]["after"]["value"] < results["1"]["after"]["value"]


def test_mistakes_with_weights(command: Command, saved: Path, tmp_path: Path) -> None:
    def recipe(change: Callable[[dict], object]) -> Path:
        return changed(saved, tmp_path, "recipe.yml", change)

    def gradient(content: dict) -> None:
        content["models"][0]["parameters"]["weight"] = [0.1, 0.9]

    cases = [
        (command("--tune=weights", recipe=recipe(lambda c: c.update(merge_method="breadcrumbs"))),
         "the weights of breadcrumbs cannot be tuned; allowed are dppa"),
        (command("--tune=weights", recipe=recipe(gradient)), "it must begin as a number"),
        (command("--tune=weights", "--strategy=paper"), "weights are tuned in one way only"),
        (command("--tune=weights", "--range", "1", "0.5"), "a range from less to more"),
        (command("--tune=weights", "--range", "0", "inf"), "inf is no finite number"),
        (command("--tune=weights", "--tune-dense"), "--tune-dense does nothing here"),
        (command("--tune=weights", "--per-block"), "--per-block does nothing here"),
        (command("--tune=weights", f"--prompts={saved / 'tasks.yml'}"), "--prompts does nothing"),
    ]  # fmt: skip
    for result, message in cases:
        assert result.exit_code in (1, 2), (message, result.output)
        assert message in result.stderr, result.stderr
    assert not list(tmp_path.glob("tuned.yml*"))


def test_mistakes_end_in_one_sentence_before_any_evaluation(
    command: Command, saved: Path, tmp_path: Path
) -> None:
    def recipe(change: Callable[[dict], object]) -> Path:
        return changed(saved, tmp_path, "recipe.yml", change)

    def tasks(change: Callable[[dict], object]) -> Path:
        return changed(saved, tmp_path, "tasks.yml", change)

    def domain(**values: object) -> Callable[[dict], object]:
        return lambda content: content["domains"]["math"].update(values)

    def in_slices(content: dict) -> None:
        models = [content["base_model"], *(each["model"] for each in content.pop("models"))]
        content["slices"] = [
            {"sources": [{"model": each, "layer_range": layers} for each in models]}
            for layers in ([0, 1], [1, 3])
        ]

    def with_lora(content: dict) -> None:
        content["models"][0]["model"] += "+lora"

    cases = [
        (command(tasks=tasks(domain(dev={"math_dve": "acc,none"}))),
         "lm-eval knows no task math_dve: did you mean math_dev"),
        (command(tasks=tasks(domain(dev={"math_dev": "exact_match,none"}))),
         "has no metric 'exact_match,none'; it has acc,none"),
        (command(tasks=tasks(domain(model="./maths"))),
         "has no fine-tuned model ./maths; it has"),
        (command(tasks=tasks(domain(test={"math_dev": "acc,none"}))),
         "task math_dev is under math.dev and under math.test"),
        (command(tasks=tasks(domain(dev={}))), "Domain math has no dev tasks"),
        (command(tasks=tasks(lambda c: c.update(batchsize=3))), "batchsize: Extra inputs"),
        (command(tasks=tasks(lambda c: c.update(include_path="nowhere"))), "is not a folder"),
        (command(recipe=recipe(lambda c: c.update(merge_method="dp"))),
         "dp has no partitions to amplify; allowed are dppa, dppa_ties, dare_dpa"),
        (command(recipe=recipe(lambda c: c.update(merge_method="ties"))), "ties has no partitions"),
        (command(recipe=recipe(lambda c: c.pop("models"))), "there must be one of models"),
        (command(output=tmp_path / "no" / "tuned.yml"), "cannot be written"),
        (command("--range", "1.5", "2"), "allowed is a range with 1 in it"),
        (command("--shared"), "--shared does nothing here: it needs --tune weights"),
        (command("--guard-loss=0"), "--guard-loss does nothing here"),
        (command(f"--prompts={saved / 'tasks.yml'}"), "it needs --strategy distill"),
        (command("--score-command=bash eval.sh"), "names no {model}"),
        (command(output=saved / "recipe.yml"), "is what the command reads: name another file"),
        (command(recipe=recipe(lambda c: c.update(merge_method=["dppa"]))),
         "merge_method: Input should be a valid string"),
        (command("--per-block"), "--per-block needs --strategy distill"),
        (command("--strategy=distill", "--per-block", "--tune-dense"),
         "--tune-dense does nothing here: it needs factors that are not --per-block"),
        (command(output=tmp_path / "tuned.md"), "allowed are .yml and .yaml"),
        (command(tasks=tasks(lambda c: c["domains"].update({"a/b": c["domains"].pop("law")}))),
         "'a/b' is no name of a domain, after which files are named"),
        (command("--ray-address=auto"), "it needs --workers"),
        (command("--strategy=distill", "--per-block", recipe=recipe(in_slices)),
         "--per-block writes gradients, which mergekit counts anew in each slice"),
        (command(recipe=recipe(with_lora), tasks=tasks(domain(model=f"{saved / 'math'}+lora"))),
         "has a LoRA, which only a merge takes as it is"),
        (command(tasks=tasks(lambda c: c["domains"]["law"].update(model=str(saved / "math")))),
         "Domains math and law have one model"),
        (command("--strategy=distill", "--score-command=score {model}"), "no --score-command"),
    ]  # fmt: skip
    for result, message in cases:
        assert result.exit_code in (1, 2), (message, result.output)
        assert message in result.stderr, result.stderr
        assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("tuned.yml*"))
    result = command("--device=cuda:9")
    assert result.exit_code == 1
    assert "GB on cuda:9 and cannot be put there" in result.stderr
    templated = tasks(lambda c: c.update(apply_chat_template=True))
    result = command(tasks=templated, output=tmp_path / "templated.yml")
    assert result.exit_code == 1
    assert "math has no chat template" in result.stderr


def test_a_fine_tuned_model_that_scores_nothing_ends_it_early(
    command: Command, saved: Path, tmp_path: Path
) -> None:
    # No item of law is right, whatever the order of domains.
    tasks = tmp_path / "tasks"
    shutil.copytree(saved / "tasks", tasks)
    file = tasks / "law_dev.jsonl"
    items = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    wrong = [{**each, "answer": (each["answer"] + 1) % 4} for each in items]
    file.write_text("".join(json.dumps(each) + "\n" for each in wrong), encoding="utf-8")
    path = changed(saved, tmp_path, "tasks.yml", lambda c: c.update(include_path=str(tasks)))
    result = command(tasks=path)
    assert result.exit_code == 1
    assert "Task law_dev: the unmerged model itself scores 0" in result.stderr
    candidates = [each["candidate"] for each in journal(tmp_path)[1:]]
    assert candidates == ["dense", "dense"]


def test_a_group_of_tasks_and_a_task_without_its_data(
    command: Command, saved: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved / "tasks", tmp_path / "tasks")
    group = {"group": "both", "task": ["math_dev", "law_dev"]}
    (tmp_path / "tasks" / "both.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    content = yaml.safe_load((saved / "tasks.yml").read_text(encoding="utf-8"))
    content["domains"]["math"]["dev"] = {"both": "acc,none"}
    (tmp_path / "tasks.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    result = command(tasks=tmp_path / "tasks.yml")
    assert result.exit_code == 1
    assert "both is a group of lm-eval's; allowed are the tasks in it." in result.stderr
    (tmp_path / "tasks" / "law_dev.jsonl").unlink()
    content["domains"]["math"]["dev"] = {"math_dev": "acc,none"}
    (tmp_path / "tasks.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    result = command(tasks=tmp_path / "tasks.yml")
    assert result.exit_code == 1
    assert "Task law_dev cannot be loaded:" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_public_test_split_draws_a_warning(
    command: Command, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = tmp_path / "tasks"
    shutil.copytree(saved / "tasks", tasks)
    text = (tasks / "math_dev.yaml").read_text(encoding="utf-8")
    (tasks / "gsm8k.yaml").write_text(text.replace("task: math_dev", "task: gsm8k"), "utf-8")

    def change(content: dict) -> None:
        content["domains"]["math"]["dev"] = {"gsm8k": "acc,none"}
        content["include_path"] = str(tasks)

    path = changed(saved, tmp_path, "tasks.yml", change)
    assert command("--max-evaluations=1", tasks=path).exit_code == 0
    assert "gsm8k is a public test split" in caplog.text


def test_without_lm_eval(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    result = command()
    assert result.exit_code == 1
    assert "pip install 'dppa-mergekit[search]'" in result.stderr


@pytest.mark.parametrize("options", [(), ("--tune=weights",)], ids=["factors", "weights"])
def test_interrupted(
    options: tuple[str, ...], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = command(*options, "--max-evaluations=6", output=tmp_path / "whole.yml")
    assert undisturbed.exit_code == 0, undisturbed.output
    score, calls = Harness.score, []

    def interrupted(*arguments: object) -> object:
        calls.append(1)
        if len(calls) > 9:
            raise KeyboardInterrupt
        return score(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Harness, "score", interrupted)
        ended = command(*options, "--max-evaluations=6")
    assert ended.exit_code == 130
    output = tmp_path / "tuned.yml"
    assert f"Interrupted; the best so far is in {output}; the same command goes on." in ended.output
    so_far = Recipe.read(output)
    assert so_far.content["merge_method"] == "dppa"
    if not options:
        assert "amplify_90" in str(so_far.content)
    gone_on = command(*options, "--max-evaluations=6")
    assert gone_on.exit_code == 0, gone_on.output
    whole = (tmp_path / "whole.yml").read_text(encoding="utf-8")
    assert output.read_text(encoding="utf-8") == whole
