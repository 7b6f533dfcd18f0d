"""The page of a set of tiles: what it holds, what it looks like, what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from histolight.config.schema import RESAMPLED, DataConfig, tile_mpp
from histolight.data.checks import NEAR_BLANK_CONTRAST
from histolight.data.overlaps import pair_table
from histolight.data.prepare import PackedTiles
from histolight.exploration import figures, mosaics
from histolight.exploration import measures as exploration
from histolight.exploration.figures import CLASSES
from histolight.exploration.measures import HASH_BITS, LEAST_CORRELATION, MOST_BITS_APART
from histolight.exploration.mosaics import Shared
from histolight.files import write_atomically, write_csv
from histolight.progress import waiting
from histolight.reports.figures import tile_grid_figure
from histolight.reports.page import Cell, Picture, Section, Table, render_page, select
from histolight.reports.parts import problem_table, saved_picture
from histolight.reports.slide_maps import places_section

GRID = 16  # tiles of each class that are shown
PAIRS = 12  # pairs of copies that are shown
MOSAICS = 12  # components that are stitched
MOSAIC_TILES = 200  # of one component
SHORTCUT = 0.7  # AUROC of one number of a tile, from which on the page warns of it
MEASURES = {
    "brightness": "brightness: mean grey of a tile, 0 to 255",
    "contrast": "contrast: standard deviation of its grey",
}


def write_exploration(
    tiles: PackedTiles, config: DataConfig, directory: Path, title: str, sides: pd.Series | None = None
) -> list[str]:
    """Look at every tile, and write ``report.html``, ``figures/*.png`` and a CSV of each kind of finding.

    Args:
        tiles: Labelled tiles of both classes.
        config: Where they come from; ``seed`` draws those that are shown.
        directory: The folder to write into.
        title: Of the page.
        sides: Of a run: train, val or test by id.

    Returns:
        What the page says first, a sentence each.
    """
    table, pack = tiles.table, tiles.pack
    rows, labels = table["row"].to_numpy(), table["label"].to_numpy()
    colours = exploration.measure_colours(pack.tiles, rows, labels)
    measures = exploration.tile_measures(colours, pack.contrast[rows])
    summary = exploration.measure_summary(measures, labels)
    near = exploration.near_duplicates(pack, rows, colours.hashes)
    copies = exploration.duplicate_sets(table, pack.hashes[rows], near)
    shared = mosaics.shared_pixels(table, pack)
    side_of = None if sides is None else sides.reindex(table["id"]).to_numpy()
    conflicts = mosaics.label_conflicts(shared, table)
    blank = table[["id", "label", "group"]].assign(contrast=measures["contrast"].to_numpy(), row=rows)
    blank = blank[blank["contrast"] < NEAR_BLANK_CONTRAST].sort_values("contrast")
    slides = exploration.slide_counts(table)

    folder = directory / "figures"
    with waiting("drawing the page"):
        sections = [
            _classes(table),
            _slides(slides, folder),
            places_section(table, config, directory) if config.source in RESAMPLED else None,
            tile_section(tiles, config.seed, folder),
            _shared(shared, conflicts, side_of, tiles, folder),
            _colours(measures, summary, colours, labels, folder),
            _files(config, pack.tiles.image_size),
            _blank(blank, tiles, folder),
            _copies(copies, near, tiles, folder),
            Section("How this was computed", methods()),
        ]
    for name, problems in (
        ("slides", slides),
        ("near_blank", blank.drop(columns="row")),
        ("duplicates", copies),
        ("overlaps", pair_table(table, pack.overlaps)),
        ("conflicts", conflicts),
    ):
        if len(problems):
            write_csv(directory / f"{name}.csv", problems)
    if len(near):
        write_csv(directory / "near_duplicates.csv", _named(near, table))
    sentences = answer(table, summary, blank, copies, shared, side_of)
    page = render_page(title, sentences, [section for section in sections if section is not None], _footer(tiles))
    write_atomically(directory / "report.html", page)
    return sentences


def write_problems(
    problems: pd.DataFrame, table: pd.DataFrame | None, directory: Path, title: str, remedy: str = ""
) -> None:
    """Write the page of tiles that can't be used, and ``data_problems.csv`` with every finding.

    Args:
        problems: Columns id, problem and detail.
        table: The labelled tiles, where they could be listed.
        directory: The folder to write into.
        title: Of the page.
        remedy: What mends most of them, where one key does.
    """
    kinds = problems["problem"].nunique()
    first = f"These tiles can't be trained on: {_count(len(problems), 'problem')}, {_count(kinds, 'kind')}."
    advice = "Mend or remove these files or rows, then explore again. Nothing else was looked at."
    notes = ["Every one of them is in data_problems.csv, with what was found."]
    sentences = [first, *([f"{remedy[0].upper()}{remedy[1:]}."] if remedy else []), advice]
    sections = [Section("What is wrong", table=problem_table(problems), notes=notes)]
    if table is not None:
        sections.append(_classes(table))
    write_csv(directory / "data_problems.csv", problems)
    write_atomically(directory / "report.html", render_page(title, sentences, sections, _footer(None)))


def answer(
    table: pd.DataFrame,
    summary: pd.DataFrame,
    blank: pd.DataFrame,
    copies: pd.DataFrame,
    shared: Shared,
    sides: np.ndarray | None,
) -> list[str]:
    """Say what the tiles are, then what to beware of."""
    slides, lacking = table["group"].nunique(), int(table["group"].isna().sum())
    known = f"of {_count(slides, 'slide')}" if slides else "of unknown slides"
    sentences = [f"{_count(len(table), 'tile')} {known}, {table['label'].mean():.1%} of them tumour."]
    if not slides:
        sentences.append(
            "No slide is known: a training keeps tiles that share pixels on one side, but tiles of one slide may sit "
            "on both. data.groups=FILE names the slides."
        )
    elif lacking:
        sentences.append(f"{lacking:,} without a known slide: such tiles train, and never validate or test.")
    if len(shared.pairs):
        sentences.append(
            f"{shared.sizes.sum():,} tiles share pixels with others: {_count(len(shared.pairs), 'pair')} in "
            f"{_count(len(shared.sizes), 'component')}, the largest of {shared.sizes[0]:,} tiles."
        )
    if sides is not None:
        across = int(mosaics.across_sides(shared, sides).sum())
        sentences.append(
            f"The run's split puts {across:,} of these pairs on two sides: its figures flatter."
            if across
            else "The run's split puts none of these pairs on two sides."
        )
    if len(blank):
        sentences.append(f"{len(blank):,} near-blank, {int(blank['label'].sum()):,} of them labelled tumour.")
    if len(copies):
        sets = copies.drop_duplicates("set")
        sentences.append(
            f"{len(copies):,} tiles in {_count(len(sets), 'set')} are copies of one another, exact or near. "
            f"Sets with both labels: {int((sets['labels'] > 1).sum()):,}"
            + (f"; with several slides: {int((sets['slides'] > 1).sum()):,}." if slides else ".")
        )
    best = str(summary["auroc"].idxmax())
    auroc = summary["auroc"].max()
    if auroc >= SHORTCUT:
        sentences.append(
            f"{best.capitalize()} alone tells the classes apart with AUROC {auroc:.3f}: a network may learn no more."
        )
    else:
        sentences.append(
            f"No colour or contrast alone tells the classes apart: the best, {best}, has AUROC {auroc:.3f}."
        )
    return sentences


def methods() -> list[str]:
    """Say how everything was computed."""
    return [
        "Copies: exact ones have the very same pixels (SHA-256). Near ones are found by a perceptual hash, the signs "
        f"of the {HASH_BITS} lowest coefficients of the discrete cosine transform of a tile's grey: two tiles whose "
        f"hashes differ in at most {MOST_BITS_APART} bits in one of the eight orientations of the square, and whose "
        f"greys correlate with at least {LEAST_CORRELATION} in one of them. That finds tiles that were turned, "
        "mirrored, brightened or recompressed. Near-blank tiles take no part, as they all look alike.",
        "Shared pixels: neighbours cut from one slide on a grid of 16 pixels. Candidates have a 16x16 block in common; "
        "a pair counts when every pixel of the overlap agrees and the overlap is not near-blank (of JPEGs: the luma, "
        "and two blocks or more). Other strides are missed. A component is what hangs together by such pairs.",
        f"Near-blank: the standard deviation of the grey is below {NEAR_BLANK_CONTRAST:g} of 255.",
        "AUROC alone: how well one number of a tile, read in the better direction, tells the classes apart; 0.5 is "
        "chance. It is measured on all tiles and fitted to none.",
        "The tiles that are shown were drawn with data.seed. The frame marks the centre 32x32: it decides the label.",
    ]


def _footer(tiles: PackedTiles | None) -> str:
    which = f", tiles {tiles.fingerprint}" if tiles else ""
    return f"histolight {version('histolight')} explore, {datetime.now():%Y-%m-%d %H:%M}{which}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _classes(table: pd.DataFrame) -> Section:
    counts = exploration.class_counts(table)
    rows = []
    for part, count in counts.iterrows():
        total = count.sum()
        cells = [f"{total:,}", f"{count[0]:,}", f"{count[1]:,}", f"{count[1] / total:.1%}"]
        rows.append([Cell(str(part)), *map(Cell, cells)])
    return Section("Classes", table=Table(["part", "tiles", *CLASSES, "tumour share"], rows, words=1))


def _slides(slides: pd.DataFrame, folder: Path) -> Section | None:
    if slides.empty:
        return None
    one_class = int(slides["tumour_share"].isin([0, 1]).sum())
    words = (
        f"{_count(len(slides), 'slide')} with {slides['tiles'].min():,} to {slides['tiles'].max():,} tiles; "
        f"{one_class:,} of them with tiles of one class only. slides.csv has all of them."
    )
    caption = "Tiles of each slide, and the share of tumour among them; the dashed line is that of all tiles."
    picture = saved_picture(figures.slides_figure(slides), folder / "slides.png", caption, wide=True)
    return Section("Slides", [words], pictures=[picture])


def tile_section(tiles: PackedTiles, seed: int, folder: Path) -> Section:
    """Show tiles of each class, drawn at random."""
    table = tiles.table
    pictures = []
    for label, name in enumerate(CLASSES):
        own = table[table["label"] == label]
        shown = own.sample(min(GRID, len(own)), random_state=seed).sort_values("id")
        pictures.append(
            _grid(shown, tiles, f"{len(shown)} {name} tiles", folder / f"tiles_{name}.png", f"Drawn at random: {name}.")
        )
    return Section("Tiles", pictures=pictures)


def _grid(shown: pd.DataFrame, tiles: PackedTiles, title: str, path: Path, caption: str) -> Picture:
    captions = [figures.plain(name) for name in shown["group"].fillna("").astype(str)]
    figure = tile_grid_figure(tiles.pack.tiles.gather(shown["row"].to_numpy()), captions, title, columns=4)
    return saved_picture(figure, path, caption, photographs=True)


def _colours(
    measures: pd.DataFrame, summary: pd.DataFrame, colours: exploration.Colours, labels: np.ndarray, folder: Path
) -> Section:
    rows = [
        [
            Cell(str(name)),
            *(Cell(f"{row[f'mean_{label}']:.1f}", f"± {row[f'sd_{label}']:.1f}") for label in (0, 1)),
            Cell(f"{row['auroc']:.3f}"),
        ]
        for name, row in summary.iterrows()
    ]
    table = Table(["of a tile, 0 to 255", *CLASSES, "AUROC alone"], rows, words=1)
    pictures = [
        saved_picture(
            figures.measure_figure(measures[name], labels, label),
            folder / f"{name}.png",
            f"{label[0].upper()}{label[1:]}.",
        )
        for name, label in MEASURES.items()
    ]
    caption = "How often each level of each colour occurs, in every second row and column; full levels may be cut off."
    pictures.append(saved_picture(figures.colours_figure(colours.levels), folder / "colours.png", caption))
    caption = "The mean tile of each class, and where they differ in grey."
    means = figures.mean_tiles_figure(colours.mean_tiles)
    pictures.append(saved_picture(means, folder / "mean_tiles.png", caption, wide=True))
    return Section(
        "Colour and brightness", table=table, notes=["Mean ± standard deviation over tiles."], pictures=pictures
    )


def pixel_size(config: DataConfig) -> str:
    """Say how large a pixel is, and what whole slides were taken to have."""
    if (mpp := tile_mpp(config)) is None:
        return "The pixel size of the tiles is unknown: data.mpp=MICRONS says it."
    if config.source not in RESAMPLED or config.mpp is None:
        return f"A pixel of a tile has {mpp:g} µm."
    given = f"Every slide was taken to have data.mpp={config.mpp:g} at full resolution, whatever its file says."
    return f"A pixel of a tile has {mpp:g} µm. {given}"


def _files(config: DataConfig, size: int) -> Section:
    facts = exploration.file_facts(config)
    words = [
        f"Every tile is {size}x{size} pixels of 8-bit red, green and blue: grey ones, those in a palette and those "
        "with an opaque alpha are read so; another size, 16 bits or transparency is an error.",
        pixel_size(config),
    ]
    if facts.empty:
        return Section("Files", words)
    rows = [
        [
            Cell(row["suffix"]),
            Cell(f"{row['files']:,}"),
            *(Cell(f"{row[name]:,.0f}") for name in ("least", "median", "most")),
        ]
        for row in facts.to_dict("records")
    ]
    columns = ["kind", "files", "least bytes", "median bytes", "most bytes"]
    return Section("Files", words, Table(columns, rows, words=1))


def _blank(blank: pd.DataFrame, tiles: PackedTiles, folder: Path) -> Section:
    if blank.empty:
        return Section("Near-blank tiles", ["None."])
    positive = int(blank["label"].sum())
    words = f"{_count(len(blank), 'tile')}, {positive:,} labelled tumour. near_blank.csv has all of them."
    shown = blank.head(GRID)
    picture = _grid(shown, tiles, f"{len(shown)} of {len(blank):,}", folder / "near_blank.png", "The emptiest first.")
    return Section("Near-blank tiles", [words], pictures=[picture])


def _shared(
    shared: Shared, conflicts: pd.DataFrame, sides: np.ndarray | None, tiles: PackedTiles, folder: Path
) -> Section:
    if not len(shared.pairs):
        return Section("Tiles that share pixels", ["None: no two tiles are copies of one another or overlap."])
    labels = tiles.table["label"].to_numpy()
    inside = np.flatnonzero(np.bincount(shared.components, minlength=len(labels))[shared.components] > 1)
    rows = [
        ("pairs that overlap in part", (~shared.copies).sum()),
        ("pairs of exact copies", shared.copies.sum()),
        ("copies with different labels", len(conflicts)),
        ("components", len(shared.sizes)),
        ("tiles in components", len(inside)),
        ("tumour tiles among them", labels[inside].sum()),
        ("tiles of the largest component", shared.sizes[0]),
    ]
    if sides is not None:
        rows.append(("pairs across the sides of the run's split", mosaics.across_sides(shared, sides).sum()))
    table = Table(["", "number"], [[Cell(name), Cell(f"{int(number):,}")] for name, number in rows], words=1)
    notes = ["overlaps.csv has every pair, with the offset of its second tile in pixels."]
    if len(conflicts):
        notes.append("conflicts.csv has the copies with different labels: of each pair one label is wrong.")
    words = (
        "Where one tile trains and its neighbour validates, the network has seen part of what it is measured on. "
        "Where slides are unknown, histolight keeps each component on one side; data.split=random does not."
    )
    return Section("Tiles that share pixels", [words], table, notes, _mosaic_pictures(shared, sides, tiles, folder))


def _mosaic_pictures(shared: Shared, sides: np.ndarray | None, tiles: PackedTiles, folder: Path) -> Sequence[Picture]:
    stitched = mosaics.largest_mosaics(shared, tiles.table, tiles.pack, MOSAICS, MOSAIC_TILES)
    if not stitched:
        return []
    labels = tiles.table["label"].to_numpy()
    figure = mosaics.mosaics_figure(stitched, labels, tiles.pack.tiles.image_size, sides)
    caption = (
        f"The {_count(len(stitched), 'largest component')}, stitched from their tiles. Beside the tissue: the outline "
        f"of each tile{'' if sides is None else ' in the colour of its side'}, its centre in the colour of its label."
    )
    return [saved_picture(figure, folder / "mosaics.png", caption, photographs=True, wide=True)]


def _copies(copies: pd.DataFrame, near: pd.DataFrame, tiles: PackedTiles, folder: Path) -> Section:
    if copies.empty:
        return Section("Copies", ["No tile has a copy among the others, exact or near."])
    rows = []
    for name, chosen in (("exact", copies["exact"]), ("near", ~copies["exact"])):
        own = copies[copies["set"].isin(copies.loc[chosen, "set"])]
        sets = own.drop_duplicates("set")
        counts = (int(chosen.sum()), len(sets), (sets["labels"] > 1).sum(), (sets["slides"] > 1).sum())
        rows.append([Cell(name), *(Cell(f"{count:,}") for count in counts)])
    table = Table(["copies", "tiles", "in sets", "with both labels", "with several slides"], rows, words=1)
    if not tiles.table["group"].notna().any():
        table = select(table, range(4))
    return Section(
        "Copies",
        ["Where a tile trains and its copy validates, every figure flatters; where their labels differ, one is wrong."],
        table,
        ["duplicates.csv has every set; near_duplicates.csv the pairs that are near, with their correlation."],
        _near_pictures(near, tiles, folder),
    )


def _near_pictures(near: pd.DataFrame, tiles: PackedTiles, folder: Path) -> Sequence[Picture]:
    if near.empty:
        return []
    shown = near.sort_values("correlation").head(PAIRS)
    rows = tiles.table["row"].to_numpy()[shown[["place_1", "place_2"]].to_numpy()]
    pixels = tiles.pack.tiles.gather(rows.ravel())
    captions = [f"correlation {value:.3f}" for value in shown["correlation"]]
    figure = figures.pairs_figure(pixels.reshape(len(shown), 2, *pixels.shape[1:]), captions)
    caption = f"{len(shown)} of {_count(len(near), 'pair')} of near copies, the least alike first."
    return [saved_picture(figure, folder / "near_duplicates.png", caption, photographs=True, wide=True)]


def _named(near: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Put ids, labels and slides in the place of places."""
    named: dict[str, np.ndarray] = {}
    for side in (1, 2):
        rows = table.iloc[near[f"place_{side}"]]
        named |= {f"{name}_{side}": rows[name].to_numpy() for name in ("id", "label", "group")}
    return pd.DataFrame(named).assign(correlation=near["correlation"].to_numpy())
