"""The losses by hand, and their gradients against autograd."""

from pathlib import Path

import numpy
import oracle
import pytest
import torch
from adamerging_models import OF_MODELS, PROMPTS, losses, merge_of
from checkpoints import save_family, tensors_of, tokenizer

from dppa_mergekit.live.source_model import SourceModel
from dppa_mergekit.tensor_names import block_of


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


def test_the_tokenizer_of_the_family_has_no_blank() -> None:
    assert tokenizer()("w1 w2")["input_ids"] == [5, 6]
