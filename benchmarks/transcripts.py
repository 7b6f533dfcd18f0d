"""Run the commands that the documentation shows, and write what they print below them.

    python benchmarks/transcripts.py docs/commands.md DIR=../shared/data/histopathologic-cancer-detection …

Every line ``$ histolight …`` of a ``console`` block is run, in the order of the page and in one temporary folder, so
that later commands can use what earlier ones wrote. ``NAME=VALUE`` says what a placeholder of the page stands for on
this machine; the output shows the placeholder again. ``keep=FOLDER`` runs everything there, and leaves it. Blocks of
other kinds are left alone.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

BAR = re.compile(r"\w+: +\d+%\|")  # of progress
BLOCK = re.compile(r"(?ms)^```console\n(.*?)^```$")


def main(page: Path, places: dict[str, str], keep: str | None = None) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or temporary
        text = BLOCK.sub(lambda block: f"```console\n{transcript(block[1], places, folder)}```", page.read_text())
    page.write_text(text)
    return 0


def commands(block: str) -> list[str]:
    """Return the commands of a block, without the prompt."""
    return [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]


def transcript(block: str, places: dict[str, str], folder: str) -> str:
    """Run the commands of a block one after another; return them with what they printed."""
    lines = []
    for command in commands(block):
        words = [fill_in(word, places) for word in shlex.split(command)]
        print(shlex.join(words), file=sys.stderr)
        run = [sys.executable, "-m", *words] if words[0] == "histolight" else words
        done = subprocess.run(run, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        output = done.stdout
        for name, value in places.items():
            output = output.replace(value, name)
        printed = [line.rstrip() for line in output.splitlines()]
        lines += [f"$ {command}", *(line for line in printed if line and not BAR.match(line))]
    return "\n".join(lines) + "\n"


def fill_in(word: str, places: dict[str, str]) -> str:
    """Put the places of this machine into one word of a command."""
    for name, value in places.items():
        word = re.sub(rf"\b{re.escape(name)}\b", lambda _, value=value: value, word)
    return word


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[2:])
    kept = given.pop("keep", None)
    sys.exit(main(Path(sys.argv[1]), {name: str(Path(value).resolve()) for name, value in given.items()}, kept))
