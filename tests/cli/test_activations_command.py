"""`mergekit-dppa activations`: what it writes, how it goes on, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from checkpoints import recipe, save_family, tensors_of, unequal, write_recipe
from click.testing import CliRunner, Result
from commands import Merge
from mergekit.io.tasks import LoaderCache

from dppa_mergekit.cli.main import main
from dppa_mergekit.moments.activations_file import ActivationsFile
from dppa_mergekit.observation import recipe_activations
from dppa_mergekit.observation.observe import Subject

Activations = Callable[..., Result]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_family(tmp_path_factory.mktemp("activations"))
    for name in ("math", "law"):
        lines = [{"prompt": f"w{i} w{i + 3}", "completion": f" w{i + 1}"} for i in range(6)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        (folder / f"{name}.txt").write_text("w1 w2\n\nw3 w4\nw5\n", encoding="utf-8")
    models = {"math": {"density": 0.3, "amplify_90": 2.0}, "law": {"density": 0.2}}
    write_recipe(folder / "recipe.yml", recipe(folder, "dppa_regmean", models))
    weighted = {name: {**own, "weight": 0.5} for name, own in models.items()}
    write_recipe(folder / "sum.yml", recipe(folder, "dppa", weighted))
    write_recipe(folder / "random.yml", recipe(folder, "dare_dpa", weighted))
    write_recipe(
        folder / "owl.yml", recipe(folder, "owl", {"math": {"weight": 1}, "law": {"weight": 1}})
    )
    negative = {"math": weighted["math"], "law": {"weight": -0.3}}
    write_recipe(folder / "negative.yml", recipe(folder, "dppa", negative))
    write_recipe(folder / "alone.yml", recipe(folder, "dppa", {"math": weighted["math"]}))
    return folder


@pytest.fixture
def activations(saved: Path, tmp_path: Path) -> Activations:
    """activations(*options) of a saved recipe, to tmp_path/tuned.yml."""

    def run(*options: str, name: str = "recipe.yml") -> Result:
        LoaderCache.loaders.clear()
        arguments = ["activations", str(saved / name), f"--output={tmp_path / 'tuned.yml'}"]
        return CliRunner().invoke(main, [*arguments, *options])

    return run


def prompts(saved: Path, suffix: str = ".jsonl") -> list[str]:
    return [f"--prompts={saved / name}{suffix}" for name in ("math", "law")]


def files(tmp_path: Path) -> dict[str, ActivationsFile]:
    return {
        path.stem: ActivationsFile.open(str(path))
        for path in (tmp_path / "tuned.activations").iterdir()
    }


def test_what_it_writes(
    activations: Activations, saved: Path, tmp_path: Path, merge: Merge
) -> None:
    done = activations(*prompts(saved), "--html", "--rank=16")
    assert done.exit_code == 0, done.output
    assert f"{saved / 'math'}: 6 prompts, 18 tokens" in done.stdout
    assert "trace held by the rank:" in done.stdout
    content = yaml.safe_load((tmp_path / "tuned.yml").read_text(encoding="utf-8"))
    given = {Path(entry["model"]).name: entry["parameters"] for entry in content["models"]}
    folder = tmp_path / "tuned.activations"
    assert given == {
        "math": {
            "density": 0.3,
            "amplify_90": 2.0,
            "activations": str(folder / "math.safetensors"),
        },
        "law": {"density": 0.2, "activations": str(folder / "law.safetensors")},
    }
    observation = files(tmp_path)["math"].observation
    assert (observation.prompts, observation.answered, observation.rank) == (6, 0, 16)
    assert (tmp_path / "tuned.png").stat().st_size > 10000
    assert (tmp_path / "tuned.html").read_text(encoding="utf-8").count("data:image/png") == 1
    assert "| inputs of" in (tmp_path / "tuned.md").read_text(encoding="utf-8")
    record = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))["tuned.yml"]
    assert [result["tokens"] for result in record["results"]] == [18, 18]
    observed = merge(content, output="observed")
    plain = yaml.safe_load((saved / "recipe.yml").read_text(encoding="utf-8"))
    differing = unequal(observed, merge(plain, output="data free"))
    assert any("q_proj" in line for line in differing)
    assert not any("norm" in line for line in differing)
    checked = CliRunner().invoke(main, ["check", str(tmp_path / "tuned.yml")])
    assert checked.exit_code == 0, checked.output
    LoaderCache.loaders.clear()
    verified = CliRunner().invoke(main, ["check", str(tmp_path / "observed"), "--verify", "all"])
    assert verified.exit_code == 0, verified.output
    (tmp_path / "tuned.activations" / "law.safetensors").unlink()
    LoaderCache.loaders.clear()
    verified = CliRunner().invoke(main, ["check", str(tmp_path / "observed"), "--verify", "all"])
    assert verified.exit_code == 1
    assert "activations: there is no file" in " ".join(verified.output.split())


@pytest.mark.parametrize(
    ("name", "method"), [("sum.yml", "dppa_regmean"), ("random.yml", "dare_regmean")]
)
def test_a_sum_becomes_a_regression(
    name: str, method: str, activations: Activations, saved: Path, tmp_path: Path
) -> None:
    done = activations(*prompts(saved, ".txt"), "--max-new-tokens=3", name=name)
    assert done.exit_code == 0, done.output
    content = yaml.safe_load((tmp_path / "tuned.yml").read_text(encoding="utf-8"))
    assert content["merge_method"] == method
    assert files(tmp_path)["law"].observation.answered == 3


def test_files_that_are_there_are_kept(
    activations: Activations, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert activations(*prompts(saved)).exit_code == 0
    observed = []
    observe = recipe_activations.observe

    def count(subject: Subject, *rest: object) -> object:
        observed.append(Path(subject.model).name)
        return observe(subject, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(recipe_activations, "observe", count)
    assert activations(*prompts(saved)).exit_code == 0
    assert observed == []
    (tmp_path / "tuned.activations" / "law.safetensors").write_bytes(b"damaged")
    assert activations(*prompts(saved)).exit_code == 0
    assert observed == ["law"]
    assert activations(*prompts(saved), "--rank=8").exit_code == 0
    assert observed == ["law", "math", "law"]


def test_a_model_that_was_trained_since(
    activations: Activations, tmp_path: Path, saved: Path
) -> None:
    family = save_family(tmp_path / "family")
    for name in ("math", "law"):
        (family / f"{name}.txt").write_text("w1 w2\n", encoding="utf-8")
    content = recipe(family, "dppa_regmean", {"math": {}, "law": {}})
    write_recipe(tmp_path / "recipe.yml", content)
    arguments = ["activations", str(tmp_path / "recipe.yml"), "--output", str(tmp_path / "t.yml")]
    done = CliRunner().invoke(main, [*arguments, *prompts(family, ".txt"), "--max-new-tokens=2"])
    assert done.exit_code == 0, done.output
    from safetensors.torch import save_file

    path = family / "law" / "model.safetensors"
    tensors = {name: tensor + 1 for name, tensor in tensors_of(family / "law").items()}
    save_file(tensors, path, {"format": "pt"})
    checked = CliRunner().invoke(main, ["check", str(tmp_path / "t.yml")])
    assert checked.exit_code == 1
    assert "this model has other weights, or was trained since" in " ".join(checked.output.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rank=0"], "0 is not in the range x>=1"),
        (["--max-new-tokens=-1"], "-1 is not in the range x>=0"),
        (["--system-instruction=Be brief."], "--system-instruction has no effect here"),
        (["--apply-chat-template"], "has no chat template; leave out --apply-chat-template"),
        (["--device=nowhere"], "--device is 'nowhere'; allowed is"),
    ],
)
def test_options_that_cannot_be(
    options: list[str], words: str, activations: Activations, saved: Path, tmp_path: Path
) -> None:
    done = activations(*prompts(saved), *options)
    assert done.exit_code != 0
    assert words in " ".join(done.output.split())
    assert not (tmp_path / "tuned.yml").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("owl.yml", "the deltas of owl cannot be combined by their inputs; allowed are dppa, "),
        ("negative.yml", "law: weight is -0.3; allowed is a finite float32 number of at least 0"),
        ("alone.yml", "has one fine-tuned model, whose delta needs no combination"),
    ],
)
def test_recipes_that_cannot_be(
    name: str, words: str, activations: Activations, saved: Path
) -> None:
    done = activations(*prompts(saved), name=name)
    assert done.exit_code != 0
    assert words in " ".join(done.output.split())


def test_prompts_of_one_model_alone(activations: Activations, saved: Path) -> None:
    done = activations(prompts(saved)[0])
    assert done.exit_code != 0
    assert "There are no prompts for law" in done.output


def test_prompts_of_nobody(activations: Activations, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "bank.txt").write_text("w1\n", encoding="utf-8")
    done = activations(*prompts(saved), f"--prompts={tmp_path / 'bank.txt'}")
    assert done.exit_code != 0
    assert "It is not clear which model the prompts of bank belong to" in done.output


def test_the_summary_overwrites_no_prompts(
    activations: Activations, saved: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    shutil.copy(saved / "math.txt", folder / "tuned.md")
    done = activations(f"--prompts={folder / 'tuned.md'}", f"--output={folder / 'tuned.yml'}")
    assert done.exit_code == 1
    assert "tuned.md, which is an input of the command" in " ".join(done.output.split())


def test_the_same_run_writes_the_same_bytes(
    activations: Activations, saved: Path, tmp_path: Path
) -> None:
    found = []
    for _ in range(4):
        shutil.rmtree(tmp_path / "tuned.activations", ignore_errors=True)
        assert activations(*prompts(saved), "--rank=4").exit_code == 0
        found.append((tmp_path / "tuned.activations" / "math.safetensors").read_bytes())
    assert len(set(found)) == 1


def test_empty_prompts(activations: Activations, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "law.txt").write_text("\n", encoding="utf-8")
    done = activations(prompts(saved)[0], f"--prompts={tmp_path / 'law.txt'}")
    assert done.exit_code != 0
    assert "law.txt holds no prompts" in done.output


def test_threads_order_and_repetition_change_no_merged_byte(
    activations: Activations,
    saved: Path,
    tmp_path: Path,
    merge: Merge,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The files are given: how they were made may depend on the number of threads."""
    # Threads share the chunks of a tensor, and the pieces of a product: there must be several.
    monkeypatch.setattr("dppa_mergekit.deltas.delta.CHUNK", 1 << 8)
    monkeypatch.setattr("dppa_mergekit.deltas.products.ROWS", 8)
    assert activations(*prompts(saved), "--rank=4").exit_code == 0
    content = yaml.safe_load((tmp_path / "tuned.yml").read_text(encoding="utf-8"))
    back = {**content, "models": content["models"][::-1]}
    found = []
    for output, threads, order in (
        ("one", 1, content),
        ("again", 1, content),
        ("two", 2, content),
        ("back", 2, back),
    ):
        torch.set_num_threads(threads)
        merge(order, output=output)
        found.append((tmp_path / output / "model.safetensors").read_bytes())
    assert all(of_one == found[0] for of_one in found)
