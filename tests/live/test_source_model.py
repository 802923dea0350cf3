"""Models as they are: what a run that goes on must notice of them."""

import json
import os
from pathlib import Path

import pytest
from checkpoints import save_family
from safetensors.torch import load_file, save_file

from dppa_mergekit.errors import DppaError
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
