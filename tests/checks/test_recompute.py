"""Merges that `--verify` repeats, or cannot repeat."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
from check_command import check, of_recipe, said
from checkpoint_edits import edit
from checkpoints import VOCABULARY, recipe, save_family, tensors_of, tokenizer
from click.testing import Result
from transformers import LlamaForCausalLM


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_inputs_that_have_changed(
    method: str, family: Path, tmp_path: Path, run_yaml: Callable[..., Result]
) -> None:
    models = {"math": {"weight": 1.0}, "law": {"weight": 1.0}}
    assert run_yaml(recipe(family, method, models, parameters={"weight": 1.0})).exit_code == 0
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = tensors_of(family / "math")
    shorter = {**tensors, name: tensors[name][:10].contiguous()}
    del tensors[name]
    for changed in (tensors, shorter):
        weights = family / "math" / "model.safetensors"
        safetensors.torch.save_file(changed, weights, {"format": "pt"})
        (error,) = said(check(tmp_path / "out", "--verify=all"), "error")
        assert error.startswith(f"error: {tmp_path / 'out'}: its recipe cannot be merged again: ")
        assert name in error


def test_random_methods_cannot_be_verified(
    family: Path, tmp_path: Path, run_yaml: Callable[..., Result]
) -> None:
    models = {"math": {"weight": 1.0, "density": 0.5}}
    assert run_yaml(recipe(family, "dare_linear", models)).exit_code == 0
    done = check(tmp_path / "out", "--verify=all")
    assert done.exit_code == 0
    assert "its weights cannot be verified" in done.stdout


def test_tokens_of_a_union_may_have_other_numbers(
    tmp_path: Path, run_yaml: Callable[..., Result]
) -> None:
    family = save_family(tmp_path)
    for name, words in (("math", ["<sum>", "<proof>"]), ("law", ["<statute>"])):
        model = LlamaForCausalLM.from_pretrained(family / name)
        model.resize_token_embeddings(VOCABULARY + len(words), mean_resizing=False)
        model.save_pretrained(family / name)
        more = tokenizer()
        more.add_tokens(words)
        more.save_pretrained(family / name)
    content = recipe(family, tokenizer={"source": "union"})
    (warning,) = said(of_recipe(tmp_path, content), "warning")
    assert "new ids to the 3 tokens that the base model lacks, such as '<proof>'" in warning
    assert run_yaml(content).exit_code == 0
    out = tmp_path / "out"
    assert check(out, "--verify=all").exit_code == 0
    # As another process may have numbered them.
    weights, name = out / "model.safetensors", "model.embed_tokens.weight"
    tensors = tensors_of(out)
    order = [*range(VOCABULARY), *(VOCABULARY + i for i in (2, 0, 1))]
    tensors[name] = tensors[name][order].contiguous()
    safetensors.torch.save_file(tensors, weights, {"format": "pt"})
    assert f"such as {name}" in check(out, "--verify=all").stdout

    def renumber(held: dict[str, list[dict[str, object]]]) -> None:
        for token in held["added_tokens"]:
            if token["id"] >= VOCABULARY:
                token["id"] = order.index(token["id"])
        held["added_tokens"].sort(key=lambda token: token["id"])

    edit(out / "tokenizer.json", renumber)
    done = check(out, "--verify=all")
    assert done.exit_code == 0, done.stdout
    assert "gives the same bytes for" in done.stdout
