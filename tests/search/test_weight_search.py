"""Weights of a whole merge by any evaluation, from Python."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import recipe, save_family
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from dppa_mergekit.errors import DppaError, ParameterError, RecipeError
from dppa_mergekit.live.weighted_merge import WeightedMerge
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.scoring.ratios import Score
from dppa_mergekit.scoring.tasks import TasksError
from dppa_mergekit.search.options import Options
from dppa_mergekit.search.weight_search import WEIGHT_OPTIONS, is_normalized, search_weights
from dppa_mergekit.search.weight_trials import score_best

MODELS = ("math", "law")
FEW = replace(WEIGHT_OPTIONS, max_evaluations=12)

Scoring = Callable[[PreTrainedModel, PreTrainedTokenizerBase], dict[str, float]]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("family"), num_hidden_layers=2)


@pytest.fixture(scope="module")
def score(family: Path) -> Scoring:
    """For every fine-tuned model a task: how near a model is to it."""

    def vector(model: PreTrainedModel) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([tensor.double().flatten() for tensor in model.parameters()])

    wanted = {
        name: vector(AutoModelForCausalLM.from_pretrained(family / name, dtype="auto"))
        for name in MODELS
    }

    def near(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        own = vector(model)
        return {name: math.exp(-float((own - other).norm())) for name, other in wanted.items()}

    return near


def merge_of(family: Path, method: str = "dppa", weight: float = 0.1) -> Recipe:
    models = {name: {"weight": weight, "density": 0.5} for name in MODELS}
    return Recipe(recipe(family, method, models))


def test_weights_by_any_evaluation(family: Path, score: Scoring, tmp_path: Path) -> None:
    merge, seen = merge_of(family), []

    def watched(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        seen.append(score(model, tokenizer))
        return seen[-1]

    found = search_weights(merge, watched, FEW, workspace=tmp_path)
    # Both fine-tuned models once, and every candidate once.
    assert len(seen) == found.evaluations + 2
    assert found.evaluations <= 12
    # A task is measured against the fine-tuned model that is best on it: here the model itself.
    assert found.fine_tuned == {"math": 1.0, "law": 1.0}
    assert list(found.factors) == merge.fine_tuned()
    assert found.after.value > found.before.value
    live = WeightedMerge.load(merge, tmp_path)
    live.set_weights({model: float(weight) for model, weight in found.factors.items()})
    scores = score(live.model, live.tokenizer)
    ratio = 100 * math.sqrt(scores["math"] * scores["law"])
    assert found.after.value == pytest.approx(ratio)
    assert found.after.value == pytest.approx(
        max(100 * math.sqrt(scores["math"] * scores["law"]) for scores in seen[2:])
    )


def test_one_weight_for_all_models(family: Path, score: Scoring, tmp_path: Path) -> None:
    found = search_weights(merge_of(family), score, FEW, shared=True, workspace=tmp_path)
    assert list(found.factors) == ["weight"]
    assert found.after.value > found.before.value


def test_the_best_fine_tuned_model_counts() -> None:
    scores = {
        "math": {"a": Score(0.5), "b": Score(0.9)},
        "law": {"a": Score(0.8), "b": Score(0.1)},
    }
    best = score_best(["math", "law"], {}, lambda model, items: scores[model])
    assert best == {"a": Score(0.8), "b": Score(0.9)}


def test_mistakes_end_before_a_merge(family: Path, score: Scoring, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the weights of slerp cannot be tuned; allowed are dppa"):
        search_weights(merge_of(family, "slerp"), score, workspace=tmp_path)
    with pytest.raises(RecipeError, match="by inputs only the ratios of the weights count, so one"):
        search_weights(merge_of(family, "dppa_regmean"), score, shared=True, workspace=tmp_path)
    for method in ("ties", "dppa_ties"):
        with pytest.raises(RecipeError, match=f"{method} divides by the sum of the weights, so"):
            search_weights(merge_of(family, method), score, shared=True, workspace=tmp_path)
    with pytest.raises(DppaError, match="joint is for the factors of one model"):
        search_weights(merge_of(family), score, Options("joint"), workspace=tmp_path)
    shared = merge_of(family, "ties").with_shared({"normalize": "false"})
    with pytest.raises(TasksError, match="Task nothing: "):
        search_weights(shared, lambda *_: {"nothing": 0.0}, shared=True, workspace=tmp_path)
    with pytest.raises(TasksError, match="Task nothing: "):
        search_weights(merge_of(family), lambda *_: {"nothing": 0.0}, workspace=tmp_path)


def test_where_only_ratios_of_weights_count(family: Path) -> None:
    summed, consensus = (merge_of(family, method) for method in ("dppa", "dppa_ties"))
    assert not is_normalized(summed)
    assert is_normalized(summed.with_shared({"normalize": True}))
    assert is_normalized(consensus)
    assert not is_normalized(consensus.with_shared({"normalize": False}))
    assert not is_normalized(consensus.with_shared({"normalize": "false"}))
    filters = [{"filter": "mlp", "value": True}, {"value": False}]
    assert not is_normalized(consensus.with_shared({"normalize": filters}))
    assert is_normalized(summed.with_shared({"normalize": [{"value": "yes"}]}))
    with pytest.raises(ParameterError, match="normalize is 'maybe'; allowed is true or false"):
        is_normalized(summed.with_shared({"normalize": "maybe"}))
    assert is_normalized(merge_of(family, "ties"))
    assert not is_normalized(merge_of(family, "task_arithmetic"))
