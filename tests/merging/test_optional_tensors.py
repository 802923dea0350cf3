"""Optional tensors that only some models have, with mergekit's own methods: what check says."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from check_command import of_recipe, said
from checkpoints import recipe, tensors_of, tokenizer
from commands import RunYaml
from many_families import FAMILIES
from transformers import GraniteConfig, GraniteForCausalLM

BIAS = "model.layers.0.self_attn.k_proj.bias"


def save_granites(folder: Path, biased: Sequence[str]) -> Path:
    """Save a base, and math and law, of which some have biases; all configurations say so."""
    options = dict(FAMILIES["granite"].options)
    for name in ("base", "math", "law"):
        config = GraniteConfig(**options, attention_bias=name in biased)
        GraniteForCausalLM(config).save_pretrained(folder / name)
        held = json.loads((folder / name / "config.json").read_text(encoding="utf-8"))
        held["attention_bias"] = True
        (folder / name / "config.json").write_text(json.dumps(held), encoding="utf-8")
        tokenizer().save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(
    ("method", "biased", "sentence"),
    [
        ("task_arithmetic", ["math"], "task_arithmetic cannot merge the rest"),
        ("task_arithmetic", ["base", "math"], None),
        ("linear", ["base", "math"], None),
        ("nearswap", ["math"], "nearswap cannot merge the rest"),
        ("nearswap", ["base"], None),
        ("slerp", ["math"], None),
        ("model_stock", ["base"], None),
        ("model_stock", ["math"], "model_stock leaves out what fewer than 3 models have"),
    ],
)
def test_check_says_what_the_merge_does(
    method: str, biased: list[str], sentence: str | None, tmp_path: Path, run_yaml: RunYaml
) -> None:
    family = save_granites(tmp_path, biased)
    names = ["law", "math"] if method in ("linear", "task_arithmetic", "model_stock") else ["math"]
    own = {"weight": 0.5} if method in ("linear", "task_arithmetic") else {}
    content = recipe(family, method, dict.fromkeys(names, own))
    if method == "linear":
        content["models"].append({"model": content.pop("base_model"), "parameters": own})
    if method in ("slerp", "nearswap"):
        content["parameters"] = {"t": 0.5}
    checked = of_recipe(tmp_path, content)
    errors, warnings = said(checked, "error"), said(checked, "warning")
    done = run_yaml(content)
    # A merge that fails, or one without the biases.
    fails = done.exit_code != 0 or BIAS not in tensors_of(tmp_path / "out")
    assert (bool(errors), fails) == (sentence is not None,) * 2, done.output
    if sentence is not None:
        assert f"8 optional tensors are missing, such as {BIAS}, and {sentence}" in errors[0]
        assert len(errors) == 1
    elif "math" not in biased:
        assert f"{family / 'math'}: 8 optional tensors are missing, such as" in warnings[-1]
        assert warnings[-1].endswith("there, it takes no part in the merge.")
