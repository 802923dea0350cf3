"""Bad input ends in one clear sentence, before anything is written; odd input in a warning."""

import hashlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from checkpoints import recipe, save_family, tensors_of, write_recipe
from click.testing import Result

RunYaml = Callable[..., Result]
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("family"))


@pytest.fixture
def family(pristine: Path, tmp_path: Path) -> Path:
    """A family that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "family"))


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def refused(result: Result, tmp_path: Path) -> str:
    """The one sentence of a run that ended before anything was written."""
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert written == []
    lines = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("Error: ")


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = tensors_of(folder)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


AT_LEAST_0 = "allowed is a finite float32 number of at least 0."
OUT_OF_RANGE = [
    ("math", "density", 1.5, "density is 1.5; allowed is a number from 0 to 1."),
    ("math", "density", -1, "density is -1; allowed is a number from 0 to 1."),
    ("math", "density", math.nan, "density is nan; allowed is a number from 0 to 1."),
    ("math", "density", [0.2, 1.5], "density is 1.5; allowed is a number from 0 to 1."),
    ("math", "density", "much", "density is 'much'; allowed is a number from 0 to 1."),
    ("math", "density", True, "density is True; allowed is a number from 0 to 1."),
    ("math", "weight", math.nan, "weight is nan; allowed is a finite float32 number."),
    ("math", "weight", math.inf, "weight is inf; allowed is a finite float32 number."),
    ("math", "weight", 1e39, "weight is 1e+39; allowed is a finite float32 number."),
    (
        "math",
        "amplify_90",
        -0.1,
        f"amplify_90 is -0.1; {AT_LEAST_0}",
    ),
    (
        "math",
        "amplify_0",
        math.inf,
        f"amplify_0 is inf; {AT_LEAST_0}",
    ),
    (
        "math",
        "amplify_dense",
        -1,
        f"amplify_dense is -1; {AT_LEAST_0}",
    ),
    (None, "lambda", math.nan, "lambda is nan; allowed is a finite float32 number."),
    (None, "lambda", -math.inf, "lambda is -inf; allowed is a finite float32 number."),
    (None, "max_fluctuation", -0.1, "max_fluctuation is -0.1; allowed is a number from 0 to 1."),
    (
        None,
        "significance_multiple",
        math.nan,
        "significance_multiple is nan; allowed is a finite float32 number of at least 0.",
    ),
    (
        None,
        "block_significance_multiple",
        -3,
        "block_significance_multiple is -3; allowed is a finite float32 number of at least 0.",
    ),
    (None, "significance", "size", "significance is 'size'; allowed is magnitude or count."),
    (None, "normalize", "perhaps", "normalize is 'perhaps'; allowed is true or false."),
]


@pytest.mark.parametrize(("model", "name", "value", "sentence"), OUT_OF_RANGE)
def test_a_value_that_is_not_allowed(
    pristine: Path,
    tmp_path: Path,
    run_yaml: RunYaml,
    model: str | None,
    name: str,
    value: object,
    sentence: str,
) -> None:
    if model is None:
        content = recipe(pristine, parameters={name: value})
    else:
        content = recipe(pristine, models={model: {"weight": 0.5, **{name: value}}})
    assert refused(run_yaml(content), tmp_path) == sentence


@pytest.mark.parametrize("value", [1.5, -1, "one", 10**400])
def test_a_seed_that_is_no_whole_number(
    pristine: Path, tmp_path: Path, run_yaml: RunYaml, value: object
) -> None:
    content = recipe(pristine, "dare_dpa", parameters={"seed": value})
    assert refused(run_yaml(content), tmp_path).startswith(f"seed is {value!r}; allowed is a whole")


def test_a_model_without_weight(pristine: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    content = recipe(pristine, models={"math": {"weight": 1.0}, "law": {"density": 0.2}})
    sentence = refused(run_yaml(content), tmp_path)
    assert sentence.startswith(f"{pristine}/law: there is no weight for model.embed_tokens.weight;")


def test_a_weight_for_some_tensors_only(pristine: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    some = [{"filter": "mlp", "value": 0.5}]
    content = recipe(pristine, models={"math": {"weight": some}})
    assert "filters need a last entry without a filter" in refused(run_yaml(content), tmp_path)


def test_no_base_model(pristine: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    content = recipe(pristine)
    del content["base_model"]
    assert "base model, and there is none" in refused(run_yaml(content), tmp_path)


def test_only_the_base_model(pristine: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    content = recipe(pristine, models={"base": {"weight": 1.0}})
    sentence = refused(run_yaml(content), tmp_path)
    assert str(pristine / "base") in sentence
    assert "at least one fine-tuned model" in sentence


@pytest.mark.parametrize("spelling", ["math", "law/../math", "./math/", "link"])
def test_one_model_twice(family: Path, tmp_path: Path, run_yaml: RunYaml, spelling: str) -> None:
    (family / "link").symlink_to(family / "math")
    content = recipe(family)
    twice = f"{family}/{spelling}"
    content["models"].append({"model": twice, "parameters": {"weight": 0.1}})  # type: ignore[attr-defined]
    sentence = refused(run_yaml(content), tmp_path)
    assert sentence.startswith(f"The model {twice} is given twice")


def test_the_base_again_under_another_spelling(
    pristine: Path, tmp_path: Path, run_yaml: RunYaml
) -> None:
    content = recipe(pristine)
    content["models"].append({"model": f"{pristine}/./base", "parameters": {"weight": 0.1}})  # type: ignore[attr-defined]
    assert "or leave it out" in refused(run_yaml(content), tmp_path)


def test_the_base_among_the_models_is_fine(
    pristine: Path, merge: Callable[..., dict[str, torch.Tensor]]
) -> None:
    plain = merge(recipe(pristine))
    content = recipe(pristine)
    content["models"].insert(0, {"model": str(pristine / "base")})  # type: ignore[attr-defined]
    listed = merge(content, output="listed")
    assert all(torch.equal(listed[name], tensor) for name, tensor in plain.items())


def test_shapes_that_differ(family: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q] = torch.zeros(40, 32)

    edit(family / "math", widen)
    sentence = refused(run_yaml(recipe(family)), tmp_path)
    for part in (f"{family}/math", Q, "[40, 32]", "[32, 32]"):
        assert part in sentence


def test_vocabularies_that_differ(family: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    def grow(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = torch.zeros(100, 32)

    edit(family / "math", grow)
    sentence = refused(run_yaml(recipe(family)), tmp_path)
    assert "model.embed_tokens.weight has shape [100, 32]" in sentence
    assert "tokenizer" in sentence


def test_vocabularies_that_the_user_has_truncated(
    family: Path, merge: Callable[..., dict[str, torch.Tensor]]
) -> None:
    plain = merge(recipe(family))

    def grow(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.embed_tokens.weight"
        tensors[name] = torch.cat([tensors[name], torch.zeros(4, 32)])

    edit(family / "math", grow)
    merged = merge(recipe(family), "--unsafe-truncate-embeddings", output="truncated")
    assert all(torch.equal(merged[name], tensor) for name, tensor in plain.items())


def test_a_missing_tensor(family: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    edit(family / "law", lambda tensors: tensors.pop(Q))
    assert refused(run_yaml(recipe(family)), tmp_path) == f"{family}/law: tensor {Q} is missing."


@pytest.mark.parametrize("model", ["base", "math", "law"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [Q, "model.norm.weight", "model.embed_tokens.weight"])
def test_nan_or_infinity_in_a_checkpoint(
    family: Path, tmp_path: Path, run_yaml: RunYaml, model: str, value: float, name: str
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[7] = value

    edit(family / model, spoil)
    before = digest(family)
    sentence = refused(run_yaml(recipe(family)), tmp_path)
    assert sentence == f"{family}/{model}: tensor {name} holds NaN or infinity."
    assert digest(family) == before


@pytest.mark.parametrize("method", ["dp", "owl", "dppa_ties", "dare_dpa"])
def test_nan_under_every_method(
    family: Path, tmp_path: Path, run_yaml: RunYaml, method: str
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q].view(-1)[7] = math.nan

    edit(family / "law", spoil)
    assert f"tensor {Q} holds NaN" in refused(run_yaml(recipe(family, method)), tmp_path)


def sharded(tmp_path: Path) -> Path:
    return save_family(tmp_path / "sharded", shard="30KB")


@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing"])
def test_a_damaged_shard(tmp_path: Path, run_yaml: RunYaml, damage: str) -> None:
    family = sharded(tmp_path)
    shard = sorted((family / "math").glob("model-*.safetensors"))[1]
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "garbage":
        shard.write_bytes(b"\x00" * 5000)
    else:
        shard.unlink()
    sentence = refused(run_yaml(recipe(family)), tmp_path)
    assert str(shard) in sentence
    assert ("missing" if damage == "missing" else "truncated or damaged") in sentence


def test_a_truncated_bin_shard(tmp_path: Path, run_yaml: RunYaml) -> None:
    family = save_family(tmp_path / "bins")
    folder = family / "math"
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    halves = list(tensors)[::2], list(tensors)[1::2]
    weight_map = {}
    for number, names in enumerate(halves, 1):
        shard = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: tensors[name] for name in names}, folder / shard)
        weight_map.update(dict.fromkeys(names, shard))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert run_yaml(recipe(family), output="whole").exit_code == 0
    damaged = folder / "pytorch_model-00002-of-00002.bin"
    damaged.write_bytes(damaged.read_bytes()[:-4000])
    sentence = refused(run_yaml(recipe(family)), tmp_path)
    assert str(damaged) in sentence


@pytest.mark.parametrize("target", ["../law/model-00001-of-00009.safetensors", "/etc/passwd"])
def test_an_index_that_points_outside(tmp_path: Path, run_yaml: RunYaml, target: str) -> None:
    family = sharded(tmp_path)
    path = family / "math" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][Q] = target
    path.write_text(json.dumps(index))
    sentence = refused(run_yaml(recipe(family)), tmp_path)
    assert f"outside the model's folder, to {target}" in sentence


def slices(family: Path, *ranges: tuple[int, int]) -> dict[str, object]:
    content = recipe(family)
    models = content.pop("models")
    assert isinstance(models, list)
    content["slices"] = [
        {
            "sources": [
                {"model": str(family / "base"), "layer_range": list(layers)},
                *({**each, "layer_range": list(layers)} for each in models),
            ]
        }
        for layers in ranges
    ]
    return content


@pytest.mark.parametrize(
    "ranges", [((1, 3),), ((0, 2), (1, 3)), ((2, 3), (0, 2)), ((0, 1), (2, 3))]
)
def test_slices_that_move_layers(
    pristine: Path, tmp_path: Path, run_yaml: RunYaml, ranges: tuple[tuple[int, int], ...]
) -> None:
    sentence = refused(run_yaml(slices(pristine, *ranges)), tmp_path)
    assert sentence.startswith("slices: model.layers.")
    assert not (tmp_path / "out").exists()


def test_slices_in_order_are_the_plain_form(
    pristine: Path, merge: Callable[..., dict[str, torch.Tensor]]
) -> None:
    plain = merge(recipe(pristine))
    sliced = merge(slices(pristine, (0, 2), (2, 3)), output="sliced")
    assert plain.keys() == sliced.keys()
    assert all(torch.equal(sliced[name], tensor) for name, tensor in plain.items())


def test_a_slice_without_the_base(pristine: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    content = slices(pristine, (0, 3))
    content["slices"][0]["sources"].pop(0)  # type: ignore[index]
    sentence = refused(run_yaml(content), tmp_path)
    assert (
        f"The base model {pristine}/base is not among the inputs of default.slices[0]" in sentence
    )


def test_a_model_in_later_slices_only(pristine: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    content = slices(pristine, (0, 1), (1, 3))
    content["slices"][0]["sources"].pop()  # type: ignore[index]
    sentence = refused(run_yaml(content), tmp_path)
    assert f"{pristine}/law is in a later slice and not in the first" in sentence


def test_a_slice_of_the_base_alone(
    pristine: Path, merge: Callable[..., dict[str, torch.Tensor]]
) -> None:
    content = slices(pristine, (0, 1), (1, 2), (2, 3))
    del content["slices"][1]["sources"][1:]  # type: ignore[index]
    merged, base = merge(content), tensors_of(pristine / "base")
    unmoved = [name for name, tensor in base.items() if torch.equal(merged[name], tensor)]
    assert sorted(unmoved) == sorted(name for name in base if ".layers.1." in name)


@pytest.mark.parametrize("parameter", ["dtype", "out_dtype"])
@pytest.mark.parametrize("value", ["bf16", "int64"])
def test_a_dtype_that_is_none(
    pristine: Path, tmp_path: Path, run_yaml: RunYaml, parameter: str, value: str
) -> None:
    sentence = refused(run_yaml(recipe(pristine, **{parameter: value})), tmp_path)
    assert sentence == (
        f"{parameter} is {value!r}; allowed is bfloat16, float16, float32, float64."
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_experts(tmp_path: Path, run_yaml: RunYaml, dtype: torch.dtype) -> None:
    family = save_family(tmp_path / "experts", "mixtral")

    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if ".experts." in name:
                tensors[name] = (tensors[name] * 1000).to(dtype)

    edit(family / "law", quantise)
    assert "is quantised" in refused(run_yaml(recipe(family, dtype="bfloat16")), tmp_path)


def test_quantised_tensors_that_nothing_uses(tmp_path: Path, run_yaml: RunYaml) -> None:
    family = save_family(tmp_path / "experts", "mixtral")
    unused = torch.ones(4, 4, dtype=torch.int8)
    edit(family / "law", lambda tensors: tensors.update({"unused.scale.weight": unused}))
    assert run_yaml(recipe(family)).exit_code == 0


def test_quantised_weights(family: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q] = (tensors[Q] * 1000).to(torch.int8)

    edit(family / "math", quantise)
    sentence = refused(run_yaml(recipe(family, dtype="bfloat16")), tmp_path)
    assert f"{family}/math: tensor {Q} is quantised (I8)" in sentence


def test_a_cast_that_overflows_on_reading(family: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q].view(-1)[3] = 1e6

    edit(family / "math", enlarge)
    sentence = refused(run_yaml(recipe(family, dtype="float16")), tmp_path)
    assert f"{family}/math: tensor {Q} holds NaN or infinity" in sentence


def test_no_traceback_from_the_real_command(pristine: Path, tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path / "recipe.yml", recipe(pristine, models={"math": {"weight": 1, "density": 7}})
    )
    command = [
        str(Path(sys.executable).with_name("mergekit-yaml")),
        str(path),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "Error: density is 7; allowed is a number from 0 to 1."


def test_a_delta_of_zero_warns(
    family: Path, tmp_path: Path, run_yaml: RunYaml, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(family / "base" / "model.safetensors", family / "math" / "model.safetensors")
    result = run_yaml(recipe(family, models={"math": {"weight": 1.0}}))
    assert result.exit_code == 0
    assert f"{family}/math: its delta is zero everywhere" in caplog.text
    base, merged = tensors_of(family / "base"), tensors_of(tmp_path / "out")
    assert all(torch.equal(merged[name], tensor) for name, tensor in base.items())


def test_fewer_non_zero_deltas_than_the_density_warns(
    family: Path, run_yaml: RunYaml, caplog: pytest.LogCaptureFixture
) -> None:
    base = tensors_of(family / "base")

    def keep_a_tenth(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            unmoved = torch.arange(tensor.numel()).view_as(tensor) % 10 != 0
            tensor[unmoved] = base[name][unmoved]

    edit(family / "math", keep_a_tenth)
    assert run_yaml(recipe(family)).exit_code == 0
    (warning,) = [record for record in caplog.records if "non-zero" in record.getMessage()]
    assert f"{family}/math: only 9.0 % of its linears' deltas" in warning.getMessage()


@pytest.mark.parametrize("dtypes", [{}, {"dtype": "float16", "out_dtype": "float32"}])
def test_an_overflow_of_the_sum_warns(
    dtypes: dict[str, str], tmp_path: Path, run_yaml: RunYaml, caplog: pytest.LogCaptureFixture
) -> None:
    family = save_family(tmp_path / "halves", dtype=torch.float16)

    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q].view(-1)[3] = 60000.0

    edit(family / "math", enlarge)
    result = run_yaml(recipe(family, models={"math": {"weight": 1.5}}, **dtypes))
    assert result.exit_code == 0
    warnings = [record.getMessage() for record in caplog.records if "too large" in record.message]
    assert warnings == [
        f"Tensor {Q}: the sum is too large for float16; what does not fit becomes infinity or NaN."
    ]


def test_an_overflow_of_out_dtype_warns(
    family: Path, run_yaml: RunYaml, caplog: pytest.LogCaptureFixture
) -> None:
    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q].view(-1)[3] = 1e6

    edit(family / "math", enlarge)
    assert run_yaml(recipe(family, out_dtype="float16")).exit_code == 0
    assert f"Tensor {Q}: the sum is too large for float16" in caplog.text
