"""Tables as they are downloaded: plain, zipped or gzipped."""

from __future__ import annotations

import gzip
import io
import logging
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from histolight.errors import RequestError
from histolight.files import unblocked

LARGEST = 2**30  # bytes of an unpacked table: a hundred times Kaggle's labels

log = logging.getLogger("histolight")


def find_csv(path: Path) -> Path:
    """Return the path of a table, with ``.zip`` or ``.gz`` behind it where only that is there."""
    packed = (path.with_name(f"{path.name}{suffix}") for suffix in (".zip", ".gz"))
    return path if path.exists() else next((other for other in packed if other.is_file()), path)


def open_unpacked(path: Path) -> BinaryIO:
    """Open a file, or what is in it where it is a zip of one table, or gzipped, whatever its name says.

    Raises:
        RequestError: A zip holds no table or several, what is packed is damaged, locked or far too large.
        OSError: The file can't be read.
    """
    with open(path, "rb") as file:
        start = unblocked(file.read(4), path)
    file = open(path, "rb")  # noqa: SIM115  # the caller closes it
    if start[:2] != b"\x1f\x8b" and start != b"PK\x03\x04":
        return file
    with file:
        try:
            content = _unzip(path, file) if start[:2] == b"PK" else gzip.GzipFile(fileobj=file).read(LARGEST + 1)
        except (zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise RequestError(f"{path} is damaged ({error}): download it again") from None
        except (RuntimeError, NotImplementedError) as error:  # a password, a method that Python lacks
            raise RequestError(f"{path} can't be unpacked ({error}): unzip it yourself") from None
    if len(content) > LARGEST:
        raise RequestError(f"{path} holds more than {LARGEST:,} bytes, which no table of tiles has")
    log.warning("%s is packed, and read without unpacking it on disk", path)
    return io.BytesIO(content)


def _unzip(path: Path, file: BinaryIO) -> bytes:
    with zipfile.ZipFile(file) as archive:
        names = [
            name for name in archive.namelist() if not name.startswith("__MACOSX/") and name.lower().endswith(".csv")
        ]
        wanted = [name for name in names if Path(name).name == path.name.removesuffix(".zip")]
        if len(wanted or names) != 1:
            raise RequestError(f"{path} is a zip with {len(names)} tables in it: unzip it, and give the CSV")
        with archive.open((wanted or names)[0]) as member:
            return member.read(LARGEST + 1)
