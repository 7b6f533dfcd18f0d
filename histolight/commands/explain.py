"""``histolight explain``: where in its tiles a trained network finds what speaks for its calls."""

from __future__ import annotations

from histolight.config.keys import read_run_and_folder
from histolight.errors import RequestError, nearest

KEYS = ("run", "tiles", "part", "hydra.run.dir")
MOST = 64  # tiles of a group that a page can show
USAGE = """\
keys (KEY=VALUE):
  run=DIR            a completed run
  tiles=8            how many of the surest right calls, the surest wrong ones and the closest are shown
  part=val           the tiles to explain: val or test
  hydra.run.dir=DIR  where the explanation goes; outputs/explain/NAME-TIME unless given
"""


def main(overrides: list[str], multirun: bool = False) -> int:
    """Run the command; return the exit status."""
    run, directory, values = read_run_and_folder("explain", overrides, KEYS, multirun)
    part, count = values.get("part", "val"), values.get("tiles", "8")
    if part not in ("val", "test"):
        raise RequestError(f"part={part} is not known: {nearest(part, ('val', 'test'))}")
    if not count.isdecimal() or not 1 <= int(count) <= MOST:
        raise RequestError(f"tiles={count} is out of range: it is a whole number from 1 to {MOST}")
    from histolight import files
    from histolight.explanation.grad_cam import explain
    from histolight.explanation.page import answer, write_report
    from histolight.inference.finished import read_part
    from histolight.inference.networks import load_classifier

    classifier = load_classifier(run)
    found = read_part(run, part)
    explanation = explain(
        classifier, found.predictions, found.tiles, found.metrics["threshold"], int(count), found.config.data.seed
    )
    with files.claimed(directory):
        write_report(explanation, directory, run.resolve().name, part, found.metrics["split"])
    print("\n".join(answer(explanation)))
    print(f"report       {directory / 'report.html'}")
    print(f"tables       {directory / 'attributions.csv'}, explain.json")
    return 0
