from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

from histolight.reports.page import Cell, Picture, Section, Table, as_markdown, as_text, render_page, select

TABLE = Table(
    ["model", "AUROC", "p"],
    [[Cell("resnet18"), Cell("0.91", "[0.90, 0.92]"), Cell("")], [Cell('<a&"b">'), Cell("0.80"), Cell("0.01")]],
    words=1,
    marked=True,
)


class Balanced(HTMLParser):
    """Checks that every element is closed in its turn, and collects attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page() -> str:
    sections = [Section("Ranking <1>", ["a & b"], TABLE, ["note"], [Picture(b"png", "a 'figure' <x>")])]
    return render_page("<script>title</script>", ["Answer < all."], sections, "footer & more")


def test_the_page_is_well_formed_and_needs_nothing_from_outside() -> None:
    parser = Balanced()
    parser.feed(page())
    assert parser.open == []
    assert parser.links == [f"data:image/png;base64,{base64.b64encode(b'png').decode()}"]
    assert not re.search(r"https?:|@import|url\(", page())


def test_everything_from_data_is_escaped() -> None:
    text = page()
    assert "<script" not in text
    for escaped in ("&lt;script&gt;title", "Answer &lt; all.", "Ranking &lt;1&gt;", "a &amp; b", "footer &amp; more"):
        assert escaped in text
    assert "&lt;a&amp;&#34;b&#34;&gt;" in text
    assert 'alt="a &#39;figure&#39; &lt;x&gt;"' in text


def test_each_cell_carries_its_heading_for_narrow_screens() -> None:
    assert page().count('data-label="AUROC"') == 2


def test_text_leaves_columns_out_from_the_right_and_says_which() -> None:
    assert as_text(TABLE).splitlines()[1] == "resnet18  0.91 [0.90, 0.92]"
    narrow = as_text(TABLE, width=28)
    assert "0.01" not in narrow
    assert narrow.endswith("too wide to show here: p")
    assert max(map(len, narrow.splitlines())) <= 28


def test_markdown_keeps_its_columns_whatever_the_text() -> None:
    table = Table(["a|b"], [[Cell("x|y\nz <i> *s*")]])
    assert as_markdown(table).splitlines() == ["| a\\|b |", "|---:|", "| x\\|y z \\<i\\> \\*s\\* |"]


def test_select_keeps_columns() -> None:
    part = select(TABLE, [0, 2])
    assert part.columns == ["model", "p"]
    assert [str(cell) for cell in part.rows[1]] == ['<a&"b">', "0.01"]
