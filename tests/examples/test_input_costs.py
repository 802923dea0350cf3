"""The sizes of what a merge by inputs holds: formulas against real files and tensors."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from architectures import GEMMA_2_9B, LLAMA_2_7B, LLAMA_3_1_8B, Architecture
from checkpoints import VOCABULARY, tokenizer
from input_costs import InputCosts
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from dppa_mergekit.combination.input_regression import regress
from dppa_mergekit.moments.activations_file import write_activations
from dppa_mergekit.moments.second_moment import SecondMoment
from dppa_mergekit.observation.moment_sketch import MomentSketch
from dppa_mergekit.observation.observe import Observing, Subject, observe
from dppa_mergekit.observation.texts import Reading
from dppa_mergekit.prompts import Prompt

SMALL = {"layers": 2, "hidden": 48, "intermediate": 80, "heads": 4, "key_value_heads": 2}
LLAMA = replace(LLAMA_2_7B, **SMALL, head_width=16, vocabulary=VOCABULARY)
LLAMA_3 = replace(LLAMA_3_1_8B, **SMALL, head_width=16, vocabulary=VOCABULARY)
GEMMA = replace(GEMMA_2_9B, **SMALL, head_width=16, vocabulary=VOCABULARY)


@pytest.mark.parametrize("rank", [8, 30, 64])
@pytest.mark.parametrize("architecture", [LLAMA, GEMMA], ids=["llama", "gemma2"])
def test_activations_file(architecture: Architecture, rank: int, tmp_path: Path) -> None:
    settings = architecture.configuration(VOCABULARY)
    kind = settings.pop("model_type")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval()
    prompts = [Prompt("w1 w2 w3 w4 w5 w6 w7"), Prompt("w8 w9 w1")]
    observing = Observing(rank, Reading(max_new_tokens=0))
    found, moments = observe(Subject("math", "", "", ""), model, tokenizer(), prompts, observing)
    assert sorted(moment.inputs for moment in moments) == sorted(architecture.input_widths())
    path = tmp_path / "math.safetensors"
    write_activations(path, found, moments)
    size = sum(tensor.nbytes for tensor in load_file(path).values())
    assert size == InputCosts(architecture.input_widths(), 3, rank).file_bytes


@pytest.mark.parametrize(("width", "rank"), [(80, 16), (80, 40), (40, 64)])
def test_sketch(width: int, rank: int) -> None:
    sketch = MomentSketch(width, rank, torch.device("cpu"))
    sketch.add(torch.randn(3 * rank, width))
    assert (
        sketch._rows.nbytes + sketch._diagonal.nbytes == InputCosts([width], 1, rank).sketch_bytes
    )


@pytest.mark.parametrize(("width", "rank"), [(80, 16), (80, 40), (40, 64)])
def test_solution(width: int, rank: int) -> None:
    columns = min(width, rank)
    moments = [
        SecondMoment(torch.randn(width, columns), torch.ones(columns), torch.ones(width))
        for _ in range(3)
    ]
    cpu = torch.device("cpu")
    solution = regress(moments, [1.0] * 3, 1.0, 1e-3, cpu, torch.float32)
    parts = (solution.shares, *solution.vectors, solution.correction)
    assert sum(part.nbytes for part in parts) == InputCosts([width], 3, rank).solution_bytes


def test_the_readme_s_measurements_of_llama_2() -> None:
    costs = InputCosts(LLAMA_2_7B.input_widths(), 3)
    # "1.1 % of the model's size", and "0.6 GB beside the model".
    assert costs.file_bytes / (2 * LLAMA_2_7B.parameters()) == pytest.approx(0.011, abs=5e-4)
    assert costs.sketch_bytes / 1e9 == pytest.approx(0.6, abs=0.05)


def test_the_peak_of_solving() -> None:
    # Resident memory grew by 111 MB and 217 MB while such systems were solved on two threads.
    for width, models, measured in ((11008, 3, 110.6e6), (14336, 5, 216.6e6)):
        assert InputCosts([width], models).solving_bytes == pytest.approx(measured, rel=0.1)


def test_a_tied_head_is_no_linear() -> None:
    for architecture, heads in ((LLAMA, 1), (LLAMA_3, 1), (GEMMA, 0)):
        assert len(architecture.input_widths()) == 4 * architecture.layers + heads
