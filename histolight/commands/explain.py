"""``histolight explain``: where in its tiles a trained network finds what speaks for its calls."""

from __future__ import annotations

from histolight import runs
from histolight.config.keys import PLACES, read_run_and_folder, run_config
from histolight.errors import RequestError
from histolight.progress import waiting

KEYS = ("run", "tiles", "part", "hydra.run.dir")
USAGE = """\
keys (KEY=VALUE):
  run=DIR            a completed run
  tiles=8            how many of the surest right calls, the surest wrong ones and the closest are shown
  part=val           the tiles to explain: val or test
  data.root=DIR      where the run's tiles lie, if they have moved; likewise data.groups=, data.domain=, data.cache=
  hydra.run.dir=DIR  where the explanation goes; outputs/explain/NAME-TIME unless given
"""


def main(overrides: list[str]) -> int:
    """Run the command; return the exit status."""
    run, directory, values, places = read_run_and_folder("explain", overrides, KEYS)
    part, count = values.get("part", "val"), values.get("tiles", "8")
    if not count.isdecimal():
        raise RequestError(f"tiles={count} is out of range: it is a whole number, such as tiles=8")
    runs.completed_metrics(run)
    config = run_config(run, places, KEYS, PLACES, "explain")
    with waiting("starting PyTorch"):
        from histolight.explanation.page import answer
        from histolight.inference.explain import explain_run

    with waiting("computing the maps and drawing the page"):
        explanation = explain_run(run, config, part, int(count), directory)
    print("\n".join(answer(explanation)))
    print(f"report       {directory / 'report.html'}")
    print(f"tables       {directory / 'attributions.csv'}, explain.json")
    return 0
