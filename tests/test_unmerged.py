"""Models as they are: what a run that goes on must notice of them."""

import json
from pathlib import Path

import pytest
from checkpoints import save_family

from dppa_mergekit.errors import DppaError
from dppa_mergekit.unmerged import Unmerged


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
    model = Unmerged(str(family / "math"))
    before = model.fingerprint()
    assert model.fingerprint() == before
    (family / "math" / file).write_text(json.dumps(content), encoding="utf-8")
    assert model.fingerprint() != before


def test_a_lora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DppaError, match="math\\+lora has a LoRA, which only a merge takes"):
        Unmerged(f"{tmp_path}/math+lora").load()
