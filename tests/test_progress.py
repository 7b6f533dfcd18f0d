from __future__ import annotations

import io

import pytest

from histolight.progress import waiting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def shown(self) -> str:
        """What a reader sees in the last line: a carriage return begins it again."""
        line: list[str] = []
        for part in self.getvalue().split("\r"):
            line[: len(part)] = part
        return "".join(line).strip()


def test_a_terminal_shows_what_is_waited_for_until_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with pytest.raises(ValueError, match="broken"), waiting("drawing the page"):
        assert terminal.shown() == "drawing the page …"
        raise ValueError("broken")
    assert terminal.shown() == ""


def test_a_file_and_a_process_beside_the_main_one_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, rank in ((io.StringIO(), "0"), (Terminal(), "1")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr("sys.stderr", stream)
        with waiting("drawing the page"):
            assert stream.getvalue() == ""
