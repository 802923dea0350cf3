"""The import hook, beside other hooks, other loaders and tools that look at modules."""

import zipfile
from pathlib import Path

import pytest
from interpreters import FAKES, STUB, package, python


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_another_plugin_may_wait_in_the_same_way(first: str, tmp_path: Path) -> None:
    source = (STUB / "dppa_mergekit_autoload.py").read_text(encoding="utf-8")
    fakes = package(
        tmp_path,
        {
            **FAKES,
            "other_autoload.py": source.replace("dppa_mergekit", "other"),
            "other/__init__.py": "",
            "other/methods.py": "print('other')",
        },
    )
    script = "import sys, other_autoload\n"
    if first == "ours":
        script += "sys.meta_path[:2] = sys.meta_path[1::-1]\n"
    script += "print(type(sys.meta_path[0]).__module__)\nimport mergekit.merge_methods"
    done = python("-c", script, path=[fakes])
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    front, *registrations = done.stdout.splitlines()
    assert front == {"ours": "dppa_mergekit_autoload", "theirs": "other_autoload"}[first]
    assert sorted(registrations) == ["other", "registered"]


def test_a_loader_of_many_modules_is_left_as_it_was(tmp_path: Path) -> None:
    archive = tmp_path / "packages.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for name, text in FAKES.items():
            packed.writestr(name, text)
    script = """
import importlib.util
importlib.util.find_spec("mergekit.merge_methods")
import mergekit.plan
print("awaited")
import mergekit.merge_methods
del __import__("sys").modules["mergekit.plan"]
import mergekit.plan
"""
    done = python("-c", script, path=[archive])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["awaited", "registered"]
