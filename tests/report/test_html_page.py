"""HTML pages: one well-formed file that loads nothing and shows every table."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
from checkpoints import recipe, save_family, write_recipe
from click.testing import CliRunner

from dppa_mergekit.cli.main import main
from dppa_mergekit.report.html_page import Page, Picture, render

VOID = {"meta", "img", "br", "hr"}


class Outline(HTMLParser):
    """The open tags in order, the sources that a page embeds or links, all tags, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(html: str) -> Outline:
    found = Outline()
    found.feed(html)
    found.close()
    assert found.open == []
    assert all(source.startswith("data:image/png;base64,") for source in found.sources)
    assert "script" not in found.tags
    return found


def test_a_page_is_whole_and_escaped(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"png")
    text = "# Title again\n\n## Part\n\n| a | b |\n|---|---:|\n| <b>x</b> | 1 |\n"
    page = Page(
        "A <title>",
        ["It is < that."],
        [Picture(picture, "What it shows"), Picture(tmp_path / "none.png", "Missing")],
        text,
        ["mergekit-dppa", "a b"],
        {"recipe.yml": "x: <y>\n"},
    )
    found = outline(render(page))
    assert found.tags.count("img") == 1
    assert found.tags.count("h1") == 1
    assert "Title again" not in found.text
    for part in ("It is < that.", "<b>x</b>", "x: <y>", "mergekit-dppa 'a b'", "mergekit 0.1.5"):
        assert part in found.text


def test_of_an_analysis(tmp_path: Path) -> None:
    family = save_family(tmp_path)
    path = write_recipe(tmp_path / "recipe.yml", recipe(family))
    done = CliRunner().invoke(main, ["analyze", str(path), f"--output={tmp_path}", "--html"])
    assert done.exit_code == 0, done.output
    found = outline((tmp_path / "analysis.html").read_text(encoding="utf-8"))
    assert found.tags.count("img") == 4
    assert "of the base's weights" in found.text
    assert "The merge: Combine by inputs" in found.text
    assert "model.layers.2.mlp.up_proj.weight" in found.text
    assert "amplify_90: 2.1" in found.text


@pytest.mark.parametrize("missing", ["jinja2", "markdown_it"])
def test_without_the_extra(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dppa_mergekit.report import html_page

    known = html_page.find_spec
    monkeypatch.setattr(
        html_page, "find_spec", lambda name: None if name == missing else known(name)
    )
    path = write_recipe(tmp_path / "recipe.yml", recipe(save_family(tmp_path)))
    done = CliRunner().invoke(main, ["analyze", str(path), f"--output={tmp_path}", "--html"])
    assert done.exit_code == 1
    assert "dppa-mergekit[html]" in done.stderr
    done = CliRunner().invoke(main, ["analyze", str(path), "--html"])
    assert "--html needs --output, the folder for the page" in done.stderr
