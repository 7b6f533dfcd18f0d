from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import struct
import threading
import zlib
from collections import namedtuple
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histolight.config.schema import DataConfig
from histolight.data import packing
from histolight.data.images import decode
from histolight.data.pack import Tiles, open_pack
from histolight.data.sources import load_source
from histolight.data.store import save_array
from histolight.data.table import TileError
from histolight.errors import DataError, HistolightError

BLOCK = 16
COUNT = 40  # three blocks, the last one short


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(packing, "_BLOCK", BLOCK)


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path, tiles, write_folder):
    ids = [f"{row:04d}" for row in range(COUNT)]
    return write_folder(tmp_path / "data", ids, tiles, np.arange(COUNT) % 2, ".tif")


def source_of(root):
    return load_source(DataConfig(source="folder", root=str(root), image_size=32))


def watched(source, seen: list[int]):
    def read_tile(row: int) -> np.ndarray:
        seen.append(row)
        return source.read_tile(row)

    return dataclasses.replace(source, read_tile=read_tile)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_tiles_and_measures_are_those_of_the_files(root, tiles, tmp_path):
    pack = open_pack(source_of(root), tmp_path / "cache", 32)
    rows = np.random.default_rng(0).permutation(np.r_[np.arange(COUNT), 5, 5])
    gathered = pack.tiles.gather(rows)
    np.testing.assert_array_equal(gathered, tiles[rows])
    assert gathered.flags.c_contiguous
    assert len(pack.tiles) == COUNT
    assert pack.tiles.image_size == 32
    np.testing.assert_allclose(pack.contrast, tiles.astype(float).mean(axis=-1).std(axis=(1, 2)), rtol=1e-6)
    assert pack.hashes[3] == int(hashlib.sha256(tiles[3].tobytes()).hexdigest()[:16], 16)
    assert pack.hashes.dtype == np.uint64
    assert pack.contrast.dtype == np.float32
    assert pd.read_csv(pack.folder / "ids.csv", dtype=str)["id"].tolist() == [f"{row:04d}" for row in range(COUNT)]
    assert pack.folder == tmp_path / "cache" / "packs" / source_of(root).fingerprint


def test_gather_fills_the_buffer_it_is_given(root, tiles, tmp_path):
    pack = open_pack(source_of(root), tmp_path / "cache", 32)
    out = np.zeros((3, 32, 32, 3), np.uint8)
    assert pack.tiles.gather(np.array([1, 39, 0]), out=out) is out
    np.testing.assert_array_equal(out, tiles[[1, 39, 0]])
    assert pack.tiles.gather(np.array([], np.int64)).shape == (0, 32, 32, 3)


@pytest.mark.parametrize("row", [-1, COUNT])
def test_rows_outside_the_pack_are_refused(root, tmp_path, row):
    with pytest.raises(IndexError, match="40 tiles"):
        open_pack(source_of(root), tmp_path / "cache", 32).tiles.gather(np.array([0, row]))


def test_the_same_tiles_look_alike_from_every_source(tmp_path, make_tiles, write_kaggle, write_folder, write_pcam):
    pixels, labels = make_tiles(9), np.array([0, 1, 0, 1, 1, 0, 1, 0, 1])
    ids = [f"{part}_{row:07d}" for part, count in (("test", 2), ("train", 4), ("val", 3)) for row in range(count)]
    cuts = {"test": slice(0, 2), "train": slice(2, 6), "valid": slice(6, 9)}
    roots = {
        "kaggle": write_kaggle(tmp_path / "kaggle", ids, pixels, labels),
        "folder": write_folder(tmp_path / "folder", ids, pixels, labels),
        "pcam": write_pcam(tmp_path / "pcam", {part: (pixels[cut], labels[cut]) for part, cut in cuts.items()}),
    }
    tables, rows = {}, np.array([8, 0, 3, 3, 5])
    for name, root in roots.items():
        source = load_source(DataConfig(source=name, root=str(root), image_size=32))
        tables[name] = source.table[["id", "label", "group", "row"]]
        pack = open_pack(source, tmp_path / "cache", 32)
        np.testing.assert_array_equal(pack.tiles.gather(rows), pixels[rows])
        np.testing.assert_array_equal(pack.hashes, open_pack(source, tmp_path / "cache", 32).hashes)
    pd.testing.assert_frame_equal(tables["kaggle"], tables["folder"])
    pd.testing.assert_frame_equal(tables["kaggle"], tables["pcam"])


def test_a_pack_is_made_once_with_a_progress_bar_and_repeatable_bytes(root, tmp_path, capsys):
    seen: list[int] = []
    source = watched(source_of(root), seen)
    first = open_pack(source, tmp_path / "cache", 32)
    assert "packing" in capsys.readouterr().err
    open_pack(source, tmp_path / "cache", 32)
    assert sorted(seen) == list(range(COUNT))
    assert capsys.readouterr().err == ""
    second = open_pack(source, tmp_path / "other", 32, workers=1)
    assert contents(first.folder) == contents(second.folder)
    assert set(contents(first.folder)) == {
        "tiles.npy", "index.json", "ids.csv", "checksums.npy", "hashes.npy", "lumas.npy", "contrast.npy", "blocks.npy",
        "luma_blocks.npy", "overlaps.npy",
    }  # fmt: skip


def test_a_changed_source_is_packed_anew(root, tiles, tmp_path):
    open_pack(source_of(root), tmp_path / "cache", 32)
    Image.fromarray(tiles[1]).save(root / "0" / "0000.tif")
    changed = open_pack(source_of(root), tmp_path / "cache", 32)
    np.testing.assert_array_equal(changed.tiles.gather(np.array([0])), tiles[[1]])


def _pack_and_count(root: Path, cache: Path, counter: Path) -> None:
    source = source_of(root)

    def read_tile(row: int) -> np.ndarray:
        with open(counter, "a") as file:
            file.write("x")
        return source.read_tile(row)

    open_pack(dataclasses.replace(source, read_tile=read_tile), cache, 32)


def test_processes_that_start_together_make_it_once(root, tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = (root, tmp_path / "cache", tmp_path / "count")
    jobs = [context.Process(target=_pack_and_count, args=arguments) for _ in range(8)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * 8
    assert len((tmp_path / "count").read_text()) == COUNT


class Killed(BaseException):
    pass


def killed_build(root, cache) -> Path:
    source = source_of(root)

    def read_tile(row: int) -> np.ndarray:
        if row == COUNT - 1:
            raise Killed
        return source.read_tile(row)

    with pytest.raises(Killed):
        open_pack(dataclasses.replace(source, read_tile=read_tile), cache, 32, workers=1)
    assert not (cache / "packs" / source.fingerprint).exists()
    return cache / "packs" / f"{source.fingerprint}.partial"


def test_a_killed_build_goes_on_where_it_stopped(root, tiles, tmp_path):
    partial = killed_build(root, tmp_path / "cache")
    seen: list[int] = []
    pack = open_pack(watched(source_of(root), seen), tmp_path / "cache", 32)
    assert sorted(seen) == list(range(2 * BLOCK, COUNT))
    assert not partial.exists()
    np.testing.assert_array_equal(pack.tiles.gather(np.arange(COUNT)), tiles)
    assert contents(pack.folder) == contents(open_pack(source_of(root), tmp_path / "other", 32).folder)


@pytest.mark.parametrize("damage", ["pixels", "journal", "no journal", "short store"])
def test_only_blocks_that_pass_their_checksum_are_trusted(root, tiles, tmp_path, damage):
    partial = killed_build(root, tmp_path / "cache")
    journal, store = partial / "journal", partial / "tiles.npy"
    again = {"pixels": range(BLOCK, COUNT), "journal": range(BLOCK, COUNT)}.get(damage, range(COUNT))
    if damage == "pixels":
        data = bytearray(store.read_bytes())
        data[-(COUNT - BLOCK) * 32 * 32 * 3] ^= 1
        store.write_bytes(data)
    elif damage == "journal":
        journal.write_text(journal.read_text()[:-4])
    elif damage == "no journal":
        journal.unlink()
    else:
        store.write_bytes(store.read_bytes()[:-1000])
    seen: list[int] = []
    pack = open_pack(watched(source_of(root), seen), tmp_path / "cache", 32)
    assert sorted(seen) == list(again)
    np.testing.assert_array_equal(pack.tiles.gather(np.arange(COUNT)), tiles)


def test_a_damaged_tile_is_noticed_when_it_is_first_read(root, tiles, tmp_path):
    folder = open_pack(source_of(root), tmp_path / "cache", 32).folder
    data = bytearray((folder / "tiles.npy").read_bytes())
    data[-1] ^= 1
    (folder / "tiles.npy").write_bytes(data)
    pack = open_pack(source_of(root), tmp_path / "cache", 32)
    np.testing.assert_array_equal(pack.tiles.gather(np.arange(COUNT - 1)), tiles[:-1])
    with pytest.raises(HistolightError, match=r"tile 39 .* delete this folder") as caught:
        pack.tiles.gather(np.array([COUNT - 1]))
    assert str(folder) in str(caught.value)


def test_a_source_read_in_place_that_changed_is_noticed(tmp_path, make_tiles, write_pcam):
    labels = np.array([0, 1])
    root = write_pcam(tmp_path / "data", {part: (make_tiles(2), labels) for part in ("train", "valid", "test")})
    source = load_source(DataConfig(source="pcam", root=str(root), image_size=32))
    open_pack(source, tmp_path / "cache", 32)
    path = root / "camelyonpatch_level_2_split_train_x.h5"
    stat = path.stat()
    with h5py.File(path, "r+") as file:
        file["x"][0] = 0
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    pack = open_pack(load_source(DataConfig(source="pcam", root=str(root), image_size=32)), tmp_path / "cache", 32)
    with pytest.raises(HistolightError, match="its source changed"):
        pack.tiles.gather(np.arange(6))


@pytest.mark.parametrize("name", ["index.json", "hashes.npy", "tiles.npy", "overlaps.npy", "blocks.npy"])
@pytest.mark.parametrize("damage", ["gone", "empty", "half"])
def test_a_damaged_pack_says_what_to_delete(root, tmp_path, name, damage):
    path = open_pack(source_of(root), tmp_path / "cache", 32).folder / name
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[: len(data) // 2 if damage == "half" else 0])
    with pytest.raises(HistolightError, match="delete this folder to have it made again") as caught:
        open_pack(source_of(root), tmp_path / "cache", 32)
    assert str(path.parent) in str(caught.value)


def test_a_pack_of_other_tiles_is_refused(root, tmp_path):
    path = open_pack(source_of(root), tmp_path / "cache", 32).folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tiles": 3}))
    with pytest.raises(HistolightError, match="is not the pack of these tiles"):
        open_pack(source_of(root), tmp_path / "cache", 32)


def test_every_tile_that_cannot_be_decoded_is_listed(root, tiles, tmp_path):
    source = source_of(root)
    folder = root / "0"
    rewritten = {
        "0002": lambda path: Image.fromarray(tiles[2]).resize((32, 16)).save(path),
        "0004": lambda path: Image.fromarray(tiles[4]).convert("F").save(path),
        "0006": lambda path: path.write_bytes(path.read_bytes()[:-10]),
        "0008": lambda path: path.write_text("<html>not found</html>"),
    }
    for name, spoil in rewritten.items():
        spoil(folder / f"{name}.tif")
    source = source_of(root)
    (folder / "0030.tif").unlink()
    Image.fromarray(tiles[0]).save(folder / "0038.tif", compression="tiff_lzw")
    with pytest.raises(DataError, match="6 tiles cannot be used") as caught:
        open_pack(source, tmp_path / "cache", 32)
    assert dict(zip(caught.value.problems["id"], caught.value.problems["problem"], strict=True)) == {
        "0002": "wrong size",
        "0004": "not 8-bit RGB",
        "0006": "damaged image",
        "0008": "not an image",
        "0030": "file missing",
        "0038": "file changed",
    }
    assert [path.suffix for path in (tmp_path / "cache" / "packs").iterdir()] in ([".lock"], [])


def test_a_broken_link_is_a_missing_tile(root, tmp_path):
    os.symlink(root / "gone", root / "0" / "link.tif")
    with pytest.raises(DataError, match="file missing: 1 \\(link\\)"):
        open_pack(source_of(root), tmp_path / "cache", 32)


def test_a_cache_that_is_no_folder_says_what_to_change(root, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(HistolightError, match=r"data\.cache=FOLDER") as caught:
        open_pack(source_of(root), tmp_path / "cache", 32)
    assert str(tmp_path / "cache") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_little_room_is_said_before_any_decoding(root, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    free = iter([1, 10**9, 1])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, next(free)))
    seen: list[int] = []
    jpegs = dataclasses.replace(watched(source_of(root), seen), read_luma=lambda row: None)
    for name in ("tiles.npy", "luma.npy"):
        lacking = rf"\({name} needs 0\.00 GB, 0\.00 GB are free\): make room there.*data\.cache=FOLDER"
        with pytest.raises(HistolightError, match=lacking):
            open_pack(jpegs, tmp_path / "cache", 32)
        assert seen == []


@pytest.mark.parametrize("shape", [(5,), (5, 2), (0, 4)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_saved_as_it_is_whatever_its_order(shape, order, tmp_path):
    values = np.asarray(np.random.default_rng(0).integers(0, 99, shape), order=order)
    save_array(tmp_path / "values.npy", values)
    np.testing.assert_array_equal(np.load(tmp_path / "values.npy"), values)


def test_a_full_disk_is_one_line_and_the_work_done_is_kept(root, tiles, tmp_path, monkeypatch):
    write = packing._write

    def full(store, offset, pixels):
        if len(pixels) < BLOCK:
            raise OSError(28, "No space left on device")
        write(store, offset, pixels)

    with monkeypatch.context() as patched:
        patched.setattr(packing, "_write", full)
        with pytest.raises(HistolightError, match=r"No space left on device.*data\.cache=FOLDER"):
            open_pack(source_of(root), tmp_path / "cache", 32)
    seen: list[int] = []
    open_pack(watched(source_of(root), seen), tmp_path / "cache", 32)
    assert sorted(seen) == list(range(2 * BLOCK, COUNT))


def test_threads_gather_the_same_tiles(tiles, tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset = file.create_dataset("x", data=tiles[:30], chunks=(8, 32, 32, 3))
        checksums = np.array([zlib.crc32(tile) for tile in tiles], np.uint32)
        store = Tiles([dataset, tiles[30:]], checksums, tmp_path)
        wrong: list[int] = []

        def work(seed: int) -> None:
            rows = np.random.default_rng(seed).integers(0, COUNT, 200)
            if not np.array_equal(store.gather(rows), tiles[rows]):
                wrong.append(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def encoded(image: Image.Image, path: Path, **options: object) -> bytes:
    image.save(path, **options)
    return path.read_bytes()


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}])
def test_tiffs_decode_alike_the_first_time_and_later(tiles, tmp_path, options):
    headers: set[bytes] = set()
    for tile in tiles[:3]:
        data = encoded(Image.fromarray(tile), tmp_path / "t.tif", **options)
        np.testing.assert_array_equal(decode(data, 32, headers), tile)
    assert len(headers) == (not options)


def test_a_rotated_tiff_is_not_taken_for_a_plain_one(tmp_path):
    white = Image.new("RGB", (32, 32), "white")
    half = Image.new("RGB", (32, 32), "white")
    half.paste("black", (0, 0, 32, 16))
    headers: set[bytes] = set()
    for image in (white, half):
        data = encoded(image, tmp_path / "t.tif", tiffinfo={0x0112: 3})
        expected = np.asarray(Image.open(tmp_path / "t.tif"))
        np.testing.assert_array_equal(decode(data, 32, headers), expected)
    assert expected[0, 0, 0] == 255


def png(width: int, height: int, depth: int, data: bytes) -> bytes:
    """A PNG that Pillow would not write: 16 bits a channel, or a size that the data do not have."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_an_alpha_channel_must_be_opaque(tiles, tmp_path):
    image = Image.fromarray(tiles[0]).convert("RGBA")
    np.testing.assert_array_equal(decode(encoded(image, tmp_path / "t.png"), 32, set()), tiles[0])
    image.putpixel((3, 4), (1, 2, 3, 254))
    with pytest.raises(TileError, match="not opaque: RGBA with transparency"):
        decode(encoded(image, tmp_path / "t.png"), 32, set())


def test_only_one_whole_8_bit_rgb_image_of_the_size_is_a_tile(tiles, tmp_path):
    image = Image.fromarray(tiles[0])
    path = tmp_path / "t.tif"
    whole = encoded(image, tmp_path / "t.png")
    cases = {
        "wrong size": [
            encoded(image.resize((96, 96)), path),
            png(60000, 60000, 8, b""),
        ],
        "not 8-bit RGB": [
            *(encoded(image.convert(mode), path) for mode in ("I;16", "F", "LAB")),
            png(32, 32, 16, b"".join(b"\0" + bytes(32 * 6) for _ in range(32))),
        ],
        "several images in one file": [
            encoded(image, path, save_all=True, append_images=[image]),
            encoded(image, tmp_path / "a.png", save_all=True, append_images=[Image.fromarray(tiles[1])]),
        ],
        "not an image": [b"", b"GIF89a", encoded(image, tmp_path / "t.gif")],
        "damaged image": [whole[: len(whole) // 2], encoded(image, path)[:-100]],
    }
    for problem, files in cases.items():
        for data in files:
            with pytest.raises(TileError) as caught:
                decode(data, 32, set())
            assert caught.value.problem == problem, caught.value


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_raise_nothing_but_tile_errors(tiles, tmp_path):
    generator = np.random.default_rng(0)
    for name in ("t.tif", "t.png", "t.jpg"):
        whole = encoded(Image.fromarray(tiles[0]), tmp_path / name)
        for _ in range(100):
            data = bytearray(whole)
            for place in generator.integers(0, min(400, len(data)), 3):
                data[place] = generator.integers(256)
            try:
                tile = decode(bytes(data), 32, set())
            except TileError:
                continue
            assert tile.shape == (32, 32, 3)
            assert tile.dtype == np.uint8
