"""Pages name what there is: links lead somewhere, and the commands that they show are accepted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from histolight.cli import COMMANDS
from histolight.config.compose import typed
from histolight.config.request import requested_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"(?:\$ |uv run (?:--\S+ \S+ )*)?histolight (\w+) ?(.*)")


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Return the commands of a page's code blocks with their words; examples of what is refused are left out."""
    blocks = re.findall(r"(?ms)^```(?:bash|console)?\n(.*?)^```", page.read_text())
    matches = [
        COMMAND.fullmatch(re.split(r"\s{2,}", line.strip())[0]) for block in blocks for line in block.splitlines()
    ]
    found = [(match[1], shlex.split(match[2])) for match in matches if match]
    return [(name, words) for name, words in found if not any("optimizer.lrr" in w or "densnet" in w for w in words)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_accepted(page: Path) -> None:
    for name, words in commands(page):
        assert name in COMMANDS, (name, words)
        if (
            name == "train"
            and not {"-m"} & set(words)
            and not any(re.match(r"run=|like=|data.batch_size=many", w) for w in words)
        ):
            typed(requested_config([word for word in words if not word.startswith("-")]))


def test_the_site_has_every_page() -> None:
    listed = set(re.findall(r"(?m)^([\w/-]+)$", (ROOT / "docs" / "index.md").read_text()))
    pages = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in (ROOT / "docs").rglob("*.md")}
    assert pages - {"index"} == listed & pages, "name the page in a list of docs/index.md"


def test_the_readme_can_be_read_in_a_few_minutes() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900
    assert len(re.findall(r"!\[.+?\]\((.+?)\)", text)) >= 2
