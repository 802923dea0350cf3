"""Learning the weights of a recipe from Python."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
from adamerging_models import OF_MODELS
from checkpoints import recipe, save_family

from dppa_mergekit.adamerging.descent import Descent
from dppa_mergekit.adamerging.weight_learning import learn_weights
from dppa_mergekit.errors import DppaError, ParameterError
from dppa_mergekit.prompts import Prompt
from dppa_mergekit.recipes.recipe import Recipe


@pytest.mark.parametrize("objective", ["distill", "hidden", "entropy", "loss"])
def test_in_python(objective: str, tmp_path: Path) -> None:
    family = save_family(tmp_path)
    prompts = {
        str(family / name): [Prompt(f"w{number} w7", " w9 w3") for number in range(5)]
        for name in ("math", "law")
    }
    whole = Recipe(recipe(family, models=OF_MODELS))
    calls = []

    def score(model: object, tokenizer: object) -> float:
        calls.append(1)
        return -float(len(calls))

    descent = Descent(steps=4, every=2, batch_size=2)
    found = learn_weights(whole, prompts, objective, descent, score=score)
    assert list(found.coefficients) == whole.fine_tuned()
    assert found.best.step == 0
    assert len(calls) == 3
    again = learn_weights(whole, prompts, objective, descent)
    once_more = learn_weights(whole, prompts, objective, descent)
    assert again.coefficients == once_more.coefficients
    assert again.best.step == 4


def test_prompts_that_are_too_long(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    family = save_family(tmp_path)
    long = Prompt(" ".join(f"w{number % 80}" for number in range(100)), " w3")
    whole = Recipe(recipe(family, models=OF_MODELS))
    descent = Descent(steps=1, batch_size=2)
    for objective in ("entropy", "distill", "loss"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "dppa_mergekit"):
            learn_weights(
                whole, {str(family / "math"): [long, Prompt("w1", " w2")]}, objective, descent
            )
        assert "1 of 2 prompts do not fit the context of 64 tokens" in caplog.text


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"every": 0}, "every is 0; allowed is 1 or more"),
        ({"batch_size": 0}, "batch_size is 0; allowed is 1 or more"),
        ({"steps": 0}, "steps is 0; allowed is 1 or more"),
        ({"patience": -1}, "patience is -1; allowed is 1 or more"),
        ({"learning_rate": 0.0}, "learning_rate is 0; allowed is a finite number above 0"),
        ({"learning_rate": math.inf}, "learning_rate is inf; allowed is a finite number above 0"),
        ({"anchor": -1.0}, "anchor is -1; allowed is a finite number of at least 0"),
        ({"anchor": math.nan}, "anchor is nan; allowed is a finite number of at least 0"),
    ],
)
def test_settings_of_a_descent_that_are_not_allowed(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ParameterError, match=sentence):
        Descent(**given)


def test_bad_input_in_python(tmp_path: Path) -> None:
    family = save_family(tmp_path)
    prompts = {str(family / "math"): [Prompt("w1 w2")]}
    whole = Recipe(recipe(family, models=OF_MODELS))
    with pytest.raises(DppaError, match="'kl'; allowed are distill, hidden, entropy, loss"):
        learn_weights(whole, prompts, "kl")
    with pytest.raises(DppaError, match="1 of 1 have no completion"):
        learn_weights(whole, prompts, "loss")
    with pytest.raises(DppaError, match="are missing, or one of them is empty"):
        learn_weights(whole, {str(family / "math"): []}, "entropy")
    with pytest.raises(DppaError, match=r"There are no prompts\."):
        learn_weights(whole, {})
    ties = Recipe(recipe(family, "dppa_ties", OF_MODELS))
    with pytest.raises(DppaError, match="weights of dppa_ties cannot be learned"):
        learn_weights(ties, prompts)
    beyond = Recipe(recipe(family, models={"math": {"weight": 1.2, "density": 0.2}}))
    with pytest.raises(DppaError, match=r"starts at 1\.2; allowed is a number from 0 to 1"):
        learn_weights(beyond, prompts)
    with pytest.raises(DppaError, match="'row'; allowed for dppa are model, block, linear, part"):
        learn_weights(whole, prompts, descent=Descent(granularity="row"))
    without = Recipe(recipe(family, "dp", {"math": {"weight": 0.3, "density": 0.2}}))
    with pytest.raises(DppaError, match="'partition'; allowed for dp are model, block, linear"):
        learn_weights(without, prompts, descent=Descent(granularity="partition"))
    plain = Recipe(recipe(family, "task_arithmetic", {"math": {"weight": 1.0}}))
    with pytest.raises(DppaError, match="is dp at density 1"):
        learn_weights(plain, prompts)
