"""Figures in docs/ are those of benchmarks/*.csv."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from benchmark_scripts import BENCHMARKS, load_benchmark

ROOT = Path(__file__).resolve().parents[1]
tables = load_benchmark("tables")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CSV = """\
setting,tiles,seconds,low,high,date,machine,commit
`a`,220025,0.950,0.9,1.0,2026-11-24,2 cores,1234567
b,-3,,,,2026-11-25,2 cores,abc1234
"""
PAGE = """\
Before.

<!-- table x.csv
setting = {setting}
tiles = {tiles:+,}
seconds = {seconds:,} [{low}, {high}]
-->
<!-- end of table -->
After.
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "x.csv").write_text(CSV)
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_agree_with_the_measurements(page: Path) -> None:
    hint = f"{page.name} differs from benchmarks/*.csv: run python benchmarks/tables.py"
    assert tables.write_tables(page, BENCHMARKS) == page.read_text(encoding="utf-8"), hint


def test_every_measurement_has_its_provenance_and_is_in_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    files = sorted(BENCHMARKS.glob("*.csv"))
    assert files
    for path in files:
        assert tables.read_results(path)
        assert f"](../benchmarks/{path.name})" in text, f"{path.name} stands in no page"


def test_a_table_has_its_numbers_as_recorded_and_says_where_they_come_from(page: Path) -> None:
    text = tables.write_tables(page, page.parent)
    assert text.split("-->\n")[1].splitlines()[:6] == [
        "| setting | tiles | seconds |",
        "|:---|---:|---:|",
        "| `a` | +220,025 | 0.950 [0.9, 1.0] |",
        "| b | -3 | |",
        "",
        "<sub>2026-11-24 and 2026-11-25; 2 cores; commit 1234567 and abc1234; data: [x.csv](x.csv)</sub>",
    ]
    page.write_text(text)
    assert tables.write_tables(page, page.parent) == text  # written once, nothing changes


def test_a_changed_measurement_or_a_changed_page_is_noticed(page: Path) -> None:
    page.write_text(tables.write_tables(page, page.parent))
    written = page.read_text()
    page.write_text(written.replace("0.950", "0.951"))
    assert tables.write_tables(page, page.parent) == written
    (page.parent / "x.csv").write_text(CSV.replace("0.950", "0.940"))
    assert "| 0.940 [0.9, 1.0] |" in tables.write_tables(page, page.parent)


def test_a_measurement_without_its_machine_is_refused(page: Path) -> None:
    (page.parent / "x.csv").write_text(CSV.replace("2026-11-25,2 cores", "2026-11-25,"))
    with pytest.raises(ValueError, match="line 3: fill in date, machine, commit"):
        tables.write_tables(page, page.parent)


def test_scripts_print_what_the_tables_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_row = tables.csv_printer("setting", "tiles")
    print_row("a, b", 7)
    (tmp_path / "x.csv").write_text(capsys.readouterr().out)
    (row,) = tables.read_results(tmp_path / "x.csv")
    assert (row["setting"], row["tiles"]) == ("a, b", 7)
    assert row["date"] == date.today().isoformat()
    assert "cores" in row["machine"]
