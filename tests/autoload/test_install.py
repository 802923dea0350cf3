"""The plugin as users install it: four ways, each in a fresh environment that has mergekit."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from checkpoints import recipe, save_family, tensors_of, write_recipe

PROJECT = Path(__file__).parents[2]
AUTOLOAD = PROJECT / "dppa_mergekit" / "autoload"
COMPILE = PROJECT / "dppa_mergekit" / "deltas" / "kernel" / "compile.py"
COMPILER = shutil.which("cc") is not None
UV = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
METHODS = "dare_dpa dare_regmean dp dppa dppa_regmean dppa_ties owl"

# With hatchling and editables at hand a build needs no network.
BUILD = ["--no-deps"]
if find_spec("hatchling") and find_spec("editables"):
    BUILD.append("--no-build-isolation")

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
needs_pip = pytest.mark.skipif(find_spec("pip") is None, reason="pip is not installed")
needs_uv = pytest.mark.skipif(UV is None, reason="uv is not installed")

SHOW_METHODS = """
import mergekit.merge_methods as m
print(*sorted(x.spec.name for x in m.registered_methods() if "dppa" in type(x).__module__))
"""
SHOW_COMPILED = """
import torch
from dppa_mergekit.deltas.delta import Delta
from dppa_mergekit.deltas.kernel import passes_over
print(passes_over(Delta(torch.zeros(1), torch.zeros(1))) is not None)
"""


def run(
    command: Sequence[object], folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, as a user without settings of their own for Python."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name != "DPPA_MERGEKIT_AUTOLOAD" and not name.startswith("PYTHON")
    }
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**inherited, **environment},
        cwd=folder,
        timeout=170,
        check=False,
    )


def checked(command: Sequence[object], folder: Path, **environment: str) -> str:
    """As run, for commands that succeed: returns what they printed."""
    done = run(command, folder, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Environment:
    """A virtual environment that sees every package of this interpreter but the plugin."""

    folder: Path

    @property
    def interpreter(self) -> Path:
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def packages(self) -> Path:
        (found,) = self.folder.glob("**/site-packages")
        return found

    def python(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run the environment's interpreter, away from the checkout."""
        return run([self.interpreter, *arguments], self.folder)

    def pip(self, *arguments: object) -> str:
        """Run pip for this environment, from the checkout."""
        return checked([*PIP, "--python", self.interpreter, *arguments], PROJECT)

    def uv(self, command: str, *arguments: object) -> str:
        """Run uv pip for this environment, from the checkout."""
        options = ["--python", self.interpreter, "--no-cache"]
        return checked([UV, "pip", command, *options, *arguments], PROJECT)

    def plugin_files(self) -> set[str]:
        """All that lies in the environment with the plugin's name."""
        return {path.name for path in self.packages.iterdir() if "dppa_mergekit" in path.name}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to the packages of this interpreter, without the plugin."""
    folder = tmp_path_factory.mktemp("others")
    for place in map(Path, sys.path):
        if place.name not in ("site-packages", "dist-packages") or not place.is_dir():
            continue
        for package in place.iterdir():
            link = folder / package.name
            if "dppa_mergekit" not in package.name and not os.path.lexists(link):
                link.symlink_to(package)
    return folder


def new_environment(folder: Path, others: Path) -> Environment:
    checked([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    environment = Environment(folder)
    (environment.packages / "others.pth").write_text(f"{others}\n", encoding="utf-8")
    return environment


@pytest.fixture
def environment(tmp_path: Path, others: Path) -> Environment:
    return new_environment(tmp_path / "environment", others)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("pip") is None:
        pytest.skip("pip is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    checked([*PIP, "wheel", *BUILD, "--wheel-dir", folder, "."], PROJECT)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, others: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel; tests leave it as it is."""
    environment = new_environment(tmp_path_factory.mktemp("installed") / "environment", others)
    environment.pip("install", "--no-deps", wheel)
    return environment


def test_the_wheel_holds_the_package_and_the_autoload_files_at_its_root(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        content = {name: packed.read(name) for name in packed.namelist()}
    metadata = next(name.split("/")[0] for name in content if name.endswith("/METADATA"))
    inside = {name for name in content if not name.startswith(metadata)}

    sources = {
        path.relative_to(PROJECT).as_posix()
        for path in (PROJECT / "dppa_mergekit").rglob("*.py")
        if AUTOLOAD not in path.parents and path != COMPILE
    }
    compiled = {"dppa_mergekit/deltas/kernel/passes.so"} if COMPILER else set()
    assert inside == sources | compiled | {
        "dppa_mergekit/deltas/kernel/passes.c",
        "dppa_mergekit/deltas/kernel/passes_of_dtype.h",
        "dppa_mergekit/py.typed",
        "dppa_mergekit/report/page.html.jinja",
        "dppa_mergekit.pth",
        "dppa_mergekit_autoload.py",
    }
    for name in ("dppa_mergekit.pth", "dppa_mergekit_autoload.py"):
        assert content[name] == (AUTOLOAD / name).read_bytes()
    # One line that Python runs: a second one would be taken for a path.
    assert len(content["dppa_mergekit.pth"].decode("ascii").splitlines()) == 1
    assert b"[mergekit.merge_methods]" in content[f"{metadata}/entry_points.txt"]
    assert f"{metadata}/licenses/LICENSE" in content
    assert (b"Tag: py3-none-any" in content[f"{metadata}/WHEEL"]) is not COMPILER


@pytest.mark.parametrize(
    ("tool", "target"),
    [
        pytest.param("pip", ["."], marks=needs_pip, id="pip"),
        pytest.param("pip", ["-e", "."], marks=needs_pip, id="pip-editable"),
        pytest.param("uv", ["."], marks=needs_uv, id="uv"),
        pytest.param("uv", ["-e", "."], marks=needs_uv, id="uv-editable"),
    ],
)
def test_an_install_is_all_it_takes_and_an_uninstall_leaves_nothing(
    tool: str, target: Sequence[str], environment: Environment
) -> None:
    before = environment.python("-c", "import dppa_mergekit")
    assert "No module named 'dppa_mergekit'" in before.stderr

    install = environment.pip if tool == "pip" else environment.uv
    install("install", *BUILD, *target)
    assert {"dppa_mergekit.pth", "dppa_mergekit_autoload.py"} <= environment.plugin_files()
    assert ("dppa_mergekit" in environment.plugin_files()) is (target == ["."])
    shown = environment.python("-c", SHOW_METHODS + SHOW_COMPILED)
    assert (shown.stdout.splitlines(), shown.stderr) == ([METHODS, str(COMPILER)], "")

    if tool == "pip":
        environment.pip("uninstall", "--yes", "dppa-mergekit")
    else:
        environment.uv("uninstall", "dppa-mergekit")
    assert environment.plugin_files() == set()
    after = environment.python("-c", "import sys; print(sys.meta_path)")
    assert after.returncode == 0
    assert after.stderr == ""
    assert "dppa_mergekit" not in after.stdout


@needs_pip
@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_the_package_is_complete(
    compiler: str, environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    checked([*PIP, "wheel", *BUILD, "--wheel-dir", tmp_path / "wheel", "."], PROJECT)
    (built,) = (tmp_path / "wheel").iterdir()
    assert built.name.endswith("-py3-none-any.whl")
    environment.pip("install", "--no-deps", built)
    shown = environment.python("-c", SHOW_METHODS + SHOW_COMPILED)
    assert shown.stdout.splitlines() == [METHODS, "False"], shown.stderr


@needs_pip
def test_a_wheel_may_replace_an_editable_install(wheel: Path, environment: Environment) -> None:
    environment.pip("install", *BUILD, "-e", ".")
    environment.pip("install", "--no-deps", "--force-reinstall", wheel)
    names = {name for name in environment.plugin_files() if not name.endswith(".dist-info")}
    assert names == {"dppa_mergekit", "dppa_mergekit.pth", "dppa_mergekit_autoload.py"}
    where = environment.python("-c", "import dppa_mergekit; print(dppa_mergekit.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(environment.packages)


@pytest.mark.skipif(find_spec("hatchling") is None, reason="hatchling is not installed")
def test_a_wheel_built_from_the_source_archive_holds_the_same(wheel: Path, tmp_path: Path) -> None:
    build = "import sys; from hatchling.build import build_sdist; build_sdist(sys.argv[1])"
    checked([sys.executable, "-c", build, tmp_path], PROJECT)
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    again = f"import sys; from hatchling.build import build_wheel; build_wheel({str(tmp_path)!r})"
    checked([sys.executable, "-c", again], source)
    (rebuilt,) = tmp_path.glob("*.whl")

    first, second = zipfile.ZipFile(wheel), zipfile.ZipFile(rebuilt)
    assert sorted(second.namelist()) == sorted(first.namelist())
    for name in ("dppa_mergekit.pth", "dppa_mergekit_autoload.py"):
        assert second.read(name) == first.read(name)


def imported(environment: Environment, *options: str) -> set[str]:
    """The modules that a bare start imports."""
    done = environment.python(*options, "-X", "importtime", "-c", "pass")
    assert done.returncode == 0, done.stderr
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()[1:]}


def test_a_bare_start_imports_the_stub_alone(
    installed: Environment, environment: Environment
) -> None:
    assert imported(installed) - imported(environment) == {"dppa_mergekit_autoload"}


def test_isolated_and_without_site(installed: Environment) -> None:
    isolated = installed.python("-I", "-c", SHOW_METHODS)
    assert (isolated.stdout.strip(), isolated.stderr) == (METHODS, "")

    bare = installed.python(
        "-S", "-c", "import sys; print('dppa_mergekit_autoload' in sys.modules)"
    )
    assert (bare.returncode, bare.stdout.strip(), bare.stderr) == (0, "False", "")


def test_a_lost_stub_is_a_line_on_stderr_and_not_an_error(
    wheel: Path, environment: Environment
) -> None:
    environment.pip("install", "--no-deps", wheel)
    (environment.packages / "dppa_mergekit_autoload.py").unlink()
    shutil.rmtree(environment.packages / "__pycache__", ignore_errors=True)
    done = environment.python("-c", "print('fine')")
    assert (done.returncode, done.stdout) == (0, "fine\n")
    # Python reads the .pth files of a virtual environment twice.
    assert set(done.stderr.splitlines()) == {
        "dppa-mergekit: autoload failed: No module named 'dppa_mergekit_autoload'"
    }


def test_processes_that_a_program_starts_have_the_methods(
    installed: Environment, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        """
import multiprocessing
import sys


def child(queue):
    early = "mergekit.merge_methods" in sys.modules
    import mergekit.merge_methods as m

    queue.put((multiprocessing.get_start_method(), early, m.get("dppa").spec.name))


if __name__ == "__main__":
    for method in sorted({"fork", "spawn"} & set(multiprocessing.get_all_start_methods())):
        multiprocessing.set_start_method(method, force=True)
        queue = multiprocessing.Queue()
        process = multiprocessing.Process(target=child, args=[queue])
        process.start()
        print(*queue.get(timeout=120))
        process.join()
""",
        encoding="utf-8",
    )
    done = installed.python(program)
    assert done.returncode == 0, done.stderr
    expected = ["fork False dppa"] if hasattr(os, "fork") else []
    assert done.stdout.splitlines() == [*expected, "spawn False dppa"]


def test_the_stock_command_merges(installed: Environment, tmp_path: Path) -> None:
    files = importlib.metadata.files("mergekit") or []
    command = next(file.locate() for file in files if file.stem == "mergekit-yaml")
    family = save_family(tmp_path / "family")
    config = write_recipe(tmp_path / "recipe.yml", recipe(family))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # The command as it stands, under the interpreter of the environment.
    done = run([installed.interpreter, command, config, "merged"], elsewhere)
    assert done.returncode == 0, done.stderr
    assert "RuntimeWarning" not in done.stderr
    merged, base = tensors_of(elsewhere / "merged"), tensors_of(family / "base")
    assert merged.keys() == base.keys()
    changed = "model.layers.1.mlp.up_proj.weight"
    assert not merged[changed].equal(base[changed])
