"""Evaluations: the paper's tables from its printed scores, and tiny models."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from checkpoints import save_family, write_recipe
from click.testing import CliRunner, Result
from mergekit.io.tasks import LoaderCache
from safetensors.torch import load_file, save_file
from search_models import save_search

from dppa_mergekit.checks import mergekit_schema
from dppa_mergekit.cli.main import main
from dppa_mergekit.errors import CheckpointError, DppaError
from dppa_mergekit.live.source_model import fingerprint
from dppa_mergekit.publishing.past_evaluations import RecordedEvaluation
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.scoring.evaluate import evaluate as score_models
from dppa_mergekit.scoring.lm_eval_harness import Harness
from dppa_mergekit.scoring.ratios import Score, Scores
from dppa_mergekit.scoring.tables import Evaluation, as_markdown, as_plain
from dppa_mergekit.storage.run_record import read_records

FINE_TUNED = {"gsm8k": Score(0.5981), "MATH": Score(0.13)}

# Mathematics in the paper: method and pruning rate, gsm8k and MATH (Appendix A), and the
# Domain-Ratio (Tables 1 and 2).
PRINTED = [
    ("Magnitude 10 %", 0.59893859, 0.1208, 96.46),
    ("OWL 10 %", 0.595905989, 0.122, 96.69),
    ("DARE 10 %", 0.587566338, 0.1236, 96.64),
    ("Magnitude 80 %", 0.501137225, 0.0996, 80.12),
    ("OWL 80 %", 0.495072024, 0.0934, 77.11),
    ("DARE 80 %", 0.53525398, 0.111, 87.41),
    ("Magnitude 90 %", 0.343442002, 0.0646, 53.41),
    ("OWL 90 %", 0.342683851, 0.0664, 54.09),
    ("DP 90 %", 0.351781653, 0.0668, 54.97),
    ("DARE 90 %", 0.498104625, 0.0842, 73.44),
]


def evaluation_of_paper() -> Evaluation:
    models = {
        name: {"gsm8k": Score(gsm8k), "MATH": Score(hard)} for name, gsm8k, hard, _ in PRINTED
    }
    return Evaluation({"math": ["gsm8k", "MATH"]}, [], FINE_TUNED, models)


def test_the_papers_tables() -> None:
    found = evaluation_of_paper()
    for name, gsm8k, hard, ratio in PRINTED:
        computed = found.domain_ratio(name, "math")
        assert computed.error is None
        assert computed.value == pytest.approx(
            100 * math.sqrt(gsm8k / 0.5981 * hard / 0.13), abs=1e-9
        )
        # The paper truncates some of its figures and rounds others.
        assert ratio - 0.005 < computed.value < ratio + 0.01, name
        assert found.task_ratio(name, "MATH") == pytest.approx(100 * hard / 0.13)


def test_as_text_and_data() -> None:
    text = as_markdown(evaluation_of_paper())
    assert "| DARE 90 % " in text
    assert text.count("73.4") == 2
    assert as_plain(evaluation_of_paper())["tuned_on"] == []


def test_errors_and_marks() -> None:
    right = Score.of([1.0] * 60 + [0.0] * 40)
    found = Evaluation(
        {"a": ["one"], "b": ["two"]},
        ["guard"],
        {"one": Score(0.8), "two": Score(0.5)},
        {"merge": {"one": right, "two": Score.of([0.0, 1.0]), "guard": Score(0.25)}},
        frozenset({"two"}),
    )
    of_one = found.domain_ratio("merge", "a")
    assert of_one.value == pytest.approx(75)
    assert of_one.error == pytest.approx(100 * math.sqrt(0.24 / 99) / 0.8, rel=0.02)
    mean, of_two = found.mean_ratio("merge"), found.domain_ratio("merge", "b")
    assert mean.value == pytest.approx((75 + 100) / 2)
    assert of_one.error is not None
    assert of_two.error is not None
    assert mean.error == pytest.approx(math.hypot(of_one.error, of_two.error) / 2)
    text = as_markdown(found)
    assert "two*" in text
    assert "one*" not in text
    assert "* Factors or weights were chosen on this task." in text
    assert "0.250" in text


Evaluate = Callable[..., Result]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_search(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture
def evaluate(saved: Path) -> Evaluate:
    def run(*arguments: str, tasks: Path | None = None) -> Result:
        LoaderCache.loaders.clear()
        given = f"--tasks={saved / 'tasks.yml' if tasks is None else tasks}"
        return CliRunner().invoke(main, ["evaluate", *arguments, given])

    return run


def test_models_and_merges(evaluate: Evaluate, saved: Path, tmp_path: Path) -> None:
    models = [str(saved / name) for name in ("base", "math")]
    whole = str(saved / "recipe.yml")
    done = evaluate(*models, f"--recipe={whole}", f"--output={tmp_path / 'tables'}", "--html")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "tables" / "evaluation.html").read_text(encoding="utf-8")
    assert "Highest mean Domain-Ratio" in page
    assert page.count("data:image/png") == 1
    assert done.stdout.strip() == (tmp_path / "tables" / "evaluation.md").read_text().strip()
    plain = json.loads((tmp_path / "tables" / "evaluation.json").read_text())
    assert list(plain["models"]) == [*models, whole]
    assert plain["part"] == "test"
    of_math = plain["models"][models[1]]
    assert of_math["domain_ratios"]["math"] == {"value": 100.0, "error": 0.0}
    # The answers of the tasks are those of the fine-tuned models.
    assert of_math["scores"]["math_test"] == {"value": 1.0, "error": 0.0, "items": 48}
    assert plain["dense"]["law_test"]["value"] == 1.0
    merge = plain["models"][whole]
    for domain in ("math", "law"):
        score = merge["scores"][f"{domain}_test"]
        assert merge["task_ratios"][f"{domain}_test"] == pytest.approx(100 * score["value"])
        assert 0 < score["value"] <= 1
    assert (tmp_path / "tables" / "evaluation.png").stat().st_size > 5000
    record = json.loads((tmp_path / "tables" / "dppa_run.json").read_text())
    assert record["evaluation.json"]["command"] == "evaluate"
    # law is loaded too: ratios in its domain are relative to its scores.
    assert record["evaluation.json"]["checkpoints"] == {
        str(saved / name): fingerprint(saved / name, dated=False)
        for name in ("base", "math", "law")
    }
    assert plain["missing"] == []
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == [
        ".dppa_run.json.lock",
        "dppa_run.json",
        "evaluation.html",
        "evaluation.json",
        "evaluation.md",
        "evaluation.png",
    ]


def test_tasks_that_a_search_has_seen_are_marked(
    evaluate: Evaluate, saved: Path, tmp_path: Path
) -> None:
    found = tmp_path / "found.yml"
    arguments = [str(saved / "recipe.yml"), f"--tasks={saved / 'tasks.yml'}", f"--output={found}"]
    searched = CliRunner().invoke(main, ["search", *arguments, "--max-evaluations=2"])
    assert searched.exit_code == 0, searched.output
    on_test = evaluate(f"--recipe={found}", "--limit=9")
    assert on_test.exit_code == 0, on_test.output
    assert "*" not in on_test.stdout
    on_dev = evaluate(f"--recipe={found}", "--part=dev", "--limit=9")
    assert "math_dev*" in on_dev.stdout
    assert "law_dev*" in on_dev.stdout


def test_mistakes(evaluate: Evaluate, saved: Path, tmp_path: Path) -> None:
    def refused(done: Result, sentence: str) -> None:
        assert done.exit_code in (1, 2), done.output
        assert sentence in done.output
        assert "Traceback" not in done.output

    refused(evaluate(), "There is nothing to evaluate")
    refused(evaluate(str(tmp_path / "nowhere")), "nowhere")
    content = yaml.safe_load((saved / "tasks.yml").read_text(encoding="utf-8"))
    content["include_path"] = str(saved / "tasks")
    del content["domains"]["law"]["test"]
    refused(
        evaluate(str(saved / "base"), tasks=write_recipe(tmp_path / "tasks.yml", content)),
        "Domain law has no test tasks.",
    )
    refused(evaluate(f"--recipe={saved / 'tasks.yml'}"), "merge_method")
    path = saved / "recipe.yml"
    refused(evaluate(str(path)), f"{path} is a file, and no model's folder; a recipe is given as")
    # A missing model is reported before any model is scored.
    refused(evaluate(str(saved / "base"), "./bse"), "./bse: there is no such folder.")
    content["domains"]["law"].update(test={"law_test": "acc,none"}, model="./lwa")
    path = write_recipe(tmp_path / "tasks.yml", content)
    refused(evaluate(str(saved / "base"), tasks=path), "./lwa: there is no such folder.")
    given = yaml.safe_load((saved / "recipe.yml").read_text(encoding="utf-8"))
    given["models"][0]["parameters"]["densty"] = 0.2
    path = write_recipe(tmp_path / "typo.yml", given)
    refused(evaluate(f"--recipe={path}"), "did you mean density?")
    del given["models"][0]["parameters"]
    path = write_recipe(tmp_path / "typo.yml", given)
    refused(evaluate(f"--recipe={path}"), "there is no weight")
    path = write_recipe(tmp_path / "typo.yml", {**given, "merge_method": "dpaa"})
    refused(evaluate(f"--recipe={path}"), "did you mean dppa?")
    mixed = tmp_path / "mixed"
    shutil.copytree(saved / "math", mixed)
    (mixed / "config.json").write_text("", encoding="utf-8")
    refused(evaluate(str(mixed)), "config.json is missing, empty or not JSON")
    below = mixed / "config.json" / "tables"
    refused(evaluate(str(saved / "base"), f"--output={below / 'a'}"), f"{below} cannot be written")


def test_every_recipe_needs_a_name_of_its_own(
    evaluate: Evaluate, saved: Path, tmp_path: Path
) -> None:
    """Scores go by name: of two recipes of one name, one would lose its scores."""
    path = saved / "recipe.yml"
    content = Recipe.read(path).content
    other = {**content, "merge_method": "dp"}
    with pytest.raises(DppaError, match=r"two are named 'the recipe'.* its own `origin`"):
        score_models([], saved / "tasks.yml", [Recipe(content), Recipe(other)])
    as_model = [Recipe(content, str(saved / "math"))]
    with pytest.raises(DppaError, match=f"two are named '{saved / 'math'}'"):
        score_models([str(saved / "math")], saved / "tasks.yml", as_model)
    twice = evaluate(f"--recipe={path}", f"--recipe={path}")
    assert twice.exit_code == 1
    assert f"two are named '{path}': give each file once" in twice.output


class Spy:
    """Notes the tasks of each scoring, ends before the third, and can set one score to 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scored: list[set[str]] = []
        self.ends_with: BaseException | None = None
        self.zero: str | None = None
        score = Harness.score

        def spy(harness: Harness, model: object, tokenizer: object, items: dict) -> Scores:
            if self.ends_with is not None and len(self.scored) == 2:
                raise self.ends_with
            self.scored.append(set(items))
            found = score(harness, model, tokenizer, items)
            return {task: Score(0.0) if task == self.zero else found[task] for task in found}

        monkeypatch.setattr(Harness, "score", spy)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)


def test_fine_tuned_models_are_scored_first(evaluate: Evaluate, saved: Path, spy: Spy) -> None:
    spy.zero = "law_test"
    done = evaluate(*(str(saved / name) for name in ("base", "math")), "--limit=9")
    assert done.exit_code == 1
    assert "Task law_test: the model before merging scores 0" in done.output
    # math is asked for and scored on all tasks; law is not and is scored on its own.
    assert spy.scored == [{"math_test", "law_test"}, {"law_test"}]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DppaError("The device is lost.")])
def test_scores_before_an_error_are_kept(
    evaluate: Evaluate,
    saved: Path,
    tmp_path: Path,
    spy: Spy,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    spy.ends_with = error
    models = [str(saved / name) for name in ("base", "math", "law")]
    folder = tmp_path / "some" / "tables"
    done = evaluate(*models, f"--output={folder}", "--limit=9")
    assert done.exit_code == 1
    assert f"{folder} has the scores so far; missing: {models[0]}." in caplog.text
    plain = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert list(plain["models"]) == models[1:]
    assert plain["missing"] == models[:1]
    assert plain["models"][models[1]]["domain_ratios"]["math"]["value"] == 100.0
    text = (folder / "evaluation.md").read_text(encoding="utf-8")
    assert f"| {models[2]} " in text
    assert f"Not scored yet: {models[0]}." in text
    recorded = RecordedEvaluation.of(read_records(folder)["evaluation.json"])
    assert recorded is not None
    assert set(recorded.checkpoints) == set(models[1:])


def test_tables_begin_with_the_first_fine_tuned_model(
    evaluate: Evaluate, saved: Path, tmp_path: Path, spy: Spy
) -> None:
    spy.zero = "law_test"
    done = evaluate(str(saved / "math"), f"--output={tmp_path}", "--limit=9")
    assert done.exit_code == 1
    plain = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert plain["domains"] == {"math": ["math_test"]}
    assert list(plain["models"]) == [str(saved / "math")]
    assert plain["missing"] == [str(saved / "law")]


def test_chat_templates_are_checked_first(
    evaluate: Evaluate, saved: Path, tmp_path: Path, spy: Spy
) -> None:
    def refused(sentence: str, *arguments: str) -> None:
        done = evaluate(*arguments, tasks=tasks)
        assert done.exit_code == 1
        assert f"apply_chat_template: the tokenizer of {sentence} has no chat" in done.output
        assert not spy.scored

    content = yaml.safe_load((saved / "tasks.yml").read_text(encoding="utf-8"))
    content.update(apply_chat_template=True, include_path=str(saved / "tasks"), limit=2)
    for name in ("math", "law"):
        shutil.copytree(saved / name, tmp_path / name)
        template = "{% for message in messages %}{{ message.content }} {% endfor %}"
        (tmp_path / name / "chat_template.jinja").write_text(template, encoding="utf-8")
    content["domains"]["math"]["model"] = str(tmp_path / "math")
    tasks = write_recipe(tmp_path / "tasks.yml", content)
    # A domain's fine-tuned model, a model that is asked for, and a merge's base lack a template.
    refused(f"{saved / 'law'}", str(tmp_path / "math"))
    content["domains"]["law"]["model"] = str(tmp_path / "law")
    tasks = write_recipe(tmp_path / "tasks.yml", content)
    refused(f"{saved / 'base'}", str(tmp_path / "math"), str(saved / "base"))
    whole = saved / "recipe.yml"
    refused(f"{saved / 'base'}, and so of {whole},", f"--recipe={whole}")
    # These recipes give the merge another template.
    given = yaml.safe_load(whole.read_text(encoding="utf-8"))
    for number, change in enumerate(
        ({"chat_template": "chatml"}, {"tokenizer": {"source": str(tmp_path / "math")}})
    ):
        path = write_recipe(tmp_path / f"{number}.yml", {**given, **change})
        done = evaluate(f"--recipe={path}", tasks=tasks)
        assert done.exit_code == 0, done.output
    assert len(spy.scored) == 6


def test_methods_of_other_plugins_are_left_to_mergekit(
    evaluate: Evaluate, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mergekit_schema, "METHODS", {"dppa": mergekit_schema.METHODS["dppa"]})
    given = yaml.safe_load((saved / "recipe.yml").read_text(encoding="utf-8"))
    for model in given["models"]:
        model["parameters"] = {"weight": 0.5}
    path = write_recipe(tmp_path / "linear.yml", {**given, "merge_method": "task_arithmetic"})
    done = evaluate(f"--recipe={path}")
    assert done.exit_code == 0, done.output


def test_fingerprints_tell_contents_apart_and_not_copies(tmp_path: Path) -> None:
    folder = save_family(tmp_path, shard="50KB") / "math"
    assert len(list(folder.glob("*.safetensors"))) > 1
    copy = tmp_path / "elsewhere" / "named otherwise"
    shutil.copytree(folder, copy)
    for path in copy.iterdir():
        os.utime(path, (1e9, 1e9))
    before = fingerprint(folder, dated=False)
    assert fingerprint(copy, dated=False) == before
    (copy / "README.md").write_text("# A card\n", encoding="utf-8")
    assert fingerprint(copy, dated=False) == before
    (copy / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    seen = {before, fingerprint(copy, dated=False), fingerprint(tmp_path / "law", dated=False)}
    path = sorted(folder.glob("*.safetensors"))[-1]
    tensors = load_file(path)
    save_file({**tensors, **{min(tensors): tensors[min(tensors)] * 1.5}}, path)
    assert len(seen | {fingerprint(folder, dated=False)}) == 4
    with pytest.raises(CheckpointError, match="Unable to find model files"):
        fingerprint(tmp_path, dated=False)
