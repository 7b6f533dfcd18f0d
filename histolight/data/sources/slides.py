"""Whole slides with annotations: tiles labelled by their centres and drawn slide by slide; without, to predict only."""

from __future__ import annotations

import functools
import hashlib
import logging
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from histolight.config.schema import DataConfig
from histolight.data.checks import problem_frame
from histolight.data.sources import Kind, data_root
from histolight.data.table import Source, fingerprint, read_csv
from histolight.data.unpacked import find_csv
from histolight.errors import DataError, RequestError
from histolight.slides import grid as grids
from histolight.slides import tissue
from histolight.slides.annotations import Tumour, find_annotation, label_cells, read_tumour
from histolight.slides.grid import Grid
from histolight.slides.reader import (
    MASK,
    SUFFIXES,
    Slide,
    SlideError,
    check_packages,
    list_slides,
    open_slide,
    slide_name,
)

log = logging.getLogger("histolight")

SUSPECT = 0.5  # of the annotated tumour: less than this on tissue looks like coordinates in other units


@dataclass(frozen=True)
class LabelledSlide:
    """The tiles of a slide.

    Attributes:
        path: The file.
        grid: Where its tiles lie.
        cells: int64 (N, 2): row and column of each tile with tissue in its centre, those of one block together.
        labels: bool (N,): whether the centre holds any tumour.
        tumour: Where the tumour is.
        classes: Number of outlines of each class (of a picture: of pixels of each value).
        overview: uint8 (H, W, 3), the slide at low resolution.
    """

    path: Path
    grid: Grid
    cells: np.ndarray
    labels: np.ndarray
    tumour: Tumour
    classes: dict[str, int]
    overview: np.ndarray

    @property
    def name(self) -> str:
        """The slide's name."""
        return slide_name(self.path)


def load(config: DataConfig) -> Source:
    """Label the tiles of every annotated slide, draw some of each, and list them.

    An id is ``SLIDE_xX_yY`` with the place of the tile's centre in pixels at full resolution; ``group`` is the slide.

    Raises:
        RequestError: No slide is there or annotated, no annotation is of a class that counts as tumour, or an option is
            wrong.
        DataError: Slides or annotations can't be used; it lists all of them.
    """
    problems: list[tuple[str, str, str]] = []
    slides, counts = [], Counter[str]()
    for slide in label_slides(config, problems):
        counts.update(slide.classes)
        chosen = draw(slide.labels, config.slides.tiles_per_slide, [config.seed, zlib.crc32(slide.name.encode())])
        slides.append((slide.path, slide.grid, slide.cells[chosen], slide.labels[chosen]))
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise DataError(f"{problems[0][2]}{more}", problem_frame(problems))
    if not any(labels.any() for *_, labels in slides):
        names = ", ".join(f"{name} ({count})" for name, count in counts.most_common(8)) or "none"
        raise RequestError(
            f"no tile of the slides in {config.root} is tumour; classes of the annotations: {names}; name those that "
            "are tumour with slides.positive=[NAME]"
        )
    return _source(config, slides)


def label_slides(
    config: DataConfig, problems: list[tuple[str, str, str]], only: Collection[str] | None = None
) -> Iterator[LabelledSlide]:
    """Go through the slides of a folder that are annotated, or that ``slides.labels`` names.

    Args:
        config: The data part of a configuration.
        problems: Findings are added to it: file, what, and why.
        only: Names of slides; None takes all.

    Raises:
        RequestError: No slide is there or annotated, or an option is wrong.
    """
    check_packages()
    root, options = data_root(config), config.slides
    _check_options(config)
    paths, refused, _ = list_slides(root)
    for name, text in refused.items():
        if name.lower().endswith(SUFFIXES):
            problems.append((name, "slide can't be used", f"{name} {text}"))
        else:
            log.warning("%s %s", name, text)
    folder = root if options.annotations is None else Path(options.annotations).expanduser().absolute()
    labels = _slide_labels(options.labels, paths)
    paths = [path for path in paths if only is None or slide_name(path) in only]
    unknown = []
    for path in tqdm(paths, desc="slides", unit="slide", disable=None):
        try:
            annotation = find_annotation(folder, slide_name(path), folder == root)
            if annotation is None and labels.get(slide_name(path)) != 0:
                unknown.append(path.name)
                continue
            yield _label_slide(path, annotation, labels.get(slide_name(path)), config)
        except SlideError as error:
            problems.append((path.name, "slide can't be used", str(error)))
    if len(unknown) == len(paths):
        raise RequestError(
            f"none of the {len(paths)} slides in {root} has an annotation in {folder}: NAME.geojson, NAME.xml or a "
            f"picture NAME{MASK if folder == root else ''}.png; give their folder with slides.annotations=FOLDER"
        )
    if unknown:
        log.warning(
            "%d slides have neither an annotation nor the label 0 in slides.labels, and are left out: %s",
            len(unknown),
            ", ".join(unknown[:3]) + ", …" * (len(unknown) > 3),
        )


def _check_options(config: DataConfig) -> None:
    options = config.slides
    if options.model_mpp is None:
        raise RequestError("at which pixel size the slides are cut is unknown: give slides.model_mpp=MICRONS")
    grids.check_stride(options.stride, config.image_size)
    tissue.find_masks(options.tissue)
    if options.annotations is not None and not Path(options.annotations).expanduser().is_dir():
        raise RequestError(f"slides.annotations={options.annotations} is not a folder")
    if options.units not in ("px", "um"):
        try:
            factor = float(options.units)
        except ValueError:
            factor = 0.0
        if not 0 < factor < 1e4:
            raise RequestError(
                f"slides.units={options.units} is not known: px, um, or how many times smaller the level is whose "
                "pixels the outlines are measured in, such as 4"
            )


def _slide_labels(path: str | None, slides: list[Path]) -> dict[str, int]:
    """Read ``slide,label``; a slide is named with or without its suffix."""
    if path is None:
        return {}
    file = Path(path).expanduser().absolute()
    if not find_csv(file).is_file():
        raise RequestError(f"slides.labels={file} is not a file: give a CSV slide,label")
    table = read_csv(file, ["slide", "label"])
    if not table["label"].isin(["0", "1"]).all():
        wrong = table.loc[~table["label"].isin(["0", "1"])].iloc[0]
        raise RequestError(f"slides.labels={path}: {wrong['slide']} has the label {wrong['label']}, not 0 or 1")
    names = {path.name: slide_name(path) for path in slides}
    named = table["slide"].map(lambda name: names.get(name, name))
    if twice := named[named.duplicated()].tolist():
        raise RequestError(f"slides.labels={path} names {twice[0]} twice")
    if absent := sorted(set(named) - set(names.values())):
        log.warning("%d slides of %s are not there, first %s", len(absent), path, absent[0])
    return dict(zip(named, table["label"].astype(int), strict=True))


def _label_slide(path: Path, annotation: Path | None, label: int | None, config: DataConfig) -> LabelledSlide:
    options = config.slides
    slide = open_slide(path, config.mpp)
    try:
        assert options.model_mpp is not None
        grid = grids.lay_grid(slide, options.model_mpp, config.mpp_tolerance, config.image_size, options.stride)
        overview = grids.read_overview(slide, grid.overview_pixel)
        mask = tissue.tissue_mask(slide, grid, overview, tissue.find_masks(options.tissue))
        cells = tissue.tissue_cells(mask, grid)
        if not len(cells):
            raise SlideError(f"{path.name} shows no tissue: slides.tissue=none takes all of it")
        tumour, classes = Tumour(), dict[str, int]()
        if annotation is not None:
            tumour, classes = read_tumour(annotation, slide, options.positive, options.units)
        if label is not None and tumour.none == bool(label):
            what = "no tumour" if tumour.none else "tumour"
            raise SlideError(f"{path.name} has the label {label} in slides.labels, and {what} in {annotation}")
        labels = label_cells(tumour, grid, cells, slide.sizes[0])
        _warn_of_units(path, tumour, slide, labels, grid)
    finally:
        slide.close()
    return LabelledSlide(path, grid, cells, labels, tumour, classes, overview)


def _warn_of_units(path: Path, tumour: Tumour, slide: Slide, labels: np.ndarray, grid: Grid) -> None:
    width, height = slide.sizes[0]
    pixels = 0.0 if tumour.area is None else tumour.area.area
    if tumour.picture is not None:
        pixels = float(tumour.picture.mean()) * width * height
    found = int(labels.sum()) * grid.cell_mm2
    if found < SUSPECT * pixels * (slide.mpp / 1000) ** 2:
        log.warning(
            "%s: less than half of its annotated tumour lies on tissue: look at it with histolight explore (other "
            "units? slides.units)",
            path.name,
        )


def draw(labels: np.ndarray, count: int | None, seed: list[int]) -> np.ndarray:
    """Draw tiles of a slide, half of each class as far as it has them; return their places, rising.

    >>> labels = np.array([True] * 3 + [False] * 20)
    >>> chosen = draw(labels, 10, [0])
    >>> int(labels[chosen].sum()), len(chosen)
    (3, 10)
    """
    if count is None or count >= len(labels):
        return np.arange(len(labels))
    random = np.random.default_rng(seed)
    positive, negative = np.flatnonzero(labels), np.flatnonzero(~labels)
    share = min(len(positive), max(count // 2, count - len(negative)))
    drawn = [random.choice(positive, share, replace=False), random.choice(negative, count - share, replace=False)]
    return np.sort(np.concatenate(drawn))


def places(ids: pd.Series) -> pd.DataFrame:
    """Read from ids where the centres of the tiles lie: ``x`` and ``y`` in pixels at full resolution.

    >>> places(pd.Series(["a_x1_x000120_y000048"])).to_dict("list")
    {'x': [120], 'y': [48]}
    """
    return ids.str.extract(r"_x(?P<x>\d+)_y(?P<y>\d+)$").astype(np.int64)


def _source(config: DataConfig, slides: list[tuple[Path, Grid, np.ndarray, np.ndarray]]) -> Source:
    tables, parts = [], []
    for path, grid, cells, labels in slides:
        y, x = (np.floor((cells[:, axis] * grid.stride + grid.tile / 2) * grid.pixel).astype(int) for axis in (0, 1))
        name, stat = slide_name(path), path.stat()
        ids = [f"{name}_x{a:06d}_y{b:06d}" for a, b in zip(x, y, strict=True)]
        tables.append(pd.DataFrame({"id": ids, "label": labels.astype(np.int8), "group": name}))
        digest = hashlib.blake2b(cells.astype("<i8").tobytes(), digest_size=16).hexdigest()
        parts.append((path.name, stat.st_size, stat.st_mtime_ns, grid.level, grid.scale, grid.stride, digest))
    table = pd.concat(tables, ignore_index=True).astype({"group": object})
    number = np.repeat(np.arange(len(slides)), [len(cells) for _, _, cells, _ in slides])
    cells = np.concatenate([cells for _, _, cells, _ in slides])
    ends = np.flatnonzero(np.diff(np.column_stack([number, cells // grids.BLOCK]), axis=0).any(axis=1)) + 1
    table = table.assign(split=pd.Series([None] * len(table), dtype=object), row=np.arange(len(table), dtype=np.int64))

    @functools.lru_cache(maxsize=64)  # as many as reader threads may be at
    def opened(number: int) -> Slide:
        return open_slide(slides[number][0], config.mpp)

    def read_tiles(rows: range) -> np.ndarray:
        cuts = ends[(ends > rows.start) & (ends < rows.stop)]
        blocks = zip([rows.start, *cuts], [*cuts, rows.stop], strict=True)
        read = [
            grids.read_block(opened(number[start]), slides[number[start]][1], cells[start:stop])
            for start, stop in blocks
        ]
        return np.concatenate(read)

    return Source(
        table.sort_values("id", kind="stable", ignore_index=True),
        "slides",
        fingerprint("slides", config.image_size, parts),
        read_tile=lambda row: read_tiles(range(row, row + 1))[0],
        read_tiles=read_tiles,
    )


def list_files(config: DataConfig) -> pd.DataFrame:
    """List the slides."""
    paths, _, _ = list_slides(data_root(config))
    return pd.DataFrame({"path": [path.name for path in paths], "size": [path.stat().st_size for path in paths]})


KIND = Kind(load, list_files=list_files, unlabelled_apart=True, whole_slides=True)
