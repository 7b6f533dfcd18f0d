"""Count the copies and overlaps that splits put on both sides.

Takes the tiles as `histolight train` does; each argument is one source. Prints CSV: the hold-out and the first two
folds, by overlap and at random.

    python benchmarks/leaks.py "data=kaggle data.root=FOLDER" "data=folder data.root=FOLDER" > benchmarks/leaks.csv
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tables import csv_printer

from histolight.config.compose import compose_config, typed
from histolight.data.prepare import load_tiles, prepare
from histolight.data.sources import load_source


def main() -> None:
    """Print one row a source and split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    columns = ("source", "tiles", "pairs", "joined", "largest", "split", "part", "across", "leaking", "validation")
    print_row = csv_printer(*columns)
    for source in parser.parse_args().sources:
        overrides = shlex.split(source)
        config = typed(compose_config(overrides)).data
        packed = load_tiles(load_source(config), config)
        sizes = packed.table["cluster"].value_counts()
        found = (len(packed.table), len(packed.pack.overlaps), int(sizes[sizes > 1].sum()), int(sizes.max()))
        for split in ("auto", "random"):
            for fold in ("null", "0", "1"):
                data = prepare(typed(compose_config([*overrides, f"data.split={split}", f"data.fold={fold}"])).data)
                part = "hold-out" if fold == "null" else f"fold {fold}"
                counts = (len(data.leaks), data.leaking["val"], len(data.part("val")))
                print_row(config.source, *found, data.split_kind, part, *counts)


if __name__ == "__main__":
    main()
