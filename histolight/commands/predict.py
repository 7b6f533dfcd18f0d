"""``histolight predict``: scores for unlabelled tiles, from one run or an ensemble."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from histolight.config.keys import choice, own_keys, read_path, read_paths
from histolight.config.schema import SlidesConfig
from histolight.errors import InterruptionError, RequestError, command_line
from histolight.inference.predict import KEYS, PredictConfig, members_of, predict, predict_config, slides_options
from histolight.progress import waiting

USAGE = """\
keys (KEY=VALUE):
  run=DIR            the run; or an ensemble:
  runs=[DIR,DIR]     runs, sweeps or folders of runs; of a sweep all completed runs
  best=K             of these the K with the highest validation AUROC
  data=kaggle data.root=DIR
                     Kaggle's test folder: submission.csv, in the order of sample_submission.csv
  data=folder data.root=DIR
                     any folder of images: predictions.csv (pcam: the test part)
  data=slides data.root=DIR
                     whole slides: slides.csv, report.html and a folder of maps for each slide
    data.mpp=MICRONS pixel size of all slides at full resolution, where the files have none or a wrong one
    slides.stride=32 pixels from one tile to the next, at the network's pixel size
    slides.tissue=otsu where to score: otsu finds the tissue, none scores all, or a FOLDER of masks NAME.png
    slides.threshold=P score above which a tile is called tumour; the run's own unless given
    slides.model_mpp=MICRONS
                     pixel size of the network, where the run does not say it
  tta=none           flips and dihedral average the logits of 4 and 8 views of each tile
  mean=logit         how an ensemble is averaged; or mean=probability
  adapt=none         fit the scores of one run to the share of tumour among the tiles (prior), or its batch-norm
                     statistics to them (batch_norm)
  data.batch_size=N data.cache=DIR trainer.accelerator=cpu trainer.precision=32-true
  hydra.run.dir=DIR  where the prediction goes, and goes on after an interruption; outputs/predictions/NAME-TIME
"""


def main(overrides: list[str]) -> int:
    """Run the command; return the exit status."""
    request, slides = parse_request(overrides)
    problems: dict[str, str] = {}
    try:
        if slides is None:
            written = predict(request)
        else:
            with waiting("starting PyTorch"):
                from histolight.inference.slides import predict_slides

            written, problems = predict_slides(request, slides)
    except KeyboardInterrupt as error:
        words = [word for word in overrides if not word.startswith("hydra.run.dir=")]
        again = command_line("histolight", "predict", *words, f"hydra.run.dir={request.directory}")
        raise InterruptionError(f"interrupted: continue with {again}") from error
    print("\n".join(f"{path.suffix[1:]:<12} {path}" for path in written))
    for name, problem in problems.items():
        print(f"not scored   {name}: {problem}", file=sys.stderr)
    return 1 if problems else 0


def parse_request(overrides: Sequence[str]) -> tuple[PredictConfig, SlidesConfig | None]:
    """Read the command line.

    Returns:
        What to predict, and with ``data=slides`` how.

    Raises:
        RequestError: A key is unknown or missing, a run doesn't exist, or the folder is taken.
    """
    values, others = own_keys(overrides, KEYS)
    if ("run" in values) == ("runs" in values):
        what = "are both given" if "run" in values else "are missing"
        raise RequestError(f"run= and runs= {what}: histolight predict run=DIR, or an ensemble, runs=[DIR,DIR]")
    tta = choice(values, "tta", "none", "flips", "dihedral")
    mean = choice(values, "mean", "logit", "probability")
    if "run" in values and "best" in values:
        raise RequestError("best= chooses among several runs: use it with runs=")
    best = values.get("best")
    if best is not None and not best.isdecimal():
        raise RequestError(f"best={best} is not known: give a number of runs, such as best=3")
    folders = read_paths("runs", values["runs"]) if "runs" in values else []
    members = members_of(folders, None if best is None else int(best)) if folders else [read_path(values["run"])]
    request = predict_config(members, others, tta, mean, values.get("hydra.run.dir"), values.get("adapt", "none"))
    return request, slides_options(request, values)
