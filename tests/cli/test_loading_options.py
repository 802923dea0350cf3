"""mergekit's options of how models are loaded: every command has them, and passes them on."""

import json
from pathlib import Path

import pytest
from check_command import check, of_recipe, said
from checkpoint_edits import edit
from checkpoints import recipe, save_family, save_lora, tensors_of, unequal, write_recipe
from click.testing import CliRunner
from commands import Merge, RunYaml
from mergekit.options import MergeOptions
from transformers import LlamaForCausalLM

from dppa_mergekit.checkpoints.loading_options import LoadingOptions, caching_loras
from dppa_mergekit.cli import options
from dppa_mergekit.cli.main import main
from dppa_mergekit.errors import DppaError
from dppa_mergekit.live.placement import Placement
from dppa_mergekit.live.source_model import SourceModel

CODE = """from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_python_on_which_mergekit_does_not_unpickle_lazily(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(tmp_path / "recipe.yml", recipe(save_family(tmp_path)))
    monkeypatch.setattr(options, "UNPICKLES_LAZILY", False)
    done = check(path, "--lazy-unpickle")
    assert done.exit_code == 1
    assert "--lazy-unpickle does not work on Python 3.13" in done.output
    assert check(path).exit_code == 0


@pytest.mark.parametrize("command", list(main.commands))
def test_every_command_has_mergekits_options(command: str) -> None:
    options = {name for option in main.commands[command].params for name in option.opts}
    own = {f"--{name.replace('_', '-')}" for name in LoadingOptions.__dataclass_fields__}
    assert own <= options
    assert LoadingOptions.__dataclass_fields__.keys() <= MergeOptions.model_fields.keys()


@pytest.fixture
def adapted(tmp_path: Path) -> tuple[Path, str]:
    """A family, and its base with a LoRA."""
    family = save_family(tmp_path)
    return family, save_lora(family)


def test_a_merge_with_a_lora_is_verified(
    adapted: tuple[Path, str], tmp_path: Path, merge: Merge
) -> None:
    family, model = adapted
    content = recipe(family)
    content["models"][0]["model"] = model
    cache = f"--lora-merge-cache={tmp_path / 'cache'}"
    merge(content, cache)
    out = tmp_path / "out"
    for given in ((), ("--verify=all",)):
        done = check(out, *given)
        assert done.exit_code == 0, done.stdout
        note = f"note: {out}: it cannot be verified without --lora-merge-cache."
        assert note in said(done, "note")
    done = check(out, "--verify=all", cache)
    assert done.exit_code == 0
    assert "its recipe gives the same bytes for" in done.stdout
    done = of_recipe(tmp_path, content)
    assert "note: recipe: mergekit-yaml needs --lora-merge-cache for it." in done.stdout
    assert "asking mergekit" in of_recipe(tmp_path, content, cache).stderr


def test_loras_are_merged_once(adapted: tuple[Path, str], tmp_path: Path) -> None:
    family, model = adapted
    with pytest.raises(DppaError, match="has a LoRA, and needs a lora_merge_cache"):
        SourceModel(model).folder()
    with caching_loras(LoadingOptions(), [model], tmp_path / "work") as loading:
        source = SourceModel(model, Placement(loading=loading))
        assert not unequal(tensors_of(source.folder()), tensors_of(family / "whole"))
        first = source.fingerprint()
        written = next(source.folder().glob("*.safetensors")).stat().st_mtime_ns
        assert next(source.folder().glob("*.safetensors")).stat().st_mtime_ns == written
    assert list((tmp_path / "work").iterdir()) == []
    with caching_loras(LoadingOptions(), [model], tmp_path / "work") as loading:
        assert SourceModel(model, Placement(loading=loading)).fingerprint() == first
    given = LoadingOptions(lora_merge_cache=str(tmp_path / "mine"))
    with caching_loras(given, [model], tmp_path / "work") as loading:
        assert loading == given
    with caching_loras(LoadingOptions(), [str(family / "math")], tmp_path / "work") as loading:
        assert loading == LoadingOptions()


def test_analyze_with_a_lora(adapted: tuple[Path, str], tmp_path: Path) -> None:
    family, model = adapted
    found = []
    for name, given in (("whole", str(family / "whole")), ("lora", model)):
        content = recipe(family, models={"law": {"weight": 1.0}})
        content["models"][0]["model"] = given
        path = write_recipe(tmp_path / f"{name}.yml", content)
        output = tmp_path / name
        done = CliRunner().invoke(main, ["-q", "analyze", str(path), "--output", str(output)])
        assert done.exit_code == 0, done.output
        text = (output / "analysis.json").read_text(encoding="utf-8")
        found.append(json.loads(text.replace(given, "MODEL"))["models"])
    assert found[0] == found[1]


def test_models_with_code_of_their_own(tmp_path: Path, run_yaml: RunYaml) -> None:
    family = save_family(tmp_path)
    for name in ("base", "math", "law"):
        (family / name / "modeling_own.py").write_text(CODE, encoding="utf-8")
        names = {
            "AutoConfig": "modeling_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        }
        own = {"model_type": "own_llama", "architectures": ["OwnForCausalLM"], "auto_map": names}
        edit(family / name / "config.json", lambda held, own=own: held.update(own))
    content = recipe(family)
    done = of_recipe(tmp_path, content)
    assert done.exit_code == 0, done.stdout
    assert "note: recipe: mergekit-yaml needs --trust-remote-code for it." in done.stdout
    done = CliRunner().invoke(main, ["analyze", str(tmp_path / "recipe.yml")])
    assert done.exit_code == 1
    assert "a model comes with code of its own, which only runs with --trust-remote-code." in (
        done.output
    )
    assert of_recipe(tmp_path, content, "--trust-remote-code").exit_code == 0
    assert run_yaml(content, "--trust-remote-code").exit_code == 0
    out = tmp_path / "out"
    done = check(out, "--verify=all")
    assert done.exit_code == 0, done.stdout
    assert "it cannot be verified without --trust-remote-code." in done.stdout
    done = check(out, "--verify=all", "--trust-remote-code")
    assert done.exit_code == 0, done.stdout
    assert "its recipe gives the same bytes for" in done.stdout


def test_code_that_transformers_does_not_need(tmp_path: Path, run_yaml: RunYaml) -> None:
    family = save_family(tmp_path)
    names = {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}
    edit(family / "law" / "config.json", lambda held: held.update(auto_map=names))
    done = of_recipe(tmp_path, recipe(family))
    assert "--trust-remote-code" not in done.stdout
    assert "asking mergekit" in done.stderr
    assert run_yaml(recipe(family)).exit_code == 0


def test_truncated_embeddings(tmp_path: Path, merge: Merge) -> None:
    family = save_family(tmp_path)
    model = LlamaForCausalLM.from_pretrained(family / "law")
    model.resize_token_embeddings(100, mean_resizing=False)
    model.save_pretrained(family / "law")
    assert said(of_recipe(tmp_path, recipe(family)), "error")
    done = of_recipe(tmp_path, recipe(family), "--unsafe-truncate-embeddings")
    assert said(done, "error") == []
    merge(recipe(family), "--unsafe-truncate-embeddings")
    out = tmp_path / "out"
    assert check(out, "--verify=all").exit_code == 1
    done = check(out, "--verify=all", "--unsafe-truncate-embeddings")
    assert done.exit_code == 0, done.stdout
    assert "its recipe gives the same bytes for" in done.stdout
