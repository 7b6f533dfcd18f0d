"""``histolight export``: a trained network as one ONNX file."""

from __future__ import annotations

from histolight.config.keys import read_run_and_folder

KEYS = ("run", "hydra.run.dir")
COMPARED = 256  # tiles on which ONNX and torch are compared
USAGE = """\
keys (KEY=VALUE):
  run=DIR            a completed run
  hydra.run.dir=DIR  where model.onnx goes; outputs/export/NAME-TIME unless given
"""


def main(overrides: list[str], multirun: bool = False) -> int:
    """Run the command; return the exit status."""
    run, directory, _ = read_run_and_folder("export", overrides, KEYS, multirun)
    import numpy as np

    from histolight import files
    from histolight.inference.export import check_packages, describe, export_onnx
    from histolight.inference.finished import read_part
    from histolight.inference.networks import load_classifier

    check_packages()
    classifier = load_classifier(run)
    found = read_part(run, "val")
    rows = np.random.default_rng(found.config.data.seed).permutation(found.predictions["row"].to_numpy())[:COMPARED]
    path = directory / "model.onnx"
    with files.claimed(directory):
        metadata = describe(classifier, run.resolve().name, found.metrics)
        difference = export_onnx(classifier, found.tiles.gather(rows), path, metadata)
    print(f"parity       {len(rows)} validation tiles: score differs from torch by at most {difference:.1e}")
    print(f"input        tiles (N, {classifier.image_size}, {classifier.image_size}, 3) uint8, RGB, any N")
    print("output       score (N,), the probability of tumour in the centre; logit (N,)")
    print(f"model        {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
