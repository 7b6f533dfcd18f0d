"""Write the tables of measurements in docs/ from the CSV files beside this script.

    python benchmarks/tables.py            writes them
    python benchmarks/tables.py --check    writes nothing; exits with 1 where a page differs from its CSV

A table in a page stands between two comments. The first names the CSV file and has one line for each column, the
heading and a template over the CSV's columns; below the table come date, machine and commit, which every CSV has::

    <!-- table compare.csv
    runs = {runs}
    wall s [range] = {seconds} [{low}, {high}]
    -->
    (written by this script)
    <!-- end of table -->

The scripts that measure print such a file: ``python benchmarks/compare.py > benchmarks/compare.csv``.

Whole numbers take formats, ``{tiles:,}``; other values stand as they were recorded. An interval without ends is left
out.
"""

from __future__ import annotations

import csv
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
PROVENANCE = ("date", "machine", "commit")
TABLE = re.compile(r"(<!-- table (\S+\.csv)\n(.*?)\n-->\n).*?(?=<!-- end of table -->)", re.DOTALL)


def csv_printer(*fields: str, file: TextIO | None = None, machine: str | None = None) -> Callable[..., None]:
    """Print the heading of a CSV file of measurements, and return what prints a row, with date, machine and commit.

    Args:
        fields: The columns before these.
        file: Open for appending; one that has rows already gets no heading. Standard output unless given.
        machine: In words; the processor unless given.
    """
    target = sys.stdout if file is None else file
    writer = csv.writer(target, lineterminator="\n")
    if file is None or not file.seekable() or file.seek(0, os.SEEK_END) == 0:
        writer.writerow([*fields, *PROVENANCE])
        target.flush()
    machine = machine or f"{os.cpu_count()} cores, {_processor()}, {platform.system()}"
    where = (date.today().isoformat(), machine, _commit())

    def print_row(*values: object) -> None:
        writer.writerow([*values, *where])
        target.flush()

    return print_row


def _commit() -> str:
    """Return the commit of this checkout, or what ``COMMIT`` says of a copy without git."""
    if given := os.environ.get("COMMIT"):
        return given
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


class Recorded(str):
    """A value that stands as it was recorded, whatever the template's format; empty where nothing was measured."""

    def __format__(self, spec: str) -> str:
        return str(self)


def read_results(path: Path) -> list[dict[str, int | Recorded]]:
    """Read a CSV file of measurements.

    Raises:
        ValueError: A row lacks its date, machine or commit.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, start=2):
        if not all(row.get(name) for name in PROVENANCE):
            raise ValueError(f"{path}, line {number}: fill in {', '.join(PROVENANCE)}")
    return [{name: _value(text) for name, text in row.items()} for row in rows]


def _value(text: str) -> int | Recorded:
    return int(text) if re.fullmatch(r"-?(0|[1-9]\d*)", text) else Recorded(text)


def markdown_table(rows: list[dict[str, int | Recorded]], columns: Iterable[tuple[str, str]]) -> str:
    """Lay rows out in Markdown; columns of nothing but numbers are aligned right.

    Args:
        rows: From :func:`read_results`.
        columns: Heading and template of each column.
    """
    headings, templates = zip(*columns, strict=True)
    cells = [[template.format(**row).replace(" [, ]", "").strip() for template in templates] for row in rows]
    numeric = [all(re.fullmatch(r"([-+<≥]? ?\d.*)?", text) for text in column) for column in zip(*cells, strict=True)]
    lines = [headings, *cells]
    text = [f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines]
    text.insert(1, f"|{'|'.join('---:' if right else ':---' for right in numeric)}|")
    return "\n".join(text)


def provenance(rows: list[dict[str, int | Recorded]], path: Path, page: Path) -> str:
    """Say when, where and at which commit something was measured, with a link to the data."""
    dates, machines, commits = (" and ".join(dict.fromkeys(str(row[name]) for row in rows)) for name in PROVENANCE)
    link = os.path.relpath(path, page.parent)
    return f"<sub>{dates}; {machines}; commit {commits}; data: [{path.name}]({link})</sub>"


def write_tables(page: Path, folder: Path) -> str:
    """Return the text of a page with its tables written anew.

    Args:
        page: A Markdown file.
        folder: Where the CSV files lie.
    """

    def fill(match: re.Match[str]) -> str:
        opening, name, lines = match.groups()
        rows = read_results(folder / name)
        columns = [tuple(line.split(" = ", 1)) for line in lines.splitlines()]
        return f"{opening}{markdown_table(rows, columns)}\n\n{provenance(rows, folder / name, page)}\n"

    return TABLE.sub(fill, page.read_text(encoding="utf-8"))


def main(check: bool) -> int:
    changed = 0
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = write_tables(page, ROOT / "benchmarks")
        if text != page.read_text(encoding="utf-8"):
            changed += 1
            print(f"{page.relative_to(ROOT)} {'differs from its CSV files' if check else 'written'}")
            if not check:
                page.write_text(text, encoding="utf-8")
    return int(check and changed > 0)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
