"""Learning the weights of a merge: gradients against autograd, and the recipe against mergekit."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy
import oracle
import pytest
import torch
from checkpoints import recipe, save_family, tensors_of, tokenizer
from conftest import Merge
from transformers import AutoModelForCausalLM, AutoTokenizer

from dppa_mergekit.adamerging.descent import Descent, LossError, learn, result
from dppa_mergekit.adamerging.losses import Completion, DomainLoss, Entropy, Teaching
from dppa_mergekit.adamerging.objectives import load_merge
from dppa_mergekit.adamerging.recipe_learning import learn_weights
from dppa_mergekit.adamerging.states import Evaluation, Learned, State, warnings_of, within
from dppa_mergekit.adamerging.teacher import teach
from dppa_mergekit.errors import DppaError, RecipeError
from dppa_mergekit.live.source_model import AS_STORED, SourceModel
from dppa_mergekit.live.weighted_merge import WeightedMerge
from dppa_mergekit.prompts import Prompt
from dppa_mergekit.recipes import Recipe
from dppa_mergekit.scoring.ratios import Estimate
from dppa_mergekit.tensor_names import Block, block_of

PROMPTS = [[5, 6, 7], [9], [13, 12, 11, 10, 9], [6, 6], [20, 31, 5]]
OF_MODELS = {
    "math": {"weight": 0.6, "density": 0.3, "amplify_90": 1.4, "amplify_80": 0.7},
    "law": {"weight": 0.2, "density": 0.2, "amplify_90": 1.2},
}


def test_a_teacher_whose_words_are_other_words(tmp_path: Path) -> None:
    family = save_family(tmp_path)
    prompts = {str(family / "math"): [Prompt("w1 w2 w3"), Prompt("w4 w5")]}
    turned = recipe(family, "dp", {"math": {"weight": 0.4, "density": 0.5}})
    learn_weights(Recipe(turned), prompts, descent=Descent(steps=1))
    # The same words under other numbers: merged, the model is what its own tokenizer says.
    inner = json.loads((family / "math" / "tokenizer.json").read_text())
    words = inner["model"]["vocab"]
    words["w1"], words["w2"] = words["w2"], words["w1"]
    (family / "math" / "tokenizer.json").write_text(json.dumps(inner))
    with pytest.raises(DppaError, match=r"math cannot teach the merge: token 5 is 'w2' to it and"):
        learn_weights(Recipe(turned), prompts, descent=Descent(steps=1))
    # Another name for what has the same number is no other word.
    words["w1"], words["w2"] = words["w2"], words["w1"]
    words["<|im_end|>"] = words.pop("w1")
    (family / "math" / "tokenizer.json").write_text(json.dumps(inner))
    prompts = {str(family / "math"): [Prompt("<|im_end|> w2 w3"), Prompt("w4 w5")]}
    learn_weights(Recipe(turned), prompts, descent=Descent(steps=1))


def test_a_teacher_with_more_words_than_the_merge(tmp_path: Path) -> None:
    """As published models often are: a word for padding was added for the fine-tuning."""
    family = save_family(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(family / "math")
    words = AutoTokenizer.from_pretrained(family / "math")
    words.add_special_tokens({"pad_token": "[PAD]"})
    model.resize_token_embeddings(len(words) + 7)
    model.save_pretrained(family / "math")
    words.save_pretrained(family / "math")
    turned = recipe(
        family, "dp", {"math": {"weight": 0.4, "density": 0.5}}, tokenizer={"source": "base"}
    )
    prompts = {str(family / "math"): [Prompt("w1 w2 w3"), Prompt("w4 w5")]}
    found = learn_weights(Recipe(turned), prompts, descent=Descent(steps=1))
    assert all(math.isfinite(loss) for each in found.states for loss in each.losses.values())
    with pytest.raises(DppaError, match=r"hold token 96, '\[PAD\]', and the merge has only 96 tok"):
        learn_weights(Recipe(turned), {str(family / "math"): [Prompt("w1 [PAD] w2")]})


def test_weights_wherever_a_recipe_has_them(tmp_path: Path) -> None:
    def sliced(**parameters: object) -> Recipe:
        sources = [{"model": name, "layer_range": [0, 3]} for name in ("base", "math")]
        return Recipe(
            {
                "merge_method": "dp",
                "base_model": "base",
                "slices": [{"sources": sources, "parameters": parameters}],
                "parameters": {"weight": 0.9},
            }
        )

    assert sliced(weight=0.8).weights() == {"math": 0.8}
    assert sliced().weights() == {"math": 0.9}
    assert sliced(weight=0.8, density=0.3).parameters("math") == {"weight": 0.8, "density": 0.3}
    for given in (sliced(weight=0.8), sliced()):
        assert given.with_start(0.3).content == given.content
    bare = sliced()
    del bare.content["parameters"]
    assert bare.with_start(0.3).weights() == {"math": 0.3}
    twice = sliced(weight=0.8)
    twice.content["slices"] *= 2  # type: ignore[operator]
    assert twice.is_sliced
    assert twice.weights() == {"math": 0.8}
    other = sliced(weight=0.7).content["slices"]
    twice.content["slices"] = [*sliced(weight=0.8).content["slices"], *other]  # type: ignore[misc]
    with pytest.raises(RecipeError, match=r"math is 0\.8 in one place and 0\.7 in another"):
        twice.weights()


class Forgotten:
    def states(self) -> list[State]:
        return []

    def add(self, state: State) -> None:
        pass


def losses(folder: Path) -> dict[str, DomainLoss]:
    """One of each objective."""
    teacher = teach(*SourceModel(str(folder / "math")).load(), PROMPTS, 3)
    examples = [[*prompt, 40, 41, 42][: 3 + len(prompt)] for prompt in PROMPTS]
    return {
        "entropy": Entropy(PROMPTS),
        "loss": Completion(examples, [len(prompt) for prompt in PROMPTS]),
        "distill": Teaching(teacher),
    }


def merge_of(
    folder: Path, workspace: Path, method: str = "dppa", **changes: object
) -> WeightedMerge:
    return load_merge(Recipe(recipe(folder, method, OF_MODELS, **changes)), workspace, AS_STORED)


def amplified(folder: Path, method: str) -> list[dict[str, torch.Tensor]]:
    """By NumPy alone: what each model adds at weight 1."""
    base = {name: each.numpy() for name, each in tensors_of(folder / "base").items()}
    vocabulary = [name for name in base if "embed" in name or "lm_head" in name]
    found = []
    for model, own in OF_MODELS.items():
        tuned = {name: each.numpy() for name, each in tensors_of(folder / model).items()}
        merged = oracle.merge(base, [tuned], method, [{**own, "weight": 1.0}], None, vocabulary)
        found.append({name: torch.from_numpy(merged[name] - base[name]) for name in base})
    return found


@pytest.mark.parametrize("objective", ["entropy", "loss", "distill"])
@pytest.mark.parametrize(
    ("architecture", "method", "shared", "dtype"),
    [
        ("llama", "dppa", {}, torch.float64),
        ("llama_untied", "dppa", {"lambda": 0.8, "normalize": True}, torch.float64),
        ("gpt2", "dp", {}, torch.float64),
        # What the compiled passes know.
        ("llama", "dppa", {"lambda": 0.8, "normalize": True}, torch.float32),
    ],
)
def test_gradients_are_autograds(
    architecture: str,
    method: str,
    shared: dict[str, object],
    dtype: torch.dtype,
    objective: str,
    tmp_path: Path,
) -> None:
    family = save_family(tmp_path, architecture, dtype=dtype)
    loss = losses(family)[objective]
    merge = merge_of(family, tmp_path, method, parameters=shared)
    blocks = merge.blocks
    assert blocks[-1] is None
    assert len(blocks) == 4
    point = torch.rand(2, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    table = point.clone().requires_grad_()
    base = tensors_of(family / "base")
    deltas = amplified(family, method)
    moved = {}
    for name, origin in base.items():
        weights = table[:, blocks.index(block_of(name))]
        total = sum(weight * delta[name] for weight, delta in zip(weights, deltas, strict=True))
        if shared.get("normalize"):
            total = total / weights.sum()
        moved[name] = origin + float(str(shared.get("lambda", 1.0))) * total

    class Functional(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, **inputs: object) -> object:
            return torch.func.functional_call(merge.model, moved, (), inputs)

    places = torch.tensor([4, 0, 2])
    loss.of(Functional(), places).backward()  # type: ignore[arg-type]
    weights = {
        model: dict(zip(blocks, row, strict=True))
        for model, row in zip(merge.recipe.fine_tuned(), point.tolist(), strict=True)
    }
    merge.set_weights(weights)
    with merge.weight_gradients(weights) as found, torch.enable_grad():
        loss.of(merge.model, places).backward()
    assert table.grad is not None
    assert table.grad.abs().min() > 1e-9
    precision = 1e-9 if dtype == torch.float64 else 2e-3
    numpy.testing.assert_allclose(
        found.numpy(), table.grad.numpy(), rtol=precision, atol=1e-4 * precision
    )
    assert all(each.grad is None for each in merge.model.parameters())
    assert not any(each.requires_grad for each in merge.model.parameters())


def test_losses_by_hand(tmp_path: Path) -> None:
    family = save_family(tmp_path, dtype=torch.float64)
    model, _ = SourceModel(str(family / "math")).load()
    found = losses(family)
    places = torch.tensor([2, 1, 4])
    entropies, crossed = [], []
    with torch.no_grad():
        for place in places.tolist():
            said = model(torch.tensor([PROMPTS[place]])).logits[0, -1].softmax(-1).numpy()
            entropies.append(-(said * numpy.log(said)).sum())
            whole = [*PROMPTS[place], 40, 41, 42]
            said = model(torch.tensor([whole])).logits[0].softmax(-1).numpy()
            first = len(PROMPTS[place])
            chosen = [said[at - 1, whole[at]] for at in range(first, len(whole))]
            crossed.append(-numpy.log(chosen).mean())
        assert float(found["entropy"].of(model, places)) == pytest.approx(numpy.mean(entropies))
        assert float(found["loss"].of(model, places)) == pytest.approx(numpy.mean(crossed))


@pytest.mark.parametrize(
    ("architecture", "method", "changes"),
    [
        ("llama", "dppa", {}),
        ("llama_untied", "dare_dpa", {"dtype": "bfloat16"}),
        ("gpt2", "owl", {}),
        ("mixtral", "dp", {"parameters": {"normalize": True}}),
    ],
)
@pytest.mark.parametrize("per_block", [True, False], ids=["blocks", "models"])
def test_mergekit_builds_what_was_learned(
    architecture: str,
    method: str,
    changes: dict[str, object],
    per_block: bool,
    tmp_path: Path,
    merge: Merge,
) -> None:
    family = save_family(tmp_path, architecture)
    models = {
        "math": {"weight": [0.5, 0.1], "density": 0.3},
        "law": {"density": 0.2},
    }
    begin = Recipe(recipe(family, method, models, **changes))
    resident = load_merge(begin, tmp_path, AS_STORED)
    descent = Descent(steps=3, learning_rate=0.05, batch_size=2, per_block=per_block)
    found = learn(resident, {"a": Entropy(PROMPTS)}, descent, Forgotten())
    assert found.states[0].weights != found.best.weights
    written = merge(begin.weighted(found.weights).content)
    live = resident.model.state_dict()
    for name, tensor in written.items():
        assert isinstance(tensor, torch.Tensor)
        assert torch.equal(live[name], tensor), name
    for weight in found.weights.values():
        assert isinstance(weight, dict) == per_block


def test_the_start_is_the_recipes(tmp_path: Path) -> None:
    family = save_family(tmp_path)
    models = {
        "math": {"weight": [{"filter": "mlp", "value": 0.9}, {"value": 0.5}], "density": 0.3},
        "law": {"density": 0.2},
    }
    merge = load_merge(Recipe(recipe(family, models=models)), tmp_path, AS_STORED)
    of_math, of_law = merge.weights().values()
    assert set(of_law.values()) == {0.3}
    base = tensors_of(family / "base")
    first = {
        name: each for name, each in base.items() if block_of(name) == Block("model.layers", 0)
    }
    numbers = {name: each.numel() * (0.9 if "mlp" in name else 0.5) for name, each in first.items()}
    mean = math.fsum(numbers.values()) / sum(each.numel() for each in first.values())
    assert of_math[Block("model.layers", 0)] == pytest.approx(mean)
    assert of_math[None] == 0.5
    gradient = {"math": {"weight": [0.1, 0.2, 0.6]}, "law": {"weight": 0.4}}
    merge = load_merge(Recipe(recipe(family, "dp", gradient)), tmp_path, AS_STORED)
    of_math, _ = merge.weights().values()
    # mergekit gives what is outside all layers the first value.
    assert list(of_math.values()) == pytest.approx([0.1, 0.2, 0.6, 0.1])


def test_stacks_whose_names_end_alike() -> None:
    weights = {
        Block("model.layers", 1): 0.1,
        Block("language_model.layers", 1): 0.2,
        Block("model.layers", 11): 0.3,
        None: 0.4,
    }
    content: dict[str, object] = {
        "merge_method": "dp",
        "base_model": "b",
        "models": [{"model": "m", "parameters": {"weight": 1.0}}],
    }
    configuration = Recipe(content).weighted({"m": weights}).configuration()
    from mergekit.config import evaluate_setting

    assert configuration.models is not None
    assert configuration.models[0].parameters is not None
    setting = configuration.models[0].parameters["weight"]
    for name, expected in {
        "model.layers.1.mlp.weight": 0.1,
        "language_model.layers.1.mlp.weight": 0.2,
        "model.layers.11.mlp.weight": 0.3,
        "model.norm.weight": 0.4,
    }.items():
        assert evaluate_setting(name, setting, 0.7, validate=float) == expected


class Kept:
    """States in memory; those of a run that ended before its time."""

    def __init__(self, states: Sequence[State] = ()) -> None:
        self.held = list(states)

    def states(self) -> list[State]:
        return list(self.held)

    def add(self, state: State) -> None:
        self.held.append(state)


def test_a_run_that_goes_on_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    family = save_family(tmp_path)
    descent = Descent(steps=7, every=2, learning_rate=0.03, batch_size=2)

    def run(kept: Kept) -> Learned:
        domains = {"math": losses(family)["distill"], "law": Entropy(PROMPTS[:3])}
        return learn(merge_of(family, tmp_path), domains, descent, kept)

    whole = Kept()
    expected = run(whole)
    assert [state.step for state in whole.held] == [0, 2, 4, 6, 7]
    for number in range(1, 5):
        kept = Kept(whole.held[:number])
        found = run(kept)
        assert found.weights == expected.weights
        strip = [(each.step, each.weights, each.moments) for each in kept.held]
        assert strip == [(each.step, each.weights, each.moments) for each in whole.held]
        assert kept.held[-1].losses == pytest.approx(whole.held[-1].losses)


def scripted(values: Sequence[float]) -> Callable[[], Evaluation]:
    supply = iter(values)

    def evaluate() -> Evaluation:
        value = next(supply)
        return Evaluation(value, Estimate(value), {})

    return evaluate


def test_the_best_state_is_the_result(tmp_path: Path) -> None:
    family = save_family(tmp_path)
    merge = merge_of(family, tmp_path)
    domains: dict[str, DomainLoss] = {"a": Entropy(PROMPTS)}
    descent = Descent(steps=20, every=2, patience=2, learning_rate=0.05, batch_size=2)
    found = learn(merge, domains, descent, Kept(), scripted([50, 60, 70, 70, 65]))
    # After two evaluations that brought nothing it ended, and the first of equals is the best.
    assert [state.step for state in found.states] == [0, 2, 4, 6, 8]
    assert found.best.step == 4
    live = {name: each.clone() for name, each in merge.model.state_dict().items()}
    merge.set_weights(found.weights)
    assert all(torch.equal(each, live[name]) for name, each in merge.model.state_dict().items())
    worse = learn(merge, domains, descent, Kept(), scripted([50, 49, 48]))
    assert worse.best.step == 0
    begin = [list(of_model.values()) for of_model in merge_of(family, tmp_path).weights().values()]
    assert [list(of_model.values()) for of_model in worse.weights.values()] == begin  # type: ignore[union-attr]


def test_the_anchor_holds(tmp_path: Path) -> None:
    family = save_family(tmp_path)

    def moved(anchor: float) -> float:
        descent = Descent(steps=10, learning_rate=0.05, batch_size=4, anchor=anchor)
        found = learn(merge_of(family, tmp_path), {"a": Entropy(PROMPTS)}, descent, Kept())
        first, best = (torch.tensor(each.weights) for each in (found.states[0], found.best))
        assert bool(((best >= 0) & (best <= 1)).all())
        return float((first - best).abs().mean())

    assert moved(1e4) < 0.2 * moved(0)


class Broken:
    """Its loss is not a number from some call on."""

    number = 4

    def __init__(self, good: int) -> None:
        self.good = good

    def of(self, model: object, places: torch.Tensor) -> torch.Tensor:
        self.good -= 1
        loss = Entropy(PROMPTS).of(model, places)  # type: ignore[arg-type]
        return loss if self.good >= 0 else loss * math.nan


def test_a_loss_that_is_no_number(tmp_path: Path) -> None:
    merge = merge_of(save_family(tmp_path), tmp_path)
    descent = Descent(steps=9, every=2, batch_size=4)
    with pytest.raises(LossError, match=r"^The loss of domain a is nan at step 0\.$"):
        learn(merge, {"a": Broken(0)}, descent, Kept())
    kept = Kept()
    with pytest.raises(LossError, match="nan at step 5"):
        learn(merge, {"a": Broken(5)}, descent, kept)
    assert [state.step for state in kept.held] == [0, 2, 4]
    assert result(merge, kept.held).best.step == 4
    assert not any(each.requires_grad for each in merge.model.parameters())


def test_fewer_steps_than_before_give_an_earlier_state(tmp_path: Path) -> None:
    family = save_family(tmp_path)
    domains = {"a": Entropy(PROMPTS)}

    def run(steps: int, kept: Kept) -> Learned:
        descent = Descent(steps=steps, learning_rate=0.05, batch_size=4, every=4)
        return learn(merge_of(family, tmp_path), domains, descent, kept)

    kept = Kept()
    run(8, kept)
    shorter = run(6, kept)
    assert [state.step for state in shorter.states] == [0, 4, 6]
    assert shorter.weights == run(6, Kept()).weights
    assert run(8, kept).best.step == 8
    assert [state.step for state in within(kept.states(), 6)] == [0, 4, 6]


def test_checkpointing_changes_nothing(tmp_path: Path) -> None:
    family = save_family(tmp_path, attention_dropout=0.5)
    found = []
    for checkpointing in (False, True):
        descent = Descent(steps=4, learning_rate=0.05, batch_size=4, checkpointing=checkpointing)
        merge = merge_of(family, tmp_path)
        modules = list(merge.model.modules())
        evaluated: list[bool] = []

        def evaluate(modules: Sequence[torch.nn.Module], seen: list[bool]) -> Evaluation:
            seen.append(any(module.training for module in modules))
            return Evaluation(0.0, Estimate(0.0), {})

        states = learn(
            merge,
            {"a": Entropy(PROMPTS)},
            descent,
            Kept(),
            partial(evaluate, modules, evaluated),
        ).states
        found.append(states[-1].weights)
        assert evaluated == [False] * len(states)
        assert not any(module.training for module in modules)
    assert numpy.allclose(found[0], found[1], atol=1e-6)


def states(before: float, after: float, scores: tuple[float, float], weight: float) -> Learned:
    both = [
        State(
            step,
            [[of_model], [0.4]],
            ([], []),
            {"a": loss},
            Evaluation(score, Estimate(score), {}),
            0.0,
        )
        for step, loss, score, of_model in [
            (0, before, scores[0], 0.3),
            (9, after, scores[1], weight),
        ]
    ]
    return Learned({"math": weight, "law": 0.4}, both[1], both)


def test_warnings() -> None:
    assert warnings_of(states(1.1, 0.4, (50, 60), 0.2), is_entropy=True) == []
    (gone,) = warnings_of(states(1.1, 0.4, (50, 60), 0.001), is_entropy=False)
    assert "mean weight of math fell from 0.30 to 0.001" in gone
    (surer,) = warnings_of(states(1.1, 0.4, (60, 10), 0.2), is_entropy=True)
    assert "entropy fell from 1.10 to 0.40" in surer


@pytest.mark.parametrize("objective", ["distill", "entropy", "loss"])
def test_in_python(objective: str, tmp_path: Path) -> None:
    family = save_family(tmp_path)
    prompts = {
        str(family / name): [Prompt(f"w{number} w7", " w9 w3") for number in range(5)]
        for name in ("math", "law")
    }
    whole = Recipe(recipe(family, models=OF_MODELS))
    calls = []

    def score(model: object, tokenizer: object) -> float:
        calls.append(1)
        return -float(len(calls))

    descent = Descent(steps=4, every=2, batch_size=2)
    found = learn_weights(whole, prompts, objective, descent, score=score)
    assert list(found.weights) == whole.fine_tuned()
    assert found.best.step == 0
    assert len(calls) == 3
    again = learn_weights(whole, prompts, objective, descent)
    once_more = learn_weights(whole, prompts, objective, descent)
    assert again.weights == once_more.weights
    assert again.best.step == 4


def test_prompts_that_are_too_long(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    family = save_family(tmp_path)
    long = Prompt(" ".join(f"w{number % 80}" for number in range(100)), " w3")
    whole = Recipe(recipe(family, models=OF_MODELS))
    descent = Descent(steps=1, batch_size=2)
    for objective in ("entropy", "distill", "loss"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "dppa_mergekit"):
            learn_weights(
                whole, {str(family / "math"): [long, Prompt("w1", " w2")]}, objective, descent
            )
        assert "1 of 2 prompts do not fit the context of 64 tokens" in caplog.text


def test_bad_input_in_python(tmp_path: Path) -> None:
    family = save_family(tmp_path)
    prompts = {str(family / "math"): [Prompt("w1 w2")]}
    whole = Recipe(recipe(family, models=OF_MODELS))
    with pytest.raises(DppaError, match="'kl'; allowed are distill, entropy, loss"):
        learn_weights(whole, prompts, "kl")
    with pytest.raises(DppaError, match="1 of 1 have no completion"):
        learn_weights(whole, prompts, "loss")
    with pytest.raises(DppaError, match="one is empty, or there is none"):
        learn_weights(whole, {str(family / "math"): []}, "entropy")
    ties = Recipe(recipe(family, "dppa_ties", OF_MODELS))
    with pytest.raises(DppaError, match="weights of dppa_ties cannot be learned"):
        learn_weights(ties, prompts)
    beyond = Recipe(recipe(family, models={"math": {"weight": 1.2, "density": 0.2}}))
    with pytest.raises(DppaError, match=r"begins at 1\.2; weights are learned from 0 to 1"):
        learn_weights(beyond, prompts)
    plain = Recipe(recipe(family, "task_arithmetic", {"math": {"weight": 1.0}}))
    with pytest.raises(DppaError, match="is dp at density 1"):
        learn_weights(plain, prompts)


def test_the_tokenizer_of_the_family_has_no_blank() -> None:
    assert tokenizer()("w1 w2")["input_ids"] == [5, 6]
