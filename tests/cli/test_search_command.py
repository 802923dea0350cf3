"""`mergekit-dppa search` on tiny models: what it writes, and how it goes on."""

import json
from pathlib import Path

import pytest
import yaml
from commands import Merge
from search_runs import Command, evaluated, journal

from dppa_mergekit.live.amplified_model import AmplifiedModel
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.scoring.lm_eval_harness import Harness
from dppa_mergekit.search.factor_search import search_amplification
from dppa_mergekit.search.options import Options


@pytest.mark.parametrize("strategy", ["joint", "paper", "distill"])
def test_what_it_writes(
    strategy: str, command: Command, saved: Path, tmp_path: Path, merge: Merge
) -> None:
    result = command(f"--strategy={strategy}", "--max-evaluations=8", "--html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "tuned.html").read_text(encoding="utf-8")
    assert "Dev Domain-Ratio by each of the factors, with the others as found" in page
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
    assert [result["domain"] for result in record["results"]] == ["math", "law"]
    assert "| math " in (tmp_path / "tuned.md").read_text(encoding="utf-8")
    # Test tasks are never seen, and no merged folder is left.
    assert "_test" not in (tmp_path / "tuned.yml.journal.jsonl").read_text(encoding="utf-8")
    assert not list(tmp_path.glob(".dppa-*"))
    # A fine-tuned model answers every item as itself.
    unmerged = [line["scores"] for line in journal(tmp_path)[1:] if line["candidate"] == "dense"]
    assert len(unmerged) >= 2
    for scores in unmerged:
        assert scores
        assert [score for score, *_ in scores.values()] == [1.0] * len(scores)


def test_scores_are_those_of_the_merged_checkpoint(
    command: Command, saved: Path, tmp_path: Path, merge: Merge
) -> None:
    assert command("--strategy=paper", "--max-evaluations=6").exit_code == 0
    tuned = Recipe.read(tmp_path / "tuned.yml")
    record = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))["tuned.yml"]
    for name, result in zip(("math", "law"), record["results"], strict=True):
        merge(tuned.with_only(str(saved / name)).content, output=f"alone_{name}")
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
    resident = AmplifiedModel.load(recipe.with_only(str(saved / "math")), tmp_path)
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
        alone = Recipe.read(tmp_path / "tuned.yml").with_only(str(saved / name))
        merge(alone.content, output=f"alone_{name}")
        score = evaluated(saved, tmp_path / f"alone_{name}", f"{name}_dev")
        assert found["after"]["value"] == pytest.approx(100 * score, abs=1e-9)
    lines = len(journal(tmp_path))
    before = (tmp_path / "tuned.yml").read_text(encoding="utf-8")
    # Gone on with, it asks no teacher and evaluates nothing.
    assert command(*arguments).exit_code == 0
    assert (tmp_path / "tuned.yml").read_text(encoding="utf-8") == before
    assert len(journal(tmp_path)) == lines


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
    assert (
        f"Interrupted; the best so far is in {output}; run the same command again to continue."
        in ended.output
    )
    so_far = Recipe.read(output)
    assert so_far.content["merge_method"] == "dppa"
    if not options:
        assert "amplify_90" in str(so_far.content)
    gone_on = command(*options, "--max-evaluations=6")
    assert gone_on.exit_code == 0, gone_on.output
    whole = (tmp_path / "whole.yml").read_text(encoding="utf-8")
    assert output.read_text(encoding="utf-8") == whole
