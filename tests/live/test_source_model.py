"""Models as they are: what a run that goes on must notice of them."""

import json
import os
import shutil
from pathlib import Path

import pytest
from checkpoints import save_family, tokenizer
from hub_process import Hub
from huggingface_hub import constants, hf_api
from safetensors.torch import load_file, save_file

from dppa_mergekit.checkpoints.loading_options import LoadingOptions
from dppa_mergekit.errors import CheckpointError, DppaError
from dppa_mergekit.live.placement import Placement
from dppa_mergekit.live.source_model import SourceModel


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", {"model": {"vocab": {"w1": 5, "w2": 4}}}),
        ("tokenizer_config.json", {"chat_template": "{{ messages }}"}),
        ("chat_template.jinja", "{{ messages[0] }}"),
        ("generation_config.json", {"eos_token_id": 7}),
        ("config.json", {"model_type": "llama", "rope_theta": 5.0}),
    ],
)
def test_how_a_model_reads_and_answers_is_a_part_of_it(
    file: str, content: object, tmp_path: Path
) -> None:
    family = save_family(tmp_path)
    model = SourceModel(str(family / "math"))
    (family / "math" / "tokenizer").mkdir()
    before = model.fingerprint()
    assert model.fingerprint() == before
    (family / "math" / file).write_text(json.dumps(content), encoding="utf-8")
    assert model.fingerprint() != before


def test_another_value_in_any_tensor_is_another_model(tmp_path: Path) -> None:
    folder = save_family(tmp_path, num_hidden_layers=4) / "math"
    path, model = folder / "model.safetensors", SourceModel(str(folder))
    tensors, status = load_file(path), path.stat()
    seen = {model.fingerprint()}
    for name, tensor in tensors.items():
        save_file({**tensors, name: tensor * 1.5}, path, metadata={"format": "pt"})
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert path.stat().st_size == status.st_size
        seen.add(model.fingerprint())
    assert len(seen) == 1 + len(tensors)


def test_a_lora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DppaError, match="math\\+lora has a LoRA, and needs a lora_merge_cache"):
        SourceModel(f"{tmp_path}/math+lora").load()


def test_a_folder_with_two_layouts_is_named_once(tmp_path: Path) -> None:
    folder = save_family(tmp_path) / "math"
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"^{folder}: it holds both model.safetensors and"):
        SourceModel(str(folder)).fingerprint()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base whose tokenizer has a chat template."""
    return save_tokenizer(tmp_path / "base", "of the base")


def save_tokenizer(folder: Path, template: str) -> Path:
    """Save a tokenizer with a chat template into a folder, and return the folder."""
    own = tokenizer()
    own.chat_template = template
    own.save_pretrained(folder)
    return folder


def with_adapter(base: Path, tmp_path: Path) -> SourceModel:
    loading = LoadingOptions(transformers_cache=str(tmp_path / "cache"))
    return SourceModel(f"{base}+me/adapter", Placement(loading=loading))


@pytest.fixture
def _online(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub asks the stand-in; it reads the environment once, as it is imported."""
    endpoint = hub.environment["HF_ENDPOINT"]
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(hf_api.api, "endpoint", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.mark.usefixtures("_online")
def test_a_model_on_the_hub_keeps_its_chat_template(base: Path, hub: Hub, tmp_path: Path) -> None:
    published = save_family(hub.root / "me") / "math"
    shutil.copytree(base, published, dirs_exist_ok=True)
    assert (published / "chat_template.jinja").exists()
    loading = LoadingOptions(transformers_cache=str(tmp_path / "cache"))
    model = SourceModel("me/math", Placement(loading=loading))
    assert model.tokenizer().chat_template == "of the base"
    assert list(model.folder().glob("*.safetensors"))


@pytest.mark.usefixtures("_online")
def test_an_adapter_on_the_hub_keeps_its_own_tokenizer(
    base: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_tokenizer(hub.root / "me" / "adapter", "of the adapter")
    (adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    (adapter / "adapter_model.safetensors").write_bytes(b"heavy")
    model = with_adapter(base, tmp_path)
    assert model.tokenizer().chat_template == "of the adapter"
    assert not list(tmp_path.glob("cache/**/*.safetensors"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert model.tokenizer().chat_template == "of the adapter"


@pytest.mark.usefixtures("_online")
def test_an_adapter_on_the_hub_without_a_tokenizer(
    base: Path, hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = hub.root / "me" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert with_adapter(base, tmp_path).tokenizer().chat_template == "of the base"
    assert not caplog.text


def test_an_adapter_that_nobody_has(base: Path) -> None:
    with pytest.raises(DppaError, match=r"\+\./lora: its LoRA is neither a local folder nor"):
        SourceModel(f"{base}+./lora").tokenizer()


def test_an_adapter_that_is_unknown_offline_has_the_tokenizer_of_its_model(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert with_adapter(base, tmp_path).tokenizer().chat_template == "of the base"
    assert "the Hub cannot be asked whether its LoRA has a tokenizer" in caplog.text
