"""The compiled passes, compared with NumPy and with PyTorch doing the same work."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit.merge_methods.api import merge_state_dicts

from dppa_mergekit import method_table
from dppa_mergekit.deltas.delta import CHUNK, Delta
from dppa_mergekit.deltas.kernel import (
    BLOCK,
    AmplifiedDelta,
    CombinePass,
    DeltaPasses,
    PassBuffers,
    library,
    passes_over,
    randomize,
)
from dppa_mergekit.deltas.kernel.source import SOURCES
from dppa_mergekit.deltas.keys import Cut
from dppa_mergekit.deltas.tie_order import murmur_finaliser

pytestmark = pytest.mark.skipif(library.load() is None, reason="the passes are not compiled")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
LENGTHS = st.one_of(
    st.integers(1, 3 * BLOCK), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 40 * BLOCK + 5])
)


def pair(dtype: torch.dtype, length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fine-tuned and base values, with many equal deltas and zeros."""
    generator = torch.Generator().manual_seed(seed)
    base = (torch.randn(length, generator=generator) * 0.02).to(dtype)
    step = torch.randn(length, generator=generator) * 1e-3
    moved = torch.rand(length, generator=generator) > 0.2
    return torch.where(moved, (base.float() + step).to(dtype), base), base


def passes(fine_tuned: torch.Tensor, base: torch.Tensor) -> DeltaPasses:
    found = passes_over(Delta(fine_tuned, base))
    assert found is not None
    return found


def delta(fine_tuned: torch.Tensor, base: torch.Tensor) -> numpy.ndarray:
    result: numpy.ndarray = fine_tuned.float().numpy() - base.float().numpy()
    return result


@dtypes
@settings(deadline=None)
@given(
    length=LENGTHS, seed=st.integers(0, 99), share=st.sampled_from([0, 0.01, 0.3, 0.9, 1]),
    start=st.integers(0, 70),
)  # fmt: skip
def test_sum_magnitudes(
    dtype: torch.dtype, length: int, seed: int, share: float, start: int
) -> None:
    fine_tuned, base = pair(dtype, start + length, seed)
    magnitudes = numpy.abs(delta(fine_tuned, base))[start:]
    floor = float(numpy.sort(magnitudes)[min(length - 1, int(share * length))])
    total, nonzero, above = passes(fine_tuned, base).sum_magnitudes(
        start, start + length, floor, PassBuffers()
    )
    assert total == pytest.approx(magnitudes.sum(dtype=numpy.float64), rel=1e-14, abs=0)
    assert nonzero == numpy.count_nonzero(magnitudes)
    assert numpy.array_equal(above, magnitudes[magnitudes > floor])


@dtypes
@settings(deadline=None)
@given(
    length=LENGTHS, seed=st.integers(0, 99), start=st.integers(0, 70),
    shares=st.lists(st.sampled_from([0, 0.01, 0.3, 0.9, 1]), min_size=1, max_size=3),
)  # fmt: skip
def test_sum_tails(
    dtype: torch.dtype, length: int, seed: int, start: int, shares: list[float]
) -> None:
    fine_tuned, base = pair(dtype, start + length, seed)
    magnitudes = numpy.abs(delta(fine_tuned, base))[start:]
    ordered = numpy.sort(magnitudes)
    bounds = [float(ordered[min(length - 1, int(share * length))]) for share in shares]
    found = passes(fine_tuned, base).sum_tails(start, start + length, bounds)
    for bound, (mass, count) in zip(bounds, found, strict=True):
        above = magnitudes[magnitudes > bound]
        assert mass == pytest.approx(above.sum(dtype=numpy.float64), rel=1e-14, abs=0)
        assert count == len(above)


@dtypes
@settings(deadline=None)
@given(
    length=LENGTHS, seed=st.integers(0, 99), share=st.sampled_from([0, 0.01, 0.1, 0.5, 1]),
    divisor=st.sampled_from([1.0, 0.2]), factor=st.floats(0, 3, width=32),
    weight=st.floats(-2, 2, width=32),
)  # fmt: skip
def test_write_kept(
    dtype: torch.dtype, length: int, seed: int, share: float, divisor: float, factor: float,
    weight: float,
) -> None:  # fmt: skip
    fine_tuned, base = pair(dtype, length, seed)
    kept = torch.rand(length, generator=torch.Generator().manual_seed(seed)) < share
    out = torch.linspace(-1, 1, length).to(dtype)
    step = delta(fine_tuned, base) / numpy.float32(divisor) * numpy.float32(factor)
    total = numpy.float32(0) + step * numpy.float32(weight) + base.float().numpy()
    expected = torch.where(kept, torch.from_numpy(total).to(dtype), out)
    bits = numpy.packbits(kept.numpy(), bitorder="little")
    passes(fine_tuned[kept], base[kept]).write_kept(
        0, int(kept.sum()), bits, divisor, factor, weight, out
    )
    integers = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(out.view(integers), expected.view(integers))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_all_results_are_narrowed_as_pytorch_does(dtype: torch.dtype) -> None:
    # Every 16-bit base, with results on its neighbours, beside them and between them.
    base = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for step in (0.0, 2.0**-24, 2.0**-25, 0.5, 1.0, 3.0, 15.9, 2.0**100):
        fine_tuned = (base.float() + 1.0).to(dtype)
        moved = (fine_tuned.float() - base.float()) * step
        expected = (0.0 + moved + base.float()).to(dtype)
        out = torch.empty_like(base)
        bits = numpy.full(len(base) // 8, 255, numpy.uint8)
        passes(fine_tuned, base).write_kept(0, len(base), bits, 1.0, step, 1.0, out)
        assert torch.equal(out.isnan(), expected.isnan())
        assert torch.equal(out.nan_to_num(0.0, 9.0, -9.0), expected.nan_to_num(0.0, 9.0, -9.0))


@dtypes
@settings(deadline=None)
@given(
    length=LENGTHS, seed=st.integers(0, 99), start=st.integers(0, 70),
    ranks=st.lists(st.floats(0, 1), min_size=2, max_size=8),
)  # fmt: skip
def test_find_keys(
    dtype: torch.dtype, length: int, seed: int, start: int, ranks: list[float]
) -> None:
    fine_tuned, base = pair(dtype, start + length, seed)
    keys = numpy.abs(delta(fine_tuned, base))[start:].view(numpy.int32)
    ordered = numpy.sort(keys)
    bounds = sorted({max(1, int(ordered[int(rank * (length - 1))])) for rank in ranks})
    lows, highs = bounds[::2], [*bounds[1::2], bounds[-1]][: len(bounds[::2])]
    above, indices, held = passes(fine_tuned, base).find_keys(
        start, start + length, lows, highs, PassBuffers()
    )
    inside = numpy.zeros(length, bool)
    for low, high in zip(lows, highs, strict=True):
        inside |= (keys >= low) & (keys <= high)
    assert above == [numpy.count_nonzero(keys > high) for high in highs]
    assert numpy.array_equal(indices, numpy.flatnonzero(inside))
    assert numpy.array_equal(held, keys[inside])


def cuts_of(keys: numpy.ndarray, number: int) -> list[Cut]:
    """Nested sets; every second one keeps half of the elements at its threshold."""
    ordered = numpy.sort(keys)[::-1]
    above = [int(ordered[len(keys) * (i + 1) // (number + 1) - 1]) for i in range(number)]
    return [Cut(bound, 2**31 if i % 2 else -1) for i, bound in enumerate(above)]


def amplified(
    values: numpy.ndarray, keys: numpy.ndarray, cuts: list[Cut], factors: list[float]
) -> numpy.ndarray:
    """Each value times the factor of the first set that keeps it, or zero; one by one."""
    result = numpy.zeros_like(values)
    hashes = oracle.hash_indices(len(values))
    for i, (key, value) in enumerate(zip(keys, values, strict=True)):
        for cut, factor in zip(cuts, factors, strict=True):
            if key > cut.above or (key == cut.above and hashes[i] <= cut.last):
                result[i] = value * numpy.float32(factor)
                break
    return result


WORD = st.integers(0, 2**32 - 1)
Words: TypeAlias = tuple[int, int] | None
MODELS = st.lists(
    st.tuples(
        st.lists(st.floats(0, 3, width=32), min_size=1, max_size=10),
        st.floats(-2, 2, width=32),
        st.none() | st.tuples(WORD, WORD),
        st.sampled_from([1.0, 0.1, 0.35]),
    ),
    min_size=1,
    max_size=4,
)


@dtypes
@settings(deadline=None)
@given(
    length=LENGTHS, seed=st.integers(0, 99), start=st.integers(0, 70), models=MODELS,
    consensus=st.booleans(), normalize=st.booleans(), lambda_=st.sampled_from([1.0, 0.7]),
)  # fmt: skip
def test_combine(
    dtype: torch.dtype, length: int, seed: int, start: int,
    models: list[tuple[list[float], float, Words, float]],
    consensus: bool, normalize: bool, lambda_: float,
) -> None:  # fmt: skip
    _, base = pair(dtype, start + length, seed)
    parts, weighted = [], []
    for number, (factors, weight, words, divided) in enumerate(models):
        moved, origin = pair(dtype, start + length, 100 + seed + number)
        fine_tuned = (base.float() + moved.float() - origin.float()).to(dtype)
        values = delta(fine_tuned, base) / numpy.float32(divided)
        keys = numpy.abs(values).view(numpy.int32)
        if words is not None:
            keys = oracle.hash_indices(len(values), words).astype(numpy.int64)
        cuts = cuts_of(keys, len(factors))
        if len(factors) % 3 == 0:
            cuts[-1] = Cut(-1)  # all elements
        parts.append(
            AmplifiedDelta(passes(fine_tuned, base), cuts, factors, weight, divided, words)
        )
        weighted.append(amplified(values, keys, cuts, factors) * numpy.float32(weight))
    weights = [numpy.float32(weight) for _, weight, *_ in models]
    expected = numpy.zeros(start + length, numpy.float32)
    for values in weighted:
        expected += values
    divisor = numpy.float32(3)
    if consensus:
        sign = numpy.where(expected < 0, numpy.float32(-1), numpy.float32(1))
        expected, divisor = numpy.zeros_like(expected), numpy.zeros_like(expected)
        for values, weight in zip(weighted, weights, strict=True):
            agreeing = values * sign
            expected += numpy.where(agreeing > 0, agreeing, numpy.float32(0))
            divisor += numpy.where(agreeing > 0, weight, numpy.float32(0))
        expected *= sign
        divisor[divisor == 0] = 1
    if normalize:
        expected = expected / divisor
    expected = (expected * numpy.float32(lambda_) + base.float().numpy())[start:]
    for limit in (float(numpy.abs(expected).max()), float(numpy.abs(expected).max()) * 0.99):
        combine = CombinePass(parts, consensus, 3.0 if normalize else None, lambda_, limit)
        total = torch.empty(length)
        assert combine(start, start + length, total) == (numpy.abs(expected) > limit).any()
        assert numpy.array_equal(total.numpy(), expected)
    gradient = torch.randn(length, generator=torch.Generator().manual_seed(seed))
    combine = CombinePass(parts, False, None, 1.0, 1.0)
    for found, values in zip(
        combine.products(start, start + length, gradient), weighted, strict=True
    ):
        terms = values[start:].astype(numpy.float64) * gradient.numpy()
        assert found == pytest.approx(terms.sum(), abs=1e-5 * numpy.abs(terms).sum() + 1e-30)


def test_hash_ties() -> None:
    fine_tuned, base = pair(torch.bfloat16, 3000, 5)
    compiled = passes(fine_tuned, base)
    start, stop = 700, 2900
    _, indices, keys = compiled.find_keys(start, stop, [1], [2**31 - 1], PassBuffers())
    for key in numpy.unique(keys)[::9]:
        expected = oracle.hash_indices(stop)[start + indices[keys == key]]
        assert numpy.array_equal(compiled.hash_ties(start, indices, keys, int(key)), expected)


@pytest.mark.parametrize("start", [0, 2**31 - 100, 2**32 - 100, 2**40 + 3])
def test_randomize(start: int) -> None:
    first, second = 0xDEADBEEF, 0x01234567
    index = torch.arange(start, start + 3 * BLOCK + 5)
    expected = murmur_finaliser(murmur_finaliser(index ^ first) ^ second)
    assert randomize(index, first, second)
    assert torch.equal(index, expected)
    assert not randomize(torch.arange(10)[::2], first, second)


@dtypes
def test_all_values_of_16_bits_are_widened_exactly(dtype: torch.dtype) -> None:
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32)
    fine_tuned = (patterns << 16).view(torch.float32).clone()
    if dtype != torch.float32:
        fine_tuned = patterns.to(torch.int16).view(dtype)
    total = torch.zeros(len(fine_tuned))
    model = AmplifiedDelta(passes(fine_tuned, torch.zeros_like(fine_tuned)), [Cut(-1)], [1.0], 1.0)
    CombinePass([model], False, None, 1.0, 1.0)(0, len(fine_tuned), total)
    assert torch.equal(total.nan_to_num(7.0), fine_tuned.float().nan_to_num(7.0))


def test_deltas_that_the_passes_do_not_know() -> None:
    values = torch.zeros(10)
    assert passes_over(Delta(values)) is None
    assert passes_over(Delta(values.double(), values.double())) is None
    assert passes_over(Delta(values, values.bfloat16())) is None
    assert passes_over(Delta(values[::2], values[::2])) is None
    odd = torch.frombuffer(bytearray(41), dtype=torch.uint8, offset=1).numpy().view(numpy.float32)
    assert passes_over(Delta(torch.from_numpy(odd), values)) is None


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load", lambda: None)


def test_without_a_library_there_are_no_passes(request: pytest.FixtureRequest) -> None:
    values, indices = torch.zeros(10), torch.arange(10)
    assert passes_over(Delta(values, values)) is not None
    request.getfixturevalue("uncompiled")
    assert passes_over(Delta(values, values)) is None
    assert not randomize(indices, 1, 2)
    assert torch.equal(indices, torch.arange(10))


def models(dtype: torch.dtype) -> dict[str, dict[str, torch.Tensor]]:
    names = [
        f"model.layers.{i}.mlp.{part}_proj.weight" for i in range(2) for part in ("up", "down")
    ]
    shapes = dict.fromkeys(names, (900, 700)) | {"model.norm.weight": (700,)}
    made: dict[str, dict[str, torch.Tensor]] = {"base": {}, "a": {}, "b": {}, "c": {}}
    for position, (name, shape) in enumerate(shapes.items()):
        for number, model in enumerate(("a", "b", "c")):
            generator = torch.Generator().manual_seed(position)
            base = (torch.randn(shape, generator=generator) * 0.02).to(dtype)
            generator.manual_seed(position * 10 + number + 1)
            # Coarse steps: the threshold of the first model has thousands of ties.
            step = torch.randn(shape, generator=generator) * 1e-3 * (1 + number)
            made["base"][name] = base
            made[model][name] = (base.float() + (step * 1024).round() / 1024).to(dtype)
    return made


PARAMETERS: Mapping[str, object] = {
    "weight": {"a": 0.5, "b": -0.25, "c": 1.0},
    "density": {"a": 0.2, "b": 0.35, "c": 1.0},
}
AMPLIFIED: Mapping[str, object] = {
    **PARAMETERS,
    "amplify_90": {"a": 1.5, "b": 0.5, "c": 1.0},
    "amplify_80": {"a": 1.2, "b": 1.0, "c": 0.0},
    "amplify_70": {"a": 1.0, "b": 2.5, "c": 1.0},
}


@pytest.mark.parametrize(
    "method", ["dppa", "dppa_ties", "dp", "owl", "dare_dpa", "dppa_regmean", "dare_regmean"]
)
@dtypes
def test_pytorch_writes_the_same_bytes(
    method: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    given_models = models(dtype)
    parameters = PARAMETERS if method in ("dp", "owl") else AMPLIFIED
    if method_table.is_by_inputs(method):
        parameters = {**parameters, "weight": {"a": 0.5, "b": 0.25, "c": 1.0}}
    plain = Delta(given_models["a"]["model.norm.weight"], given_models["base"]["model.norm.weight"])
    assert passes_over(plain) is not None
    compiled = merge_state_dicts(given_models, method, parameters=parameters, base="base")
    request.getfixturevalue("uncompiled")
    assert passes_over(plain) is None
    by_torch = merge_state_dicts(given_models, method, parameters=parameters, base="base")
    assert CHUNK < 900 * 700  # so that linears have several chunks
    for name, tensor in compiled.items():
        assert torch.equal(tensor, by_torch[name]), name
        assert not torch.equal(tensor, given_models["base"][name])


def test_every_c_file_is_a_source() -> None:
    assert {path.name for path in library.FOLDER.glob("*.[ch]")} == set(SOURCES)


@pytest.mark.parametrize("damage", ["absent", "no library", *SOURCES])
def test_a_library_that_does_not_fit_is_left_alone(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (*SOURCES, "passes.so"):
        shutil.copy(library.FOLDER / name, tmp_path / name)
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    if damage == "absent":
        (tmp_path / "passes.so").unlink()
    elif damage == "no library":
        (tmp_path / "passes.so").write_bytes(b"\x7fELF nothing")
    else:
        with (tmp_path / damage).open("a", encoding="utf-8") as file:
            file.write("/* changed */\n")
    caplog.set_level(logging.INFO, "dppa_mergekit.deltas.kernel")
    assert library.load.__wrapped__() is None
    assert "PyTorch does their work" in caplog.text
    if damage in SOURCES:
        assert "not built from the C sources" in caplog.text
