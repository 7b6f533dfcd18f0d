"""PatchCamelyon from its publisher, continued where it stopped, and checked before it counts."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError

from tqdm import tqdm

from histolight.errors import HistolightError, RequestError, cannot_write, system_reason
from histolight.files import named, reading, unblocked
from histolight.locks import Lock

PCAM = "https://zenodo.org/records/2546921/files"
LICENCE = (
    "PatchCamelyon is in the public domain (CC0 1.0). Cite Veeling et al. 2018 (arXiv:1806.03962) and Ehteshami "
    "Bejnordi et al. 2017 (doi:10.1001/jama.2017.14585)."
)
# MD5 as torchvision has them for the same files; the publisher's page has those of valid and test exchanged.
FILES = {
    "camelyonpatch_level_2_split_train_x.h5.gz": "1571f514728f59376b705fc836ff4b63",
    "camelyonpatch_level_2_split_train_y.h5.gz": "35c2d7259d906cfc8143347bb8e05be7",
    "camelyonpatch_level_2_split_valid_x.h5.gz": "d5b63470df7cfa627aeec8b9dc0c066e",
    "camelyonpatch_level_2_split_valid_y.h5.gz": "2b85f58b927af9964a4c15b8f7e8f179",
    "camelyonpatch_level_2_split_test_x.h5.gz": "d8c2d60d490dbd479f8199bdfa0cf6ec",
    "camelyonpatch_level_2_split_test_y.h5.gz": "60a7035772fbdb7f34eb86d4420cf66a",
}
LOCK = ".histolight-download.lock"
PARTIAL = ".histolight-partial"  # behind the name of a file that is not whole yet

_CHUNK = 2**20
_SECONDS = 60  # without a byte, until it counts as broken off


def download(folder: Path, files: dict[str, str], address: str) -> None:
    """Download files into a folder; those that are there already, whole, are left alone.

    Args:
        folder: Made if it is missing.
        files: MD5 by name.
        address: They lie there, below their names.

    Of two processes that share the folder one downloads and the other waits.

    Raises:
        RequestError: A file of one of these names has another content.
        HistolightError: The server can't be reached, breaks off, or sends other bytes; what came stays, and the next
            call goes on from there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        whole = all((folder / name).exists() for name in files)  # then it may be read-only
        with contextlib.nullcontext() if whole else _held(folder / LOCK):
            for name, checksum in files.items():
                _download(folder / name, f"{address}/{name}", checksum)
    except OSError as error:
        raise HistolightError(cannot_write(error.filename or folder, error, "give another folder")) from error


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    with Lock(path):
        try:
            yield
        finally:
            with contextlib.suppress(PermissionError):  # on Windows the release deletes it
                path.unlink(missing_ok=True)


def _download(path: Path, url: str, checksum: str) -> None:
    partial = path.with_name(path.name + PARTIAL)
    if not path.exists():
        _fetch(url, partial, path.name)
        if _md5(partial) != checksum:
            partial.unlink()
            raise HistolightError(f"{url} is not the file that was published: its checksum differs")
        partial.rename(path)
    elif _md5(path) != checksum:
        raise RequestError(f"{path} is not the file that was published: move it away, or give another folder")


def _fetch(url: str, partial: Path, name: str) -> None:
    """Download into a partial file, from its end on where the server can do that."""
    begun = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={begun}-"} if begun else {})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            begun = begun if answer.status == 206 else 0
            length = answer.headers.get("Content-Length")
            total = None if length is None else begun + int(length)
            free = shutil.disk_usage(partial.parent).free
            if total is not None and total - begun > free:
                raise HistolightError(f"{name} needs {(total - begun) / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
            interval = 0.1 if sys.stderr.isatty() else 30
            bar = tqdm(total=total, initial=begun, desc=name, unit="B", unit_scale=True, mininterval=interval)
            with bar, named(partial), open(partial, "ab" if begun else "wb") as file:
                for chunk in _chunks(answer, url):
                    file.write(chunk)
                    file.flush()
                    bar.update(len(chunk))
    except HTTPError as error:
        if error.code == 416 and begun:  # nothing is missing
            return
        raise HistolightError(f"{url} can't be downloaded: {error.code} {error.reason}") from None
    except (OSError, HTTPException) as error:
        if isinstance(error, OSError) and error.filename:  # not the server's: the file can't be written
            raise
        raise _broken_off(url, error) from None
    if total is not None and partial.stat().st_size < total:
        raise HistolightError(f"{url} broke off after {partial.stat().st_size:,} bytes; the same command continues")


def _chunks(answer: HTTPResponse, url: str) -> Iterator[bytes]:
    try:
        while chunk := answer.read(_CHUNK):
            yield chunk
    except (OSError, HTTPException) as error:
        raise _broken_off(url, error) from None


def _broken_off(url: str, error: OSError | HTTPException) -> HistolightError:
    reason = error.reason if isinstance(error, URLError) else error
    text = system_reason(reason) if isinstance(reason, OSError) else str(reason) or type(reason).__name__
    return HistolightError(f"{url} broke off: {text}; the same command continues")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with reading(path), open(path, "rb") as file:
        while chunk := unblocked(file.read(_CHUNK), path):  # hashlib's own loop never ends where reading would block
            digest.update(chunk)
    return digest.hexdigest()
