"""Locks where the file system has them, and where it has none: nobody waits for the dead, or without a word."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from histolight import files, locks
from histolight.errors import RequestError
from histolight.locks import HeldError, Lock, marker_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's")

# A share without flock: fails with the error number in NOFLOCK (38: Lustre without -o flock; 37: NFS without lockd).
SOURCE = """
#include <errno.h>
#include <stdlib.h>
int flock(int descriptor, int operation) { errno = atoi(getenv("NOFLOCK")); return -1; }
"""
HOLDER = """
import sys, time
from pathlib import Path
from histolight import locks
locks.BEAT = 0.2
lock = locks.Lock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""
TAKER = """
import logging, sys, time
from pathlib import Path
logging.basicConfig(format="%(message)s")
from histolight import locks
locks.SILENCE = float(sys.argv[3]) if len(sys.argv) > 3 else locks.SILENCE
lock = locks.Lock(Path(sys.argv[1]))
try:
    lock.acquire(wait=sys.argv[2] == "wait")
    print("taken")
except locks.HeldError as error:
    print("refused", error)
"""


@pytest.fixture(scope="module")
def no_flock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not here")
    folder = tmp_path_factory.mktemp("noflock")
    (folder / "noflock.c").write_text(SOURCE)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "noflock.so", "noflock.c"], cwd=folder, check=True)
    return folder / "noflock.so"


def environment(no_flock: Path | None, number: int = 38) -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    shim = {} if no_flock is None else {"LD_PRELOAD": str(no_flock), "NOFLOCK": str(number)}
    return {**os.environ, "PYTHONPATH": root, **shim}


def hold(path: Path, env: dict[str, str], before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [*before, sys.executable, "-c", textwrap.dedent(HOLDER), str(path)], stdout=subprocess.PIPE, text=True, env=env
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def take(path: Path, env: dict[str, str], *options: str, before: tuple[str, ...] = ()) -> tuple[str, str, float]:
    begun = time.monotonic()
    done = subprocess.run(
        [*before, sys.executable, "-c", TAKER, str(path), *options],
        capture_output=True, text=True, env=env, timeout=90, check=True,
    )  # fmt: skip
    return done.stdout.strip(), done.stderr.strip(), time.monotonic() - begun


@pytest.mark.parametrize("number", [None, 37, 38, 524])
def test_a_live_holder_is_named_and_a_dead_one_does_not_count(
    number: int | None, no_flock: Path, tmp_path: Path
) -> None:
    env = environment(None if number is None else no_flock, number or 0)
    path = tmp_path / "a.lock"
    with hold(path, env) as holder:
        said, _, _ = take(path, env, "once")
        assert said.startswith(f"refused process {holder.pid} on {os.uname().nodename} since 20")
        assert (f"if that is gone, delete {marker_of(path)}" in said) == (number is not None)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        said, line, _ = take(path, env, "once")
    assert said == "taken"
    assert ("which is gone: taken over" in line) == (number is not None)
    assert "site-packages" not in line
    assert take(path, env, "once")[0] == "taken"


def elsewhere(path: Path) -> None:
    """Make a marker look as if it were of another machine."""
    marker = marker_of(path)
    beat = marker.stat()
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "machine": "another", "host": "node02"}))
    os.utime(marker, ns=(beat.st_atime_ns, beat.st_mtime_ns))


def test_a_dead_holder_on_another_machine_is_noticed_by_its_silence(no_flock: Path, tmp_path: Path) -> None:
    env, path = environment(no_flock), tmp_path / "a.lock"
    with hold(path, env) as holder:
        elsewhere(path)
        said, _, _ = take(path, env, "once", "20")
        assert said.startswith(f"refused process {holder.pid} on node02 since")  # it gave a sign of life
        holder.kill()
    said, line, _ = take(path, env, "once", "1")
    assert said == "taken"
    assert f"was left by process {holder.pid} on node02" in line
    assert "taken over" in line


def test_looking_for_a_sign_of_life_is_said(monkeypatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(locks, "_kernels_lock", lambda path: path.touch() and None)
    monkeypatch.setattr(locks, "SILENCE", 1.0)
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    path = tmp_path / "a.lock"
    marker_of(path).write_text(json.dumps({"process": 1, "host": "node02", "since": "then", "machine": "another"}))
    lock = Lock(path)
    lock.acquire()
    lock.release()
    assert f"looking for 1 s whether it lives: the holder of {path}, process 1 on node02 since then" in caplog.text
    assert "taken over" in caplog.text


def test_a_long_wait_is_not_silent(monkeypatch, tmp_path: Path, caplog) -> None:
    assert locks.PATIENCE <= 2  # what docs/reliability.md promises
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    first, second = Lock(tmp_path / "a.lock"), Lock(tmp_path / "a.lock")
    first.acquire()
    threading.Timer(0.6, first.release).start()
    second.acquire(wait=True)
    second.release()
    assert f"waiting for the holder of {tmp_path / 'a.lock'}, process {os.getpid()} on" in caplog.text


def test_of_many_that_take_over_one_succeeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(locks, "_kernels_lock", lambda path: path.touch() and None)
    path = tmp_path / "a.lock"
    marker_of(path).write_text(json.dumps({"process": 1, "host": "gone", "since": "then", "machine": "x"}))
    os.utime(marker_of(path), (1, 1))
    taken = []

    def work() -> None:
        lock = Lock(path)
        try:
            lock.acquire()
        except HeldError:
            return
        taken.append(lock)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    taken[0].release()
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.lock"]


RACER = """
import os, random, sys, time
from pathlib import Path
from histolight import locks
path, inside, end = Path(sys.argv[1]), Path(sys.argv[1] + "-inside"), time.monotonic() + float(sys.argv[2])
locks._POLL = 0.001

def racer(number):
    chance = random.Random(number)
    while time.monotonic() < end:
        lock = locks.Lock(path)
        try:
            lock.acquire(wait=chance.random() < 0.5)
        except locks.HeldError:
            continue
        try:
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            os._exit(3)
        time.sleep(chance.random() * 0.004)
        inside.unlink()
        with open(f"{path}-taken", "a") as file:
            file.write("taken\\n")
        if chance.random() < 0.5:
            os._exit(0)  # dies with the lock
        lock.release()
    os._exit(0)

racers, number, held_twice = set(), 0, 0
while time.monotonic() < end or racers:
    while len(racers) < 8 and time.monotonic() < end:
        number += 1
        child = os.fork()
        if child == 0:
            racer(number)
        racers.add(child)
    child, status = os.wait()
    racers.remove(child)
    held_twice += os.waitstatus_to_exitcode(status) == 3
print(held_twice)
"""


@pytest.mark.parametrize("number", [None, 38])
def test_processes_that_race_and_die_never_hold_a_lock_together(number, no_flock: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    done = subprocess.run(
        [sys.executable, "-c", RACER, str(path), "1.5"],
        capture_output=True, text=True, timeout=60, check=True,
        env=environment(None if number is None else no_flock, number or 0),
    )  # fmt: skip
    assert done.stdout == "0\n"
    assert len((tmp_path / "a.lock-taken").read_text().split()) > 20
    assert not [name for name in done.stderr.splitlines() if "Traceback" in name]


def test_attempts_at_the_same_time_on_a_free_lock_do_not_refuse_one_another(tmp_path: Path) -> None:
    """Of four that try once, one gets it."""
    for number in range(50):
        path, taken, start = tmp_path / f"{number}.lock", [], threading.Barrier(4)

        def work(path=path, taken=taken, start=start) -> None:
            lock = Lock(path)
            start.wait()
            with contextlib.suppress(HeldError):
                lock.acquire()
                taken.append(lock)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 1
        taken[0].release()


def test_a_holder_whose_marker_was_taken_over_says_so(monkeypatch, tmp_path: Path, caplog) -> None:
    monkeypatch.setattr(locks, "_kernels_lock", lambda path: path.touch() and None)
    monkeypatch.setattr(locks, "BEAT", 0.05)
    lock = Lock(tmp_path / "a.lock")
    lock.acquire()
    other = {"process": 1, "host": "node02", "since": "then", "machine": "another"}
    marker_of(tmp_path / "a.lock").write_text(json.dumps(other))
    for _ in range(100):
        if "is no longer held" in caplog.text:
            break
        time.sleep(0.05)
    assert "is no longer held: this process was silent, and another took it over" in caplog.text
    lock.release()
    assert json.loads(marker_of(tmp_path / "a.lock").read_text()) == other


def test_a_lock_is_free_when_it_is_let_go_though_a_forked_child_lives_on(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "a.lock")
    lock.acquire()
    child = subprocess.Popen(["sleep", "60"], close_fds=False, preexec_fn=lambda: inherit(tmp_path / "a.lock"))
    lock.release()
    Lock(tmp_path / "a.lock").acquire()
    child.kill()
    child.wait()


def inherit(path: Path) -> None:
    """Keep what is open of a file across exec, as a forked process does that does not exec."""
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(int(descriptor)), path.stat()):
                os.set_inheritable(int(descriptor), True)


def test_a_holder_that_cannot_be_read_is_another_process(monkeypatch, tmp_path: Path) -> None:
    """Windows lets nobody read a locked file; elsewhere its holder may have deleted it meanwhile."""
    held, other = Lock(tmp_path / "a.lock"), Lock(tmp_path / "a.lock")
    held.acquire()
    monkeypatch.setattr(locks, "_read", lambda path: (path / "nowhere").read_bytes())
    with pytest.raises(HeldError, match="^another process$"):
        other.acquire()
    held.release()


def test_a_marker_is_taken_where_the_lock_file_is_deleted_or_the_answer_is_lost(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(locks, "_kernels_lock", lambda path: None)  # another has deleted its file since
    link = os.link

    def link_and_lose_the_answer(*paths: Path) -> None:
        link(*paths)
        raise FileExistsError

    monkeypatch.setattr(os, "link", link_and_lose_the_answer)
    lock = Lock(tmp_path / "a.lock")
    lock.acquire(wait=True)
    with pytest.raises(HeldError):
        Lock(tmp_path / "a.lock").acquire()
    lock.release()
    assert [path.name for path in tmp_path.iterdir()] == ["a.lock"]


def test_a_folder_without_kernel_locks_is_claimed_and_left_as_it_was(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(locks, "_kernels_lock", lambda path: path.touch() and None)
    with files.claimed(tmp_path / "run"):
        refused = pytest.raises(RequestError, match=r"in use by another process: .*if that is gone, delete .*\.holder")
        with refused, files.claimed(tmp_path / "run"):
            pass
        (tmp_path / "run" / "result").touch()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".histolight.lock", "result"]
    with files.claimed(tmp_path / "empty"):
        pass
    assert not (tmp_path / "empty").exists()
