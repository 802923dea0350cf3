"""The public names: all from the root, imported lazily, each with an example that runs."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from checkpoints import save_family, write_recipe
from search_models import save_search

import dppa_mergekit

NEED_MODELS = ("analyze", "evaluate", "learn_weights", "search_amplification", "search_weights")


def documentation(name: str) -> str:
    return inspect.getdoc(getattr(dppa_mergekit, name)) or ""


@pytest.mark.parametrize("name", sorted(set(dppa_mergekit.__all__) - set(NEED_MODELS)))
def test_examples_without_models_run_as_they_are_written(name: str) -> None:
    public = getattr(dppa_mergekit, name)
    module = importlib.import_module(public.__module__)
    tests = doctest.DocTestFinder(recurse=False).find(public, name, module)
    assert sum(len(test.examples) for test in tests) > 0
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("name", NEED_MODELS)
def test_examples_with_models_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "evaluate":
        save_search(tmp_path)
    else:
        save_family(tmp_path)
    models = {"./math": {"weight": 0.6}, "./law": {"weight": 0.5}}
    content = {
        "merge_method": "dppa",
        "base_model": "./base",
        "models": [
            {"model": model, "parameters": parameters} for model, parameters in models.items()
        ],
    }
    write_recipe(tmp_path / "recipe.yml", content)
    monkeypatch.chdir(tmp_path)
    exec(example(name), {})
    assert capsys.readouterr().out or (tmp_path / "learned.yml").exists()


def example(name: str) -> str:
    """The code of a docstring's example: an indented block, or lines of an interpreter."""
    text = documentation(name)
    if ">>> " in text:
        lines = [
            line[4:].removesuffix("  # doctest: +SKIP")
            for line in map(str.strip, text.splitlines())
            if line.startswith((">>> ", "... "))
        ]
        code = "\n".join(lines)
    else:
        (block,) = re.findall(r"Example::\n\n(.*?)\n\n(?=\w)", text, flags=re.DOTALL)
        code = textwrap.dedent(block)
    return code.replace("./merged", "./math")


def test_what_public_functions_take_is_public() -> None:
    taken = set()
    public = [getattr(dppa_mergekit, name) for name in dppa_mergekit.__all__]
    for function in filter(inspect.isfunction, public):
        module = importlib.import_module(function.__module__)
        for parameter in inspect.signature(function).parameters.values():
            named = re.findall(r"\w+", str(parameter.annotation))
            types = [getattr(module, name) for name in named if hasattr(module, name)]
            taken |= {
                found.__name__
                for found in types
                if isinstance(found, type) and found.__module__.startswith("dppa_mergekit.")
            }
    assert {"Recipe", "Prompt"} < taken <= set(dppa_mergekit.__all__)


def test_an_example_that_fails_fails_the_test() -> None:
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    assert doctest.DocTestRunner(verbose=False).run(wrong, out=lambda text: None).failed == 1


def test_the_root_imports_neither_torch_nor_mergekit() -> None:
    script = (
        "import sys, dppa_mergekit; dppa_mergekit.DppaError; dir(dppa_mergekit);"
        "print([name for name in ('torch', 'mergekit', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["method_table", "checks.check", "cli.main"])
def test_a_check_needs_neither_torch_nor_mergekit(module: str) -> None:
    script = (
        f"import sys, dppa_mergekit.{module};"
        "print([name for name in ('torch', 'mergekit', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_found_and_no_other() -> None:
    assert set(dppa_mergekit._MODULES) == set(dppa_mergekit.__all__) <= set(dir(dppa_mergekit))
    for name in dppa_mergekit.__all__:
        assert getattr(dppa_mergekit, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        dppa_mergekit.absent  # noqa: B018
