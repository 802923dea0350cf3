"""A plugin or a mergekit that fails: one warning, and mergekit goes on working."""

from importlib.metadata import version
from pathlib import Path

import pytest
from checkpoints import recipe, save_family, write_recipe
from interpreters import FAKES, METHODS, package, python
from packaging.specifiers import SpecifierSet

from dppa_mergekit.merging.mergekit_support import check_mergekit
from dppa_mergekit.version import SUPPORTED_MERGEKIT


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder whose dppa_mergekit cannot be imported."""
    files = {
        "__init__.py": "",
        "methods.py": "import absent_one",
        "method_table.py": f"def names(): return {METHODS}",
    }
    return package(tmp_path, {f"dppa_mergekit/{name}": text for name, text in files.items()})


FAILURE = "dppa-mergekit cannot load: ModuleNotFoundError: No module named 'absent_one'"


def test_a_plugin_that_fails_warns_once_and_leaves_mergekit_working(broken: Path) -> None:
    # The interpreter's own warning filter, not the one of the prelude: what a user sees.
    script = """
import importlib, warnings
import mergekit.merge_methods as methods
with warnings.catch_warnings():
    pass  # from here on Python shows again what it has shown before
importlib.reload(methods)
print(methods.get("task_arithmetic").spec.name)
print(len({method.spec.name for method in methods.registered_methods()}))
try:
    methods.get("dppa")([], parameters={})
except Exception as error:
    print(error)
"""
    done = python("-c", script, path=[broken])
    assert done.returncode == 0, done.stderr
    theirs, count, said = done.stdout.splitlines()
    assert theirs == "task_arithmetic"
    assert int(count) > len(METHODS)
    assert said == f"Merge method dppa: {FAILURE}"
    assert done.stderr.count(FAILURE) == 1
    assert "Traceback" not in done.stderr


def test_a_recipe_of_a_plugin_that_fails_ends_in_one_sentence(broken: Path, tmp_path: Path) -> None:
    family = save_family(tmp_path / "family")
    recipes = [
        str(write_recipe(tmp_path / f"{method}.yml", recipe(family, method))) for method in METHODS
    ]
    # As `python -m mergekit.scripts.run_yaml` would, one recipe after the other.
    script = """
import runpy, sys
for recipe in sys.argv[1:]:
    sys.argv = ["run_yaml", recipe, recipe + ".out"]
    try:
        runpy.run_module("mergekit.scripts.run_yaml", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        print(ended.code)
    print("ended", file=sys.stderr)
"""
    done = python("-c", script, *recipes, path=[broken])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1"] * len(METHODS)
    assert "Traceback" not in done.stderr
    *said, rest = done.stderr.split("ended\n")
    assert rest == ""
    for method, lines in zip(METHODS, said, strict=True):
        assert lines.splitlines()[-1] == f"Error: Merge method {method}: {FAILURE}"
        assert not (tmp_path / f"{method}.yml.out").exists()


@pytest.mark.parametrize(
    ("methods", "reason"),
    [
        ("raise ValueError('cannot count')", "ValueError: cannot count"),
        ("def", "SyntaxError: invalid syntax"),
        ("from dppa_mergekit import absent", "ImportError: cannot import name 'absent'"),
        ("import ctypes; ctypes.CDLL('absent.so')", "OSError: "),
    ],
)
def test_whatever_the_failure_the_warning_names_it(
    methods: str, reason: str, tmp_path: Path
) -> None:
    fakes = package(tmp_path, {**FAKES, "dppa_mergekit/methods.py": methods})
    done = python("-c", "import mergekit.merge_methods; print('fine')", path=[fakes])
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
    assert done.stderr.count("dppa-mergekit cannot load") == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_without_mergekit_nothing_is_said() -> None:
    script = """
import sys


class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mergekit":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Hidden())
import dppa_mergekit
print(dppa_mergekit.__version__ != "")
try:
    import mergekit.merge_methods
except ModuleNotFoundError as error:
    print(error.name)
"""
    done = python("-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["True", "mergekit"]


def test_a_mergekit_without_the_hook_gets_one_warning(tmp_path: Path) -> None:
    old = package(
        tmp_path,
        {
            "mergekit/__init__.py": "",
            "mergekit/merge_methods/__init__.py": "from .base import MergeMethod\n",
            "mergekit/merge_methods/base.py": "class MergeMethod: ...\n",
        },
    )
    done = python(
        "-c", "import mergekit.merge_methods as m; print(m.MergeMethod.__name__)", path=[old]
    )
    assert (done.returncode, done.stdout) == (0, "MergeMethod\n"), done.stderr
    assert done.stderr.count("dppa-mergekit works with mergekit") == 1
    assert "and has no mergekit.merge_methods.get: pip install" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mergekit_that_fails_by_itself_is_not_talked_over(tmp_path: Path) -> None:
    broken = package(
        tmp_path,
        {
            "mergekit/__init__.py": "",
            "mergekit/merge_methods/__init__.py": "raise OSError('mergekit is ill')",
        },
    )
    done = python("-c", "import mergekit.merge_methods", path=[broken])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "OSError: mergekit is ill"
    assert "cannot load" not in done.stderr


OLDER = """
REGISTERED_MERGE_METHODS = {}


def get(method):
    if method in REGISTERED_MERGE_METHODS:
        return REGISTERED_MERGE_METHODS[method]
    raise RuntimeError(f"Unimplemented merge method {method}")
"""


def test_an_older_mergekit_ends_in_one_sentence(tmp_path: Path) -> None:
    fakes = package(
        tmp_path, {"mergekit/__init__.py": "", "mergekit/merge_methods/__init__.py": OLDER}
    )
    script = """
import click
import mergekit.merge_methods as methods


@click.command()
def main():
    method = methods.get("dppa")
    for parameter in method.parameters():
        print(parameter)


main()
"""
    done = python("-c", script, path=[fakes])
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    sentence = "dppa-mergekit works with mergekit >=0.1.5,<0.1.6; the installed one is 0.1."
    assert done.stderr.splitlines()[-1].startswith(f"Error: Merge method dppa: {sentence}")
    assert "and has no mergekit.merge_methods.register: pip install" in done.stderr


def test_the_supported_releases_are_those_of_the_package() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert f'"mergekit{SUPPORTED_MERGEKIT}",' in project.read_text(encoding="utf-8")
    assert version("mergekit") in SpecifierSet(SUPPORTED_MERGEKIT)
    check_mergekit()
