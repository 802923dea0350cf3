"""Scores on benchmarks that the Hub registers, in the file that its leaderboards read.

The format is that of huggingface.co/docs/hub/eval-results; huggingface_hub writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import yaml

from dppa_mergekit.publishing.model_card import Measurements
from dppa_mergekit.storage.output_files import write_whole

FOLDER = ".eval_results"
"""The folder of such files in a model's repository."""

FILE = "dppa-mergekit.yaml"
"""The file that this package writes into it."""

GSM8K = ("openai/gsm8k", "gsm8k")
GPQA_DIAMOND = ("Idavidrein/gpqa", "diamond")

BENCHMARKS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "gsm8k": GSM8K,
        "gsm8k_cot": GSM8K,
        "gsm8k_cot_zeroshot": GSM8K,
        "gsm8k_cot_llama": GSM8K,
        "gpqa_diamond_zeroshot": GPQA_DIAMOND,
        "gpqa_diamond_n_shot": GPQA_DIAMOND,
        "gpqa_diamond_cot_zeroshot": GPQA_DIAMOND,
        "gpqa_diamond_cot_n_shot": GPQA_DIAMOND,
        "gpqa_diamond_generative_n_shot": GPQA_DIAMOND,
    }
)
"""Task of lm-eval 0.4.13 -> the dataset on the Hub that it scores, and the Hub's name of the task.

Groups of lm-eval's, as MMLU-Pro, are no tasks here.
"""


def write_benchmark_results(folder: Path, measurements: Measurements) -> None:
    """Write the scores of a merge on registered benchmarks into its folder.

    Left out are scores of a part of a benchmark, those on tasks by which factors or weights were
    chosen, and those on tasks of the user's. Of several tasks on one benchmark, the first counts.
    Where nothing is left, the file of an earlier run is deleted.

    Args:
        folder: The folder of the merge.
        measurements: The scores of its present weights.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    entries: dict[tuple[str, str], EvalResultEntry] = {}
    for score in measurements.scores if measurements.limit is None else ():
        benchmark = BENCHMARKS.get(score.task)
        if benchmark is None or score.tuned_on or score.is_own:
            continue
        notes = ["lm-evaluation-harness", score.task, *measurements.setup, score.metric]
        entry = EvalResultEntry(
            *benchmark,
            value=round(100 * score.value, 2),
            notes=", ".join(filter(None, notes)),
        )
        entries.setdefault(benchmark, entry)
    path = folder / FOLDER / FILE
    if not entries:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(exist_ok=True)
    found = eval_result_entries_to_yaml(list(entries.values()))
    write_whole(path, yaml.safe_dump(found, sort_keys=False))
