"""The descent: where it begins, goes on, ends, and what mergekit makes of it."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from adamerging_models import PROMPTS, losses, merge_of
from checkpoints import recipe, save_family
from commands import Merge

from dppa_mergekit import method_table
from dppa_mergekit.adamerging.coefficients import PARTITION, SCOPES, Row, split
from dppa_mergekit.adamerging.descent import Descent, LossError, descend, take_best
from dppa_mergekit.adamerging.learnable import coefficients_of
from dppa_mergekit.adamerging.losses import DomainLoss, Entropy
from dppa_mergekit.adamerging.objectives import load_merge
from dppa_mergekit.adamerging.states import DevScore, LearningResult, State, states_until
from dppa_mergekit.errors import DppaError
from dppa_mergekit.live.placement import AS_STORED
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.scoring.ratios import Estimate
from dppa_mergekit.tensor_names import Block


@pytest.mark.parametrize(
    ("architecture", "method", "changes", "granularity"),
    [
        ("llama", "dppa", {}, "block"),
        ("llama", "dppa", {}, "partition"),
        ("llama_untied", "dare_dpa", {"dtype": "bfloat16"}, "model"),
        ("llama_untied", "dare_dpa", {"dtype": "bfloat16"}, "partition"),
        ("gpt2", "owl", {}, "block"),
        ("gpt2", "owl", {}, "linear"),
        ("mixtral", "dp", {"parameters": {"normalize": True}}, "linear"),
        ("mixtral", "dppa", {"parameters": {"normalize": True}}, "partition"),
        ("llama_untied", "dppa_regmean", {"dtype": "bfloat16"}, "model"),
        ("llama_untied", "dppa_regmean", {"dtype": "bfloat16"}, "partition"),
        ("gpt2", "dare_regmean", {"parameters": {"lambda": 0.8}}, "block"),
        ("gpt2", "dare_regmean", {"parameters": {"lambda": 0.8}}, "partition"),
        ("mixtral", "dppa_regmean", {}, "linear"),
        ("mixtral", "dppa_regmean", {}, "partition"),
    ],
)
def test_mergekit_builds_what_was_learned(
    architecture: str,
    method: str,
    changes: dict[str, object],
    granularity: str,
    tmp_path: Path,
    merge: Merge,
) -> None:
    family = save_family(tmp_path, architecture)
    models = {
        "math": {"weight": [0.5, 0.1], "density": 0.3},
        "law": {
            "density": 0.2,
            **({"amplify_90": 1.5} if method_table.is_by_inputs(method) else {}),
        },
    }
    begin = Recipe(recipe(family, method, models, **changes))
    resident = load_merge(begin, tmp_path, AS_STORED)
    descent = Descent(3, 0.05, batch_size=2, granularity=granularity)
    found = descend(resident, {"a": Entropy(PROMPTS)}, descent)
    assert found.states[0].coefficients != found.best.coefficients
    written = merge(found.recipe.content)
    live = resident.model.state_dict()
    for name, tensor in written.items():
        assert isinstance(tensor, torch.Tensor)
        assert torch.equal(live[name], tensor), name
    # From the text of its file, too.
    assert yaml.safe_load(found.recipe.to_yaml("learned")) == found.recipe.content
    of_math = found.coefficients[str(family / "math")]
    names = {name.partition("_")[0] for name in of_math}
    of_sum = method_table.coefficient_of(method) == "weight"
    if granularity == PARTITION:
        assert names == ({"weight", "amplify"} if of_sum else {"amplify"})
    else:
        assert names == ({"weight"} if of_sum else {"factor"})
    for row in found.rows:
        assert isinstance(of_math[row.name], dict) == (granularity != "model")


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

    def run(kept: Kept) -> LearningResult:
        domains = {"math": losses(family)["distill"], "law": Entropy(PROMPTS[:3])}
        return descend(merge_of(family, tmp_path), domains, descent, kept)

    whole = Kept()
    expected = run(whole)
    assert [state.step for state in whole.held] == [0, 2, 4, 6, 7]
    for number in range(1, 5):
        kept = Kept(whole.held[:number])
        found = run(kept)
        assert found.coefficients == expected.coefficients
        strip = [(state.step, state.coefficients, state.moments) for state in kept.held]
        assert strip == [(state.step, state.coefficients, state.moments) for state in whole.held]
        assert kept.held[-1].losses == pytest.approx(whole.held[-1].losses)


def scripted(values: Sequence[float]) -> Callable[[], DevScore]:
    supply = iter(values)

    def evaluate() -> DevScore:
        value = next(supply)
        return DevScore(value, Estimate(value), {})

    return evaluate


def test_the_best_state_is_the_result(tmp_path: Path) -> None:
    family = save_family(tmp_path)
    merge = merge_of(family, tmp_path)
    domains: dict[str, DomainLoss] = {"a": Entropy(PROMPTS)}
    descent = Descent(steps=20, every=2, patience=2, learning_rate=0.05, batch_size=2)
    found = descend(merge, domains, descent, Kept(), scripted([50, 60, 70, 70, 65]))
    # After two evaluations that brought nothing it ended, and the first of equals is the best.
    assert [state.step for state in found.states] == [0, 2, 4, 6, 8]
    assert found.best.step == 4
    live = {name: tensor.clone() for name, tensor in merge.model.state_dict().items()}
    coefficients_of(merge, "linear").set(found.best.settled)
    assert all(torch.equal(tensor, live[name]) for name, tensor in merge.model.state_dict().items())
    worse = descend(merge, domains, descent, Kept(), scripted([50, 49, 48]))
    assert worse.best.step == 0
    assert worse.best.coefficients == coefficients_of(merge_of(family, tmp_path), "linear").start


def test_factors_start_where_the_merge_puts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = save_family(tmp_path)
    models: dict[str, dict[str, object]] = {
        "math": {"density": 0.1},
        "law": {"density": 0.2, "amplify_90": 1.5, "amplify_80": 1.2},
    }
    begin = Recipe(recipe(family, "dppa_regmean", models))
    merge = load_merge(begin, tmp_path, AS_STORED)
    learned = coefficients_of(merge, "block")
    of_math, of_law = learned.rows
    assert min(of_math.start.values()) > 1
    assert set(of_law.start.values()) == {1}
    # The embeddings are tied, so no linear is outside the blocks.
    assert list(of_math.start) == [Block("model.layers", number) for number in range(3)]
    law = str(family / "law")
    filled = learned.recipe([list(of_math.start.values()), [0.5, 0.5, 0.5]])
    for name, factor in (("amplify_90", 0.75), ("amplify_80", 0.6)):
        found = filled.parameters(law)[name]
        assert isinstance(found, list)
        assert [entry["value"] for entry in found] == [*[factor] * 3, 1.0]
    assert filled.content["parameters"] == {"amplify": "none"}
    monkeypatch.setattr(Row, "largest", 1.0)
    with pytest.raises(DppaError, match=r"the factor of .*math starts at .*; allowed is a number"):
        descend(merge, {"a": Entropy(PROMPTS)}, Descent(steps=1))


def test_factors_where_a_slice_asks_for_automatic_ones(tmp_path: Path, merge: Merge) -> None:
    """A slice's parameters come before the recipe's, so they must not stay."""
    family = save_family(tmp_path)
    sources = [
        {"model": str(family / name), "layer_range": [0, 3]} for name in ("base", "math", "law")
    ]
    parameters = {"density": 0.2, "amplify": "auto"}
    begin = Recipe(
        {
            "merge_method": "dppa_regmean",
            "base_model": str(family / "base"),
            "slices": [{"sources": sources, "parameters": parameters}],
            "dtype": "float32",
        }
    )
    resident = load_merge(begin, tmp_path, AS_STORED)
    learned = coefficients_of(resident, "linear")
    ones = [[1.0] * len(row) for row in learned.start]
    learned.set(ones)
    written = merge(learned.recipe(ones).content)
    live = resident.model.state_dict()
    assert all(torch.equal(live[name], tensor) for name, tensor in written.items())  # type: ignore[arg-type]


@pytest.mark.parametrize("granularity", ["model", "block", "linear", "partition"])
def test_at_the_start_the_merge_is_the_recipes(tmp_path: Path, granularity: str) -> None:
    """A linear that lacks a partition has no part in the mean of its factors."""
    family = save_family(tmp_path)
    densities = [{"filter": "mlp", "value": 0.2}, {"value": 0.1}]
    models: dict[str, dict[str, object]] = {
        "math": {"density": densities, "amplify_80": 2.0},
        "law": {"density": 0.2, "amplify_80": 2.0},
    }
    begin = Recipe({**recipe(family, "dppa_regmean", models), "parameters": {"amplify": "none"}})
    merge = load_merge(begin, tmp_path, AS_STORED)
    before = {name: tensor.clone() for name, tensor in merge.model.state_dict().items()}
    learned = coefficients_of(merge, granularity)
    learned.set(learned.start)
    after = merge.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_one_model_that_counts_gets_no_factor(tmp_path: Path) -> None:
    """The merge is then that model's `dppa`, which has none."""
    family = save_family(tmp_path)
    models: dict[str, dict[str, object]] = {"math": {"density": 0.1}, "law": {"weight": 0.0}}
    merge = load_merge(Recipe(recipe(family, "dppa_regmean", models)), tmp_path, AS_STORED)
    whole = {name: tensor.clone() for name, tensor in merge.model.state_dict().items()}
    learned = coefficients_of(merge, "block")
    assert {factor for row in learned.start for factor in row} == {1}
    learned.set(learned.start)
    assert all(
        torch.equal(tensor, whole[name]) for name, tensor in merge.model.state_dict().items()
    )


@pytest.mark.parametrize(
    ("method", "architecture", "granularity"),
    [
        *(("dppa_regmean", "llama", granularity) for granularity in SCOPES),
        ("dppa_regmean", "llama_untied", "linear"),
        ("dppa_regmean", "gpt2", "partition"),
        ("dppa_regmean", "mixtral", "partition"),
        ("dare_regmean", "llama", "partition"),
    ],
)
def test_gradients_of_factors_by_inputs(
    method: str, architecture: str, granularity: str, tmp_path: Path
) -> None:
    """The merged weights are linear in a coefficient: two merges give the derivative."""
    family = save_family(tmp_path, architecture, dtype=torch.float64)
    # Factors of the recipe that differ within a block.
    filters = [{"filter": "q_proj", "value": 3.0}, {"value": 1.0}]
    models: dict[str, dict[str, object]] = {"math": {"amplify_90": filters}, "law": {}}
    merge = load_merge(Recipe(recipe(family, method, models)), tmp_path, AS_STORED)
    learned = coefficients_of(merge, granularity)
    flat = [number for row in learned.start for number in row]
    generator = torch.Generator().manual_seed(0)
    directions = {
        name: torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        for name, parameter in merge.model.named_parameters()
    }

    def total() -> torch.Tensor:
        parts = (parameter * directions[name] for name, parameter in merge.model.named_parameters())
        return torch.stack([part.sum() for part in parts]).sum()

    learned.set(learned.start)
    with learned.gradients(learned.start) as gradients:
        total().backward()  # type: ignore[no-untyped-call]
    assert gradients.shape == (len(flat),)
    for number in range(0, len(flat), max(1, len(flat) // 6)):
        ends = []
        for step in (-0.5, 0.5):
            moved = [*flat[:number], flat[number] + step, *flat[number + 1 :]]
            learned.set(split(moved, learned.start))
            ends.append(float(total()))
        assert float(gradients[number]) == pytest.approx(ends[1] - ends[0], rel=1e-9, abs=1e-12)


def test_descent_of_factors_lowers_the_loss(tmp_path: Path) -> None:
    family = save_family(tmp_path)
    begin = Recipe(recipe(family, "dppa_regmean", {"math": {}, "law": {}}))
    merge = load_merge(begin, tmp_path, AS_STORED)
    loss = losses(family)["distill"]
    descent = Descent(steps=20, every=20, learning_rate=0.05, batch_size=len(PROMPTS), anchor=0)
    states = descend(merge, {"math": loss}, descent).states
    assert states[-1].losses["math"] < states[0].losses["math"]


def test_the_anchor_holds(tmp_path: Path) -> None:
    family = save_family(tmp_path)

    def moved(anchor: float) -> float:
        descent = Descent(steps=10, learning_rate=0.05, batch_size=4, anchor=anchor)
        found = descend(merge_of(family, tmp_path), {"a": Entropy(PROMPTS)}, descent, Kept())
        first, best = (torch.tensor(state.coefficients) for state in (found.states[0], found.best))
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
        descend(merge, {"a": Broken(0)}, descent, Kept())
    kept = Kept()
    with pytest.raises(LossError, match="nan at step 5"):
        descend(merge, {"a": Broken(5)}, descent, kept)
    assert [state.step for state in kept.held] == [0, 2, 4]
    assert take_best(merge, "linear", kept.held).best.step == 4
    assert not any(parameter.requires_grad for parameter in merge.model.parameters())


def test_fewer_steps_than_before_give_an_earlier_state(tmp_path: Path) -> None:
    family = save_family(tmp_path)
    domains = {"a": Entropy(PROMPTS)}

    def run(steps: int, kept: Kept) -> LearningResult:
        descent = Descent(steps=steps, learning_rate=0.05, batch_size=4, every=4)
        return descend(merge_of(family, tmp_path), domains, descent, kept)

    kept = Kept()
    run(8, kept)
    shorter = run(6, kept)
    assert [state.step for state in shorter.states] == [0, 4, 6]
    assert shorter.coefficients == run(6, Kept()).coefficients
    assert run(8, kept).best.step == 8
    assert [state.step for state in states_until(kept.states(), 6)] == [0, 4, 6]


def test_checkpointing_changes_nothing(tmp_path: Path) -> None:
    family = save_family(tmp_path, attention_dropout=0.5)
    found = []
    for checkpointing in (False, True):
        descent = Descent(steps=4, learning_rate=0.05, batch_size=4, checkpointing=checkpointing)
        merge = merge_of(family, tmp_path)
        modules = list(merge.model.modules())
        evaluated: list[bool] = []

        def evaluate(modules: Sequence[torch.nn.Module], seen: list[bool]) -> DevScore:
            seen.append(any(module.training for module in modules))
            return DevScore(0.0, Estimate(0.0), {})

        states = descend(
            merge,
            {"a": Entropy(PROMPTS)},
            descent,
            Kept(),
            partial(evaluate, modules, evaluated),
        ).states
        found.append(states[-1].coefficients)
        assert evaluated == [False] * len(states)
        assert not any(module.training for module in modules)
    assert numpy.allclose(found[0], found[1], atol=1e-6)
