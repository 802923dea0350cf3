"""LLaMA-2-7B with the paper's fine-tuned models, by their configurations and files on the Hub."""

from __future__ import annotations

from pathlib import Path

from architectures import LLAMA_2_7B
from model_sets import Domain, ModelSet, Pool, Task
from stored_models import StoredModel

HERE = Path(__file__).resolve().parent

BASE = "meta-llama/Llama-2-7b-hf"

MODELS = {
    BASE: StoredModel(LLAMA_2_7B, 32000, 32000, "F16"),
    "GAIR/Abel-7B-001": StoredModel(LLAMA_2_7B, 32032, 32001, "F32", pickled_bytes=9.9e9),
    "AdaptLLM/finance-chat": StoredModel(LLAMA_2_7B, 32001, 32001, "F32"),
    "AdaptLLM/law-chat": StoredModel(LLAMA_2_7B, 32001, 32001, "F32"),
}


def _task(name: str, items: int, new_tokens: int) -> Task:
    """Return a task; an answer that does not end takes 2,048 tokens."""
    return Task(f"{name}_test", "right,none", items, new_tokens, dev=f"{name}_dev")


DOMAINS = {
    "math": Domain("GAIR/Abel-7B-001", (_task("gsm8k", 1319, 150), _task("math", 5000, 250))),
    "finance": Domain("AdaptLLM/finance-chat", (_task("fpb", 970, 30), _task("fiqa_sa", 235, 30))),
    # The number of SCOTUS's opinions that are short enough is a guess.
    "law": Domain("AdaptLLM/law-chat", (_task("scotus", 150, 50), _task("unfair_tos", 172, 50))),
}
"""Name -> domain. Items are counted by the datasets' cards."""

LICENSE = "llama2"
"""Abel's repository has no card, and so names no licence."""

LLAMA2 = ModelSet(
    folder=HERE,
    models=MODELS,
    pools={
        "three": Pool(BASE, DOMAINS, LICENSE),
        "two": Pool(BASE, {name: DOMAINS[name] for name in ("math", "finance")}, LICENSE),
    },
    prompts_script=HERE / "llama2_prompts.py",
    # As the base is stored; bfloat16 would round the deltas.
    dtype="float16",
    batch_size=8,
    text_tokens=LLAMA_2_7B.context,
    tasks_folder=HERE / "tasks",
)
