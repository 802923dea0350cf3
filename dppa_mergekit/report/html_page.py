"""An HTML page of a command's results: verdict, pictures, tables, and how to reproduce them.

The page is one file that loads nothing: pictures are embedded, and there are no scripts. Its
template is `page.html.jinja`.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dppa_mergekit.errors import ParameterError
from dppa_mergekit.storage.run_record import versions

BROAD = 1.6
"""Minimum aspect ratio of a multi-panel figure."""


@dataclass(frozen=True)
class Picture:
    """A picture of a page.

    Attributes:
        path: The PNG file; without it, the picture is left out.
        caption: One sentence on what the picture shows.
    """

    path: Path
    caption: str


@dataclass(frozen=True)
class Page:
    """The content of a page.

    Attributes:
        title: The heading.
        verdict: Sentences at the top.
        pictures: Pictures, in order.
        text: Tables, in Markdown. A first line that is a heading is left out.
        command: The command line that produced the results, beginning with the program's name.
        files: Name -> text of the input files.
    """

    title: str
    verdict: Sequence[str]
    pictures: Sequence[Picture]
    text: str
    command: Sequence[str]
    files: dict[str, str]


def check_installed() -> None:
    """Raise ParameterError if the extra `html` is not installed."""
    missing = [name for name in ("jinja2", "markdown_it") if find_spec(name) is None]
    if missing:
        raise ParameterError(
            f"--html needs {' and '.join(missing)}: pip install 'dppa-mergekit[html]'."
        )


def render(page: Page) -> str:
    """Return the page as HTML."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, keep_trailing_newline=True
    )
    return environment.get_template("page.html.jinja").render(
        page=page,
        pictures=[_embed(picture) for picture in page.pictures if picture.path.exists()],
        # This HTML needs no escaping: it is made from Markdown in which HTML is escaped.
        tables=Markup(_tables(page.text)),
        command=shlex.join(page.command),
        versions=", ".join(f"{name} {version}" for name, version in versions().items()),
    )


def _tables(text: str) -> str:
    """Convert Markdown to HTML with headings one level lower and tables that scroll."""
    from markdown_it import MarkdownIt

    first, _, rest = text.partition("\n")
    markdown = rest if first.startswith("# ") else text
    html: str = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    for level in (2, 1):
        html = html.replace(f"<h{level}>", f"<h{level + 1}>")
        html = html.replace(f"</h{level}>", f"</h{level + 1}>")
    html = html.replace("<table>", '<div class="wide"><table>')
    return html.replace("</table>", "</table></div>")


def _embed(picture: Picture) -> dict[str, object]:
    """Return what the template needs of a picture."""
    png = picture.path.read_bytes()
    return {
        "caption": picture.caption,
        "data": base64.b64encode(png).decode("ascii"),
        "is_broad": _is_broad(png),
    }


def _is_broad(png: bytes) -> bool:
    """Return whether a picture has several panels, judged by the size in its header."""
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
    return width > BROAD * height
