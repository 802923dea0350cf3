"""The methods reach mergekit by themselves, whatever is imported first."""

import importlib.metadata

import pytest
from interpreters import METHODS, ask


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
