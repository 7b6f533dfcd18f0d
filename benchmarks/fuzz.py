"""Bad input by the hundred: tables, images, packs, run directories and command lines, each changed at random.

Every case goes through the functions that the commands call. What is allowed is success, or one line that says what is
wrong (:class:`HistolightError`). Any other exception, a message of several lines, a case that takes more than 30 s, and
a file written outside the case's folder are faults; they are printed, and the exit status is 1.

    python benchmarks/fuzz.py 2000        # cases 0 to 1,999
    python benchmarks/fuzz.py 1 317       # case 317 again, with its traceback
    python benchmarks/fuzz.py 500 0 forms,layouts,weights,texts,refusals    # these kinds only
"""

from __future__ import annotations

import contextlib
import gzip
import io
import logging
import os
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf
from PIL import Image
from tqdm import tqdm

from histolight import files, runs
from histolight.commands import evaluate, explore, predict
from histolight.config import keys
from histolight.config.compose import compose_config, saved_config, to_yaml, typed
from histolight.config.request import training_request
from histolight.config.schema import Config, DataConfig, valid_keys
from histolight.config.texts import texts as text_keys
from histolight.data.prepare import load_tiles, prepare
from histolight.data.sources import load_source
from histolight.errors import HistolightError
from histolight.models.backbones.weights import read_state
from histolight.ranking.ranking import compare_runs
from histolight.training.fit import check_request

Bytes = Callable[[random.Random, bytes], bytes]

SIZE = 32
TILES = 12
RIGHT = ["seed=3", "optimizer.lr=0.01", "data.batch_size=16", "model=resnet34", "trainer=cpu", "name=x", "data.fold=1"]
RIGHT += ["experiment=demo", "augment=none", "data.limit=100", "loss.pos_weight=2.5", "scheduler=cosine"]
REFUSED: dict[str, int] = {}  # error numbers by path
SECONDS = 30  # that one case may take
MEGABYTES = 1500  # that the process may grow by over all cases
ODD = [
    "",
    " ",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\0b",
    "NA",
    "nan",
    "null",
    "-1",
    "1e400",
    "inf",
]
ODD += [
    "0x10",
    "\uff11",
    "é",
    "\u202eabc",
    "a" * 300,
    "=cmd()",
    "<script>",
    "'",
    '"',
    "${oc.env:HOME}",
    "[1,2",
    "{a: 1}",
    "~",
]
ODD += [
    "true",
    "1.0",
    "2",
    " 1",
    "1 ",
    "\t",
    "a,b",
    "a\nb",
    "a\rb",
    "???",
    "null,1",
    "1_000",
    "0.5",
    "auto",
    "%s",
    "\ud7ff",
]


def main(count: int, first: int = 0, names: str = "") -> int:
    torch.set_num_threads(1)
    logging.getLogger("histolight").setLevel(logging.ERROR)
    kinds = [labels, slides, submission, image, folder, pack, run, overrides]
    kinds += [forms, layouts, weights, texts, refusals]
    kinds = [kind for kind in kinds if not names or kind.__name__ in names.split(",")]
    tried: Counter[tuple[str, str]] = Counter()
    faults = 0
    writes: list[str] = []
    sys.addaudithook(lambda event, arguments: _note_write(event, arguments, writes))
    signal.signal(signal.SIGALRM, _too_long)
    begun, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in tqdm(range(first, first + count), unit="case", disable=count == 1):
        chance = random.Random(number)
        kind = kinds[number % len(kinds)]
        with tempfile.TemporaryDirectory(prefix="fuzz") as folder_name:
            place = Path(folder_name).resolve()
            writes.clear()
            signal.alarm(SECONDS)
            try:
                with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                    kind(chance, place)
                outcome = "accepted"
            except HistolightError as error:
                outcome = "refused" if "\n" not in str(error) and str(error) else "several lines"
                found = str(error)
            except Exception:
                outcome, found = "exception", traceback.format_exc(limit=-6 if count > 1 else None)
            signal.alarm(0)
            REFUSED.clear()
            files.give_back_folders()
            if outside := [path for path in writes if not path.startswith(str(place))]:
                outcome, found = "wrote outside", ", ".join(outside[:3])
        tried[kind.__name__, outcome] += 1
        if outcome not in ("accepted", "refused"):
            faults += 1
            tqdm.write(f"case {number} ({kind.__name__}): {outcome}\n{found}")
        elif count == 1:
            print(f"case {number} ({kind.__name__}): {outcome}{f': {found}' if outcome == 'refused' else ''}")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    print(f"{'input':<12}{'tried':>8}{'accepted':>10}{'refused':>9}{'faults':>8}")
    for name in dict.fromkeys(kind.__name__ for kind in kinds):
        own = {outcome: cases for (kind, outcome), cases in tried.items() if kind == name}
        accepted, refused, total = own.get("accepted", 0), own.get("refused", 0), sum(own.values())
        print(f"{name:<12}{total:>8,}{accepted:>10,}{refused:>9,}{total - accepted - refused:>8,}")
    print(f"{count:,} cases, {faults} faults, {time.monotonic() - begun:.0f} s, memory grew by {grown:.0f} MB")
    return int(faults > 0 or grown > MEGABYTES)


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def _note_write(event: str, arguments: tuple, writes: list[str]) -> None:
    if event == "open" and isinstance(arguments[0], str | os.PathLike) and os.fspath(arguments[0]) in REFUSED:
        error = REFUSED[os.fspath(arguments[0])]
        raise OSError(error, os.strerror(error), os.fspath(arguments[0]))
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        path = os.path.abspath(arguments[0])
        if not path.startswith(("/dev/", "/proc/")) and ".pyc" not in path:
            writes.append(path)


# ---------------------------------------------------------------------------------------------------- the inputs


def labels(chance: random.Random, place: Path) -> None:
    """Kaggle's ``train_labels.csv``."""
    write_kaggle(place / "data")
    change(chance, place / "data" / "train_labels.csv", CSV)
    prepare(config("kaggle", place))


def slides(chance: random.Random, place: Path) -> None:
    """A list of slides, ``data.groups``."""
    ids = write_kaggle(place / "data")
    groups = place / "data" / "groups.csv"
    groups.write_text("id,slide\n" + "".join(f"{name},slide_{row % 6}\n" for row, name in enumerate(ids)))
    change(chance, groups, CSV)
    prepare(config("kaggle", place, groups=str(groups)))


def submission(chance: random.Random, place: Path) -> None:
    """Kaggle's ``sample_submission.csv``."""
    write_kaggle(place / "data", "test", "sample_submission.csv")
    change(chance, place / "data" / "sample_submission.csv", CSV)
    data = config("kaggle", place)
    load_tiles(load_source(data, labelled=False), data)


def image(chance: random.Random, place: Path) -> None:
    """One tile among Kaggle's, or in a class folder."""
    if chance.random() < 0.5:
        names = write_kaggle(place / "data")
        path, source = place / "data" / "train" / f"{names[0]}.tif", "kaggle"
    else:
        suffix = chance.choice(["png", "jpg", "tiff"])
        path, source = write_folder(place / "data", suffix), "folder"
    chance.choice(IMAGES)(chance, path)
    data = prepare(config(source, place))
    data.tiles.gather(data.table["row"].to_numpy())


def folder(chance: random.Random, place: Path) -> None:
    """Class folders with odd names, entries and links."""
    write_folder(place / "data", "png")
    for _ in range(chance.randint(1, 3)):
        parent = chance.choice([place / "data", place / "data" / "0", place / "data" / "1"])
        name = chance.choice([*ODD, "0", "1", "benign", ".hidden", "x.png", "tile_000.png", "X.PNG", "a.tar.png"])
        target = parent / (name.replace("/", "_").replace("\0", "_")[:200] or "x")
        with contextlib.suppress(OSError, UnicodeError):
            chance.choice(ENTRIES)(target)
    prepare(config("folder", place))


def pack(chance: random.Random, place: Path) -> None:
    """A finished pack, damaged: it is refused, or its tiles are right to the bit."""
    write_folder(place / "data", "png")
    right = prepare(config("folder", place))
    rows = right.table["row"].to_numpy()
    expected = right.tiles.gather(rows)
    files = sorted(path for path in (place / "cache").rglob("*") if path.is_file() and path.suffix != ".lock")
    change(chance, chance.choice(files), BINARY)
    found = prepare(config("folder", place)).tiles.gather(rows)
    assert (found == expected).all(), "a damaged pack gave other pixels"


def run(chance: random.Random, place: Path) -> None:
    """A run directory."""
    directory = place / "run"
    random_numbers = np.random.default_rng(chance.randrange(2**32))
    label = np.arange(TILES) % 2
    table = pd.DataFrame({"id": [f"tile_{row:02d}" for row in range(TILES)], "label": label, "group": None})
    table = table.assign(logit=random_numbers.normal(size=TILES).astype(np.float32), score=np.float32(0.25))
    files.write_csv(directory / "predictions" / "val.csv", table)
    files.write_csv(directory / "splits.csv", table[["id"]].assign(split="val"))
    files.write_atomically(directory / "config.yaml", to_yaml(Config()))
    figures = {
        name: {"value": 0.8, "low": 0.7, "high": 0.9, "method": "wilson", "note": ""} for name in ("auroc", "nll")
    }
    known = {"val": figures, "tiles": {"val": {"0": 6, "1": 6}}, "split": "random", "threshold": 0.5}
    runs.update_metrics(directory, status="completed", data_fingerprint="x", selected_on="val", **known)
    names = ("predictions/val.csv", "splits.csv", "config.yaml", "metrics.json")
    change(chance, directory / chance.choice(names), [*CSV, *BINARY])
    work = [
        lambda: runs.completed_metrics(directory),
        lambda: runs.read_splits(directory),
        lambda: runs.read_predictions(directory / "predictions" / "val.csv"),
        lambda: typed(saved_config(directory)),
        lambda: compare_runs([directory]),
    ]
    refused = None
    for one in work:
        try:
            one()
        except HistolightError as error:
            refused = error
    if refused is not None:
        raise refused


def overrides(chance: random.Random, place: Path) -> None:
    """A command line."""
    words = chance.sample(RIGHT, chance.randint(0, 3))
    for _ in range(chance.randint(0, 2)):
        words.insert(chance.randint(0, len(words)), _word(chance, place))
    parse = chance.choice(
        [
            lambda: check_request(training_request(words)[0]),
            lambda: explore.parse_request(words),
            lambda: predict.parse_request(words),
            lambda: evaluate.parse_request(words),
            lambda: keys.read_run_and_folder("explain", words, ("run", "tiles", "part", "hydra.run.dir")),
        ]
    )
    parse()


def _word(chance: random.Random, place: Path) -> str:
    key = chance.choice([*valid_keys(), "data", "model", "experiment", "hydra.run.dir", "tta", "runs", "best", *ODD])
    if chance.random() < 0.2:
        key = "".join(chance.choice([letter, letter, letter, "", "."]) for letter in key)
    value = chance.choice([*ODD, "kaggle", "resnet18", "64", "1e-3", "none", str(place), f"[{place},{place}]"])
    return chance.choice(["", "", "", "", "+", "++", "~"]) + key + chance.choice(["=", "=", "=", "", "=="]) + value


def forms(chance: random.Random, place: Path) -> None:
    """Labels, ids and tables in the forms that people have, some of them damaged."""
    ids = write_kaggle(place / "data", chance.choice(["train", "train", "train/train"]))
    path = place / "data" / "train_labels.csv"
    pairs = chance.sample(
        [
            ("0", "1"),
            ("0.0", "1.0"),
            ("False", "True"),
            ('"0"', '"1"'),
            ("benign", "tumor"),
            ("no_tumour", "1-Metastatic"),
        ],
        2,
    )
    rows = [f"{name}{chance.choice(['', '', '.tif'])},{chance.choice(pairs)[row % 2]}" for row, name in enumerate(ids)]
    if chance.random() < 0.3:
        rows[chance.randrange(len(rows))] = f"{chance.choice(ids)},{chance.choice(ODD)}"
    header = chance.choice(["id,label", "id,label", "ID,Label", "filename,class", "image_id,target", "id,filename"])
    text = f"{header}\n" + "\n".join(rows) + "\n"
    if chance.random() < 0.3:
        text = text.replace(",", chance.choice([";", "\t"]))
    text = text.encode(chance.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16"]), errors="replace")
    if chance.random() < 0.6:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
            for name in chance.sample(
                ["train_labels.csv", "a/b.csv", "__MACOSX/x.csv", "readme.txt"], chance.randint(1, 3)
            ):
                archive.writestr(name, text)
        text = chance.choice([buffer.getvalue(), gzip.compress(text)])
    if chance.random() < 0.3:
        path.unlink()
        path = path.with_name(f"train_labels.csv{chance.choice(['.zip', '.gz'])}")
    path.write_bytes(text)
    if chance.random() < 0.4:
        change(chance, path, BINARY)
    prepare(config("kaggle", place))


def layouts(chance: random.Random, place: Path) -> None:
    """Folders in folders: parts, patients, classes, in any order and with any modes of images."""
    levels = [
        ["train", "val", "test"],
        ["Training", "testing", "__MACOSX"],
        ["8863", "8864", "p 1"],
        ["0", "1"],
        ["benign", "tumor"],
        ["0_normal", "1_tumor"],
        ["non-metastatic", "Metastatic"],
        ["A", "B"],
        ["", ODD[4]],
    ]
    depth = chance.sample(levels, chance.randint(1, 3))
    modes = chance.choice([["RGB"], ["RGB", "L", "P", "CMYK"], ["RGBA", "LA", "1", "RGB"]])
    for number in range(24):
        folder = place.joinpath("data", *(chance.choice(level).replace("/", "_") for level in depth))
        folder.mkdir(parents=True, exist_ok=True)
        mode = chance.choice(modes)
        kind = "tif" if mode == "CMYK" else chance.choice(["png", "png", "bmp", "webp"] if mode == "RGB" else ["png"])
        picture(number, mode).save(folder / f"{chance.choice([number, number % 5])}.{kind}")
    data = prepare(config("folder", place, classes=chance.choice([None, None, ["A", "B"], ["0", "1"]])))
    assert set(data.table["label"]) == {0, 1}


def weights(chance: random.Random, place: Path) -> None:
    """A file of weights, wrapped and prefixed, some of them damaged."""
    content: object = {f"{chance.choice(['', 'module.', 'model.'])}layer.{name}": torch.ones(2) for name in "abc"}
    for _ in range(chance.randint(0, 3)):
        name = chance.choice(["state_dict", "model", "net", "x", "", *ODD])
        content = chance.choice(
            [{name: content}, {name: content, "epoch": 3}, {name: content, "y": content}, [content]]
        )
    path = place / f"w.{chance.choice(['pth', 'ckpt', 'safetensors'])}"
    torch.save(content, path)
    if chance.random() < 0.4:
        change(chance, path, BINARY)
    state = read_state(path)
    assert all(isinstance(value, torch.Tensor) for value in state.values())


def texts(chance: random.Random, place: Path) -> None:
    """A command line of texts: each is refused, or in the configuration as it was typed."""
    keys_of_texts = [key for key in text_keys() if not key.startswith(("hydra.", "run", "like"))]
    typed_in = {}
    for key in chance.sample(keys_of_texts, chance.randint(1, 4)):
        odd = "".join(chance.choice(ODD) for _ in range(chance.randint(1, 2)))
        typed_in[key] = "".join(chance.choice([odd, "2026_11_27", "1e3", "epoch=1.pth", "a (1)"]))
    words = [f"{chance.choice(['', '', '+', '++'])}{key}={value}" for key, value in typed_in.items()]
    composed = compose_config(words)
    for key, value in typed_in.items():
        plain = "${" not in value and value.strip()[:1] not in ("'", '"') and not re.match(r"\w+\(", value)
        found = OmegaConf.select(composed, key)
        assert not plain or found == value or (found is None and value.lower() == "null"), f"{key}={value!r}: {found!r}"


def refusals(chance: random.Random, place: Path) -> None:
    """One file that the system refuses with any of its errors: the message has the error's own name."""
    write_folder(place / "data", "png")
    prepare(config("folder", place))
    paths = sorted(path for path in place.rglob("*") if path.is_file() and path.suffix != ".lock")
    path, number = chance.choice(paths), chance.choice([1, 5, 11, 13, 28, 30, 36, 37, 116, 524])
    REFUSED[str(path)] = number
    refused = None
    try:
        prepare(config("folder", place))
    except HistolightError as error:
        refused = error
    if refused is not None:
        assert os.strerror(number) in str(refused), str(refused)
        assert "damaged" not in str(refused), str(refused)
        raise refused


# ------------------------------------------------------------------------------------------------- right input


def config(source: str, place: Path, **data: Any) -> DataConfig:
    root, cache = str(place / "data"), str(place / "cache")
    return DataConfig(source=source, root=root, cache=cache, image_size=SIZE, val_fraction=0.4, **data)


def write_kaggle(root: Path, part: str = "train", listing: str = "train_labels.csv") -> list[str]:
    ids = [f"{number:04x}" for number in range(TILES)]
    (root / part).mkdir(parents=True)
    for number, name in enumerate(ids):
        picture(number).save(root / part / f"{name}.tif")
    (root / listing).write_text("id,label\n" + "".join(f"{name},{row % 2}\n" for row, name in enumerate(ids)))
    return ids


def write_folder(root: Path, suffix: str) -> Path:
    for number in range(TILES):
        path = root / str(number % 2) / f"tile_{number:03d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    return root / "0" / f"tile_000.{suffix}"


def picture(number: int, mode: str = "RGB", size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


# ------------------------------------------------------------------------------------------------ what is changed


def change(chance: random.Random, path: Path, ways: list[Bytes]) -> None:
    content = path.read_bytes()
    for _ in range(chance.randint(1, 3)):
        content = chance.choice(ways)(chance, content)
    path.write_bytes(content)


def _cut(chance: random.Random, content: bytes) -> bytes:
    return content[: chance.randrange(len(content) + 1)]


def _flip(chance: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 4, 32]) if changed else 0):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _insert(chance: random.Random, content: bytes) -> bytes:
    place = chance.randrange(len(content) + 1)
    return content[:place] + chance.randbytes(chance.choice([1, 2, 16, 400])) + content[place:]


def _remove(chance: random.Random, content: bytes) -> bytes:
    start, stop = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    return content[:start] + content[stop:]


def _nothing(chance: random.Random, content: bytes) -> bytes:
    return chance.choice([b"", b"\n", b"\0" * 512, chance.randbytes(512)])


BINARY: list[Bytes] = [_cut, _flip, _flip, _insert, _remove, _nothing]


def _text(function: Callable[[random.Random, list[str]], list[str]]) -> Bytes:
    """Change the lines of a table."""

    def change_lines(chance: random.Random, content: bytes) -> bytes:
        lines = content.decode(errors="surrogateescape").split("\n")
        return "\n".join(function(chance, lines)).encode(errors="surrogateescape")

    return change_lines


def _field(chance: random.Random, lines: list[str]) -> list[str]:
    row = chance.randrange(len(lines))
    fields = lines[row].split(",")
    fields[chance.randrange(len(fields))] = chance.choice(ODD)
    return [*lines[:row], ",".join(fields), *lines[row + 1 :]]


def _quoted(chance: random.Random, lines: list[str]) -> list[str]:
    row, quote = chance.randrange(len(lines)), chance.choice(['"{}"', '"{}', '{}"', '"{}""', "'{}'", '"{}\n"'])
    return [*lines[:row], ",".join(quote.format(field) for field in lines[row].split(",")), *lines[row + 1 :]]


def _huge(chance: random.Random, lines: list[str]) -> list[str]:
    row = chance.randrange(len(lines))
    return [
        *lines[:row],
        lines[row] + chance.choice(["x", ",", '"', "\t"]) * chance.choice([10_000, 2_000_000]),
        *lines[row + 1 :],
    ]


def _repeated(chance: random.Random, lines: list[str]) -> list[str]:
    row = chance.randrange(len(lines))
    return lines[:row] + lines[row : row + 1] * chance.choice([2, 3, 1000]) + lines[row + 1 :]


def _column(chance: random.Random, lines: list[str]) -> list[str]:
    if chance.random() < 0.5:
        return [line.rpartition(",")[0] for line in lines]
    return [f"{line},{chance.choice(['id', 'label', 'slide', 'x', ''])}" for line in lines]


def _encoded(chance: random.Random, content: bytes) -> bytes:
    text = content.decode(errors="replace") + chance.choice(["", "é,1\n", "日本,0\n"])
    return text.encode(
        chance.choice(["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "latin-1", "cp037", "utf-7"]), "replace"
    )


CSV: list[Bytes] = [
    _cut,
    _flip,
    _insert,
    _nothing,
    _encoded,
    *map(_text, (_field, _field, _field, _quoted, _quoted, _huge, _repeated, _column)),
    _text(lambda chance, lines: chance.sample(lines, len(lines))),
    _text(lambda chance, lines: lines[1:]),
    _text(lambda chance, lines: [line.replace(",", chance.choice([";", "\t", " ", ",,"])) for line in lines]),
    _text(lambda chance, lines: [f" {line} " for line in lines]),
    lambda chance, content: content.replace(b"\n", chance.choice([b"\r\n", b"\r", b"\n\n", b"\n\r", b"\x0b"])),
    lambda chance, content: b"\xef\xbb\xbf" * chance.randint(1, 2) + content,
]


def _bytes_of(chance: random.Random, path: Path) -> None:
    change(chance, path, BINARY)


def _another_mode(chance: random.Random, path: Path) -> None:
    mode = chance.choice(["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16", "RGBX"])
    changed = Image.new(mode, (SIZE, SIZE)) if mode in ("I;16", "LA") else picture(0, mode if mode != "LAB" else "RGB")
    _save(changed, path, chance.choice(["TIFF", "PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM"]))


def _another_size(chance: random.Random, path: Path) -> None:
    _save(picture(0, size=chance.choice([(1, 1), (33, 32), (32, 31), (96, 96), (3000, 3000), (65000, 1)])), path, "PNG")


def _several(chance: random.Random, path: Path) -> None:
    pages = [picture(number) for number in range(chance.randint(2, 5))]
    _save(pages[0], path, chance.choice(["TIFF", "PNG", "GIF", "WEBP"]), save_all=True, append_images=pages[1:])


def _compressed(chance: random.Random, path: Path) -> None:
    ways = ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4", "lzma", "zstd", "webp", "tiff_ccitt"]
    _save(picture(0), path, "TIFF", compression=chance.choice(ways))


def _bomb(chance: random.Random, path: Path) -> None:
    """A PNG, small or with a gigabyte of zeros in it, whose header promises any size."""
    width, height = chance.choice([(60_000, 60_000), (2**31 - 1, 2**31 - 1), (SIZE, SIZE), (0, 0), (SIZE, 2**30)])

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    text = chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(chance.choice([10, 30_000_000])), 9))
    body = chunk(b"IDAT", zlib.compress(bytes(chance.choice([10, 20_000_000])), 9))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + text + body + chunk(b"IEND", b""))


def _tags(chance: random.Random, path: Path) -> None:
    """Change a number in the header of a plain TIFF, where its tags lie."""
    buffer = io.BytesIO()
    picture(0).save(buffer, "TIFF")
    content = bytearray(buffer.getvalue())
    header = 200
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(header)
        content[place : place + 2] = struct.pack("<H", chance.choice([0, 1, 2, 3, 6, 8, 16, 32, 255, 65535]))
    path.write_bytes(content)


def _save(changed: Image.Image, path: Path, kind: str, **options: object) -> None:
    """Write an image, whatever its name ends in; what Pillow can't write becomes an empty file."""
    try:
        changed.save(path, kind, **options)
    except Exception:
        path.write_bytes(b"")


def _link_to(target: str) -> Callable[[Path], None]:
    def link(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return link


def _pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def _sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(2**31)


ENTRIES: list[Callable[[Path], None]] = [
    Path.touch,
    Path.mkdir,
    _pipe,
    _link_to("nowhere"),
    _link_to("."),
    _link_to("/"),
    _link_to("/dev/zero"),
    lambda path: path.symlink_to(path.name),
    lambda path: picture(1).save(path, "PNG"),
    _sparse,
]
IMAGES: list[Callable[[random.Random, Path], None]] = [
    *[_bytes_of] * 4,
    _another_mode,
    _another_mode,
    _another_size,
    _several,
    _compressed,
    _bomb,
    _tags,
    _tags,
    lambda chance, path: chance.choice([_pipe, _directory, _sparse, Path.unlink])(path),
    lambda chance, path: _link_to(chance.choice(["nowhere", path.name, "..", "/dev/zero", "/etc/passwd"]))(path),
]

if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3] or ["2000"]), *sys.argv[3:]))
