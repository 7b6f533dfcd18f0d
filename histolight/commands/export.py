"""``histolight export``: a trained network as one ONNX file, or as WSInfer and QuPath read it."""

from __future__ import annotations

from histolight import runs
from histolight.config.compose import typed_section
from histolight.config.keys import PLACES, choice, read_run_and_folder, run_config
from histolight.config.schema import SlidesConfig
from histolight.errors import RequestError
from histolight.progress import waiting

KEYS = ("run", "format", "slides.model_mpp", "hydra.run.dir")
USAGE = """\
keys (KEY=VALUE):
  run=DIR            a completed run
  format=onnx        model.onnx; or wsinfer: torchscript_model.pt and config.json for WSInfer and its QuPath extension
  slides.model_mpp=MICRONS
                     with format=wsinfer: pixel size of the tiles, where the run does not say it
  data.root=DIR      where the run's tiles lie, if they have moved; likewise data.groups=, data.domain=, data.cache=
  hydra.run.dir=DIR  where they go; outputs/export/NAME-TIME unless given
"""


def main(overrides: list[str]) -> int:
    """Run the command; return the exit status."""
    run, directory, values, places = read_run_and_folder("export", overrides, KEYS)
    kind = choice(values, "format", "onnx", "wsinfer")
    options = typed_section(SlidesConfig, values, "slides.")
    if kind == "onnx" and options.model_mpp is not None:
        raise RequestError("slides.model_mpp= is for format=wsinfer: ONNX needs no pixel size")
    runs.completed_metrics(run)
    config = run_config(run, places, KEYS, PLACES, "export")
    with waiting("starting PyTorch"):
        from histolight.inference.export_run import export_run

    with waiting("writing the network, and comparing it with torch"):
        export = export_run(run, config, directory, kind, options.model_mpp)
    size, side = f"{export.path.stat().st_size / 1e6:.1f} MB", export.image_size
    print(f"parity       {export.tiles} validation tiles: score differs from torch by at most {export.difference:.1e}")
    if kind == "onnx":
        print(f"input        tiles (N, {side}, {side}, 3) uint8, RGB, any N")
        print("output       score (N,), the probability of tumour in the centre; logit (N,); features (N, F) of most")
        print(f"model        {export.path} ({size})")
    else:
        print(f"model        {export.path} ({size}), config.json")
        print("use          wsinfer run --model-path … --config …; QuPath: put the folder among WSInfer's own models")
    return 0
