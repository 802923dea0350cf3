"""Factors by any evaluation, from Python."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import recipe, save_family
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dppa_mergekit.cli.search import search
from dppa_mergekit.errors import DppaError
from dppa_mergekit.live.amplified_model import AmplifiedModel
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.search.factor_search import search_amplification
from dppa_mergekit.search.factor_trials import LiveFactors
from dppa_mergekit.search.options import Options
from dppa_mergekit.search.strategies import BOTH, MERGE_FACTORS, STRATEGIES, WEIGHTS


@pytest.fixture
def alone(tmp_path: Path) -> Recipe:
    save_family(tmp_path, num_hidden_layers=2)
    return Recipe(recipe(tmp_path, models={"math": {"weight": 0.6, "density": 0.2}}))


def norm(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    return {"norm": sum(float(tensor.norm()) for tensor in model.parameters())}


def test_a_teacher_answers_given_prompts(alone: Recipe, tmp_path: Path) -> None:
    (model,) = alone.fine_tuned()
    options = Options("distill", max_evaluations=4)
    found = search_amplification(
        alone, model, norm, options, prompts=["w1 w2 w3", "w4"], workspace=tmp_path
    )
    assert list(found.factors) == ["amplify_90", "amplify_80"]
    assert found.evaluations == 4
    assert found.after.value > found.before.value


def test_a_teacher_without_prompts_is_refused_before_any_evaluation(
    alone: Recipe, tmp_path: Path
) -> None:
    def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        raise AssertionError

    (model,) = alone.fine_tuned()
    with pytest.raises(DppaError, match="Strategy distill needs prompts"):
        search_amplification(alone, model, score, Options("distill"), workspace=tmp_path)


@pytest.mark.parametrize("strategy", [WEIGHTS, MERGE_FACTORS, BOTH])
def test_a_strategy_for_merges_is_refused(strategy: str, alone: Recipe, tmp_path: Path) -> None:
    (model,) = alone.fine_tuned()
    sentence = f"Strategy {strategy} is for a merge; allowed are paper, joint, distill"
    with pytest.raises(DppaError, match=sentence):
        search_amplification(alone, model, norm, Options(strategy), workspace=tmp_path)


def test_a_model_without_partitions_is_named(
    alone: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model,) = alone.fine_tuned()
    bare = SimpleNamespace(rates=())
    monkeypatch.setattr(AmplifiedModel, "load", lambda *_: bare)
    sentence = f"^the recipe prunes no linear of {model}, so"
    with pytest.raises(DppaError, match=sentence):
        LiveFactors(alone, tmp_path).parameters()


def test_the_command_offers_every_strategy_for_factors() -> None:
    (option,) = (option for option in search.params if option.name == "strategy")
    assert set(option.type.to_info_dict()["choices"]) == set(STRATEGIES) - {
        WEIGHTS,
        MERGE_FACTORS,
        BOTH,
    }
