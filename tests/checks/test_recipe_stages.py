"""Files of several recipes, as mergekit-multi takes them."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from check_command import check, said, sound
from checkpoints import recipe, tensors_of
from click.testing import CliRunner, Result
from mergekit.scripts.multimerge import main as mergekit_multi

from dppa_mergekit.cli.main import main

Content = dict[str, object]


def stages(family: Path) -> list[Content]:
    first = {"name": "first", **recipe(family, models={"math": {"weight": 1.0, "density": 0.5}})}
    models = {"first": {"weight": 0.6, "density": 0.5}, "law": {"weight": 0.4, "density": 1.0}}
    final = recipe(family, models=models)
    final["models"][0]["model"] = "first"
    return [first, final]


def write(path: Path, documents: Sequence[Content]) -> Path:
    path.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    return path


def analyze(path: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["-q", "analyze", str(path), *options])


@pytest.mark.parametrize("order", [1, -1])
def test_stages_that_mergekit_merges(order: int, family: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "multi.yml", stages(family)[::order])
    done = check(path, "--output", str(tmp_path / "out"))
    sound(done)
    assert (
        "note: the final merge: first: it is the output of that stage, and not there yet."
        in done.stdout
    )
    middle, out = tmp_path / "middle", tmp_path / "out"
    merged = CliRunner().invoke(
        mergekit_multi, [str(path), "-I", str(middle), "--out-path", str(out)]
    )
    assert merged.exit_code == 0, merged.output
    assert tensors_of(out).keys() == tensors_of(family / "base").keys()
    for folder in (out, middle / "first"):
        sound(check(folder, "--verify=all"))


def test_findings_name_the_stage(family: Path, tmp_path: Path) -> None:
    documents = stages(family)
    documents[0]["models"][0]["parameters"]["densty"] = 0.3
    documents[1]["models"][1]["model"] = str(family / "gone")
    errors = said(check(write(tmp_path / "multi.yml", documents)), "error")
    assert errors[0].startswith(f"error: stage first: models, {family / 'math'}: dppa has no")
    assert errors[1] == f"error: the final merge: {family / 'gone'}: there is no such folder."
    assert len(errors) == 2


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["first", "first"], "There are 2 stages of the name first; allowed is one."),
        ([None, None], "There are 2 stages without a name; allowed is one."),
    ],
)
def test_names_of_stages(
    names: list[str | None], sentence: str, family: Path, tmp_path: Path
) -> None:
    documents = [
        {**content, "name": name} for content, name in zip(stages(family), names, strict=True)
    ]
    path = write(tmp_path / "multi.yml", documents)
    assert said(check(path), "error") == [f"error: recipe: {sentence}"]
    assert sentence in analyze(path).output


@pytest.mark.parametrize("name", ["dppa", "union", "mlp"])
def test_names_that_are_other_words(name: str, family: Path, tmp_path: Path) -> None:
    documents = stages(family)
    documents[0]["name"] = documents[1]["models"][0]["model"] = name
    documents[1]["tokenizer"] = {"source": "union"}
    documents[0]["models"][0]["parameters"]["density"] = [
        {"filter": "mlp", "value": 0.5},
        {"value": 1},
    ]
    path = write(tmp_path / "multi.yml", documents)
    (error,) = said(check(path), "error")
    assert f"is {name}, which is the name of a stage, and mergekit-multi would put" in error
    arguments = [str(path), "-I", str(tmp_path / "middle"), "--out-path", str(tmp_path / "out")]
    # The tokenizer would be that of the stage, and no union.
    assert (CliRunner().invoke(mergekit_multi, arguments).exit_code == 0) == (name == "union")


def test_paths_with_spaces(family: Path, tmp_path: Path) -> None:
    spaced = tmp_path / "two words"
    (family / "law").rename(spaced)
    documents = stages(family)
    documents[1]["models"][1]["model"] = str(spaced)
    path = write(tmp_path / "multi.yml", documents)
    (error,) = said(check(path), "error")
    assert f"the final merge: mergekit-multi cannot write '{spaced}' into its copy" in error
    arguments = [str(path), "-I", str(tmp_path / "middle"), "--out-path", str(tmp_path / "out")]
    assert CliRunner().invoke(mergekit_multi, arguments).exit_code != 0
    # Alone, such a recipe merges.
    content = recipe(family)
    content["models"][1]["model"] = str(spaced)
    sound(check(write(tmp_path / "one.yml", [content])))


def test_names_that_are_no_texts(family: Path, tmp_path: Path) -> None:
    documents = stages(family)
    documents[0]["name"] = 1
    (error,) = said(check(write(tmp_path / "multi.yml", documents)), "error")
    assert "The name of a stage is 1; allowed is a text, so put it in quotes." in error


def test_a_spaced_name_that_no_stage_uses(family: Path, tmp_path: Path) -> None:
    documents = stages(family)
    documents[1]["models"] = documents[0]["models"]
    documents[0]["name"] = "two words"
    sound(check(write(tmp_path / "multi.yml", documents)))


def test_the_tokenizer_of_a_stage(family: Path, tmp_path: Path) -> None:
    documents = stages(family)
    token = {"kind": "model_token", "model": "first", "token": "w5"}
    documents[1]["tokenizer"] = {
        "source": "first",
        "tokens": {"w5": {"source": token, "force": True}, "w6": {"source": "first"}},
    }
    path = write(tmp_path / "multi.yml", documents)
    sound(check(path))
    arguments = [str(path), "-I", str(tmp_path / "middle"), "--out-path", str(tmp_path / "out")]
    assert CliRunner().invoke(mergekit_multi, arguments).exit_code == 0


def test_a_lora_on_the_output_of_a_stage(family: Path, tmp_path: Path) -> None:
    documents = stages(family)
    documents[1]["models"][0]["model"] = f"first+{family / 'adapter'}"
    done = check(write(tmp_path / "multi.yml", documents))
    assert said(done, "error") == []
    assert "mergekit-yaml needs --lora-merge-cache for it." in done.stdout


def test_stages_in_a_circle(family: Path, tmp_path: Path) -> None:
    documents = stages(family)
    documents[0]["models"][0]["model"] = "second"
    documents[1]["name"] = "second"
    (error,) = said(check(write(tmp_path / "multi.yml", documents)), "error")
    assert "Stages use each other's outputs in a circle: stage first, stage second." in error


def test_stages_are_analyzed(family: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "multi.yml", stages(family))
    done = analyze(path, "--output", str(tmp_path / "analysis"))
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("stage first:\n")
    assert str(family / "math") in done.stdout
    assert "the final merge: it merges the output of first, which is not there yet" in done.stdout
    assert (tmp_path / "analysis" / "first" / "analysis.json").exists()


def test_one_recipe_is_allowed_elsewhere(family: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "multi.yml", stages(family))
    prompts = tmp_path / "math.txt"
    prompts.write_text("w1 w2\n", encoding="utf-8")
    arguments = ["adamerge", str(path), "--prompts", str(prompts), "--output", "tuned.yml"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert f"{path} holds several recipes, as for mergekit-multi; allowed is one here." in (
        done.output
    )
