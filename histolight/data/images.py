"""Image files as tiles: list them, read them, decode them strictly."""

from __future__ import annotations

import errno
import io
import logging
import os
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFile, UnidentifiedImageError

from histolight.config.checks import check_utf8
from histolight.data.table import Source, TileError, fingerprint
from histolight.errors import system_reason

log = logging.getLogger("histolight")

SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".webp")

_FORMATS = ("TIFF", "PNG", "JPEG", "BMP", "WEBP")
# Modes of up to 8 bits, beside RGB, whose colours have one meaning in it, as long as what is transparent is opaque.
_READ_AS_RGB = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with an opaque alpha",
    "P": "in a palette",
    "PA": "in a palette with an opaque alpha",
    "RGBA": "RGB with an opaque alpha",
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
}
_SAVE = "; save it as 8-bit RGB"
_LARGEST_FILE = 2**26
_ORIENTATION = 0x0112


def list_images(
    folder: Path, suffixes: tuple[str, ...] = SUFFIXES, recursive: bool = True
) -> tuple[pd.DataFrame, list[str]]:
    """List the image files below a folder; hidden files are ignored, links to a folder already listed not followed.

    Returns:
        Columns ``path`` (below ``folder``, with /), ``size`` (bytes) and ``mtime_ns``, sorted by path; and the paths of
        whatever else is visible there.

    Raises:
        RequestError: The name of an image is not UTF-8.
    """
    files: list[tuple[str, int, int]] = []
    others: list[str] = []
    listed = {_identity(folder)}
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", (_identity(folder),))]
    while pending:
        below, parents = pending.pop()
        with os.scandir(folder / below) as entries:
            for entry in entries:
                path = below + entry.name
                if entry.name.startswith("."):
                    continue
                if _leads_nowhere(entry):
                    if path.lower().endswith(suffixes):
                        files.append((path, -1, -1))  # a tile that is missing, and is reported as one
                    else:
                        others.append(path)
                elif entry.is_dir():
                    identity = _identity(Path(entry.path))
                    again = identity in parents or (entry.is_symlink() and identity in listed)
                    if recursive and not again:
                        listed.add(identity)
                        pending.append((f"{path}/", (*parents, identity)))
                    else:
                        others.append(f"{path}/")
                elif not entry.name.lower().endswith(suffixes):
                    others.append(path)
                elif entry.is_file():
                    check_utf8(f"{folder}/{path}")
                    stat = entry.stat()
                    files.append((path, stat.st_size, stat.st_mtime_ns))
                else:
                    others.append(path)
    frame = pd.DataFrame(sorted(files), columns=["path", "size", "mtime_ns"])
    return frame.astype({"path": object, "size": np.int64, "mtime_ns": np.int64}), sorted(others)


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """Whether this is a link to nothing, to itself, or to what is neither a file nor a folder, such as a pipe."""
    try:
        return entry.is_symlink() and not (entry.is_file() or entry.is_dir())
    except OSError:  # links that lead in a circle
        return True


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def file_source(table: pd.DataFrame, root: Path, kind: str, image_size: int) -> Source:
    """Make a source of files.

    Args:
        table: One row a tile: ``id``, ``path`` (below ``root``), ``size``, ``mtime_ns``, and what else is known of it.
        root: Folder of the paths.
        kind: Name of the source.
        image_size: Height and width of a tile in pixels.
    """
    table = table.sort_values("id", kind="stable", ignore_index=True)
    table["row"] = np.arange(len(table), dtype=np.int64)
    for name in (name for name in ("group", "split") if name not in table):
        table[name] = pd.Series([None] * len(table), dtype=object)
    paths, sizes, times = (table.pop(name).to_list() for name in ("path", "size", "mtime_ns"))
    headers, modes = set[bytes](), set[str]()

    def read(row: int) -> bytes:
        return _read(os.path.join(root, paths[row]), sizes[row], times[row])

    def read_tile(row: int) -> np.ndarray:
        return decode(read(row), image_size, headers, modes)

    def read_luma(row: int) -> np.ndarray | None:
        return decode_luma(read(row)) if is_jpeg[row] else None

    is_jpeg = [path.lower().endswith((".jpg", ".jpeg")) for path in paths]
    identity = fingerprint(kind, image_size, zip(table["id"], paths, sizes, times, strict=True))
    return Source(table, kind, identity, read_tile, read_luma=read_luma if any(is_jpeg) else None)


def _read(path: str, size: int, mtime_ns: int) -> bytes:
    if size < 0:  # not opened: that of a link to a pipe would wait for ever
        raise TileError("file missing", f"{path} is a link that leads to no file")
    try:
        with open(path, "rb", buffering=0) as file:
            stat = os.fstat(file.fileno())
            if (stat.st_size, stat.st_mtime_ns) != (size, mtime_ns):
                raise TileError("file changed", "its size or time is not what it was when the tiles were listed")
            if size > _LARGEST_FILE:
                raise TileError("file too large", f"{size} bytes are not a tile")
            data = file.read()
            if data is None:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return data
    except FileNotFoundError:
        raise TileError("file missing", path) from None
    except OSError as error:
        raise TileError("file unreadable", f"{path}: {system_reason(error)}") from None


def decode(data: bytes, image_size: int, headers: set[bytes], modes: set[str] | None = None) -> np.ndarray:
    """Decode one image file.

    Pillow parses the tags of a TIFF in Python, which would take most of the time of packing. Kaggle's uncompressed
    tiles have a few dozen different headers among them, so a header that Pillow has found to be followed by nothing but
    the plain pixels is remembered.

    Args:
        data: The file.
        image_size: Height and width that the tile must have.
        headers: Headers known to be followed by plain pixels; may grow.
        modes: Modes other than RGB of which it was said that they are read as RGB; may grow.

    Returns:
        uint8 (image_size, image_size, 3), red-green-blue.

    Raises:
        TileError: Anything but one whole 8-bit image of that size whose colours have one meaning in RGB.
    """
    pixels = image_size * image_size * 3
    header = data[:-pixels]
    if header in headers:
        return np.frombuffer(data, np.uint8, pixels, len(header)).reshape(image_size, image_size, 3)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check(image, image_size)
            plain = image.tile == [("raw", (0, 0, image_size, image_size), len(header), ("RGB", 0, 1))]
            if plain and 0 < len(header) < 4096 and len(headers) < 4096 and image.getexif().get(_ORIENTATION, 1) == 1:
                headers.add(header)
            return np.asarray(image if image.mode == "RGB" else _as_rgb(image, set() if modes is None else modes))
    except TileError:
        raise
    except Image.DecompressionBombError:
        raise TileError("wrong size", f"far more pixels than data.image_size={image_size}") from None
    except UnidentifiedImageError:
        if data[:4] in (b"II*\0", b"MM\0*") and len(data) >= pixels:
            raise TileError("not 8-bit RGB", f"a TIFF of {len(data)} bytes that Pillow can't read{_SAVE}") from None
        raise TileError("not an image", f"{len(data)} bytes that are not TIFF, PNG, JPEG, BMP or WebP") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise TileError("damaged image", " ".join(f"{error}".split()) or type(error).__name__) from None


def _as_rgb(image: Image.Image, said: set[str]) -> Image.Image:
    """Convert another mode to RGB, and say so once; of what is transparent each viewer shows another colour."""
    if image.has_transparency_data:
        whole = image.convert("RGBA")
        if whole.getchannel("A").getextrema() != (255, 255):
            raise TileError("not opaque", f"{image.mode} with transparency, to be seen as black or as white{_SAVE}")
        converted = whole.convert("RGB")
    else:
        converted = image.convert("RGB")
    if image.mode not in said:
        said.add(image.mode)
        log.warning("tiles that are %s are read as RGB", _READ_AS_RGB[image.mode])
    return converted


def decode_luma(data: bytes) -> np.ndarray | None:
    """Decode the luma of a JPEG that :func:`decode` accepts, before any conversion: uint8 (S, S).

    JPEGs cut from one place on a grid of 16 px have the same luma to the bit; their colours, which are smoothed across
    the edges of the blocks, differ. Other formats give None.
    """
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        if image.format != "JPEG" or image.mode not in ("RGB", "L"):
            return None
        image.draft("L", image.size)
        return np.asarray(image)


def _check(image: ImageFile.ImageFile, image_size: int) -> None:
    """Check what the header says, before anything is decoded."""
    if image.size != (image_size, image_size):
        width, height = image.size
        raise TileError("wrong size", f"{width}x{height} pixels where data.image_size={image_size}")
    raw_modes = [tile.args if isinstance(tile.args, str) else str((tile.args or ("",))[0]) for tile in image.tile]
    if image.mode not in ("RGB", *_READ_AS_RGB) or any("16" in mode for mode in raw_modes):
        mode = next((mode for mode in raw_modes if "16" in mode), image.mode)
        raise TileError("not 8-bit RGB", f"its pixels are {mode}{_SAVE}")
    if getattr(image, "is_animated", False):
        raise TileError("several images in one file", "a tile is one image")
