"""Downloads from a server on this machine that knows ranges, breaks off, or sends other bytes."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Iterator
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from histolight.cli import main
from histolight.data import download as data
from histolight.errors import HistolightError

CONTENT = {name: np.random.default_rng(seed).bytes(300_000 + seed) for seed, name in enumerate(data.FILES)}
NAMES = list(CONTENT)


class Server(BaseHTTPRequestHandler):
    ranges, most, content = True, 10**9, CONTENT
    requests: list[str]

    def do_GET(self) -> None:
        body = self.content.get(self.path.lstrip("/"))
        if body is None:
            self.send_error(404)
            return
        asked = self.headers.get("Range")
        type(self).requests.append(f"{self.path} {asked}")
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if begin >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        self.wfile.write(body[begin : begin + self.most])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    kind = type("OwnServer", (Server,), {"requests": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        monkeypatch.setattr(data, "PCAM", f"http://127.0.0.1:{running.server_port}")
        monkeypatch.setattr(data, "FILES", {name: hashlib.md5(body).hexdigest() for name, body in CONTENT.items()})
        yield kind
        running.shutdown()
        thread.join()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_files_are_downloaded_once_with_their_licence(server, tmp_path, capsys):
    folder = tmp_path / "my pcam"
    assert main(["download", "pcam", str(folder)]) == 0
    assert contents(folder) == CONTENT
    assert "CC0" in capsys.readouterr().out
    assert len(server.requests) == 6
    assert main(["download", "pcam", str(folder)]) == 0
    assert len(server.requests) == 6


@pytest.mark.parametrize("ranges", [True, False])
def test_what_broke_off_is_continued_to_the_same_bytes(server, tmp_path, capsys, ranges):
    server.most = 100_000
    assert main(["download", "pcam", str(tmp_path)]) == 1
    assert "the same command continues" in capsys.readouterr().err
    assert contents(tmp_path) == {NAMES[0] + data.PARTIAL: CONTENT[NAMES[0]][:100_000]}
    server.most, server.ranges = 10**9, ranges
    assert main(["download", "pcam", str(tmp_path)]) == 0
    assert contents(tmp_path) == CONTENT
    assert server.requests[1] == f"/{NAMES[0]} bytes=100000-"


def test_two_downloads_into_one_folder_fetch_each_file_once(server, tmp_path):
    statuses = []
    threads = [
        threading.Thread(target=lambda: statuses.append(data.download(tmp_path, data.FILES, data.PCAM)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [None] * 3
    assert contents(tmp_path) == CONTENT
    assert len(server.requests) == 6


def test_whole_files_are_checked_where_nothing_can_be_written(server, tmp_path, monkeypatch):
    for name, body in CONTENT.items():
        (tmp_path / name).write_bytes(body)

    def read_only(self, *args, **options):
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path))

    monkeypatch.setattr(data.Lock, "acquire", read_only)
    assert main(["download", "pcam", str(tmp_path)]) == 0


def test_what_the_connection_and_what_the_disk_refuses_are_told_apart(server, tmp_path, monkeypatch, capsys):
    def unreachable(self, *args):
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    with monkeypatch.context() as broken:
        broken.setattr(HTTPResponse, "read", unreachable)
        assert main(["download", "pcam", str(tmp_path)]) == 1
    assert f"{NAMES[0]} broke off: No route to host; the same command continues" in capsys.readouterr().err
    (tmp_path / (NAMES[0] + data.PARTIAL)).unlink()
    (tmp_path / (NAMES[0] + data.PARTIAL)).symlink_to("/dev/full")
    assert main(["download", "pcam", str(tmp_path)]) == 1
    assert f"{data.PARTIAL} can't be written (No space left on device): make room" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path, capsys):
    (tmp_path / "file").write_text("in the place of the folder")
    assert main(["download", "pcam", str(tmp_path / "file" / "below")]) == 1
    assert "file/below can't be written (Not a directory): give another folder" in capsys.readouterr().err


def test_a_whole_partial_file_is_only_checked(server, tmp_path):
    (tmp_path / (NAMES[2] + data.PARTIAL)).write_bytes(CONTENT[NAMES[2]])
    assert main(["download", "pcam", str(tmp_path)]) == 0
    assert contents(tmp_path) == CONTENT


def test_other_bytes_are_refused_and_not_kept(server, tmp_path, capsys):
    server.content = {**CONTENT, NAMES[1]: b"another file"}
    assert main(["download", "pcam", str(tmp_path)]) == 1
    assert f"{NAMES[1]} is not the file that was published: its checksum differs" in capsys.readouterr().err
    assert contents(tmp_path) == {NAMES[0]: CONTENT[NAMES[0]]}


def test_a_file_of_somebody_else_is_left_alone(server, tmp_path, capsys):
    (tmp_path / NAMES[0]).write_bytes(b"mine")
    assert main(["download", "pcam", str(tmp_path)]) == 2
    assert "is not the file that was published: move it away" in capsys.readouterr().err
    assert contents(tmp_path) == {NAMES[0]: b"mine"}
    assert main(["download", "pcam", str(tmp_path / "another")]) == 0
    (tmp_path / NAMES[0]).rename(tmp_path / "mine")
    assert main(["download", "pcam", str(tmp_path)]) == 0


def test_no_server_and_a_missing_file_are_one_line(server, tmp_path, monkeypatch):
    with pytest.raises(HistolightError, match="gone can't be downloaded: 404"):
        data.download(tmp_path, {"gone": "0"}, data.PCAM)
    with pytest.raises(HistolightError, match="broke off: .*; the same command continues") as caught:
        data.download(tmp_path, {"gone": "0"}, "http://127.0.0.1:9")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kaggle", "d i r"], "kaggle competitions download -c histopathologic-cancer-detection -p 'd i r'"),
        (["tcga", "dir"], "tcga can't be downloaded: give pcam or kaggle"),
        (["pcam"], "give the data set and the folder: histolight download pcam DIR"),
    ],
)
def test_other_requests_say_what_to_do(words, message, capsys):
    assert main(["download", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_checksums_are_torchvisions():
    from torchvision.datasets import PCAM

    known = {f"{name}.gz": md5 for part in PCAM._FILES.values() for name, _, md5 in part.values()}
    assert known == data.FILES
