"""Whole slides and large pictures behind one interface: OpenSlide first, tiffslide for OME-TIFF, Pillow for the rest.

OpenSlide reads the scanners' own formats; it does not read the pyramid of an OME-TIFF, which tiffslide does.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histolight.errors import RequestError, system_reason

if TYPE_CHECKING:
    from tifffile import TiffFile

log = logging.getLogger("histolight")

PACKAGES = {"openslide": "openslide-python", "tiffslide": "tiffslide", "pyarrow": "pyarrow", "shapely": "shapely"}
SUFFIXES = (
    *(".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu", ".tif", ".tiff", ".btf"),
    *(".png", ".jpg", ".jpeg"),
)
INDEXES = (".vms", ".vmu")  # Hamamatsu's: a text that names the files beside it that hold the slide,
PARTS = (".jpg", ".ngr", ".opt")  # which are these
LONGEST_INDEX = 2**16  # bytes; OpenSlide takes no longer one
MASK = "_mask"  # a picture beside the slides with a slide's name and this shows where its tumour is
COMPANIONS = (  # what people keep beside slides: annotations, labels, notes, and what desktops leave
    *(".geojson", ".json", ".xml", ".ndpa", ".qpproj", ".qpdata", ".csv", ".tsv", ".txt", ".md", ".pdf", ".xls"),
    *(".xlsx", ".yaml", ".yml", ".html", ".log", ".md5", ".sha256", ".ini", ".db"),
)
TIFF = (".tif", ".tiff", ".btf")
OME = (".ome.tif", ".ome.tiff", ".ome.btf")
OME_UNITS = {"nm": 1e-3, "µm": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
PLAUSIBLE = (0.02, 20.0)  # microns; a picture of 72 dots an inch claims 353
SQUARE = 0.1  # pixels that are longer than wide by more than this are refused


class SlideError(RequestError):
    """One slide can't be scored: the others go on."""


@dataclass(frozen=True)
class Slide:
    """An open slide; reading is thread-safe.

    Attributes:
        name: The file's name without its suffix.
        mpp: Microns per pixel at full resolution.
        sizes: (width, height) of each level in pixels; the first is full resolution.
        downsamples: Pixels at full resolution per pixel of each level, at least 1, rising.
        region: Reads (x, y at full resolution, level, width, height in its pixels) as uint8 (height, width, 3).
        close: Closes the file.
        stated_mpp: Microns per pixel that the file itself states, or None.
    """

    name: str
    mpp: float
    sizes: tuple[tuple[int, int], ...]
    downsamples: tuple[float, ...]
    region: Callable[[int, int, int, int, int], np.ndarray]
    close: Callable[[], None]
    stated_mpp: float | None = None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Read a part of a level that lies inside it.

        Args:
            level: The level.
            x: Left border in the level's pixels.
            y: Upper border likewise.
            width: In pixels.
            height: In pixels.

        Returns:
            uint8 (height, width, 3); what the scanner left out is white.

        Raises:
            SlideError: The file is damaged there.
        """
        factor = self.downsamples[level]
        try:
            return self.region(round(x * factor), round(y * factor), level, width, height)
        except Exception as error:  # whatever a reader meets in a damaged file
            raise SlideError(
                f"{self.name} is damaged near x={x * factor:.0f}, y={y * factor:.0f} ({_line(error)})"
            ) from error


def check_packages() -> None:
    """Raise :class:`RequestError` where a package of the extra ``slides`` is missing."""
    if missing := [package for name, package in PACKAGES.items() if importlib.util.find_spec(name) is None]:
        raise RequestError(
            f"whole slides need {', '.join(missing)}: install histolight with its extra, histolight[slides]"
        )


def list_slides(root: Path) -> tuple[list[Path], dict[str, str], list[str]]:
    """Look through a folder, not into its subfolders: MIRAX keeps a slide's data in one.

    Args:
        root: The folder.

    Returns:
        The slides by name; what keeps a file from being scored, by its name; and the names of the files that belong
        beside slides: :data:`COMPANIONS`, and pictures of the tumour, ``NAME_mask.png``. Any other file is a problem.
        Hidden files are not looked at, nor the files that hold the slide of a VMS or VMU.

    Raises:
        RequestError: There is no such folder, or no slide in it.
    """
    try:
        files = sorted(path for path in root.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise RequestError(
            f"data.root={root} can't be read ({system_reason(error)}): give the slides' folder, data.root=FOLDER"
        ) from error
    named_in = {name for path in files if path.suffix.lower() in INDEXES for name in _named_in(path)}
    files = [path for path in files if path.name not in named_in or path.suffix.lower() not in PARTS]
    pictures = [path for path in files if path.suffix.lower() in SUFFIXES]
    names = {slide_name(path) for path in pictures}
    masks = {path for path in pictures if _is_mask(slide_name(path), names)}
    slides = [path for path in pictures if path not in masks]
    if not slides:
        raise RequestError(f"{root} holds no slide: histolight reads {', '.join(SUFFIXES)}")
    named: dict[str, list[Path]] = {}
    for path in slides:
        named.setdefault(slide_name(path), []).append(path)
    problems = {
        path.name: f"has the name of {', '.join(other.name for other in same if other != path)}: rename one of them"
        for same in named.values()
        if len(same) > 1
        for path in same
    }
    others = [path.name for path in files if path.suffix.lower() in COMPANIONS or path in masks]
    foreign = [path.name for path in files if path.suffix.lower() not in SUFFIXES + COMPANIONS]
    problems |= dict.fromkeys(foreign, "is no slide by its name: move it elsewhere, or convert it to a pyramidal TIFF")
    return [path for path in slides if path.name not in problems], problems, others


def _named_in(index: Path) -> set[str]:
    """Return what the lines ``key=value`` of a VMS or VMU name: among it the files that hold its slide."""
    try:
        with index.open("rb") as file:
            lines = file.read(LONGEST_INDEX).decode(errors="replace").splitlines()
    except OSError:  # reported where the slide is opened
        return set()
    return {value.strip() for _, found, value in (line.partition("=") for line in lines) if found}


def _is_mask(name: str, names: set[str]) -> bool:
    """Whether a picture is named after a slide that lies beside it."""
    return name.endswith(MASK) and name.removesuffix(MASK) in names


def slide_name(path: Path) -> str:
    """Return a file's name without its suffix.

    >>> slide_name(Path("slides/a.ome.tif")), slide_name(Path("b.1.svs"))
    ('a', 'b.1')
    """
    suffix = next((suffix for suffix in OME if path.name.lower().endswith(suffix)), path.suffix)
    return path.name[: -len(suffix)]


def open_slide(path: Path, mpp: float | None = None) -> Slide:
    """Open a slide.

    Args:
        path: The file.
        mpp: Microns per pixel at full resolution; None takes what the file says.

    Raises:
        SlideError: The file is empty, damaged, of no known format or not 8-bit RGB, or its pixel size is missing.
    """
    try:
        if path.stat().st_size == 0:
            raise SlideError("is empty: copy it again")
        with _silence("tifffile"):
            slide, stated = _open(path)
    except SlideError as error:
        raise SlideError(f"{path.name} {error}") from error
    except Exception as error:  # whatever a reader meets in a damaged file
        raise SlideError(
            f"{path.name} can't be read as a slide ({_line(error)}): copy it again, or convert it"
        ) from error
    try:
        return Slide(slide_name(path), _pixel_size(path, stated, mpp), *slide, _stated(stated))
    except SlideError:
        slide[-1]()
        raise


_Parts = tuple[
    tuple[tuple[int, int], ...], tuple[float, ...], Callable[[int, int, int, int, int], np.ndarray], Callable[[], None]
]


def _open(path: Path) -> tuple[_Parts, tuple[float | None, float | None]]:
    import openslide
    import tifffile

    if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
        return _open_picture(path)
    kind = openslide.OpenSlide.detect_format(str(path))
    if kind == "generic-tiff":
        with tifffile.TiffFile(path) as file:
            return _open_tiff(path) if file.is_ome else _open_openslide(path)
    return _open_openslide(path) if kind or path.suffix.lower() not in TIFF else _open_tiff(path)


def _open_openslide(path: Path) -> tuple[_Parts, tuple[float | None, float | None]]:
    import openslide

    slide = openslide.OpenSlide(str(path))

    def region(x: int, y: int, level: int, width: int, height: int) -> np.ndarray:
        return _on_white(np.asarray(slide.read_region((x, y), level, (width, height))))

    size = tuple(_number(slide.properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    return (slide.level_dimensions, slide.level_downsamples, region, slide.close), (size[0], size[1])


def _open_tiff(path: Path) -> tuple[_Parts, tuple[float | None, float | None]]:
    import tifffile
    import tiffslide

    with tifffile.TiffFile(path) as file:
        _check_whole(file, path)
    slide = tiffslide.TiffSlide(str(path))

    def region(x: int, y: int, level: int, width: int, height: int) -> np.ndarray:
        return _on_white(slide.read_region((x, y), level, (width, height), as_array=True))

    region(0, 0, slide.level_count - 1, 1, 1)  # refuse other than 8-bit RGB before anything is scored
    size = [_number(slide.properties.get(f"tiffslide.mpp-{axis}")) for axis in "xy"]
    if slide.ts_tifffile.is_ome:  # tiffslide looks into the tags alone
        size = [known or tagged for known, tagged in zip(_ome_pixel_size(slide.ts_tifffile), size, strict=True)]
    return (slide.level_dimensions, slide.level_downsamples, region, slide.close), (size[0], size[1])


def _check_whole(file: TiffFile, path: Path) -> None:
    """Refuse part of a set, and a file that was cut short: tiffslide opens it, and what is lost is black or missing."""
    metadata = file.ome_metadata or ""
    if "<BinaryOnly" in metadata or len(set(re.findall(r'FileName="([^"]*)"', metadata))) > 1:
        raise SlideError("is spread over several files: join them into one")
    pages = [page for level in file.series[0].levels for page in level.pages if page is not None]
    end = max(
        offset + count for page in pages for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
    )
    if end > path.stat().st_size:
        raise SlideError("is cut short: copy it again")


def _ome_pixel_size(file: TiffFile) -> list[float | None]:
    """Read the pixel size of an OME-TIFF's first image in microns, the unit where none is given."""
    import tifffile

    images = tifffile.xml2dict(file.ome_metadata or "<OME/>")["OME"].get("Image", {})
    pixels = (images[0] if isinstance(images, list) else images).get("Pixels", {})
    size: list[float | None] = []
    for axis in "XY":
        value = _number(pixels.get(f"PhysicalSize{axis}"))
        scale = OME_UNITS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        size.append(None if value is None or scale is None else value * scale)
    return size


def _open_picture(path: Path) -> tuple[_Parts, tuple[float | None, float | None]]:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at twice as many pixels it is an error
        try:
            picture = Image.open(path)
        except Image.DecompressionBombError as error:
            raise SlideError("has too many pixels for a PNG or JPEG: save it as a pyramidal TIFF") from error
    if picture.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        raise SlideError(f"is not an 8-bit RGB picture (mode {picture.mode})")
    dots = picture.info.get("dpi", (0, 0))
    pixels = _on_white(np.asarray(picture.convert("RGBA" if picture.has_transparency_data else "RGB")))

    def region(x: int, y: int, level: int, width: int, height: int) -> np.ndarray:
        return pixels[y : y + height, x : x + width]

    size = tuple(25400 / float(value) if value else None for value in dots)
    return ((picture.size,), (1.0,), region, picture.close), (size[0], size[1])


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """Lay (H, W, 3 or 4) over white; any other array is no RGB."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise SlideError(f"is not an 8-bit RGB image ({pixels.dtype}, {' x '.join(map(str, pixels.shape))})")
    colours = pixels[..., :3]
    if pixels.shape[2] == 3 or pixels[..., 3].min(initial=255) == 255:
        return colours
    opacity = pixels[..., 3:].astype(np.uint16)
    return ((colours * opacity + 255 * (255 - opacity)) // 255).astype(np.uint8)


def _stated(size: tuple[float | None, float | None]) -> float | None:
    """Return the pixel size that a file states, where it can be true."""
    wide, high = (value if value and PLAUSIBLE[0] <= value <= PLAUSIBLE[1] else None for value in size)
    return math.sqrt(wide * high) if wide and high else None


def _pixel_size(path: Path, stated: tuple[float | None, float | None], given: float | None) -> float:
    """Choose the pixel size: what is given, else what the file says."""
    size = _stated(stated)
    if given is not None:
        if size and abs(size / given - 1) > SQUARE:
            log.warning("%s says %.4g µm a pixel, and data.mpp=%g is taken", path.name, size, given)
        return given
    wide, high = stated
    if size is None or wide is None or high is None:
        stated_value = next((value for value in stated if value is not None and math.isfinite(value)), None)
        what = (
            "does not say its pixel size"
            if stated_value is None
            else f"says {stated_value:.4g} µm a pixel, which can't be true"
        )
        raise SlideError(
            f"{path.name} {what}: give it, data.mpp=MICRONS at full resolution (40x is about 0.25); it then holds for "
            "every slide of the folder, so that this one may need a folder of its own"
        )
    if abs(wide / high - 1) > SQUARE:
        raise SlideError(
            f"{path.name} has pixels of {wide:.4g} x {high:.4g} µm, and square ones are needed: resample it"
        )
    return size


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


@contextlib.contextmanager
def _silence(name: str) -> Iterator[None]:
    """Keep a library from logging what is raised, or made up for, here."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:150] or type(error).__name__
