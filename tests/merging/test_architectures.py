"""Every architecture: all tensors against the oracle, the output loaded and run by transformers."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import oracle
import pytest
import safetensors.torch
import torch
import transformers
from checkpoints import (
    ARCHITECTURES,
    VOCABULARY,
    new_model,
    recipe,
    save_family,
    stack_experts,
    tensors_of,
    unequal,
)
from commands import Merge

Tensors = dict[str, torch.Tensor]
Family = Callable[[str], Path]

MODELS: dict[str, dict[str, float]] = {
    "math": {"weight": 0.6, "density": 0.2, "amplify_90": 2.1, "amplify_80": 1.4},
    "law": {"weight": 0.5, "density": 0.3, "amplify_dense": 0.9},
}

_DECODER = r"model\.layers\.\d\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight"
LINEARS = {
    "llama": _DECODER,
    "llama_untied": _DECODER,
    "mistral": _DECODER,
    "qwen3": _DECODER,
    "gemma": _DECODER,
    "gpt2": r"transformer\.h\.\d\.(attn\.c_(attn|proj)|mlp\.c_(fc|proj))\.weight",
    "mixtral": r"model\.layers\.\d\.(self_attn\.[qkvo]_proj\.weight"
    r"|mlp\.experts\.(gate_up|down)_proj)",
    "bert": r"bert\.encoder\.layer\.\d\..*(query|key|value|dense)\.weight",
    "t5": r"(en|de)coder\.block\.\d\.layer\.\d\.(.*Attention\.[qkvo]|DenseReluDense\.w\w+)\.weight",
}
"""The tensors that are pruned; all others are dense."""

VOCABULARY_TENSORS = r"(embed_tokens|lm_head|wte|word_embeddings|shared)\.weight$"


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The folder of an architecture's models, saved once."""
    saved: dict[str, Path] = {}

    def get(architecture: str) -> Path:
        if architecture not in saved:
            folder = tmp_path_factory.mktemp(architecture)
            saved[architecture] = save_family(folder, architecture)
        return saved[architecture]

    return get


def load(folder: Path, name: str) -> Tensors:
    return stack_experts(tensors_of(folder / name))


def arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def expected(
    folder: Path,
    method: str = "dppa",
    models: Mapping[str, Mapping[str, float]] = MODELS,
    shared: Mapping[str, object] | None = None,
) -> Tensors:
    base = load(folder, "base")
    vocabulary = [name for name in base if re.search(VOCABULARY_TENSORS, name)]
    merged = oracle.merge(
        arrays(base),
        [arrays(load(folder, name)) for name in models],
        method,
        list(models.values()),
        shared,
        vocabulary,
    )
    return {name: torch.from_numpy(array) for name, array in merged.items()}


def logits(model: transformers.PreTrainedModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, VOCABULARY, (2, 12), generator=generator)
    more = {"decoder_input_ids": tokens[:, :5]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=tokens, **more).logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merge_equals_the_oracle_and_runs(
    architecture: str, family: Family, merge: Merge, tmp_path: Path
) -> None:
    folder = family(architecture)
    wanted = expected(folder)
    assert not unequal(merge(recipe(folder, models=MODELS)), wanted)

    model_class = getattr(transformers, ARCHITECTURES[architecture][1])
    merged, info = model_class.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    filled = new_model(architecture, seed=7)
    missing, unexpected = filled.load_state_dict(wanted, strict=False)
    assert not unexpected
    assert set(missing) <= set(filled.all_tied_weights_keys)
    assert torch.equal(logits(merged), logits(filled))
    assert not torch.equal(logits(merged), logits(model_class.from_pretrained(folder / "base")))


@pytest.mark.parametrize("method", ["dppa_ties", "dp", "owl"])
@pytest.mark.parametrize("architecture", ["gpt2", "mixtral", "t5"])
def test_other_methods_equal_the_oracle(
    architecture: str, method: str, family: Family, merge: Merge
) -> None:
    folder = family(architecture)
    assert not unequal(merge(recipe(folder, method, MODELS)), expected(folder, method))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_linears_are_pruned(architecture: str, family: Family, merge: Merge) -> None:
    folder = family(architecture)
    base, tuned = load(folder, "base"), load(folder, "math")
    merged = merge(recipe(folder, models={"math": {"weight": 1.0, "density": 0.2}}))
    pruned = set()
    for name, before in base.items():
        if not torch.equal(merged[name], before + (tuned[name] - before)):
            pruned.add(name)
    assert pruned == {name for name in base if re.fullmatch(LINEARS[architecture], name)}


@pytest.mark.parametrize(
    ("architecture", "dense"),
    [
        ("mixtral", [f"model.layers.{i}.mlp.gate.weight" for i in range(3)]),
        (
            "t5",
            [
                f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
                for stack in ("encoder", "decoder")
            ],
        ),
    ],
)
def test_two_dimensional_weights_inside_blocks_that_stay_dense(
    architecture: str, dense: list[str], family: Family, merge: Merge
) -> None:
    folder = family(architecture)
    base, tuned = load(folder, "base"), load(folder, "math")
    parameters = {"weight": 1.0, "density": 0.1, "amplify_90": 3.0, "amplify_dense": 0.5}
    merged = merge(recipe(folder, models={"math": parameters}))
    for name in dense:
        delta = tuned[name] - base[name]
        assert delta.ndim == 2
        assert delta.abs().max() > 0
        assert torch.equal(merged[name], base[name] + delta * 0.5)


@pytest.mark.parametrize("density", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("method", ["dp", "owl"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "bert"])
def test_kept_elements_are_the_budget(
    architecture: str, method: str, density: float, family: Family, merge: Merge
) -> None:
    folder = family(architecture)
    base = load(folder, "base")
    merged = merge(recipe(folder, method, {"math": {"weight": 1.0, "density": density}}))
    linears = [name for name in base if re.fullmatch(LINEARS[architecture], name)]
    kept = sum(int((merged[name] != base[name]).sum()) for name in linears)
    numel = sum(base[name].numel() for name in linears)
    number = sum(base[name].shape[0] if base[name].ndim == 3 else 1 for name in linears)
    assert abs(kept - density * numel) <= 0.5 * number


@pytest.fixture
def uneven_t5(tmp_path: Path) -> Path:
    """A T5 whose decoder has heavy-tailed deltas and whose encoder has none."""
    folder = save_family(tmp_path / "uneven", "t5", tuned=("math",))
    generator = torch.Generator().manual_seed(3)
    tensors = tensors_of(folder / "base")
    for name, tensor in tensors.items():
        power = 3 if name.startswith("decoder") else 1
        noise = torch.randn(tensor.shape, generator=generator)
        tensor += 1e-2 * noise.sign() * noise.abs() ** power
    path = folder / "math" / "model.safetensors"
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    return folder


def test_stacks_of_t5_have_block_means_of_their_own(uneven_t5: Path, merge: Merge) -> None:
    folder, density = uneven_t5, 0.2
    base = load(folder, "base")
    merged = merge(recipe(folder, "owl", {"math": {"weight": 1.0, "density": density}}))
    for stack in ("encoder", "decoder"):
        names = [n for n in base if re.fullmatch(LINEARS["t5"], n) and n.startswith(stack)]
        kept = sum(int((merged[name] != base[name]).sum()) for name in names)
        numel = sum(base[name].numel() for name in names)
        assert abs(kept - density * numel) <= 0.5 * len(names)
    assert not unequal(
        merged, expected(folder, "owl", {"math": {"weight": 1.0, "density": density}})
    )


def test_stacks_of_t5_differ_enough_to_show_a_common_block_mean(uneven_t5: Path) -> None:
    base, tuned = arrays(load(uneven_t5, "base")), arrays(load(uneven_t5, "math"))
    blocks = oracle.measure({name: tuned[name] - base[name] for name in base}).blocks
    encoder = max(one.count for (stack, _), one in blocks.items() if stack == "encoder.block")
    decoder = min(one.count for (stack, _), one in blocks.items() if stack == "decoder.block")
    assert decoder > 10 * encoder


@pytest.fixture(scope="session")
def stacked_mixtral(tmp_path_factory: pytest.TempPathFactory, family: Family) -> Path:
    """The Mixtral family with all experts of a layer in one tensor."""
    source, folder = family("mixtral"), tmp_path_factory.mktemp("stacked")
    for name in ("base", "math", "law"):
        config = transformers.AutoConfig.from_pretrained(source / name)
        config.save_pretrained(folder / name)
        safetensors.torch.save_file(
            load(source, name), folder / name / "model.safetensors", {"format": "pt"}
        )
    return folder


def test_stacking_experts_by_hand_gives_the_layout_of_the_model(family: Family) -> None:
    model = transformers.MixtralForCausalLM.from_pretrained(family("mixtral") / "math")
    assert not unequal(load(family("mixtral"), "math"), model.state_dict())


@pytest.mark.parametrize("method", ["dppa", "dppa_ties", "dp", "owl"])
def test_stacked_experts_equal_one_tensor_per_expert(
    method: str, family: Family, stacked_mixtral: Path, merge: Merge
) -> None:
    separate = merge(recipe(family("mixtral"), method, MODELS), output="separate")
    stacked = merge(recipe(stacked_mixtral, method, MODELS), output="stacked")
    assert not unequal(stacked, separate)


def test_a_base_with_separate_experts_takes_models_with_stacked_ones(
    family: Family, stacked_mixtral: Path, merge: Merge
) -> None:
    mixed = recipe(stacked_mixtral, models=MODELS)
    mixed["base_model"] = str(family("mixtral") / "base")
    assert not unequal(merge(mixed), expected(family("mixtral")))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_random_partitions_of_every_linear(architecture: str, family: Family, merge: Merge) -> None:
    folder = family(architecture)
    base, tuned = load(folder, "base"), load(folder, "math")
    parameters = {"weight": 1.0, "density": 0.25, "amplify_90": 2.0, "amplify_80": 1.5}
    merged = merge(recipe(folder, "dare_dpa", {"math": parameters}))
    factors = {90: 2.0, 80: 1.5}
    chosen = []
    for name, before in base.items():
        if not re.fullmatch(LINEARS[architecture], name):
            assert torch.equal(merged[name], before + (tuned[name] - before))
            continue
        flat = [t.reshape(-1, *t.shape[-2:]).numpy() for t in (before, tuned[name], merged[name])]
        for one in zip(*flat, strict=True):
            labels, _ = oracle.check_dare_dpa(*one, 0.25, factors)
            chosen.append(labels.ravel())
    firsts = {labels[:256].tobytes() for labels in chosen}
    assert len(firsts) == len(chosen)
