"""The inputs of real models' linears, against hooks on their modules."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from checkpoints import VOCABULARY, fine_tune, new_model, tokenizer
from numpy.typing import NDArray
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dppa_mergekit.errors import DppaError
from dppa_mergekit.moments.activations_file import Observation
from dppa_mergekit.moments.second_moment import SecondMoment
from dppa_mergekit.observation.input_collector import InputCollector
from dppa_mergekit.observation.observe import Observing, Subject, observe
from dppa_mergekit.observation.texts import Reading, read_texts
from dppa_mergekit.prompts import Prompt
from dppa_mergekit.tensor_names import Linear, linears_in

Array = NDArray[np.float64]
PROMPTS = [
    Prompt("w1 w2 w3 w4", completion=" w5 w6"),
    Prompt("w7 w8", completion=" w9"),
    Prompt("w10 w3 w2 w20 w21", completion=" w22"),
]
OBSERVING = Observing(512, Reading())
MATH = Subject("math", "", "", "None")


def dense(moment: SecondMoment) -> Array:
    vectors = moment.vectors.double().numpy()
    found: Array = (vectors * moment.values.double().numpy()) @ vectors.T
    return found + np.diag(moment.rest.double().numpy())


def by_linear(
    found: tuple[Observation, Sequence[SecondMoment]],
) -> dict[Linear, tuple[Array, bool]]:
    """Linear -> its moments, and whether it is stored as (inputs, outputs)."""
    observation, moments = found
    return {
        Linear(linear.tensor, linear.expert): (dense(moment), linear.inputs_first)
        for inputs, moment in zip(observation.inputs, moments, strict=True)
        for linear in inputs.linears
    }


def run(model: PreTrainedModel) -> None:
    """The texts of PROMPTS, one at a time."""
    for prompt in PROMPTS:
        tokens = tokenizer()(f"{prompt.text}{prompt.completion}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            model(input_ids=tokens, use_cache=False)


def by_hooks(model: PreTrainedModel, run: Callable[[PreTrainedModel], None]) -> dict[Linear, Array]:
    """The mean of x x^T of every module that is a linear, in float64."""
    sums: dict[Linear, list[Array]] = {}

    def hook(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def take(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            rows = given[0].reshape(-1, given[0].shape[-1]).double().numpy()
            sums.setdefault(Linear(f"{name}.weight"), []).append(rows)

        return take

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
        and (
            linears_in(f"{name}.weight", module.weight.shape)
            or (name == "lm_head" and not model.config.tie_word_embeddings)
        )
    ]
    run(model)
    for handle in handles:
        handle.remove()
    return {
        linear: np.concatenate(rows).T @ np.concatenate(rows) / sum(map(len, rows))
        for linear, rows in sums.items()
    }


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma", "mistral", "gpt2"])
def test_equal_to_hooks_on_modules(architecture: str) -> None:
    model = fine_tune(new_model(architecture, 0), 1)
    found = by_linear(observe(MATH, model, tokenizer(), PROMPTS, OBSERVING))
    wanted = by_hooks(model, run)
    assert set(wanted) == set(found)
    for linear, moment in wanted.items():
        measured, inputs_first = found[linear]
        np.testing.assert_allclose(measured, moment, atol=1e-5 * np.abs(moment).max())
        assert inputs_first == (architecture == "gpt2")


def test_an_encoder_and_a_decoder() -> None:
    model = fine_tune(new_model("t5", 0), 1)
    prompt = Prompt("w1 w2 w3", completion=" w4 w5")
    observation, moments = observe(MATH, model, tokenizer(), [prompt], OBSERVING)
    found = by_linear((observation, moments))

    def run_both(model: PreTrainedModel) -> None:
        tokens = tokenizer()("w1 w2 w3 w4 w5", return_tensors="pt")["input_ids"]
        decoded = torch.cat([torch.zeros(1, 1, dtype=torch.long), tokens[:, 3:]], 1)
        with torch.no_grad():
            model(input_ids=tokens[:, :3], decoder_input_ids=decoded, use_cache=False)

    wanted = by_hooks(model, run_both)
    assert set(wanted) == set(found)
    for linear, moment in wanted.items():
        np.testing.assert_allclose(found[linear][0], moment, atol=1e-5 * np.abs(moment).max())


def test_an_encoder_gets_the_whole_prompt() -> None:
    """T5's tokenizer ends every text; the answer begins in the decoder."""
    ending = tokenizer()
    ending._tokenizer.post_processor = TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    model = new_model("t5", 0)
    (text,) = read_texts("math", [Prompt("w1 w2", " w3")], model, ending, Reading())
    assert (list(text.prompt), list(text.answer)) == ([5, 6, 2], [7, 2])


def test_tokens_of_other_experts_do_not_count() -> None:
    """Some mixtures multiply rows of zeros with the experts that a token is not for."""
    collector = InputCollector("math", 8)
    collector.take(Linear("experts", 0), False, torch.ones(2, 4))
    collector.take(Linear("experts", 1), False, torch.zeros(2, 4))
    (inputs,) = collector.inputs()
    assert [linear.expert for linear in inputs.linears] == [0]


def test_stacked_experts_are_observed_one_by_one() -> None:
    model = fine_tune(new_model("mixtral", 0), 1)
    observation, moments = observe(MATH, model, tokenizer(), PROMPTS, OBSERVING)
    found = by_linear((observation, moments))
    rows: dict[Linear, list[Array]] = {}

    def hook(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def take(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            states, chosen = given[0], given[1]
            for expert in range(4):
                taken = states[(chosen == expert).any(-1)].double().numpy()
                rows.setdefault(Linear(f"{name}.gate_up_proj", expert), []).append(taken)

        return take

    for name, module in model.named_modules():
        if name.endswith("mlp.experts"):
            module.register_forward_pre_hook(hook(name))
    run(model)
    wanted = {linear: np.concatenate(parts) for linear, parts in rows.items()}
    reached = {linear for linear, parts in wanted.items() if len(parts)}
    assert reached == {linear for linear in found if linear.tensor.endswith("gate_up_proj")}
    assert {
        Linear(linear.tensor.replace("gate_up", "down"), linear.expert) for linear in reached
    } == {linear for linear in found if linear.tensor.endswith("down_proj")}
    for linear in reached:
        moment = wanted[linear].T @ wanted[linear] / len(wanted[linear])
        np.testing.assert_allclose(found[linear][0], moment, atol=1e-5 * np.abs(moment).max())
        assert not found[linear][1]


def test_shared_inputs_are_stored_once() -> None:
    model = new_model("llama", 0)
    observation, _ = observe(MATH, model, tokenizer(), PROMPTS, OBSERVING)
    groups = {
        tuple(linear.tensor.split(".", 3)[-1] for linear in inputs.linears)
        for inputs in observation.inputs
    }
    attention = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
    assert groups == {
        attention,
        ("self_attn.o_proj.weight",),
        ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        ("mlp.down_proj.weight",),
    }


def test_an_untied_head_is_observed_and_a_tied_one_is_not() -> None:
    heads = {}
    for architecture in ("llama", "llama_untied"):
        model = new_model(architecture, 0)
        observation, _ = observe(MATH, model, tokenizer(), PROMPTS, OBSERVING)
        observed = {linear.tensor for inputs in observation.inputs for linear in inputs.linears}
        heads[architecture] = {name for name in observed if "layers" not in name}
    assert heads == {"llama": set(), "llama_untied": {"lm_head.weight"}}


def test_a_model_answers_prompts_without_completion() -> None:
    model = fine_tune(new_model("llama", 0), 1)
    asked = [Prompt(prompt.text) for prompt in PROMPTS]
    own = Observing(512, Reading(max_new_tokens=5, batch_size=2))
    observation, _ = observe(MATH, model, tokenizer(), asked, own)
    assert observation.answered == 3
    assert observation.tokens > sum(len(prompt.text.split()) for prompt in PROMPTS)
    silent = Observing(512, Reading(max_new_tokens=0))
    alone, _ = observe(MATH, model, tokenizer(), asked, silent)
    assert (alone.answered, alone.tokens) == (0, 11)


def test_own_answers_are_those_of_generate() -> None:
    model = fine_tune(new_model("llama", 0), 1)
    reading = Reading(max_new_tokens=5, batch_size=2)
    asked = [Prompt(prompt.text) for prompt in PROMPTS]
    given = []
    for prompt in asked:
        tokens = tokenizer()(prompt.text, return_tensors="pt")["input_ids"]
        answer = model.generate(tokens, max_new_tokens=5, do_sample=False, pad_token_id=0)
        words = tokenizer().convert_ids_to_tokens(answer[0, tokens.shape[1] :])
        given.append(Prompt(prompt.text, completion=" " + " ".join(words)))
    by_model = observe(MATH, model, tokenizer(), asked, Observing(512, reading))
    by_text = observe(MATH, model, tokenizer(), given, OBSERVING)
    assert by_model[0].tokens == by_text[0].tokens
    for one, other in zip(by_model[1], by_text[1], strict=True):
        np.testing.assert_allclose(dense(one), dense(other), atol=1e-5)


def test_prompts_longer_than_the_context_are_cut(caplog: pytest.LogCaptureFixture) -> None:
    model = new_model("llama", 0)
    words = " ".join(f"w{number % 50}" for number in range(100))
    observation, _ = observe(MATH, model, tokenizer(), [Prompt(words, " w1")], OBSERVING)
    assert observation.tokens == 64
    assert "1 of 1 prompts do not fit the context of 64 tokens" in caplog.text


@pytest.mark.parametrize(("wanted", "found"), [(64, [61, 44, 1]), (40, [40, 40, 1])])
def test_room_for_an_answer_cuts_no_prompt(
    wanted: int, found: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """The context is 64 tokens; an answer gets what its own prompt leaves of it."""
    model = fine_tune(new_model("llama", 0), 1)
    model.generation_config.eos_token_id = None
    words = [" ".join(f"w{number}" for number in range(length)) for length in (3, 20, 64)]
    texts = list(
        read_texts("math", [Prompt(word) for word in words], model, tokenizer(), Reading(wanted, 8))
    )
    assert [len(text.prompt) for text in texts] == [3, 20, 63]
    assert [len(text.answer) for text in texts] == found
    assert "1 of 3 prompts do not fit the context" in caplog.text


def test_a_model_that_answers_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = new_model("llama", 0)
    model.generation_config.eos_token_id = list(range(VOCABULARY))
    observe(MATH, model, tokenizer(), [Prompt("w1 w2")], Observing(64, Reading(4)))
    assert "math: it answers nothing to 1 of 1 prompts" in caplog.text


def test_a_model_without_chat_template() -> None:
    observing = Observing(8, Reading(chat=True))
    with pytest.raises(DppaError, match="math has no chat template"):
        observe(MATH, new_model("llama", 0), tokenizer(), PROMPTS, observing)


def test_a_chat_template_is_applied() -> None:
    chat = tokenizer(["user", "model", "system"])
    chat.chat_template = (
        "{% for message in messages %}{{ message.role }} {{ message.content }} {% endfor %}"
        "{% if add_generation_prompt %}model {% endif %}"
    )
    reading = Reading(chat=True, system_instruction="w9")
    prompt = Prompt("w1 w2", completion="w3")
    model = new_model("llama", 0)
    by_template = observe(MATH, model, chat, [prompt], Observing(64, reading))
    plain = Prompt("system w9 user w1 w2 model", completion=" w3")
    by_hand = observe(MATH, model, chat, [plain], Observing(64, Reading()))
    assert by_template[0].tokens == by_hand[0].tokens == 7
    for one, other in zip(by_template[1], by_hand[1], strict=True):
        np.testing.assert_allclose(dense(one), dense(other), atol=1e-6)


@pytest.mark.parametrize("rank", [4, 64])
def test_inputs_that_are_not_finite(rank: int) -> None:
    model = new_model("llama", 0)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(DppaError, match=r"math: the inputs of model\.layers\.0\S* are not finite"):
        observe(MATH, model, tokenizer(), PROMPTS, Observing(rank, Reading()))
