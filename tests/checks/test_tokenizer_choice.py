"""What a recipe says of the tokenizer and the chat template, beside what mergekit makes of it."""

import json
from pathlib import Path

import pytest
from check_command import of_recipe, said, sound
from checkpoints import VOCABULARY, recipe, tokenizer
from commands import RunYaml
from transformers import AutoTokenizer, LlamaForCausalLM


def extend(folder: Path, token: str) -> None:
    """Add a token to a model."""
    model = LlamaForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(VOCABULARY + 1, mean_resizing=False)
    model.save_pretrained(folder)
    more = tokenizer()
    more.add_tokens([token])
    more.save_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "subject", "sentence"),
    [
        ({"tokenizer": "union"}, "tokenizer", "it is 'union'; allowed is a mapping, such as"),
        ({"tokenizer": {"sauce": "base"}}, "tokenizer", "mergekit ignores 'sauce': did you mean"),
        ({"tokenizer": {"source": "unoin"}}, "tokenizer", "its source is 'unoin'; allowed is"),
        ({"tokenizer_source": "bass"}, "tokenizer", "did you mean base?"),
        ({"tokenizer": {"source": "./gone"}}, "tokenizer", "its source ./gone: there is no such"),
        ({"tokenizer_source": "/gone/far"}, "tokenizer", "/gone/far: there is no such folder."),
        ({"tokenizer": {"source": "a@1@2"}}, "tokenizer", "its source is a@1@2: mergekit takes"),
        (
            {"tokenizer": {"source": "base", "pad_to_multiple_of": -8}},
            "tokenizer",
            "pad_to_multiple_of is -8; allowed is a whole number of at least 0.",
        ),
        ({"tokenizer": {"tokens": ["w1"]}}, "tokenizer", "tokens is not a mapping of tokens."),
        ({"tokenizer": {"tokens": {"w1": "zero"}}}, "tokenizer, w1", "allowed is a mapping with"),
        (
            {"tokenizer": {"tokens": {"w1": {"source": {"kind": "none"}}}}},
            "tokenizer, w1",
            "its source is of kind none; allowed is a model of the recipe, {kind: zero}, or",
        ),
        (
            {"tokenizer": {"tokens": {"w1": {"source": {"kind": "model_token", "token": "a"}}}}},
            "tokenizer, w1",
            "allowed is a model of the recipe",
        ),
        (
            {"tokenizer": {"tokens": {"w1": {"source": "./other"}}}},
            "tokenizer, w1",
            "its source ./other is no model of the recipe",
        ),
        ({"tokenizer": {"tokens": {"<new>": {}}}}, "tokenizer, <new>", "it has no source, and"),
        ({"chat_template": "chatlm"}, "chat_template", "did you mean chatml?"),
        ({"chat_template": "zephyr"}, "chat_template", "allowed is auto, alpaca, chatml, exaone"),
        (
            {"chat_template": "{{messages}}"},
            "chat_template",
            "a template of at least 20 characters",
        ),
        (
            {"tokenizer": {"tokens": {"w1": {"force": True}}}},
            "tokenizer, w1",
            "force needs a source; allowed is a model of the recipe",
        ),
    ],
)
def test_mistakes(
    changes: dict[str, object], subject: str, sentence: str, family: Path, tmp_path: Path
) -> None:
    (error,) = said(of_recipe(tmp_path, recipe(family, **changes)), "error")
    assert error.startswith(f"error: {subject}: ")
    assert sentence in error


def test_both_keys(family: Path, tmp_path: Path) -> None:
    content = recipe(family, tokenizer={"source": "base"}, tokenizer_source="base")
    (error,) = said(of_recipe(tmp_path, content), "error")
    assert "there is a tokenizer_source, too; allowed is one of them." in error


def test_sources_of_rows(family: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    extend(family / "law", "<statute>")

    def content(source: object) -> dict[str, object]:
        return recipe(family, tokenizer={"source": "union", "tokens": {"<statute>": source}})

    law = str(family / "law")
    for source in (
        {"source": law},
        {"source": law, "force": True},
        {"source": {"kind": "zero"}},
        {"source": {"kind": "model_token", "model": str(family / "math"), "token": "w1"}},
        {"source": {"kind": "model_token", "model": str(family / "math"), "token_id": 5}},
    ):
        sound(of_recipe(tmp_path, content(source)))
        assert run_yaml(content(source)).exit_code == 0
    for source, sentence in (
        ({}, f"it has no source, and {family / 'base'} lacks it"),
        (
            {"source": {"kind": "model_token", "model": law, "token_id": 500}},
            f"its token_id is 500; allowed is 0 to 96, as in {law}.",
        ),
        (
            {"source": f"{family}/./law"},
            f"the recipe spells its source {law}; write {law} here, not {family}/./law.",
        ),
        ({"source": str(family / "math")}, f"{family / 'math'} has no token '<statute>'."),
        (
            {"source": {"kind": "model_token", "model": law, "token": "w1000"}},
            f"{family / 'law'} has no token 'w1000'.",
        ),
    ):
        (error,) = said(of_recipe(tmp_path, content(source)), "error")
        assert error.startswith("error: tokenizer, <statute>: ")
        assert sentence in error
        assert run_yaml(content(source)).exit_code != 0


def test_tokens_without_a_row(family: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    def fails(sentence: str, model: str, tokenizer: dict[str, object]) -> None:
        content = recipe(family, tokenizer=tokenizer)
        (error,) = said(of_recipe(tmp_path, content), "error")
        assert error.startswith(f"error: {model}: ")
        assert sentence in error
        assert run_yaml(content).exit_code != 0

    new = {"<new>": {"source": {"kind": "zero"}}}
    fails(
        f"with source base, mergekit finds no row for a token that {family / 'base'} lacks, such "
        f"as '<new>', beyond its 96: set source: union.",
        "tokenizer",
        {"source": "base", "tokens": new},
    )
    law = family / "law"
    more = tokenizer()
    more.add_tokens(["<more>"])
    more.save_pretrained(law)
    sentence = "its token '<more>' has number 96, and config.json has vocab_size 96"
    fails(sentence, str(law), {"source": str(law)})
    sound(of_recipe(tmp_path, recipe(family, tokenizer={"source": "base"})))
    more.save_pretrained(family / "base")
    fails(sentence, str(family / "base"), {"source": "base"})
    # Numbers 0 to 94, and 97.
    path = family / "base" / "tokenizer.json"
    held = json.loads(path.read_text(encoding="utf-8"))
    held["added_tokens"] = held["added_tokens"][:4]
    held["model"]["vocab"]["w91"] = 95
    del held["model"]["vocab"]["w90"]
    path.write_text(json.dumps(held), encoding="utf-8")
    fails("have gaps in their numbers, the last being 95 of 95", "tokenizer", {"source": "base"})


@pytest.mark.parametrize("multiple", [0, 64, "64", 64.0])
def test_padding(multiple: object, family: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    content = recipe(family, tokenizer={"source": "base", "pad_to_multiple_of": multiple})
    sound(of_recipe(tmp_path, content))
    assert run_yaml(content).exit_code == 0


def test_a_model_without_a_tokenizer(family: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    (family / "law" / "tokenizer.json").unlink()
    content = recipe(family, tokenizer={"source": "base"})
    done = of_recipe(tmp_path, content)
    assert said(done, "error") == []
    assert "mergekit takes its tokens for those of the base model." in done.stdout
    assert run_yaml(content).exit_code == 0


def test_a_source_that_is_not_merged(family: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    other = tmp_path / "other"
    tokenizer().save_pretrained(other)
    content = recipe(family, tokenizer={"source": str(other)})
    sound(of_recipe(tmp_path, content))
    assert run_yaml(content).exit_code == 0
    more = tokenizer()
    more.add_tokens(["<more>"])
    more.save_pretrained(other)
    (warning,) = said(of_recipe(tmp_path, content), "warning")
    assert f"its source {other} has 1 token that no model of the recipe has, such as" in warning
    content["tokenizer"]["tokens"] = {"<more>": {"source": {"kind": "zero"}}}
    sound(of_recipe(tmp_path, content))
    del content["tokenizer"]["tokens"]
    (other / "tokenizer.json").unlink()
    (warning,) = said(of_recipe(tmp_path, content), "warning")
    assert f"its source {other} seems to have no tokenizer." in warning


def test_tokens_that_one_model_has_added_keep_their_order(family: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(family / "law")
    model.resize_token_embeddings(VOCABULARY + 2, mean_resizing=False)
    model.save_pretrained(family / "law")
    more = tokenizer()
    more.add_tokens(["<statute>", "<clause>"])
    more.save_pretrained(family / "law")
    sound(of_recipe(tmp_path, recipe(family, tokenizer={"source": "union"})))


def test_a_tokenizer_without_a_source_is_a_union(family: Path, tmp_path: Path) -> None:
    for name, token in (("law", "<statute>"), ("math", "<sum>")):
        extend(family / name, token)
    (warning,) = said(of_recipe(tmp_path, recipe(family, tokenizer={"tokens": {}})), "warning")
    assert "new ids to the 2 tokens that the base model lacks, such as '<statute>'" in warning


@pytest.mark.parametrize("template", ["chatml", "auto", "{{ messages[0]['content'] }}"])
def test_chat_templates(template: str, family: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    content = recipe(family, chat_template=template)
    sound(of_recipe(tmp_path, content))
    assert run_yaml(content).exit_code == 0
    assert (AutoTokenizer.from_pretrained(tmp_path / "out").chat_template is None) == (
        template == "auto"
    )


def test_models_without_a_base(family: Path, tmp_path: Path) -> None:
    content = recipe(family, "linear", {"math": {"weight": 1.0}, "law": {"weight": 1.0}})
    del content["base_model"]
    sound(of_recipe(tmp_path, content))
    config = family / "law" / "config.json"
    held = json.loads(config.read_text(encoding="utf-8"))
    held["use_cache"] = not held["use_cache"]
    held["rope_theta"] = held.pop("rope_parameters")["rope_theta"]
    config.write_text(json.dumps(held), encoding="utf-8")
    sound(of_recipe(tmp_path, content))
    held["rms_norm_eps"] = 1e-5
    held["rope_theta"] = 1e6
    config.write_text(json.dumps(held), encoding="utf-8")
    (found, *_) = said(of_recipe(tmp_path, content), "warning")
    assert "which one changes from run to run; they differ in rope_theta and rms_norm_eps." in found
    assert found.startswith("warning: base_model: ")
