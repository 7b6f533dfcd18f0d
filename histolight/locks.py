"""Locks between processes: the kernel's where the file system has them, else a marker that says who holds it.

The kernel lets go of a lock when its holder dies. A share without such locks (Lustre mounted without ``-o flock``, NFS
without a lock service) gets a marker, ``LOCK.holder``, whose holder touches it every :data:`BEAT` seconds. It is taken
over when its holder is dead: at once where its process can be looked up, else when it was not touched for
:data:`SILENCE` seconds of the file system's clock. (filelock's own fallback waits for the dead for ever.)
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

if sys.platform != "win32":
    import fcntl

BEAT = 2.0  # seconds between two signs of life of a marker's holder
SILENCE = 30.0  # seconds without one after which it is taken for dead
PATIENCE = 2.0  # seconds for which a wait may be silent
_POLL = 0.1
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, 524}

log = logging.getLogger("histolight")


class HeldError(Exception):
    """A live process holds the lock; the message says which, where and since when."""


class Lock:
    """A lock that one process holds at a time, and no longer than it lives.

    Args:
        path: The file to lock; it is made where it isn't there, and stays.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._marker = marker_of(path)
        self._let_go: Callable[[], None] | None = None  # of the kernel's lock
        self._kernels = True  # whether the file system has such locks
        self._beating: threading.Event | None = None
        self._me = {**_identity(), "since": f"{datetime.now():%F %T}", "token": secrets.token_hex(8)}

    def __enter__(self) -> Lock:
        self.acquire(wait=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self, wait: bool = False, watch: bool = True) -> None:
        """Take the lock.

        Args:
            wait: Wait until its holder lets go of it.
            watch: Where it can't be known at once whether a holder on another machine lives, look for a sign of life.

        Raises:
            HeldError: It is held, unless ``wait``.
            OSError: The file can't be made or locked.
        """
        begun, said, first = time.monotonic(), False, None
        while not self._try():
            alive, beat = self._state()
            first = first or beat
            unknown = alive is None and not watch
            if beat and not wait and (alive or unknown or beat != first):
                raise HeldError(self._holder())
            if not said and time.monotonic() - begun > PATIENCE:
                doing = "waiting for" if wait else f"looking for {SILENCE:.0f} s whether it lives:"
                log.warning("%s the holder of %s, %s", doing, self._path, self._holder())
                said = True
            time.sleep(_POLL)

    def release(self) -> None:
        """Let go of it."""
        if self._let_go is not None:
            self._let_go()
        if self._beating is not None:
            self._beating.set()
            with contextlib.suppress(OSError):  # then it counts no longer than this process lives
                self._bury(self._marker, self._me)
        self._let_go = self._beating = None

    def _try(self) -> bool:
        taken = _kernels_lock(self._path)
        self._kernels = taken is not None
        if taken is None:
            return self._take_marker()
        if not taken:
            return False
        self._let_go = taken
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # it is for messages only
                self._path.write_text(json.dumps(self._me))
        return True

    def _take_marker(self) -> bool:
        if not self._make(self._marker):
            return False
        self._path.touch()  # its holder deleted it when it let go
        self._beating = threading.Event()
        threading.Thread(target=self._beat, args=(self._beating,), daemon=True).start()
        return True

    def _make(self, marker: Path) -> bool:
        """Make a marker, whole or not at all, and never over another's; that of the dead goes first."""
        with contextlib.suppress(FileNotFoundError):
            held = _read(marker)
            if self._lives(marker, held) is False:
                if not self._bury(marker, held):
                    return False
                log.warning("%s was left by %s, which is gone: taken over", marker, _described(held))
        beside = _temporary(marker)
        try:
            beside.write_text(json.dumps(self._me))
            os.link(beside, marker)
        except FileExistsError:
            return beside.stat().st_nlink == 2  # NFS says so too where it did it, and its answer was lost
        finally:
            beside.unlink(missing_ok=True)
        return True

    def _bury(self, marker: Path, held: dict[str, Any]) -> bool:
        """Remove a marker if it is still the one that was read; say whether nobody else is about to."""
        # Each marker's content is its own, and only the holder of a grave named by it removes that content, after
        # another look: what another has made since, it never removes. A grave is a marker: that of the dead is buried.
        content = json.dumps(held, sort_keys=True).encode()
        grave = self._path.with_name(f"{marker_of(self._path).name}-{hashlib.sha256(content).hexdigest()[:16]}")
        if not self._make(grave):
            return False
        with contextlib.suppress(FileNotFoundError):
            if _read(marker) == held:
                marker.unlink()
        grave.unlink(missing_ok=True)
        return True

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT):
            with contextlib.suppress(OSError):
                if _read(self._marker).get("token") != self._me["token"]:
                    log.warning("%s is no longer held: this process was silent, and another took it over", self._path)
                    return
                os.utime(self._marker)

    def _state(self) -> tuple[bool | None, float]:
        """Say whether the holder lives, None where nobody here can know, and when it gave its last sign of life."""
        if self._kernels:
            return True, 1.0
        try:
            beat = self._marker.stat().st_mtime
            return self._lives(self._marker, _read(self._marker)), beat
        except FileNotFoundError:
            return None, 0.0

    def _lives(self, marker: Path, held: dict[str, Any]) -> bool | None:
        here = all(held.get(name) == self._me[name] for name in ("machine", "processes"))
        if here and held.get("started") is not None:  # which not every system says
            return _started(held.get("process")) == held.get("started")
        beside = _temporary(marker)
        try:
            beside.touch()
            age = beside.stat().st_mtime - marker.stat().st_mtime
        finally:
            beside.unlink(missing_ok=True)
        return False if age > SILENCE else None

    def _holder(self) -> str:
        with contextlib.suppress(OSError):  # its holder let go meanwhile, or Windows lets nobody else read it
            if self._kernels:
                return _described(_read(self._path))
            return f"{_described(_read(self._marker))}; if that is gone, delete {self._marker}"
        return "another process"


def marker_of(path: Path) -> Path:
    """Return the file that stands for a lock where the file system has none."""
    return path.with_name(f"{path.name}.holder")


def is_of_lock(path: Path, lock: Path) -> bool:
    """Say whether a file is that lock, its marker, or what a process that died while it took it over has left."""
    own = re.escape(marker_of(lock).name)
    return path == lock or (
        path.parent == lock.parent and re.fullmatch(rf"{own}(-[0-9a-f]{{16}})?", path.name) is not None
    )


def _kernels_lock(path: Path) -> Callable[[], None] | Literal[False] | None:
    """Take the kernel's lock, and return how to let go of it; False where it is held, None where there are none."""
    if sys.platform == "win32":  # its locks are always there
        lock = FileLock(path, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            return False
        return lock.release
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    try:
        if _is_at(descriptor, path):
            return lambda: _unlock(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)  # its holder deleted it when it let go
    return _kernels_lock(path)


def _unlock(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone would leave it to a child that was forked meanwhile
    with contextlib.suppress(OSError):  # which closes it all the same
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _identity() -> dict[str, Any]:
    """Say which process this is, so that another can look it up: on which boot of which machine, among which."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    known = boot.exists() and namespace.exists()
    return {
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "host": socket.gethostname(),
        "machine": boot.read_text().strip() if known else socket.gethostname(),
        "processes": namespace.stat().st_ino if known else 0,
    }


def _started(process: object) -> str | None:
    """Say when a process of this machine was started, by the kernel's count; None when it doesn't live."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    state, *rest = text.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]


def _read(path: Path) -> dict[str, Any]:
    try:
        holder = json.loads(path.read_bytes())
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _described(holder: dict[str, Any]) -> str:
    if not {"process", "host", "since"} <= holder.keys():
        return "another process"
    return f"process {holder['process']} on {holder['host']} since {holder['since']}"


def _temporary(path: Path) -> Path:
    return path.with_name(f".histolight-{os.getpid()}-{secrets.token_hex(4)}.tmp")
