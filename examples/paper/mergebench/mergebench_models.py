"""MergeBench's base models and their experts (arXiv 2505.10833), five domains each.

The README beside this module says which of these facts could be verified, and where.
"""

from __future__ import annotations

from pathlib import Path

from architectures import GEMMA_2_2B, GEMMA_2_9B, LLAMA_3_1_8B, LLAMA_3_2_3B
from model_sets import Domain, ModelSet, Pool, Task
from stored_models import StoredModel

HERE = Path(__file__).resolve().parent

DOMAINS = ("instruction", "math", "multilingual", "coding", "safety")

LANGUAGES = ("fr", "es", "de", "ru")

BASES = {
    "meta-llama/Llama-3.2-3B": (StoredModel(LLAMA_3_2_3B, 128256, 128256, "BF16"), "llama3.2"),
    "meta-llama/Llama-3.1-8B": (StoredModel(LLAMA_3_1_8B, 128256, 128256, "BF16"), "llama3.1"),
    "google/gemma-2-2b": (StoredModel(GEMMA_2_2B, 256000, 256000, "F32"), "gemma"),
    "google/gemma-2-9b": (StoredModel(GEMMA_2_9B, 256000, 256000, "F32"), "gemma"),
}
"""Name on the Hub -> how the model is published, and its licence."""

PADDED = {
    # One word for padding, and the embedding padded to a multiple of 64.
    "MergeBench/Llama-3.2-3B_math": StoredModel(LLAMA_3_2_3B, 128320, 128257, "BF16"),
}
"""Experts that are known to have another vocabulary than their base."""


def _name_expert(base: str, domain: str) -> str:
    return f"MergeBench/{base.rpartition('/')[2]}_{domain}"


def _list_choices() -> tuple[Task, ...]:
    """Return the multilingual tasks, as MergeBench's script lists them.

    Items and requests are guesses that add up to the 378,000 requests that such an evaluation is
    reported to take.
    """
    tasks = []
    for language in LANGUAGES:
        tasks += [
            Task(f"m_mmlu_{language}", "acc,none", 13000, requests=52000, request_tokens=200),
            Task(f"arc_{language}", "acc_norm,none", 1170, requests=4700, request_tokens=60),
            Task(
                f"hellaswag_{language}", "acc_norm,none", 9300, requests=37300, request_tokens=120
            ),
        ]
    return tuple(tasks)


TASKS: dict[str, tuple[Task, ...]] = {
    "instruction": (Task("ifeval", "prompt_level_strict_acc,none", 541, 400),),
    "math": (Task("gsm8k_cot", "exact_match,flexible-extract", 1319, 150),),
    "multilingual": _list_choices(),
    "coding": (),
    "safety": (),
}
"""Domain -> the tasks of MergeBench that lm-eval has and `evaluate` can score."""

CODE_TASKS = {
    "coding": (
        Task("humaneval_plus", "pass@1,create_test", 164, 200),
        Task("mbpp_plus", "pass_at_1,none", 378, 100),
    )
}
"""Domain -> its tasks that run code."""


def _make_pool(base: str) -> Pool:
    domains = {
        domain: Domain(_name_expert(base, domain), TASKS[domain], CODE_TASKS.get(domain, ()))
        for domain in DOMAINS
    }
    return Pool(base, domains, BASES[base][1])


def _list_models() -> dict[str, StoredModel]:
    """Return name on the Hub -> how the model is published; experts are taken as bfloat16."""
    models = {}
    for base, (stored, _) in BASES.items():
        models[base] = stored
        for domain in DOMAINS:
            expert = StoredModel(stored.architecture, stored.rows, stored.words, "BF16")
            name = _name_expert(base, domain)
            models[name] = PADDED.get(name, expert)
    return models


MERGEBENCH = ModelSet(
    folder=HERE,
    models=_list_models(),
    pools={base.rpartition("/")[2].lower(): _make_pool(base) for base in BASES},
    prompts_script=HERE / "mergebench_prompts.py",
    dtype="bfloat16",
    batch_size=8,
    # IFEval's prompts with 1,280 new tokens, or eight worked examples with an answer.
    text_tokens=2048,
)
