"""One HTML file with all that a command found: verdict, pictures, tables, how to reproduce it.

Nothing is loaded from elsewhere: pictures are embedded, and there are no scripts.
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

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ page.title }}</title>
<style>
:root { color-scheme: light dark; --text: #1b1f24; --back: #ffffff; --soft: #f3f5f7;
  --line: #cfd6dd; --mark: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ec; --back: #15181c; --soft: #20252b; --line: #3a424b; --mark: #56b4e9; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1rem; color: var(--text);
  background: var(--back); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.25rem; margin-top: 2rem; }
.verdict { border-left: 0.3rem solid var(--mark); background: var(--soft);
  padding: 0.5rem 1rem; }
figure { margin: 1.5rem 0; }
figure img { display: block; max-width: 100%; background: #ffffff;
  border: 1px solid var(--line); border-radius: 0.4rem; padding: 0.5rem; }
figcaption { margin-top: 0.4rem; }
.wide { overflow-x: auto; }
/* On a phone, side by side panels are scrolled rather than shrunk until nobody can read them. */
figure .broad { min-width: 46rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem;
  overflow-wrap: normal; }
th, td { border-bottom: 1px solid var(--line); padding: 0.25rem 0.7rem; white-space: nowrap; }
th { text-align: left; }
pre { background: var(--soft); padding: 0.8rem; overflow-x: auto; overflow-wrap: normal;
  border-radius: 0.4rem; font-size: 0.85rem; }
</style>
</head>
<body>
<h1>{{ page.title }}</h1>
<div class="verdict">
{% for sentence in page.verdict %}<p>{{ sentence }}</p>
{% endfor %}</div>
{% for picture in pictures %}<figure>
<div class="wide"><img{% if picture.is_broad %} class="broad"{% endif %} alt="{{ picture.caption }}"
src="data:image/png;base64,{{ picture.data }}"></div>
<figcaption>{{ picture.caption }}</figcaption>
</figure>
{% endfor %}{{ tables }}
<h2>How to reproduce this</h2>
<pre>{{ command }}</pre>
<p>{{ versions }}</p>
{% for name, text in page.files.items() %}<p>{{ name }}:</p>
<pre>{{ text }}</pre>
{% endfor %}</body>
</html>
"""


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        path: Of its PNG; left out if there is none.
        caption: What it shows, in a sentence.
    """

    path: Path
    caption: str


@dataclass(frozen=True)
class Page:
    """What a page says.

    Attributes:
        title: Its heading.
        verdict: Sentences, first of all.
        pictures: In order.
        text: Tables, in Markdown; the heading that it may begin with is left out.
        command: The arguments that made it, the program's name first.
        files: Name -> text of what the command was given.
    """

    title: str
    verdict: Sequence[str]
    pictures: Sequence[Picture]
    text: str
    command: Sequence[str]
    files: dict[str, str]


def check_installed() -> None:
    """Raise ParameterError where the extra is missing."""
    missing = [name for name in ("jinja2", "markdown_it") if find_spec(name) is None]
    if missing:
        raise ParameterError(
            f"--html needs {' and '.join(missing)}: pip install 'dppa-mergekit[html]'."
        )


def _is_broad(png: bytes) -> bool:
    """Whether a picture is much wider than high, by its header."""
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
    return width > BROAD * height


BROAD = 1.6
"""From so many times its height on, a picture is of several panels."""


def render(page: Page) -> str:
    """The HTML."""
    from jinja2 import Environment
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    first, _, rest = page.text.partition("\n")
    text = rest if first.startswith("# ") else page.text
    tables = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    for level in (2, 1):
        tables = tables.replace(f"<h{level}>", f"<h{level + 1}>")
        tables = tables.replace(f"</h{level}>", f"</h{level + 1}>")
    tables = tables.replace("<table>", '<div class="wide"><table>')
    tables = tables.replace("</table>", "</table></div>")
    found = [(each.caption, each.path.read_bytes()) for each in page.pictures if each.path.exists()]
    pictures = [
        {
            "caption": caption,
            "data": base64.b64encode(png).decode("ascii"),
            "is_broad": _is_broad(png),
        }
        for caption, png in found
    ]
    return (
        Environment(autoescape=True)
        .from_string(TEMPLATE)
        .render(
            page=page,
            pictures=pictures,
            # Of our own Markdown, in which HTML is escaped.
            tables=Markup(tables),
            command=shlex.join(page.command),
            versions=", ".join(f"{name} {version}" for name, version in versions().items()),
        )
        + "\n"
    )
