"""Factors of all models, searched in the whole merge."""

from pathlib import Path

import pytest
import torch
import yaml
from checkpoints import recipe, save_family, write_recipe
from click.testing import CliRunner
from commands import Merge
from mergekit.io.tasks import LoaderCache
from search_models import save_search

from dppa_mergekit.cli.main import main
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.search.candidates import merge_factor_candidates
from dppa_mergekit.search.merge_factor_search import (
    MERGE_FACTOR_OPTIONS,
    FolderMergeFactors,
    LiveMergeFactors,
    with_factors,
)
from dppa_mergekit.search.racing import Candidate
from dppa_mergekit.search.strategies import search_group_by_group


@pytest.mark.parametrize("method", ["dppa_regmean", "dare_regmean", "dppa", "dppa_ties"])
def test_factors_in_memory_are_those_of_a_merge(method: str, tmp_path: Path, merge: Merge) -> None:
    family = save_family(tmp_path, dtype=torch.bfloat16)
    models = {"math": {"density": 0.3, "weight": 0.6}, "law": {"density": 0.1, "weight": 0.5}}
    whole = Recipe(recipe(family, method, models))
    live = LiveMergeFactors(whole, tmp_path)
    math, law = (str(family / name) for name in ("math", "law"))
    names = [f"{math} amplify_90", f"{math} amplify_80", f"{math} amplify_70", f"{law} amplify_90"]
    assert live.parameters() == FolderMergeFactors(whole, tmp_path).parameters() == names
    for factors in ((1.0, 1.0, 1.0, 1.0), (2.0, 1.4, 0.0, 3.0), (1.0, 1.0, 1.0, 1.0)):
        settings = dict(zip(names, factors, strict=True))
        model, _ = live.apply(settings)
        written = merge(with_factors(whole, settings).content)
        found = model.state_dict()
        assert [name for name in written if not torch.equal(found[name], written[name])] == []
    assert with_factors(whole, {}) == whole
    model, _ = live.apply({})
    written, found = merge(whole.content), model.state_dict()
    assert [name for name in written if not torch.equal(found[name], written[name])] == []


class Landscape:
    """A contest whose score falls with the distance from a candidate, and that counts trials."""

    def __init__(self, best: Candidate) -> None:
        self.best = best
        self.preferred: Candidate = best
        self.tried: set[Candidate] = set()

    def value(self, candidate: Candidate) -> float:
        self.tried.add(candidate)
        return -float(sum(abs(one - two) for one, two in zip(candidate, self.best, strict=True)))

    def race(self, candidates: list[Candidate]) -> list[Candidate]:
        return sorted(dict.fromkeys(candidates), key=self.value, reverse=True)


def test_one_for_all_then_each_model_then_each_partition() -> None:
    names = ["./a b amplify_90", "./a b amplify_80", "./law amplify_90"]
    candidates = merge_factor_candidates(names, MERGE_FACTOR_OPTIONS, None)
    assert candidates.space.groups == [[0, 1], [2]]
    assert candidates.settings((100, 100, 100)) == {}  # the recipe's own merge
    assert candidates.settings((100, 110, 100)) == dict(zip(names, (1.0, 1.1, 1.0), strict=True))
    landscape = Landscape((200, 220, 180))
    search_group_by_group(landscape, candidates.space)  # type: ignore[arg-type]
    best = max(landscape.tried, key=landscape.value)
    assert landscape.value(best) >= -20
    assert len(landscape.tried) < 60


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_search(tmp_path_factory.mktemp("merge factors"))


def test_the_command(saved: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((saved / "recipe.yml").read_text(encoding="utf-8"))
    content["merge_method"] = "dppa_regmean"
    write_recipe(tmp_path / "recipe.yml", content)
    LoaderCache.loaders.clear()
    done = CliRunner().invoke(
        main,
        [
            "search",
            str(tmp_path / "recipe.yml"),
            f"--tasks={saved / 'tasks.yml'}",
            f"--output={tmp_path / 'tuned.yml'}",
            "--tune=merge-factors",
            "--max-evaluations=4",
        ],
    )
    assert done.exit_code == 0, done.output
    assert "the recipe with these factors" in done.stdout
    assert "# Amplification factors in the merge" in (tmp_path / "tuned.md").read_text("utf-8")
    journal = (tmp_path / "tuned.yml.journal.jsonl").read_text(encoding="utf-8")
    assert "the recipe as it is" in journal
    tuned = yaml.safe_load((tmp_path / "tuned.yml").read_text(encoding="utf-8"))
    if "the recipe as it is" in done.stdout:
        assert tuned == content
    else:
        assert tuned["parameters"]["amplify"] == "none"
        assert all("amplify_90" in entry["parameters"] for entry in tuned["models"])


def test_a_method_without_factors(saved: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((saved / "recipe.yml").read_text(encoding="utf-8"))
    content["merge_method"] = "dp"
    for entry in content["models"]:
        entry["parameters"] = {"weight": 0.5}
    write_recipe(tmp_path / "recipe.yml", content)
    arguments = ["search", str(tmp_path / "recipe.yml"), f"--tasks={saved / 'tasks.yml'}"]
    done = CliRunner().invoke(
        main, [*arguments, f"--output={tmp_path / 'tuned.yml'}", "--tune=merge-factors"]
    )
    assert done.exit_code == 1
    assert "dp has no factors; allowed are dppa, " in " ".join(done.output.split())
