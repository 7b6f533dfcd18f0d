"""``histolight embed``: the features of every tile as Parquet, for whatever else is to be done with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from histolight.config.checks import check_weights_file
from histolight.config.compose import compose_config, typed
from histolight.config.keys import key_of, new_folder
from histolight.config.schema import Config
from histolight.errors import InterruptionError, RequestError, command_line
from histolight.progress import waiting

USAGE = """\
keys (KEY=VALUE):
  data=SOURCE data.root=DIR data.limit=N data.groups=FILE data.image_size=N data.stain=none
                     the labelled tiles: synthetic, kaggle, pcam, folder, parquet, wilds or several
  data=slides data.root=DIR slides.KEY=VALUE
                     annotated slides (docs/slides.md)
  model=NAME         the network, such as phikon_v2, dinov2_s, resnet18; its weights must be known
  model.features=cls model.weights=FILE model.input_size=N
                     and the other keys of model, as in a training
  data.batch_size=N data.cache=DIR trainer.accelerator=cpu trainer.precision=32-true
  name=NAME          name of the folder; the source's name unless given
  hydra.run.dir=DIR  where they go; outputs/embed/NAME-TIME unless given

Features are kept in data.cache too, where trainings with model.freeze=backbone augment=none find them: an interrupted
pass goes on where it stopped, and none is computed twice.
"""
GROUPS = ("data", "model", "trainer")
KEYS = ("trainer.accelerator", "trainer.precision", "seed", "name", "hydra.run.dir")


def main(overrides: list[str]) -> int:
    """Run the command; return the exit status."""
    config, directory = parse_request(overrides)
    from histolight.data.sources import check_labelled

    check_labelled(config.data)
    check_weights_file(config.model.weights)
    with waiting("starting PyTorch"):
        from histolight.training.embed import embed

    try:
        embedding = embed(config, directory)
    except KeyboardInterrupt as error:
        again = command_line("histolight", "embed", *overrides)
        raise InterruptionError(f"interrupted: continue with {again}") from error
    size = embedding.path.stat().st_size / 1e6
    print(f"features     {embedding.tiles:,} tiles, {embedding.width} each: {embedding.path} ({size:,.1f} MB)")
    print(f"kept         {embedding.kept} (delete this folder to free its place)")
    return 0


def parse_request(overrides: Sequence[str]) -> tuple[Config, Path]:
    """Read the command line: which tiles, which network, and the folder.

    Raises:
        RequestError: A key is unknown or has no place here, a value is wrong, or the folder holds files.
    """
    composed = compose_config(overrides)
    keys = [key_of(override) for override in overrides]
    for key in keys:
        if key not in (*GROUPS, *KEYS) and not key.startswith(("data.", "model.", "slides.")):
            raise RequestError(
                f"{key}= has no place in histolight embed; it takes data, data.*, slides.*, model, model.*, trainer, "
                f"{', '.join(KEYS)}"
            )
    config = typed(composed)
    given = composed.hydra.run.dir if "hydra.run.dir" in keys else None
    return config, new_folder(given, "embed", config.name)
