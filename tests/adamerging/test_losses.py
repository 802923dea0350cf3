"""The losses by hand, and their gradients against autograd."""

from collections.abc import Sequence
from pathlib import Path

import numpy
import oracle
import pytest
import torch
from adamerging_models import OF_MODELS, PROMPTS, losses, merge_of
from checkpoints import save_family, stack_experts, tensors_of, tokenizer

from dppa_mergekit.adamerging.coefficients import SCOPES, Row, split
from dppa_mergekit.adamerging.learnable import coefficients_of
from dppa_mergekit.adamerging.losses import StateTeaching
from dppa_mergekit.live.source_model import SourceModel
from dppa_mergekit.tensor_names import Block


def whole_of(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors as a merge has them: with experts stacked."""
    return stack_experts(tensors_of(folder))


def parts(
    folder: Path, method: str, shared: dict[str, object]
) -> dict[str, dict[str, dict[str, torch.Tensor]]]:
    """By NumPy alone: model -> its whole delta, or a factor's name -> that partition -> tensors."""
    base = {name: tensor.numpy() for name, tensor in whole_of(folder / "base").items()}
    vocabulary = [name for name in base if "embed" in name or "lm_head" in name or "wte" in name]
    factors = [f"amplify_{rate}" for rate in oracle.RATES]
    found: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
    for model, own in OF_MODELS.items():
        tuned = {name: tensor.numpy() for name, tensor in whole_of(folder / model).items()}
        wanted = {"whole": own}
        if method != "dp":
            for factor in factors:
                alone = {other: float(other == factor) for other in factors}
                wanted[factor] = {**own, **alone}
        for part, values in wanted.items():
            merged = oracle.merge(
                base, [tuned], method, [{**values, "weight": 1.0}], None, vocabulary
            )
            found.setdefault(model, {})[part] = {
                name: torch.from_numpy(merged[name] - base[name]) for name in base
            }
    return found


def in_scope(scope: object, name: str, others: list[object]) -> bool:
    """Whether a coefficient of a scope belongs to a tensor."""
    if isinstance(scope, Block):
        return name.startswith(f"{scope.stack}.{scope.number}.")
    if scope is None:
        return not any(in_scope(other, name, []) for other in others if other is not None)
    return name == scope


def merge_by_torch(
    family: Path, rows: Sequence[Row], values: torch.Tensor, method: str, shared: dict[str, object]
) -> dict[str, torch.Tensor]:
    """The merged weights, as a function of the coefficients that autograd knows."""
    every = iter(values)
    of_models: dict[str, dict[str, dict[object, torch.Tensor]]] = {}
    for row in rows:
        of_model = of_models.setdefault(Path(row.model).name, {})
        of_model[row.name] = {scope: next(every) for scope in row.start}
    found = parts(family, method, shared)
    merged = {}
    for name, origin in whole_of(family / "base").items():
        total, weights = torch.zeros_like(origin), []
        for model, of_names in of_models.items():

            def number(
                by_scope: dict[object, torch.Tensor], name: str = name
            ) -> torch.Tensor | None:
                scopes = list(by_scope)
                (of_tensor, *_) = [
                    *(by_scope[scope] for scope in scopes if in_scope(scope, name, scopes)),
                    None,
                ]
                return of_tensor

            weight = number(of_names["weight"])
            assert weight is not None
            weights.append(weight)
            factors = {key: number(of_names[key]) for key in of_names if key != "weight"}
            known = {key: factor for key, factor in factors.items() if factor is not None}
            delta = found[model]["whole"][name]
            if known:
                delta = sum(factor * found[model][key][name] for key, factor in known.items())  # type: ignore[assignment]
            total = total + weight * delta
        if shared.get("normalize"):
            total = total / torch.stack(weights).sum()
        merged[name] = origin + float(str(shared.get("lambda", 1.0))) * total
    return merged


class Functional(torch.nn.Module):
    """A model with other weights."""

    device = torch.device("cpu")

    def __init__(self, model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.model, self.weights = [model], weights

    def forward(self, **inputs: object) -> object:
        return torch.func.functional_call(self.model[0], self.weights, (), inputs)


@pytest.mark.parametrize("granularity", list(SCOPES))
@pytest.mark.parametrize(
    ("architecture", "method", "shared", "dtype"),
    [
        ("llama", "dppa", {}, torch.float64),
        ("llama_untied", "dppa", {"lambda": 0.8, "normalize": True}, torch.float64),
        ("gpt2", "dppa", {}, torch.float64),
        ("mixtral", "dppa", {}, torch.float64),
        # What the compiled passes know.
        ("llama", "dppa", {"lambda": 0.8, "normalize": True}, torch.float32),
    ],
)
def test_gradients_are_autograds(
    architecture: str,
    method: str,
    shared: dict[str, object],
    dtype: torch.dtype,
    granularity: str,
    tmp_path: Path,
) -> None:
    family = save_family(tmp_path, architecture, dtype=dtype)
    merge = merge_of(family, tmp_path, method, parameters=shared)
    learned = coefficients_of(merge, granularity)
    number = sum(len(row.start) for row in learned.rows)
    point = 0.1 + 0.9 * torch.rand(
        number, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    table = split(point.tolist(), learned.start)
    learned.set(table)
    places = torch.tensor([4, 0, 2])
    loss_of = losses(family)
    teaching = loss_of["hidden"]
    assert isinstance(teaching, StateTeaching)
    for model in (merge.model, teaching.teacher):
        if architecture == "mixtral":
            model.set_experts_implementation("eager")  # torch groups no products in float64
    for objective, loss in loss_of.items():
        values = point.clone().requires_grad_()
        moved = merge_by_torch(family, learned.rows, values, method, shared)

        loss.of(Functional(merge.model, moved), places).backward()  # type: ignore[arg-type]
        with learned.gradients(table) as found, torch.enable_grad():
            loss.of(merge.model, places).backward()
        assert values.grad is not None
        assert values.grad.abs().max() > 1e-6
        precision = 1e-9 if dtype == torch.float64 else 2e-3
        numpy.testing.assert_allclose(
            found.numpy(),
            values.grad.numpy(),
            rtol=precision,
            atol=1e-4 * precision,
            err_msg=objective,
        )
    assert all(parameter.grad is None for parameter in merge.model.parameters())
    assert not any(parameter.requires_grad for parameter in merge.model.parameters())


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


def test_the_distance_of_hidden_states_by_hand(tmp_path: Path) -> None:
    family = save_family(tmp_path, dtype=torch.float64)
    found = losses(family)
    teacher, _ = SourceModel(str(family / "math")).load()
    student, _ = SourceModel(str(family / "law")).load()
    teaching = found["hidden"]
    assert isinstance(teaching, StateTeaching)
    places = torch.tensor([2, 1, 4])
    ratios = []
    with torch.no_grad():
        for place in places.tolist():
            end = int(teaching.lessons.end[place])
            text = teaching.lessons.tokens[place : place + 1, :end]
            said, wanted = (
                torch.stack(model(text, output_hidden_states=True).hidden_states[1:]).numpy()
                for model in (student, teacher)
            )
            errors = ((said - wanted) ** 2).sum(-1) / (wanted**2).sum(-1)
            assert errors.shape == (3, 1, end)
            ratios.append(errors.mean())
        divergence = float(found["distill"].of(student, places))
        assert float(teaching.of(student, places)) == pytest.approx(divergence + numpy.mean(ratios))
        assert float(teaching.of(teacher, places)) == pytest.approx(
            float(found["distill"].of(teacher, places)), abs=1e-6
        )


def test_the_tokenizer_of_the_family_has_no_blank() -> None:
    assert tokenizer()("w1 w2")["input_ids"] == [5, 6]
