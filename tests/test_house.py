"""The house rules: short files, short functions, few modules at the top of the package."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUFFIXES = (".py", ".c", ".h")
LINES_OF_A_FILE = 400
LINES_OF_A_FUNCTION = 80
MODULES_AT_THE_TOP = 9


def sources() -> list[Path]:
    return [
        path
        for folder in ("dppa_mergekit", "examples", "tests")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in SUFFIXES
    ]


def long_functions(text: str) -> Iterator[tuple[str, int]]:
    """Yield the name and the number of lines of every function that is too long.

    A function begins with its `def` line, and a function within it counts as a part of it.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if lines > LINES_OF_A_FUNCTION:
                yield node.name, lines


def lines_of(text: str) -> int:
    return len(text.splitlines())


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_file_is_long() -> None:
    found = {relative(path): lines_of(path.read_text(encoding="utf-8")) for path in sources()}
    assert {"dppa_mergekit/__init__.py", "tests/test_house.py"} <= set(found)
    assert {path for path in found if path.startswith("examples/")}
    assert {path: lines for path, lines in found.items() if lines > LINES_OF_A_FILE} == {}


def test_no_function_is_long() -> None:
    texts = {path: path.read_text("utf-8") for path in sources() if path.suffix == ".py"}
    found = {
        f"{relative(path)}: {name}": lines
        for path, text in texts.items()
        for name, lines in long_functions(text)
    }
    assert found == {}


def test_few_modules_stand_at_the_top() -> None:
    package = ROOT / "dppa_mergekit"
    modules = {path.stem for path in package.glob("*.py")}
    assert {"__init__", "errors"} <= modules
    assert len(modules) <= MODULES_AT_THE_TOP, sorted(modules)


@pytest.mark.parametrize("head", ["def long", "async def long", "class A:\n  def long"])
@pytest.mark.parametrize(("lines", "found"), [(80, []), (81, [("long", 81)])])
def test_a_long_function_would_be_found(
    head: str, lines: int, found: list[tuple[str, int]]
) -> None:
    body = "    x = 1\n" * (lines - 1)
    text = f"import a\n\n\n@a.decorator\n{head}():\n{body}"
    assert list(long_functions(text)) == found


def test_a_long_file_would_be_found() -> None:
    assert lines_of("x = 1\n" * LINES_OF_A_FILE) == LINES_OF_A_FILE
    assert lines_of("x = 1\n" * LINES_OF_A_FILE + "y = 2") == LINES_OF_A_FILE + 1
