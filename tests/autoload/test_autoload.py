"""The plugin reaches mergekit by itself, whatever is imported first, and never breaks it."""

import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from checkpoints import recipe, save_family, write_recipe

METHODS = ["dare_dpa", "dp", "dppa", "dppa_ties", "owl"]
STUB = Path(__file__).parents[2] / "dppa_mergekit" / "autoload"

# Runs before every script: collects what the plugin says and which methods are registered.
PRELUDE = """
import importlib, json, logging, os, sys, warnings
from pathlib import Path

MERGE = "dppa_mergekit.merging.delta_pruning_merge"
said = []


def notice(message, category, filename, *rest):
    if "dppa" in str(message) or Path(filename).parent.name == "dppa_mergekit":
        said.append(str(message))


class Notices(logging.Handler):
    def emit(self, record):
        if record.name.startswith("dppa_mergekit"):
            said.append(record.getMessage())


warnings.simplefilter("always")
warnings.showwarning = notice
logging.getLogger().addHandler(Notices())


def registered():
    module = sys.modules.get("mergekit.merge_methods")
    methods = module.registered_methods() if module else ()
    return sorted(m.spec.name for m in methods if type(m).__module__ == MERGE)


def forget(*names):
    for name in list(sys.modules):
        if any(name == top or name.startswith(top + ".") for top in names):
            del sys.modules[name]


def answer(**values):
    print(json.dumps({"registered": registered(), "said": said, **values}))
"""


@dataclass(frozen=True)
class Answer:
    """What a script reported as its last line, and all that it wrote to stderr."""

    registered: list[str]
    said: list[str]
    values: Mapping[str, Any]
    stderr: str


def python(
    *arguments: str, path: Sequence[Path] = (), autoload: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter on the stub of this checkout, away from the checkout's folder."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DPPA_MERGEKIT_AUTOLOAD", "PYTHONWARNINGS", "PYTHONSTARTUP")
    }
    environment["PYTHONPATH"] = os.pathsep.join(str(folder) for folder in (*path, STUB))
    if autoload:
        environment["DPPA_MERGEKIT_AUTOLOAD"] = autoload
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(sys.executable).parent,
        timeout=120,
        check=False,
    )


def ask(script: str, path: Sequence[Path] = (), autoload: str = "") -> Answer:
    """Run a script that ends in answer(...)."""
    done = python("-c", PRELUDE + script, path=path, autoload=autoload)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout.splitlines()[-1])
    return Answer(values.pop("registered"), values.pop("said"), values, done.stderr)


def package(folder: Path, files: Mapping[str, str]) -> Path:
    """Write a fake package under a folder for PYTHONPATH."""
    for name, text in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "script",
    [
        "from mergekit.merge_methods.base import TensorGroup",
        "import dppa_mergekit.methods, mergekit.merge_methods, dppa_mergekit.methods",
    ],
)
def test_a_fresh_interpreter_has_every_method_once_and_silently(script: str) -> None:
    answer = ask(f"{script}\nanswer()")
    assert answer.registered == METHODS
    assert answer.said == []


def test_importing_mergekit_again_keeps_every_method_once() -> None:
    answer = ask("""
import mergekit.merge_methods
rounds = [registered()]
for _ in range(2):
    importlib.reload(sys.modules["mergekit.merge_methods"])
    rounds.append(registered())
    del sys.modules["mergekit.merge_methods"]
    importlib.import_module("mergekit.merge_methods")
    rounds.append(registered())
    importlib.reload(sys.modules["dppa_mergekit.methods"])
    rounds.append(registered())
forget("mergekit", "dppa_mergekit")
importlib.import_module("mergekit.merge_methods")
rounds.append(registered())
answer(rounds=rounds)
""")
    assert answer.values["rounds"] == [METHODS] * 8
    assert answer.said == []


def test_any_module_may_be_the_first_import() -> None:
    answer = ask("""
import pkgutil
import torch, transformers

modules = [
    f"{package}.{module.name}"
    for package in ("dppa_mergekit", "mergekit", "mergekit.merge_methods", "mergekit.scripts")
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__)
]
loaded, without = [], []
for module in modules:
    forget("mergekit", "dppa_mergekit")
    try:
        importlib.import_module(module)
    except ImportError:
        continue  # needs an extra of mergekit
    if "mergekit.merge_methods" in sys.modules:
        loaded.append(module)
        if len(registered()) != 5:
            without.append(module)
answer(loaded=loaded, without=without)
""")
    assert answer.values["without"] == []
    assert {
        "dppa_mergekit.methods",
        "mergekit.merge",
        "mergekit.merge_methods",
        "mergekit.merge_methods.base",
        "mergekit.plan",
        "mergekit.scripts.run_yaml",
    } <= set(answer.values["loaded"])
    assert answer.said == []


def test_threads_may_import_at_the_same_time() -> None:
    answer = ask("""
import threading
import torch, transformers

MODULES = ["mergekit.merge_methods", "mergekit.merge_methods", "dppa_mergekit.methods"]
sys.setswitchinterval(1e-5)
rounds, errors = [], []


def load(module):
    barrier.wait()
    try:
        importlib.import_module(module)
    except Exception as error:
        errors.append(repr(error))


for _ in range(8):
    forget("mergekit", "dppa_mergekit")
    barrier = threading.Barrier(len(MODULES))
    threads = [threading.Thread(target=load, args=[module]) for module in MODULES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rounds.append(registered())
answer(rounds=rounds, errors=errors)
""")
    assert answer.values["errors"] == []
    assert answer.values["rounds"] == [METHODS] * 8
    assert answer.said == []


def test_switched_off_it_waits_for_an_import_by_hand() -> None:
    answer = ask(
        """
import mergekit.merge_methods
before = registered(), "dppa_mergekit" in sys.modules
import dppa_mergekit.methods
answer(before=before)
""",
        autoload="0",
    )
    assert answer.values["before"] == [[], False]
    assert answer.registered == METHODS
    assert answer.said == []


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder whose dppa_mergekit cannot be imported."""
    return package(
        tmp_path, {"dppa_mergekit/__init__.py": "", "dppa_mergekit/methods.py": "import absent_one"}
    )


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


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_of_a_plugin_that_fails_ends_in_one_sentence(
    method: str, broken: Path, tmp_path: Path
) -> None:
    path = write_recipe(tmp_path / "recipe.yml", recipe(save_family(tmp_path / "family"), method))
    out = tmp_path / "out"
    done = python("-m", "mergekit.scripts.run_yaml", str(path), str(out), path=[broken])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"Error: Merge method {method}: {FAILURE}"
    assert "Traceback" not in done.stderr
    assert not out.exists()


FAKES = {
    "mergekit/__init__.py": "",
    "mergekit/merge_methods/__init__.py": "",
    "mergekit/plan.py": "",
    "dppa_mergekit/__init__.py": "",
    "dppa_mergekit/methods.py": "print('registered')\ndef register_methods(): print('again')\n",
}


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


def test_a_name_that_mergekit_has_stays_with_mergekit() -> None:
    answer = ask(
        """
import mergekit.merge_methods as methods

theirs = methods.GeneralizedTaskArithmeticMerge(
    consensus_method=None,
    sparsification_method=None,
    default_normalize=False,
    default_rescale=False,
    method_name="dppa",
    method_pretty_name="Another DPPA",
    method_reference_url=None,
)
methods.register(theirs)
os.environ["DPPA_MERGEKIT_AUTOLOAD"] = "1"
sys.modules["dppa_mergekit_autoload"].install()
importlib.reload(methods)
answer(kept=methods.get("dppa") is theirs)
""",
        autoload="0",
    )
    assert answer.values["kept"] is True
    assert answer.registered == [name for name in METHODS if name != "dppa"]
    assert len(answer.said) == 1
    assert "dppa " in answer.said[0]


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
    assert done.stderr.count("dppa-mergekit cannot load") == 1
    assert "ImportError: cannot import name" in done.stderr
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


def test_tools_see_an_ordinary_module_and_ordinary_methods() -> None:
    answer = ask("""
import copy, importlib.util, inspect, pickle

spec = importlib.util.find_spec("mergekit.merge_methods")
early = registered()
import mergekit.merge_methods as methods

module = importlib.util.find_spec("mergekit.merge_methods")


def survives(operation, method):
    try:
        return operation(method).spec.name == method.spec.name
    except Exception as error:
        return type(error).__name__


OPERATIONS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda method: pickle.loads(pickle.dumps(method)),
    "loader": lambda method: (pickle.loads(pickle.dumps(methods.__loader__)), method)[1],
}
answer(
    early=early,
    origin=spec.origin == module.origin == methods.__file__,
    loader=type(spec.loader).__name__,
    source=inspect.getsource(methods) == Path(methods.__file__).read_text(encoding="utf-8"),
    survival={
        name: {
            method: survives(operation, methods.get(method))
            for method in ["task_arithmetic", *registered()]
        }
        for name, operation in OPERATIONS.items()
    },
)
""")
    values = answer.values
    assert (values["early"], answer.registered, answer.said) == ([], METHODS, [])
    assert values["origin"] is True
    assert values["loader"] == "SourceFileLoader"
    assert values["source"] is True
    for operation, outcomes in values["survival"].items():
        if outcomes.pop("task_arithmetic") is True:
            assert set(outcomes.values()) == {True}, operation


def test_importing_the_package_is_light_and_its_names_load_on_use() -> None:
    answer = ask("""
import dppa_mergekit


def heavy():
    return sorted({"torch", "transformers", "mergekit", "numpy"} & set(sys.modules))


light = heavy()
for name in dppa_mergekit.__all__:
    getattr(dppa_mergekit, name)
try:
    dppa_mergekit.nothing
except AttributeError as error:
    absent = str(error)
answer(
    light=light,
    after=heavy(),
    names=[getattr(dppa_mergekit, name).__name__ for name in dppa_mergekit.__all__],
    all=dppa_mergekit.__all__,
    absent=absent,
)
""")
    values = answer.values
    assert values["light"] == []
    # The public names do need torch: were it loaded earlier, the line above would have seen it.
    assert "torch" in values["after"]
    assert values["names"] == values["all"]
    assert values["absent"] == "module 'dppa_mergekit' has no attribute 'nothing'"
    assert answer.said == []


def test_the_entry_point_names_the_module_that_registers() -> None:
    (entry,) = importlib.metadata.entry_points(group="mergekit.merge_methods", name="dppa")
    assert entry.value == "dppa_mergekit.methods"
