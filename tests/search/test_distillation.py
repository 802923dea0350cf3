"""The teacher's lessons and the gradients in factors, against autograd and brute force."""

from pathlib import Path

import numpy
import pytest
import torch
from checkpoints import recipe, save_family
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from dppa_mergekit.adamerging.batches import draw_batches
from dppa_mergekit.adamerging.teacher import (
    ANSWER_TOKENS,
    TOP,
    Lessons,
    divergence,
    teach,
)
from dppa_mergekit.live.amplified_model import AmplifiedModel
from dppa_mergekit.recipes.recipe import Recipe

PROMPTS = [[5, 6, 7], [9], [13, 12, 11, 10, 9], [6, 6]]


@pytest.fixture
def family(tmp_path: Path) -> Path:
    return save_family(tmp_path, dtype=torch.float64, num_hidden_layers=2)


def amplified_of(folder: Path, method: str = "dppa") -> AmplifiedModel:
    models = {"math": {"weight": 0.6, "density": 0.3}}
    alone = Recipe(recipe(folder, method, models)).with_only(str(folder / "math"))
    return AmplifiedModel.load(alone, folder)


@pytest.mark.parametrize("method", ["dppa", "dare_dpa"])
def test_gradients_in_factors_are_autograds(family: Path, method: str) -> None:
    amplified = amplified_of(family, method)
    point = {90: [1.3, 0.9], 80: [0.8, 1.2], 70: [1.1, 1.1]}
    lessons = teach(amplified.model, amplified.tokenizer, PROMPTS, 2)
    weights = []
    for rate in (90, 80, 70):
        for layer in range(2):
            # By finite difference of the weights, which are linear in the factors: the direction.
            knots = [factor + (index == layer) for index, factor in enumerate(point[rate])]
            amplified.set_factors({**point, rate: knots})
            higher = {name: tensor.clone() for name, tensor in amplified.model.state_dict().items()}
            amplified.set_factors(point)
            weights.append(
                {
                    name: higher[name] - tensor
                    for name, tensor in amplified.model.state_dict().items()
                }
            )
    start = {name: tensor.clone() for name, tensor in amplified.model.state_dict().items()}
    factors = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    moved = {
        name: tensor + sum(factors[i] * of_factor[name] for i, of_factor in enumerate(weights))
        for name, tensor in start.items()
        if name != "lm_head.weight"  # tied
    }

    class Functional(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, **inputs):
            return torch.func.functional_call(amplified.model, moved, (), inputs)

    divergence(Functional(), lessons).backward()
    with amplified.factor_gradients() as found:
        divergence(amplified.model, lessons).backward()
    assert factors.grad is not None
    assert found.shape == (3, 2)
    assert found.flatten().tolist() == pytest.approx(factors.grad.tolist(), rel=1e-6, abs=1e-12)
    assert all(parameter.grad is None for parameter in amplified.model.parameters())
    assert float(found.abs().min()) > 1e-9


def test_lessons_are_the_greedy_answers(family: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(family / "math").eval()
    tokenizer = AutoTokenizer.from_pretrained(family / "math")
    lessons = teach(model, tokenizer, PROMPTS, 3)
    for number, prompt in enumerate(PROMPTS):
        tokens = list(prompt)
        begin = len(tokens)
        for step in range(ANSWER_TOKENS):
            with torch.no_grad():
                said = model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
            top = said.topk(TOP)
            assert torch.allclose(lessons.logarithm[number, step].double(), top.values, atol=1e-4)
            tokens.append(int(said.argmax()))
            if tokens[-1] == tokenizer.eos_token_id:
                break
        assert int(lessons.begin[number]) == begin
        assert lessons.tokens[number, : len(tokens)].tolist() == tokens
        assert int(lessons.end[number]) == len(tokens)


@torch.no_grad()
def by_hand(teacher: PreTrainedModel, student: PreTrainedModel, lessons: Lessons) -> list[float]:
    """The divergence of each lesson: words that only the teacher has are among all others."""
    expected = []
    for number in range(lessons.number):
        begin, end = int(lessons.begin[number]), int(lessons.end[number])
        tokens = lessons.tokens[number, :end][None]
        p = teacher(tokens).logits[0].softmax(-1).numpy()
        q = student(tokens).logits[0].softmax(-1).numpy()
        of_tokens = []
        for position in range(begin - 1, end - 1):
            top = [word for word in numpy.argsort(-p[position])[:TOP] if word < q.shape[1]]
            rest_p, rest_q = 1 - p[position][top].sum(), 1 - q[position][top].sum()
            kl = (p[position][top] * numpy.log(p[position][top] / q[position][top])).sum()
            of_tokens.append(kl + rest_p * numpy.log(rest_p / rest_q))
        expected.append(float(numpy.mean(of_tokens)))
    return expected


def test_divergence_by_hand(family: Path) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(family / "math").eval()
    student = AutoModelForCausalLM.from_pretrained(family / "base").eval()
    tokenizer = AutoTokenizer.from_pretrained(family / "math")
    lessons = teach(teacher, tokenizer, PROMPTS, 4)
    expected = by_hand(teacher, student, lessons)
    part = lessons.some(torch.tensor([2, 0]))
    with torch.no_grad():
        assert float(divergence(teacher, lessons)) == pytest.approx(0, abs=1e-6)
        found, of_part = float(divergence(student, lessons)), float(divergence(student, part))
    assert found == pytest.approx(numpy.mean(expected), rel=1e-4)
    assert of_part == pytest.approx(numpy.mean([expected[2], expected[0]]), rel=1e-4)


def test_words_that_only_the_teacher_has_are_among_all_others(family: Path) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(family / "math").eval()
    student = AutoModelForCausalLM.from_pretrained(family / "base").eval()
    tokenizer = AutoTokenizer.from_pretrained(family / "math")
    (rows, _) = student.get_input_embeddings().weight.shape
    teacher.resize_token_embeddings(rows + 2, mean_resizing=False)
    said = teacher.get_output_embeddings().weight.data
    said[rows:] = 0.9 * said[12:14]
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    lessons = teach(teacher, tokenizer, PROMPTS, 4)
    assert int(lessons.tokens.max()) == rows  # the padding
    assert int(lessons.likely.max()) >= rows
    assert max(lessons.words(rows)) < rows
    with torch.no_grad():
        found = float(divergence(student, lessons))
    assert found == pytest.approx(numpy.mean(by_hand(teacher, student, lessons)), rel=1e-4)


def test_lessons_are_kept_under_their_key(family: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(family / "math").eval()
    lessons = teach(model, AutoTokenizer.from_pretrained(family / "math"), PROMPTS[:2], 4)
    path = tmp_path / "lessons.safetensors"
    assert Lessons.read(path, "a") is None
    lessons.save(path, "a")
    again = Lessons.read(path, "a")
    assert again is not None
    assert all(torch.equal(vars(again)[name], tensor) for name, tensor in vars(lessons).items())
    assert Lessons.read(path, "b") is None
    path.write_bytes(path.read_bytes()[:100])
    assert Lessons.read(path, "a") is None


def test_batches_take_every_lesson_once_a_round() -> None:
    drawn = draw_batches(7, 3, seed=0)
    rounds = [torch.cat([next(drawn) for _ in range(3)]).sort().values for _ in range(3)]
    assert all(torch.equal(drawn_once, torch.arange(7)) for drawn_once in rounds)
