"""Vocabularies that differ, and output heads that are tied in some models only."""

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from checkpoints import HIDDEN, VOCABULARY, recipe, save_family, tensors_of, tokenizer, unequal
from commands import Merge
from oracle_merges import MODELS, expected


@pytest.fixture(params=["llama", "llama_untied"])
def extended(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A family of one vocabulary, and the same where every tuned model has tokens of its own."""
    plain = save_family(tmp_path / "plain", request.param)
    more = tmp_path / "extended"
    shutil.copytree(plain / "base", more / "base")
    for name, words in (("math", ["<sum>", "<proof>"]), ("law", ["<statute>"])):
        model = transformers.LlamaForCausalLM.from_pretrained(plain / name)
        torch.manual_seed(len(words))
        model.resize_token_embeddings(VOCABULARY + len(words), mean_resizing=False)
        model.save_pretrained(more / name)
        words_too = tokenizer()
        words_too.add_tokens(words)
        words_too.save_pretrained(more / name)
    return plain, more


@pytest.mark.parametrize(("source", "tokens"), [("union", VOCABULARY + 3), ("base", VOCABULARY)])
def test_tokenizers_that_differ(
    source: str, tokens: int, extended: tuple[Path, Path], tmp_path: Path, merge: Merge
) -> None:
    plain, more = extended
    models = {name: {**MODELS[name], "amplify_dense": 1.0} for name in MODELS}
    merged = merge(recipe(more, models=models, tokenizer={"source": source}))
    without = merge(recipe(plain, models=models), output="without")
    assert set(merged) == set(without)
    vocabulary = [name for name in merged if merged[name].shape == (tokens, HIDDEN)]
    assert vocabulary == [n for n in merged if "embed_tokens" in n or "lm_head" in n]
    inside = [name for name in merged if name not in vocabulary]
    assert not unequal({n: merged[n] for n in inside}, {n: without[n] for n in inside})

    sums = recipe(more, "task_arithmetic", models, tokenizer={"source": source})
    summed = merge(sums, output="sums")
    assert not unequal({n: merged[n] for n in vocabulary}, {n: summed[n] for n in vocabulary})

    model, info = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert model.config.vocab_size == tokens
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "out")) == tokens


def tie(folder: Path, name: str, tied: bool) -> None:
    """Store one model of a family with or without its own output head."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder / name)
    if not tied:
        model.config.tie_word_embeddings = False
        head = model.get_input_embeddings().weight.detach().clone()
        generator = torch.Generator().manual_seed(11)
        head += 1e-3 * torch.randn(head.shape, generator=generator)
        model.lm_head.weight = torch.nn.Parameter(head)
    shutil.rmtree(folder / name)
    model.save_pretrained(folder / name)


def test_untied_base_and_tied_models(tmp_path: Path, merge: Merge) -> None:
    folder = save_family(tmp_path / "family")
    tie(folder, "base", tied=False)
    models = [tensors_of(folder / name) for name in ("base", *MODELS)]
    for tensors in models[1:]:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    wanted = expected(models, list(MODELS.values()))
    assert not unequal(merge(recipe(folder, models=MODELS)), wanted)


def test_tied_base_and_an_untied_model(tmp_path: Path, merge: Merge) -> None:
    folder = save_family(tmp_path / "family")
    tie(folder, "math", tied=False)
    models = [tensors_of(folder / name) for name in ("base", *MODELS)]
    for tensors in models:
        tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
    wanted = expected(models, list(MODELS.values()))
    assert not unequal(merge(recipe(folder, models=MODELS)), wanted)
