"""Models that are given as a base and a LoRA adapter."""

from pathlib import Path

import peft
import pytest
import torch
import transformers
from checkpoints import recipe, tensors_of, unequal
from commands import Merge
from oracle_merges import MODELS, expected


@pytest.fixture
def adapted(family: Path, tmp_path: Path) -> Path:
    """A LoRA adapter on the base model."""
    model = transformers.LlamaForCausalLM.from_pretrained(family / "base")
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    torch.manual_seed(5)
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_lora_reference(family: Path, adapted: Path, tmp_path: Path, merge: Merge) -> None:
    whole = transformers.LlamaForCausalLM.from_pretrained(family / "base")
    whole = peft.PeftModel.from_pretrained(whole, adapted).merge_and_unload()
    whole.save_pretrained(tmp_path / "whole")
    parameters = [{"weight": 0.8, "density": 0.2, "amplify_90": 1.5}, MODELS["law"]]
    content = recipe(family, models={"law": MODELS["law"]})
    reference = {"model": f"{family / 'base'}+{adapted}", "parameters": parameters[0]}
    content["models"] = [reference, *content["models"]]
    base, law = tensors_of(family / "base"), tensors_of(family / "law")
    wanted = expected([base, tensors_of(tmp_path / "whole"), law], parameters)
    cache = ("--lora-merge-cache", str(tmp_path / "cache"))
    assert not unequal(merge(content, *cache), wanted)
    assert not unequal(merge(content, *cache, output="cached"), wanted)
