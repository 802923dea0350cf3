"""README and guides: their blocks run, and print what the pages show."""

import re
from importlib.metadata import metadata
from pathlib import Path
from textwrap import dedent

import pages
import pytest
from packaging.requirements import Requirement

LINES_OF_THE_README = 220
FIRST_LINES = 60

OWN_WORDS = ("choosing_a_method", "evaluating", "tuning")
"""Pages on which other weights change more than numbers: an order, or the number of factors."""


@pytest.mark.long
@pytest.mark.parametrize("path", pages.PAGES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_blocks_of_a_page_print_what_it_shows(
    path: Path, quickstart_models: Path, tmp_path: Path
) -> None:
    pages.prepare(quickstart_models, tmp_path)
    outputs = list(pages.run_page(read(path), tmp_path))
    assert all(output.printed for output in outputs)
    same_models = pages.fingerprint(quickstart_models) == read(pages.FINGERPRINT).strip()
    if not same_models and path.stem in OWN_WORDS:
        pytest.skip("another processor has trained other models, whose scores are not those shown")
    differences = [pages.differ(output, numbers=same_models) for output in outputs]
    assert [found for found in differences if found] == []


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_the_readme_is_short_and_begins_with_its_commands() -> None:
    lines = read(pages.ROOT / "README.md").splitlines()
    assert len(lines) <= LINES_OF_THE_README
    beginning = "\n".join(lines[:FIRST_LINES])
    for command in ("mergekit-yaml recipe.yml", "examples/quickstart.py", "-m pytest"):
        assert command in beginning


def test_links_lead_to_files() -> None:
    linked = [
        (path, target)
        for path in pages.PAGES
        for target in re.findall(r"\]\(([^)#]+)\)", read(path))
        if "://" not in target
    ]
    assert linked
    assert [target for path, target in linked if not (path.parent / target).exists()] == []


def test_every_guide_is_in_both_lists() -> None:
    readme, index = read(pages.ROOT / "README.md"), read(pages.GUIDES.parent / "README.md")
    for guide in pages.GUIDES.glob("*.md"):
        assert f"examples/guides/{guide.name}" in readme
        assert f"guides/{guide.name}" in index


def test_what_is_installed_exists() -> None:
    project = metadata("dppa-mergekit")
    wanted = [
        Requirement(match)
        for path in pages.PAGES
        for block in pages.read_blocks(read(path))
        if block.word == "install"
        for match in re.findall(r"pip install '?(dppa-mergekit[^'\s]*)", block.text)
    ]
    assert wanted
    for requirement in wanted:
        assert requirement.name == project["Name"]
        assert requirement.extras <= set(project.get_all("Provides-Extra"))


def test_benchmarks_exist() -> None:
    scripts = {
        script
        for path in pages.PAGES
        for script in re.findall(r"python\s+((?:tests|examples)/\S+\.py)", read(path))
    }
    assert any(script.startswith("tests/benchmarks/") for script in scripts)
    assert [script for script in scripts if not (pages.ROOT / script).exists()] == []


PAGE = dedent(
    """\
    # Page

    ```yaml
    # a.yml
    number: 3
    ```

    ```sh
    cat a.yml
    ```

    ```text
    # a.yml
    number: 5
    ```

    ```sh fails
    echo no >&2
    echo "Error: 12 is too much." >&2
    exit 3
    ```

    ```text
    Error: 1 is too much.
    ```

    ```python
    for number in range(3):
        print("line", number)
    ```

    ```text
    line 0
    ...
    ```

    ```sh install
    pip install nothing
    ```
    """
)


def run(page: str, folder: Path) -> list[pages.Output]:
    (folder / "quickstart").mkdir(exist_ok=True)
    return list(pages.run_page(page, folder))


def test_outputs_are_compared_but_for_numbers(tmp_path: Path) -> None:
    outputs = run(PAGE, tmp_path)
    assert [output.printed for output in outputs] == [
        "# a.yml\nnumber: 3\n",
        "Error: 12 is too much.\n",
        "line 0\nline 1\nline 2\n",
    ]
    assert [pages.differ(output, numbers=False) for output in outputs] == [None, None, None]
    assert [bool(pages.differ(output, numbers=True)) for output in outputs] == [True, True, False]


def test_seconds_and_gigabytes_may_differ(tmp_path: Path) -> None:
    page = PAGE.replace("number: 3", "took: 3 s, 9.5 GB").replace("number: 5", "took: 12 s, 1 GB")
    outputs = run(page, tmp_path)
    assert pages.differ(outputs[0], numbers=True) is None


@pytest.mark.parametrize(
    ("shown", "instead"),
    [
        ("number: 5", "numbers: 5"),
        ("number: 5\n", "number: 5\nand more\n"),
        ("Error: 1 is too much", "Error: 1 is too little"),
        ("line 0\n...", "...\nlean 2"),
    ],
)
def test_another_output_is_found(tmp_path: Path, shown: str, instead: str) -> None:
    outputs = run(PAGE.replace(shown, instead), tmp_path)
    assert len([output for output in outputs if pages.differ(output, numbers=False)]) == 1


@pytest.mark.parametrize(("old", "new"), [("cat a.yml", "cat b.yml"), ("exit 3", "exit 0")])
def test_a_block_that_ends_otherwise_is_an_error(tmp_path: Path, old: str, new: str) -> None:
    with pytest.raises(pages.PageError, match="The block in line"):
        run(PAGE.replace(old, new), tmp_path)


def test_outputs_are_renewed(tmp_path: Path) -> None:
    page = pages.renew(PAGE, run(PAGE, tmp_path))
    assert "number: 5" not in page
    assert page.count("number: 3") == 2
    assert "Error: 12" in page
    assert "line 0\n..." in page
    assert pages.renew(page, run(page, tmp_path)) == page
