"""What messages advise in prose is done in the situation that prints it, and helps: see ``prose_remedies.py``."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pcam_files import PARTS, write_pcam
from PIL import Image

from histolight import cli, files, locks
from histolight.commands import explore
from histolight.config.schema import DataConfig
from histolight.data.checks import check_table
from histolight.data.images import decode
from histolight.data.prepare import load_tiles
from histolight.data.sources import load_source
from histolight.data.splits import make_split
from histolight.data.table import TileError, read_csv
from histolight.diagnosis.storage import examine_caches, examine_disk
from histolight.errors import HistolightError, RequestError
from histolight.locks import HeldError, Lock

SIZE = 32


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
    return path


def test_the_help_that_messages_point_to_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["train", "--zebra"], ["evaluate", "--cfg", "job"]):
        assert cli.main(words) == 2
        said = capsys.readouterr().err.strip().rpartition("see histolight ")[2]
        assert said == f"{words[0]} --help"
        assert cli.main(said.split()) == 0
        assert "=" in capsys.readouterr().out


def folder(root: Path) -> DataConfig:
    return DataConfig(source="folder", root=str(root), image_size=SIZE)


def parts(root: Path) -> None:
    for name in ("train", "val", "valid"):
        for label in "01":
            save(root / name / label / f"{name}{label}.png")


def one_folder(root: Path) -> None:
    save(root / "all" / "a.png")
    save(root / "all" / "b.png")


def zipped(root: Path) -> None:
    (root / "train_labels.csv").write_text("id,label\na,0\nb,1\n")
    with zipfile.ZipFile(root / "train.zip", "w") as out:
        for name in "ab":
            out.write(save(root / "beside" / f"{name}.tif"), f"train/{name}.tif")
    shutil.rmtree(root / "beside")


def sort_out(root: Path) -> None:
    for label, name in enumerate("ab"):
        (root / str(label)).mkdir()
        (root / "all" / f"{name}.png").rename(root / str(label) / f"{name}.png")
    (root / "all").rmdir()


@pytest.mark.parametrize(
    ("source", "made", "message", "mended"),
    [
        ("folder", parts, "keep one of them", lambda root: shutil.rmtree(root / "valid")),
        ("folder", one_folder, "put the tiles of each class into a folder of its own", sort_out),
        ("kaggle", zipped, "unzip train.zip there", lambda root: zipfile.ZipFile(root / "train.zip").extractall(root)),
    ],
)
def test_folders_are_mended_as_their_messages_say(
    source: str, made: Callable[[Path], None], message: str, mended: Callable[[Path], object], tmp_path: Path
) -> None:
    root = tmp_path / "tiles"
    root.mkdir()
    made(root)
    config = DataConfig(source=source, root=str(root), image_size=SIZE)
    with pytest.raises(RequestError, match=message):
        load_source(config)
    mended(root)
    assert set(load_source(config).table["label"]) == {0, 1}


def test_tables_are_mended_as_their_messages_say(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes("id,label\nä,0\n".encode("latin-1"))
    with pytest.raises(RequestError, match="save it as a CSV in UTF-8"):
        read_csv(path)
    path.write_bytes(path.read_bytes().decode("latin-1").encode())
    assert read_csv(path)["id"].tolist() == ["ä"]
    with zipfile.ZipFile(tmp_path / "two.csv", "w") as out:
        out.write(path, "a.csv")
        out.write(path, "b.csv")
    with pytest.raises(RequestError, match="unzip it, and give the CSV"):
        read_csv(tmp_path / "two.csv")
    zipfile.ZipFile(tmp_path / "two.csv").extractall(tmp_path)
    assert read_csv(tmp_path / "b.csv")["id"].tolist() == ["ä"]


@pytest.mark.parametrize(
    ("rows", "message", "mended"),
    [
        ("a,,\na,,", "give each another name", "a,one,\na,two,"),
        ("a,one,some\nb,two,val", "write train, val or test", "a,one,train\nb,two,val"),
        ("parts,one,train\nb,two,val", "leave split empty in its row", "parts,one,\nb,two,val"),
        ("parts,one,\nb,two,", "say where its tiles belong in a column split", "parts,one,\nb,two,val"),
    ],
)
def test_a_list_of_data_sets_is_mended_as_its_message_says(
    rows: str, message: str, mended: str, tmp_path: Path
) -> None:
    for number, place in enumerate(
        ("a/0", "a/1", "b/0", "b/1", *(f"parts/{p}/{c}" for p in ("train", "val") for c in "01"))
    ):
        save(tmp_path / place / f"{number}.png")

    def load(text: str) -> set[int]:
        lines = [f"folder,{row}" for row in text.split("\n")]
        (tmp_path / "list.csv").write_text("\n".join(["source,root,name,split", *lines]) + "\n")
        return {*load_source(DataConfig("several", root=str(tmp_path / "list.csv"), image_size=SIZE)).table["label"]}

    with pytest.raises(RequestError, match=message):
        load(rows)
    assert load(mended) == {0, 1}


def test_rows_of_a_list_in_a_list_are_given_as_the_message_says(tmp_path: Path) -> None:
    for place in ("a/0/1.png", "a/1/2.png"):
        save(tmp_path / place)
    inner, outer = tmp_path / "inner.csv", tmp_path / "outer.csv"
    inner.write_text("source,root\nfolder,a\n")
    outer.write_text(f"source,root\nseveral,{inner}\n")
    with pytest.raises(RequestError, match="a list can't hold another one, give its rows"):
        load_source(DataConfig("several", root=str(outer), image_size=SIZE))
    outer.write_text(inner.read_text())
    assert len(load_source(DataConfig("several", root=str(outer), image_size=SIZE)).table) == 2


@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_a_tile_that_is_saved_as_8_bit_rgb_is_read(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "tile.png"
    Image.new(mode, (SIZE, SIZE), (10, 20, 30, 90) if mode == "RGBA" else 3000).save(path)
    with pytest.raises(TileError) as caught:
        decode(path.read_bytes(), SIZE, set())
    assert caught.value.detail.endswith("; save it as 8-bit RGB")
    Image.open(path).convert("RGB").save(path)
    assert decode(path.read_bytes(), SIZE, set()).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("slides", [0, 5])
@pytest.mark.parametrize("values", [{}, {"test_fraction": 0.2}, {"fold": 0}])
def test_as_many_tiles_as_a_message_asks_for_are_enough(values: dict[str, float], slides: int) -> None:
    def table(rare: int) -> pd.DataFrame:
        labels = [0] * 40 + [1] * rare
        names = [f"s{place % slides}" for place in range(len(labels))] if slides else [None] * len(labels)
        frame = pd.DataFrame({"id": [f"{place:02d}" for place in range(len(labels))], "label": labels, "split": None})
        frame["group"] = pd.Series(names, dtype=object)
        return frame.assign(cluster=frame["group"].fillna(frame["id"]))

    config = DataConfig(source="folder", **values)
    with pytest.raises(RequestError) as caught:
        check_table(table(1), config)
    said = str(caught.value)
    asked = [int(word) for word in said.rpartition("give ")[2].split() if word.isdigit()]
    rare = asked[0] if asked else config.folds
    assert ("slides" in said) == bool(slides)
    check_table(table(rare), config)
    make_split(table(rare), config)


@pytest.mark.parametrize(
    ("tested", "said", "mended"),
    [
        ([0] * 10, "give it tiles of both classes", [0] * 10 + [1] * 5),
        ([1] * 20 + [0] * 5, "give training and validation some of them", [1] * 10 + [0] * 5),
    ],
)
def test_a_given_test_part_is_mended_as_its_message_says(tested: list[int], said: str, mended: list[int]) -> None:
    def table(test: list[int]) -> pd.DataFrame:
        labels = [0] * 40 + [1] * (20 - sum(test)) + test
        frame = pd.DataFrame({"id": [f"{place:02d}" for place in range(len(labels))], "label": labels, "group": None})
        return frame.assign(split=[None] * (len(labels) - len(test)) + ["test"] * len(test), cluster=frame["id"])

    with pytest.raises(RequestError, match=said):
        make_split(table(tested), DataConfig(source="folder"))
    parts, _ = make_split(table(mended), DataConfig(source="folder"))
    assert set(parts) == {"train", "val", "test"}


def test_a_sample_of_one_class_names_a_limit_that_has_both(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(40):
        save(tmp_path / "tiles" / str(int(number > 37)) / f"{number}.png")
    words = ["data=folder", "data.root=tiles", "data.cache=cache", f"data.image_size={SIZE}", "hydra.run.dir=out"]
    with pytest.raises(RequestError, match=r"all 4 tiles have the label 0: use data\.limit=\w+$") as caught:
        explore.explore(explore.parse_request([*words, "data.limit=4"]))
    named = str(caught.value).rpartition("use ")[2]
    config = explore.parse_request([*words, named]).data
    assert {*load_tiles(load_source(config), config).table["label"]} == {0, 1}


def test_a_file_in_the_way_of_the_cache_is_moved_as_the_doctor_says(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "packs").write_text("a file in the place of the folder")
    [finding] = [finding for finding in examine_caches(str(cache)) if finding.serious]
    assert "packs can't be read: Not a directory" in finding.text
    assert finding.remedy == "move that file away, or choose another folder with data.cache=FOLDER"
    (cache / "packs").rename(tmp_path / "elsewhere")
    assert not any(finding.serious for finding in examine_caches(str(cache)))
    [finding] = [finding for finding in examine_disk(str(tmp_path / "elsewhere")) if finding.serious]
    assert finding.remedy == "choose another folder with data.cache=FOLDER"
    assert not any(finding.serious for finding in examine_disk(str(tmp_path / "other")))


def as_another_user(cache: Path, said: str) -> None:
    os.setuid(12345)
    found = [finding for finding in examine_caches(str(cache)) if finding.serious]
    try:
        files.write_atomically(cache / "notes.txt", "x")
        written = ""
    except HistolightError as error:
        written = str(error)
    Path(said).write_text(json.dumps([[finding.text, finding.remedy] for finding in found] + [[written, ""]]))


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can become another user")
def test_what_is_made_readable_and_writable_is_read_and_written(tmp_path: Path) -> None:
    for above in (tmp_path, *tmp_path.parents):
        if "pytest" in str(above):
            above.chmod(above.stat().st_mode | 0o055)
    cache, said = tmp_path / "cache", tmp_path / "said"
    (cache / "packs" / "one").mkdir(parents=True)
    (cache / "packs").chmod(0o700)
    said.touch()
    said.chmod(0o666)

    def ask() -> list[list[str]]:
        child = multiprocessing.get_context("fork").Process(target=as_another_user, args=(cache, said))
        child.start()
        child.join(60)
        return json.loads(said.read_text())

    [text, remedy], [written, _] = ask()
    assert f"{cache / 'packs'} can't be read: Permission denied" in text
    assert remedy.startswith("make it readable for you")
    assert written.endswith("can't be written (Permission denied): make that place writable for you")
    (cache / "packs").chmod(0o755)
    cache.chmod(0o777)
    assert ask() == [["", ""]]


def test_a_marker_whose_holder_is_gone_is_deleted_as_the_message_says(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(locks, "_kernels_lock", lambda path: None)  # as on a share without locks
    holder = {"process": 1, "host": "elsewhere", "machine": "another", "processes": 0, "since": "2026-11-28 01:00:00"}
    (tmp_path / "lock").touch()
    locks.marker_of(tmp_path / "lock").write_text(json.dumps(holder))
    with pytest.raises(HeldError) as caught:
        Lock(tmp_path / "lock").acquire(watch=False)
    Path(str(caught.value).rpartition("if that is gone, delete ")[2]).unlink()
    lock = Lock(tmp_path / "lock")
    lock.acquire(watch=False)
    lock.release()


def test_an_hdf5_file_that_is_open_elsewhere_is_read_as_the_message_says(tmp_path: Path, monkeypatch) -> None:
    write_pcam(tmp_path, dict.fromkeys(PARTS, (np.zeros((4, SIZE, SIZE, 3), np.uint8), np.arange(4) % 2)))
    code = "import sys, time, h5py; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); time.sleep(60)"
    name = str(tmp_path / "camelyonpatch_level_2_split_train_x.h5")
    config = DataConfig(source="pcam", root=str(tmp_path), cache=str(tmp_path / "cache"), image_size=SIZE)
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    again = "from histolight.config.schema import *; from histolight.data.sources import load_source; "
    again += f"print(len(load_source({config!r}).table))"
    with subprocess.Popen([sys.executable, "-c", code, name], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        try:
            with pytest.raises(RequestError, match=r"close it there, or, if nothing changes it, set .*LOCKING=FALSE"):
                load_source(config)
            unlocked = {**os.environ, "HDF5_USE_FILE_LOCKING": "FALSE"}
            words = [sys.executable, "-c", again]
            done = subprocess.run(words, env=unlocked, capture_output=True, text=True, check=False)
            assert done.stdout == "12\n", done.stderr
        finally:
            writer.kill()
    assert len(load_source(config).table) == 12
