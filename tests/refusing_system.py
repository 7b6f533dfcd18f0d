"""A system that refuses: a shim before the C library that fails chosen calls at chosen files with a chosen number.

``python refusing_system.py`` is started with the shim in ``LD_PRELOAD`` by :func:`tries`. It runs a command undisturbed
and notes which files each kind of call meets; then it runs the command once for each kind of call and of file, in which
that call fails from its first time on.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NUMBERS = [errno.EACCES, errno.EPERM, errno.ENOLCK, errno.EAGAIN, errno.ESTALE, errno.EIO, errno.ENOSPC]
NUMBERS += [errno.EROFS, errno.ENAMETOOLONG, 524]
SOURCE = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char refused_call[16], refused_end[4096];
static int refused_number = 0, passes = 0, recording = -1;

void refuse(const char *call, const char *end, int number, int pass) {
    strncpy(refused_call, call, 15);
    strncpy(refused_end, end, 4095);
    refused_number = number;
    passes = pass;
}
void record(int descriptor) { recording = descriptor; }

static int stopped(const char *call, const char *path, const char *more) {
    if (recording >= 0 && path[0] == '/' && strncmp(path, "/proc", 5) && strncmp(path, "/dev", 4)) {
        char line[12000];
        int length = snprintf(line, sizeof line, "%s\t%s\t%s\n", call, path, more);
        syscall(SYS_write, recording, line, length);
    }
    size_t long_path = strlen(path), long_end = strlen(refused_end);
    if (!refused_number || strcmp(call, refused_call) || long_end > long_path) return 0;
    if (strcmp(path + long_path - long_end, refused_end) || passes-- > 0) return 0;
    errno = refused_number;
    return 1;
}
static int stopped_at(const char *call, int descriptor) {
    char name[64], path[4096];
    if (recording < 0 && !refused_number) return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    long length = syscall(SYS_readlink, name, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return stopped(call, path, "");
}
static int stopped_path(const char *call, const char *path, const char *more) {
    char whole[8192], here[4096];
    if (recording < 0 && !refused_number) return 0;
    if (path[0] == '/' || syscall(SYS_getcwd, here, sizeof here) < 0) return stopped(call, path, more);
    snprintf(whole, sizeof whole, "%s/%s", here, path);
    return stopped(call, whole, more);
}
#define REAL(name, ...) ((long (*)()) dlsym(RTLD_NEXT, name))(__VA_ARGS__)
#define OPENING(name) int name(const char *path, int flags, ...) { \
    va_list list; va_start(list, flags); int mode = va_arg(list, int); va_end(list); \
    return stopped_path("open", path, "") ? -1 : (int) REAL(#name, path, flags, mode); }
OPENING(open) OPENING(open64)
#define OPENING_AT(name) int name(int at, const char *path, int flags, ...) { \
    va_list list; va_start(list, flags); int mode = va_arg(list, int); va_end(list); \
    return stopped_path("open", path, "") ? -1 : (int) REAL(#name, at, path, flags, mode); }
OPENING_AT(openat) OPENING_AT(openat64)
#define STREAM(name) FILE *name(const char *path, const char *mode) { \
    return stopped_path("open", path, "") ? NULL : (FILE *) REAL(#name, path, mode); }
STREAM(fopen) STREAM(fopen64)
DIR *opendir(const char *path) { return stopped_path("open", path, "") ? NULL : (DIR *) REAL("opendir", path); }
#define MOVING(name, call) ssize_t name(int file, void *bytes, size_t size) { \
    return stopped_at(call, file) ? -1 : REAL(#name, file, bytes, size); }
MOVING(read, "read")
ssize_t write(int file, const void *bytes, size_t size) {
    return stopped_at("write", file) ? -1 : REAL("write", file, bytes, size); }
#define AT(name, call, type) ssize_t name(int file, type bytes, size_t size, off_t where) { \
    return stopped_at(call, file) ? -1 : REAL(#name, file, bytes, size, where); }
AT(pread, "read", void *) AT(pread64, "read", void *) AT(pwrite, "write", const void *)
AT(pwrite64, "write", const void *)
ssize_t readv(int file, const struct iovec *parts, int count) {
    return stopped_at("read", file) ? -1 : REAL("readv", file, parts, count); }
ssize_t writev(int file, const struct iovec *parts, int count) {
    return stopped_at("write", file) ? -1 : REAL("writev", file, parts, count); }
size_t fread(void *bytes, size_t size, size_t count, FILE *file) {
    return stopped_at("read", fileno(file)) ? 0 : (size_t) REAL("fread", bytes, size, count, file); }
size_t fwrite(const void *bytes, size_t size, size_t count, FILE *file) {
    return stopped_at("write", fileno(file)) ? 0 : (size_t) REAL("fwrite", bytes, size, count, file); }
ssize_t sendfile(int to, int from, off_t *where, size_t size) {
    return stopped_at("read", from) || stopped_at("write", to) ? -1 : REAL("sendfile", to, from, where, size); }
int fsync(int file) { return stopped_at("fsync", file) ? -1 : (int) REAL("fsync", file); }
int fdatasync(int file) { return stopped_at("fsync", file) ? -1 : (int) REAL("fdatasync", file); }
int rename(const char *from, const char *to) {
    return stopped_path("rename", from, to) ? -1 : (int) REAL("rename", from, to); }
int link(const char *from, const char *to) {
    return stopped_path("link", from, to) ? -1 : (int) REAL("link", from, to); }
int mkdir(const char *path, mode_t mode) {
    return stopped_path("mkdir", path, "") ? -1 : (int) REAL("mkdir", path, mode); }
int unlink(const char *path) { return stopped_path("unlink", path, "") ? -1 : (int) REAL("unlink", path); }
#define LOOKING(name, type) int name(const char *path, struct type *found) { \
    return stopped_path("stat", path, "") ? -1 : (int) REAL(#name, path, found); }
LOOKING(stat, stat) LOOKING(stat64, stat64) LOOKING(lstat, stat) LOOKING(lstat64, stat64)
#define LOOKING_AT(name, type) int name(int at, const char *path, struct type *found, int flags) { \
    return stopped_path("stat", path, "") ? -1 : (int) REAL(#name, at, path, found, flags); }
LOOKING_AT(fstatat, stat) LOOKING_AT(fstatat64, stat64)
int close(int file) {
    int refused = stopped_at("close", file), status = (int) REAL("close", file);
    if (refused) errno = refused_number;
    return refused ? -1 : status; }
"""


def build(folder: Path) -> Path | None:
    """Compile the shim; None where there is no compiler."""
    if sys.platform != "linux" or shutil.which("gcc") is None:
        return None
    (folder / "refusing.c").write_text(SOURCE)
    command = ["gcc", "-w", "-O1", "-shared", "-fPIC", "-o", "refusing.so", "refusing.c", "-ldl"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "refusing.so"


def tries(shim: Path, words: list[str], cwd: Path, data: Path, only: str = "", first: int = 0) -> list[dict[str, Any]]:
    """Try a command with each call refused at each kind of file.

    Args:
        shim: From :func:`build`.
        words: The command, which writes into ``out`` and ``c`` only.
        cwd: The working directory.
        data: The folder of what it reads.
        only: A regular expression for ``CALL FILE``.
        first: Where in ``NUMBERS`` to begin; each try takes the next one.

    Returns:
        For each try: ``call``, ``file`` (name), ``number``, ``status``, ``shown`` (both streams) and ``half`` (files
        that are not whole).
    """
    done = subprocess.run(
        [sys.executable, __file__, json.dumps([words, str(data), only, first])],
        cwd=cwd, capture_output=True, text=True, check=False, timeout=590,
        env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": str(Path(__file__).parents[1])}
        | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"call"')]


def _main() -> None:
    words, data, only, first = json.loads(sys.argv[1])
    system = ctypes.CDLL(os.environ["LD_PRELOAD"])
    if words[0] == "download":
        _serve(Path(data))
    _shorten(words[0])
    _clear()
    status, shown = _run(words)  # imports, and writes what it keeps
    assert status == 0, shown
    _clear()
    with open("calls", "w+") as calls:
        system.record(calls.fileno())
        status, shown = _run(words)
        system.record(-1)
        assert status == 0, shown
        calls.seek(0)
        met = dict(_met([line.rstrip("\n").split("\t") for line in calls], data))
    for count, ((call, kind), (end, name, skipped)) in enumerate(met.items()):
        if not re.search(only, f"{call} {kind}"):
            continue
        for number in NUMBERS if words[0] in ("download", "doctor") else [NUMBERS[(count + first) % len(NUMBERS)]]:
            _clear()
            system.refuse(call.encode(), os.fsencode(end), number, skipped)
            status, shown = _run(words)
            system.refuse(b"", b"", 0, 0)
            tried = {"call": call, "file": name, "number": number, "status": status, "shown": shown}
            print(json.dumps({**tried, "half": [*_half_written()]}), flush=True)


def _shorten(command: str) -> None:
    """Leave out what takes long and opens nothing of its own."""
    if command == "train":
        import histolight.reports.measure
        import histolight.training.fit

        histolight.reports.measure.draw_part = lambda *_: {}  # type: ignore[assignment]
        histolight.training.fit.write_run_report = lambda _: None  # type: ignore[assignment]
    if command == "bench":
        from histolight.training import bench

        bench.ROUNDS, bench.BURN_IN, bench.SECONDS, bench.LONGEST_STEP = 1, 1, 0.0, 0.0
        bench._seconds_to_start = lambda *_: dict.fromkeys(("help", "cfg_job", "first_batch"), 1.0)  # type: ignore[assignment]


def _serve(folder: Path) -> None:
    """Let the files of a folder be those that are downloaded."""
    import hashlib

    import histolight.data.download

    histolight.data.download.PCAM = folder.absolute().as_uri()
    histolight.data.download.FILES = {
        path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.gz"))
    }


def _met(calls: list[list[str]], data: str) -> Iterator[tuple[tuple[str, str], tuple[str, str, int]]]:
    """Yield call and kind of file, and how to refuse it: the end of its path, its final name, the calls to let pass."""
    here = str(Path.cwd())
    targets = {path: more for call, path, more in calls if call == "rename"}
    temporary: dict[str, int] = {}
    for call, path, _ in calls:
        passed = temporary.get(call, 0)
        is_temporary = path.endswith(".tmp")
        if is_temporary:
            temporary[call] = passed + 1
        if not path.startswith((here, data)) or "/served/" in path or path.endswith("/calls"):
            continue
        final = Path(targets.get(path, path)).name
        kind = (
            "tile" if path.endswith((".png", ".tif")) and "/tiles/" in path else re.sub(r"[0-9a-f]{16,}|\d+", "", final)
        )
        if is_temporary:
            yield (call, f"{kind} aside"), (".tmp", final, passed)
        else:
            parts = Path(path).parts[-2:]  # but a temporary folder has another name each time
            yield (call, kind), ("/" + "/".join(part for part in parts if not part.endswith(".tmp")), final, 0)


def _run(words: list[str]) -> tuple[int, str]:
    from histolight import cli

    with contextlib.redirect_stderr(io.StringIO()) as shown, contextlib.redirect_stdout(shown):
        try:
            status = cli.main(words)
        except BaseException:
            import traceback

            return -1, traceback.format_exc()
    return status, shown.getvalue()


def _clear() -> None:
    for folder in ("out", "c"):
        shutil.rmtree(folder, ignore_errors=True)


def _files() -> list[Path]:
    return [path for folder in ("out", "c") for path in Path(folder).rglob("*") if path.is_file()]


def _half_written() -> Iterator[str]:
    """Name the files under a final name that are not whole."""
    for path in _files():
        if any(re.search(r"^\.|[.-]partial", part) for part in path.parts) or path.suffix == ".lock":
            continue
        if path.name == "values.npy" or path.parent.name == "csv":  # done.npy says what counts; a logger's go on
            continue
        try:
            match path.suffix:
                case ".json":
                    json.loads(path.read_text())
                case ".csv" | ".yaml":
                    assert path.read_bytes().endswith(b"\n")
                case ".ckpt":
                    import torch

                    torch.load(path, weights_only=True)
                case ".png":
                    from PIL import Image

                    Image.open(path).load()
                case ".html":
                    assert path.read_text().rstrip().endswith("</html>")
                case ".npy":
                    import numpy as np

                    np.load(path)
                case ".gz":
                    assert path.read_bytes() == Path("served", path.name).read_bytes()
                case _:
                    assert path.stat().st_size
        except Exception as error:
            yield f"{path} ({type(error).__name__}: {error})"


if __name__ == "__main__":
    _main()
