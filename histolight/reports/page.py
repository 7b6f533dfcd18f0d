"""Tables and self-contained HTML pages: no JavaScript, no network, readable on a phone and in print.

Whatever comes from data is escaped by the template; pictures are embedded.
"""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jinja2 import Environment, StrictUndefined


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: What a reader looks for.
        detail: What stands, smaller, below or behind it: an interval, a standard deviation.
    """

    text: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.detail}".strip()


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        columns: Headings.
        rows: Cells, as many a row as there are columns.
        words: Number of leading columns that hold words and are aligned left; the others hold figures.
        marked: Whether the first row, and the first column of figures, are emphasised.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: int = 0
    marked: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        data: The file's bytes, PNG or JPEG.
        caption: What it shows, in a sentence; also the text for those who can't see it.
        wide: Whether it takes the page's whole width; on a phone it can then be moved sideways.
    """

    data: bytes
    caption: str
    wide: bool = False

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        kind = "jpeg" if self.data.startswith(b"\xff\xd8") else "png"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Section:
    """One part of a page: heading, then paragraphs, table, notes below it, pictures.

    Attributes:
        heading: Its title.
        paragraphs: Text.
        table: A table, or None.
        notes: Small print below the table.
        pictures: Side by side where there is room.
    """

    heading: str
    paragraphs: Sequence[str] = ()
    table: Table | None = None
    notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()


def render_page(title: str, answer: Sequence[str], sections: Sequence[Section], footer: str) -> str:
    """Render a page.

    Args:
        title: Its title.
        answer: Sentences; the first one, set large, answers what the reader came for.
        sections: The rest.
        footer: Where it comes from.
    """
    return _PAGE.render(title=title, answer=answer, sections=sections, footer=footer)


def select(table: Table, columns: Sequence[int]) -> Table:
    """Keep some columns of a table, all of its leading words among them."""
    rows = [[row[number] for number in columns] for row in table.rows]
    return replace(table, columns=[table.columns[number] for number in columns], rows=rows)


def as_text(table: Table, width: int | None = None) -> str:
    """Lay a table out for a terminal.

    Args:
        table: The table.
        width: Columns are left out from the right, and named below, until the lines fit; None keeps them all.

    >>> print(as_text(Table(["model", "AUROC"], [[Cell("resnet18"), Cell("0.91", "[0.90, 0.92]")]], words=1)))
    model                 AUROC
    resnet18  0.91 [0.90, 0.92]
    """
    columns = [[heading, *(str(row[number]) for row in table.rows)] for number, heading in enumerate(table.columns)]
    widths = [max(map(len, column)) for column in columns]
    shown = len(columns)
    while width is not None and shown > table.words + 1 and sum(widths[:shown]) + 2 * (shown - 1) > width:
        shown -= 1
    lines = []
    for row in zip(*columns[:shown], strict=True):
        cells = [
            text.ljust(size) if number < table.words else text.rjust(size)
            for number, (text, size) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join(cells).rstrip())
    if shown < len(columns):
        lines.append("")
        lines += textwrap.wrap(f"too wide to show here: {', '.join(table.columns[shown:])}", width or 80)
    return "\n".join(lines)


def as_markdown(table: Table) -> str:
    r"""Write a table in Markdown.

    >>> print(as_markdown(Table(["model", "AUROC"], [[Cell("a|b"), Cell("0.91")]], words=1)))
    | model | AUROC |
    |:---|---:|
    | a\|b | 0.91 |
    """
    ruler = [":---" if number < table.words else "---:" for number in range(len(table.columns))]
    lines = [" | ".join(map(_markdown, table.columns)), "|".join(ruler)]
    lines += [" | ".join(_markdown(str(cell)) for cell in row) for row in table.rows]
    return "\n".join(f"|{line}|" if number == 1 else f"| {line} |" for number, line in enumerate(lines))


def _markdown(text: str) -> str:
    for character in "\\|<*_`":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


_CSS = """\
:root { --accent: #8a2b6e; --ink: #1f2933; --quiet: #5b6672; --line: #dfe3e8; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 76rem; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header { border-top: 4px solid var(--accent); padding-top: 1.2rem; margin-bottom: 2.5rem; max-width: 52rem; }
h1 { margin: 0 0 .7rem; font-size: .95rem; font-weight: 600; letter-spacing: .02em; color: var(--accent);
  overflow-wrap: anywhere; }
h2 { margin: 2.8rem 0 .8rem; font-size: 1.25rem; line-height: 1.3; }
p { margin: 0 0 .8rem; max-width: 52rem; overflow-wrap: anywhere; }
header p:first-of-type { font-size: 1.55rem; line-height: 1.32; font-weight: 600; margin-bottom: 1rem; }
table { width: 100%; border-collapse: collapse; font-size: .82rem; line-height: 1.35;
  font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .4rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
th { vertical-align: bottom; font-weight: 600; color: var(--quiet); border-bottom: 2px solid var(--ink); }
th.word, td.word { text-align: left; overflow-wrap: break-word; }
td:not(.word) { white-space: nowrap; }
td:first-child:nth-last-child(2) { width: 14rem; color: var(--quiet); }
td small { display: block; color: var(--quiet); font-size: .85em; font-weight: 400; }
tr.marked td { background: #faf3f8; }
table.marked td.lead { font-weight: 600; }
tr.marked td.lead { color: var(--accent); font-weight: 700; }
.notes { margin-top: .9rem; font-size: .85rem; color: var(--quiet); }
.notes p { margin-bottom: .35rem; }
.pictures { margin-top: 2rem; columns: 2 26rem; column-gap: 2.5rem; }
figure { margin: 0 0 2rem; break-inside: avoid; }
img { display: block; width: 100%; max-width: 36rem; height: auto; }
figure.wide { column-span: all; overflow-x: auto; }
figure.wide img { max-width: 62rem; }
figcaption { margin-top: .5rem; font-size: .85rem; color: var(--quiet); max-width: 36rem; overflow-wrap: anywhere; }
footer { margin-top: 3rem; padding-top: .8rem; border-top: 1px solid var(--line); font-size: .8rem;
  color: var(--quiet); overflow-wrap: anywhere; }
@media screen and (max-width: 60rem) {
  body { padding: 1.2rem 1rem 3rem; }
  header p:first-of-type { font-size: 1.25rem; }
  thead { display: none; }
  table, tbody { display: block; }
  tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .1rem .8rem;
    padding: .8rem .6rem; border-bottom: 1px solid var(--line); }
  tr.marked { background: #faf3f8; border-left: 3px solid var(--accent); }
  td, td:not(.word) { text-align: left; border: 0; padding: .15rem 0; white-space: normal; overflow-wrap: anywhere; }
  td::before { content: attr(data-label); display: block; font-size: .72rem; color: var(--quiet); }
  td:not(.word) small { display: inline; }
  td:first-child:has(+ td:not(.word)), td:nth-child(2):last-child { grid-column: 1 / -1; width: auto; }
  td:first-child:has(+ td:not(.word)) { font-weight: 600; }
  td:empty { display: none; }
  figure.wide img { width: auto; min-width: 44rem; }
  figure.wide figcaption { position: sticky; left: 0; }
}
@media print {
  @page { size: A4 landscape; margin: 12mm; }
  body { padding: 0; max-width: none; font-size: 10pt; }
  table { font-size: 7.5pt; }
  th, td { padding: 1.2mm .8mm; }
  thead { display: table-header-group; }
  tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  tr.marked td { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

_TEMPLATE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
{{ css|safe }}</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
{%- for sentence in answer %}
<p>{{ sentence }}</p>
{%- endfor %}
</header>
<main>
{%- for section in sections %}
<section>
<h2>{{ section.heading }}</h2>
{%- for paragraph in section.paragraphs %}
<p>{{ paragraph }}</p>
{%- endfor %}
{%- if section.table %}
{%- set table = section.table %}
<table{% if table.marked %} class="marked"{% endif %}>
{%- if table.columns|select|list %}
<thead><tr>
{%- for column in table.columns %}<th{% if loop.index0 < table.words %} class="word"{% endif %}>{{ column }}</th>
{%- endfor %}</tr></thead>
{%- endif %}
<tbody>
{%- for row in table.rows %}
<tr{% if loop.first and table.marked %} class="marked"{% endif %}>
{%- for cell in row -%}
<td class="{% if loop.index0 < table.words %}word{% endif %}{% if loop.index0 == table.words %} lead{% endif %}"
 data-label="{{ table.columns[loop.index0] }}">{{ cell.text }}
{%- if cell.detail %} <small>{{ cell.detail }}</small>{% endif %}</td>
{%- endfor %}</tr>
{%- endfor %}
</tbody>
</table>
{%- endif %}
{%- if section.notes %}
<div class="notes">
{%- for note in section.notes %}
<p>{{ note }}</p>
{%- endfor %}
</div>
{%- endif %}
{%- if section.pictures %}
<div class="pictures">
{%- for picture in section.pictures %}
<figure{% if picture.wide %} class="wide"{% endif %}><img src="{{ picture.source }}" alt="{{ picture.caption }}">
<figcaption>{{ picture.caption }}</figcaption></figure>
{%- endfor %}
</div>
{%- endif %}
</section>
{%- endfor %}
</main>
<footer>{{ footer }}</footer>
</body>
</html>
"""

_ENVIRONMENT = Environment(autoescape=True, undefined=StrictUndefined)
_ENVIRONMENT.globals["css"] = _CSS
_PAGE = _ENVIRONMENT.from_string(_TEMPLATE)
