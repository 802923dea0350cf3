"""The methods reach mergekit by themselves, whatever is imported first.

An interpreter that imports mergekit takes seconds to start, so one of them answers several tests:
each begins where `forget` has removed mergekit and the plugin.
"""

import importlib.metadata

import pytest
from interpreters import METHODS, Answer, ask, ask_all

FRESH = """
heavy = {"torch", "transformers", "mergekit"}
assert not heavy & set(sys.modules)
"""


FIRST_OF_MERGEKIT = """
from mergekit.merge_methods.base import TensorGroup
answer("first")
"""
FIRST_OF_PLUGIN = """
import dppa_mergekit.methods, mergekit.merge_methods, dppa_mergekit.methods
answer("first")
"""


@pytest.mark.parametrize("interpreter", ["mergekit_first", "plugin_first"])
def test_a_fresh_interpreter_has_every_method_once_and_silently(
    interpreter: str, request: pytest.FixtureRequest
) -> None:
    answer = request.getfixturevalue(interpreter)["first"]
    assert answer.registered == METHODS
    assert answer.said == []


AGAIN = """
forget("mergekit", "dppa_mergekit")
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
answer("again", rounds=rounds)
"""


def test_importing_mergekit_again_keeps_every_method_once(
    mergekit_first: dict[str, Answer],
) -> None:
    answer = mergekit_first["again"]
    assert answer.values["rounds"] == [METHODS] * 8
    assert answer.said == []


ANY_MODULE = """
import pkgutil
import torch, transformers


def modules_of(package, search=pkgutil.iter_modules):
    path = importlib.import_module(package).__path__
    return [module.name for module in search(path, package + ".")]


modules = [
    *modules_of("dppa_mergekit", pkgutil.walk_packages),
    *modules_of("mergekit"),
    *modules_of("mergekit.merge_methods"),
    *modules_of("mergekit.scripts"),
]
loaded = {}
for module in modules:
    forget("mergekit", "dppa_mergekit")
    try:
        importlib.import_module(module)
    except ImportError:
        continue  # needs an extra of mergekit, or is the compiled library
    if "mergekit.merge_methods" in sys.modules:
        loaded[module] = registered()
answer("any", loaded=loaded)
"""


def test_any_module_may_be_the_first_import(mergekit_first: dict[str, Answer]) -> None:
    answer = mergekit_first["any"]
    loaded = answer.values["loaded"]
    assert {module: methods for module, methods in loaded.items() if methods != METHODS} == {}
    assert {
        "dppa_mergekit.merging.delta_pruning_merge",
        "dppa_mergekit.methods",
        "mergekit.merge",
        "mergekit.merge_methods",
        "mergekit.merge_methods.base",
        "mergekit.plan",
        "mergekit.scripts.run_yaml",
    } <= set(loaded)
    assert answer.said == []


THREADS = """
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
answer("threads", rounds=rounds, errors=errors)
"""


def test_threads_may_import_at_the_same_time(plugin_first: dict[str, Answer]) -> None:
    answer = plugin_first["threads"]
    assert answer.values["errors"] == []
    assert answer.values["rounds"] == [METHODS] * 8
    assert answer.said == []


BY_HAND = """
import mergekit.merge_methods
before = registered(), "dppa_mergekit" in sys.modules
import dppa_mergekit.methods
answer("by hand", before=before)
"""


def test_switched_off_it_waits_for_an_import_by_hand(switched_off: dict[str, Answer]) -> None:
    answer = switched_off["by hand"]
    assert answer.values["before"] == [[], False]
    assert answer.registered == METHODS
    assert answer.said == []


TAKEN = """
forget("mergekit", "dppa_mergekit")
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
answer("taken", kept=methods.get("dppa") is theirs)
"""


def test_a_name_that_mergekit_has_stays_with_mergekit(switched_off: dict[str, Answer]) -> None:
    answer = switched_off["taken"]
    assert answer.values["kept"] is True
    assert answer.registered == [name for name in METHODS if name != "dppa"]
    assert len(answer.said) == 1
    assert "dppa " in answer.said[0]


TOOLS = """
forget("mergekit", "dppa_mergekit")
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
    "tools",
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
"""


def test_tools_see_an_ordinary_module_and_ordinary_methods(
    mergekit_first: dict[str, Answer],
) -> None:
    answer = mergekit_first["tools"]
    values = answer.values
    assert (values["early"], answer.registered, answer.said) == ([], METHODS, [])
    assert values["origin"] is True
    assert values["loader"] == "SourceFileLoader"
    assert values["source"] is True
    everyone = dict.fromkeys(["task_arithmetic", *METHODS], True)
    assert values["survival"] == dict.fromkeys(["deepcopy", "pickle", "loader"], everyone)


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


@pytest.fixture(scope="module")
def mergekit_first() -> dict[str, Answer]:
    """An interpreter whose first import is mergekit's."""
    return ask_all(FRESH + FIRST_OF_MERGEKIT + AGAIN + ANY_MODULE + TOOLS)


@pytest.fixture(scope="module")
def plugin_first() -> dict[str, Answer]:
    """An interpreter whose first import is the plugin's."""
    return ask_all(FRESH + FIRST_OF_PLUGIN + THREADS)


@pytest.fixture(scope="module")
def switched_off() -> dict[str, Answer]:
    """An interpreter in which autoload is switched off."""
    return ask_all(FRESH + BY_HAND + TAKEN, autoload="0")
