"""Tables and self-contained HTML pages: no JavaScript, no network, readable on a phone and in print.

Whatever comes from data is escaped by the template; pictures are embedded.
"""

from __future__ import annotations

import base64
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jinja2 import Environment, PackageLoader, StrictUndefined

from histolight.errors import one_line

# page.html, with page.css in it, lies beside this file. The loader reads both once a process.
_TEMPLATES = Environment(
    loader=PackageLoader("histolight.reports", ""),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


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
        marked: Number of leading rows that are emphasised, with the first column of figures.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: int = 0
    marked: int = 0


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
    return _TEMPLATES.get_template("page.html").render(title=title, answer=answer, sections=sections, footer=footer)


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
    columns = [
        [one_line(heading), *(one_line(str(row[number])) for row in table.rows)]
        for number, heading in enumerate(table.columns)
    ]
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
    lines = [" | ".join(map(escape_markdown, table.columns)), "|".join(ruler)]
    lines += [" | ".join(escape_markdown(str(cell)) for cell in row) for row in table.rows]
    return "\n".join(f"|{line}|" if number == 1 else f"| {line} |" for number, line in enumerate(lines))


def escape_markdown(text: str) -> str:
    r"""Write any text as Markdown that shows it, in one line.

    >>> print(escape_markdown("[a](b) $x$"))
    \[a\](b) \$x\$
    """
    return " ".join(re.sub(r"([\\|<>&*_`~$#\[\]])", r"\\\1", text).split())
