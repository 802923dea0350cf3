"""Teachers whose vocabulary is not the merge's."""

import json
import math
from pathlib import Path

import pytest
from checkpoints import recipe, save_family
from transformers import AutoModelForCausalLM, AutoTokenizer

from dppa_mergekit.adamerging.descent import Descent
from dppa_mergekit.adamerging.weight_learning import learn_weights
from dppa_mergekit.errors import DppaError
from dppa_mergekit.prompts import Prompt
from dppa_mergekit.recipes.recipe import Recipe


def test_a_teacher_whose_words_are_other_words(tmp_path: Path) -> None:
    family = save_family(tmp_path)
    prompts = {str(family / "math"): [Prompt("w1 w2 w3"), Prompt("w4 w5")]}
    turned = recipe(family, "dp", {"math": {"weight": 0.4, "density": 0.5}})
    learn_weights(Recipe(turned), prompts, descent=Descent(steps=1))
    # The same words under other numbers: merged, the model is what its own tokenizer says.
    inner = json.loads((family / "math" / "tokenizer.json").read_text())
    words = inner["model"]["vocab"]
    words["w1"], words["w2"] = words["w2"], words["w1"]
    (family / "math" / "tokenizer.json").write_text(json.dumps(inner))
    with pytest.raises(DppaError, match=r"math cannot teach the merge: token 5 is 'w2' to it and"):
        learn_weights(Recipe(turned), prompts, descent=Descent(steps=1))
    # Another name for what has the same number is no other word.
    words["w1"], words["w2"] = words["w2"], words["w1"]
    words["<|im_end|>"] = words.pop("w1")
    (family / "math" / "tokenizer.json").write_text(json.dumps(inner))
    prompts = {str(family / "math"): [Prompt("<|im_end|> w2 w3"), Prompt("w4 w5")]}
    learn_weights(Recipe(turned), prompts, descent=Descent(steps=1))


def test_a_teacher_with_more_words_than_the_merge(tmp_path: Path) -> None:
    """As published models often are: a word for padding was added for the fine-tuning."""
    family = save_family(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(family / "math")
    words = AutoTokenizer.from_pretrained(family / "math")
    words.add_special_tokens({"pad_token": "[PAD]"})
    model.resize_token_embeddings(len(words) + 7)
    model.save_pretrained(family / "math")
    words.save_pretrained(family / "math")
    turned = recipe(
        family, "dp", {"math": {"weight": 0.4, "density": 0.5}}, tokenizer={"source": "base"}
    )
    prompts = {str(family / "math"): [Prompt("w1 w2 w3"), Prompt("w4 w5")]}
    found = learn_weights(Recipe(turned), prompts, descent=Descent(steps=1))
    assert [state.step for state in found.states] == [0, 1]
    assert all(math.isfinite(loss) for state in found.states for loss in state.losses.values())
    with pytest.raises(DppaError, match=r"hold token 96, '\[PAD\]', and the merge has only 96 tok"):
        learn_weights(Recipe(turned), {str(family / "math"): [Prompt("w1 [PAD] w2")]})


def test_a_teacher_with_an_encoder_is_named(tmp_path: Path) -> None:
    family = save_family(tmp_path, "t5")
    prompts = {str(family / "math"): [Prompt("w1 w2")]}
    turned = Recipe(recipe(family, "dp", {"math": {"weight": 0.4, "density": 0.5}}))
    sentence = f"{family / 'math'} has an encoder and cannot teach; allowed are causal models"
    with pytest.raises(DppaError, match=sentence):
        learn_weights(turned, prompts)
