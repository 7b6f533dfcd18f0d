from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from memory_packs import memory_pack
from PIL import Image

from histolight.cli import main as cli
from histolight.commands.explore import main, parse_request
from histolight.config.compose import compose_config, to_yaml
from histolight.config.schema import DataConfig
from histolight.data.prepare import PackedTiles
from histolight.errors import DataError, HistolightError, RequestError
from histolight.exploration.page import pixel_size, tile_section

NAME = "<script>alert(1)<"  # a file's name can hold no slash


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Class folders with 12 tiles of 32x32: an exact copy, a turned one with the other label, one blank."""
    random = np.random.default_rng(0)
    root = tmp_path / "tiles (1)"
    for label in (0, 1):
        (root / str(label)).mkdir(parents=True)
    pixels = random.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    pixels[3], pixels[5], pixels[6] = pixels[1], np.rot90(pixels[2]), 230
    for number, tile in enumerate(pixels):
        Image.fromarray(tile).save(root / str(number % 2) / f"{NAME}{number:02d}.png")
    return root


@pytest.fixture
def request_of(tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return ["data=folder", f"data.root={tiles}", "data.image_size=32", f"data.cache={tmp_path / 'cache'}"]


def test_it_writes_the_page_the_figures_and_what_was_found(
    request_of: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = tmp_path / "slides.csv"
    rows = [f"{NAME}{number:02d},$slide_<b>{number % 3}" for number in range(11)]
    groups.write_text("\n".join(["id,slide", *rows]) + "\n")
    assert main([*request_of, f"data.groups={groups}", "name=mine"]) == 0
    (place,) = Path("outputs/explore").iterdir()
    assert place.name.startswith("mine-20")
    printed = capsys.readouterr().out
    assert "12 tiles of 3 slides, 50.0% of them tumour." in printed
    assert "1 without a known slide" in printed
    assert "1 near-blank, 0 of them labelled tumour." in printed
    assert (
        "4 tiles in 2 sets are copies of one another, exact or near. Sets with both labels: 1; with several slides: 1."
        in printed
    )
    assert f"report       {place / 'report.html'}" in printed

    copies = pd.read_csv(place / "duplicates.csv")
    assert copies.groupby("set")["exact"].agg(list).tolist() == [[True, True], [False, False]]
    assert pd.read_csv(place / "near_duplicates.csv").loc[0, "correlation"] == pytest.approx(1)
    assert pd.read_csv(place / "near_blank.csv")["id"].tolist() == [f"{NAME}06"]
    assert pd.read_csv(place / "slides.csv")["tiles"].sum() == 11
    names = {path.stem for path in (place / "figures").iterdir()}
    assert names == {
        "slides", "tiles_benign", "tiles_tumour", "brightness", "contrast", "colours", "mean_tiles", "near_blank",
        "near_duplicates",
    }  # fmt: skip
    page = (place / "report.html").read_text()
    assert page.count("<img") == len(names)
    assert "<script" not in page
    assert not re.search(r"https?:|url\(", page)


def test_the_same_seed_shows_the_same_tiles(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
    table = pd.DataFrame({"id": np.arange(100).astype(str), "label": np.arange(100) % 2, "group": None})
    tiles = PackedTiles(table.assign(row=np.arange(100)), memory_pack(pixels, tmp_path), "")
    first, again, other = (
        [picture.data for picture in tile_section(tiles, seed, tmp_path).pictures] for seed in (0, 0, 1)
    )
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiles_benign.png", "tiles_tumour.png"]


def test_damaged_tiles_are_shown_escaped_and_refused_as_train_does(
    request_of: list[str], tiles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tiles / "1" / f"{NAME}cut.png"
    cut.write_bytes((tiles / "0" / f"{NAME}00.png").read_bytes()[:300])
    buffer = io.BytesIO()
    Image.new("I;16", (32, 32)).save(buffer, "PNG")
    (tiles / "0" / "grey.png").write_bytes(buffer.getvalue())
    (tiles / "0" / "empty.png").write_bytes(b"")
    assert cli(["explore", *request_of, "hydra.run.dir=out"]) == 2
    said = capsys.readouterr().err
    assert "3 tiles cannot be used: " in said
    assert "out/report.html" in said
    assert len([line for line in said.splitlines() if line.startswith("histolight: ")]) == 1
    assert "Traceback" not in said
    assert sorted(path.name for path in Path("out").iterdir()) == [
        ".histolight.lock",
        "data_problems.csv",
        "report.html",
    ]
    problems = pd.read_csv("out/data_problems.csv").set_index("id")["problem"]
    assert problems["grey"] == "not 8-bit RGB"
    assert len(problems) == 3
    page = Path("out/report.html").read_text()
    assert "3 problems, 3 kinds" in page
    assert "&lt;script&gt;alert(1)&lt;cut" in page
    assert "<script" not in page


def test_a_table_that_is_wrong_is_shown_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kaggle/train").mkdir(parents=True)
    (tmp_path / "kaggle/train_labels.csv").write_text("id,label\na,0\nb,2\n")
    with pytest.raises(DataError, match="label is not 0 or 1: 1"):
        main(["data=kaggle", "data.root=kaggle", "hydra.run.dir=out"])
    assert "id without a tile" in Path("out/report.html").read_text()


def test_a_sample_of_one_class_is_one_line_and_leaves_nothing(request_of: list[str]) -> None:
    with pytest.raises(RequestError, match="all 1 tiles have the label"):
        main([*request_of, "data.limit=1", "hydra.run.dir=out"])
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=folder"], "data=folder needs data.root=FOLDER"),
        (["data=folder", "data.root=nowhere"], "data.root=nowhere is not a folder"),
        (["data=folder", "data.root=nothing"], "has no two class folders"),
        (["data=kaggle", "data.root=nothing"], "train_labels.csv is missing"),
        (["data.rot=x"], "data.rot is not a key: did you mean data.root"),
        (["optimizer.lr=1"], "optimizer.lr= has no place in histolight explore; it takes run, runs, data"),
        (["model=resnet18"], "model= has no place in histolight explore"),
        (["data=unknown"], "unknown"),
        (["data.seed=-1"], "data.seed=-1 is out of range"),
        (["hydra.run.dir=full"], "full holds files already"),
        (["hydra.run.dir=file"], "file"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nothing").mkdir()
    Path("full").mkdir()
    Path("full/report.html").write_text("a page")
    Path("file").write_text("")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(RequestError, match=message) as caught:
        main(overrides)
    assert "\n" not in str(caught.value)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line(request_of: list[str], tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(HistolightError, match="can't be written"):
        main([*request_of, "hydra.run.dir=locked/out"])


def test_an_output_below_a_file_is_one_line(request_of: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="file/out can't be"):
        main([*request_of, "hydra.run.dir=file/out"])


def test_the_folder_is_named_by_source_and_time() -> None:
    request = parse_request([])
    assert (request.data.source, request.title) == ("synthetic", "Tiles of synthetic")
    assert parse_request(["data=folder", "data.root=mine"]).title == "Tiles of folder in mine"
    name = r"outputs/explore/synthetic-\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d"
    assert re.fullmatch(name, request.directory.as_posix())


def test_the_page_says_where_one_pixel_size_was_taken_for_all_slides() -> None:
    slides = DataConfig(source="slides", mpp=0.972)
    slides.slides.model_mpp = 1.5
    assert pixel_size(slides).startswith("A pixel of a tile has 1.5 µm. Every slide was taken to have data.mpp=0.972 ")
    slides.mpp = None
    assert pixel_size(slides) == "A pixel of a tile has 1.5 µm."
    assert "data.mpp=MICRONS says it" in pixel_size(DataConfig())


def test_a_run_shows_the_sides_of_its_split(
    request_of: list[str], tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tissue = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name, (y, x) in {"left": (0, 0), "right": (16, 16)}.items():
        Image.fromarray(tissue[y : y + 32, x : x + 32]).save(tiles / "1" / f"{name}.png")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(compose_config(request_of)))
    (run / "metrics.json").write_text('{"status": "completed"}')
    sides = {path.stem: "train" for path in tiles.rglob("*.png")} | {"right": "val"}
    pd.Series(sides, name="split").rename_axis("id").to_csv(run / "splits.csv")
    assert main([f"run={run}", "hydra.run.dir=out"]) == 0
    assert "The run's split puts 1 of these pairs on two sides: its figures flatter." in capsys.readouterr().out
    pairs = pd.read_csv("out/overlaps.csv").set_index("id_1")
    assert pairs.loc["left"].tolist() == ["right", 16, 16]
    assert Path("out/figures/mosaics.png").is_file()
    page = Path("out/report.html").read_text()
    assert "in the colour of its side" in page
    sides["right"] = "train"
    pd.Series(sides, name="split").rename_axis("id").to_csv(run / "splits.csv")
    assert main([f"run={run}", "hydra.run.dir=other"]) == 0
    assert "The run's split puts none of these pairs on two sides." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run=nowhere"], "nowhere is not a folder"),
        (["run=."], "is not a run directory"),
        (["run=run", "data.limit=3"], "data.limit= has no place in histolight explore, which takes the run as it is"),
    ],
)
def test_a_wrong_run_is_one_line(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=message):
        main(overrides)


@pytest.mark.slow
def test_it_does_without_torch(request_of: list[str]) -> None:
    code = (
        "import sys; from histolight.commands.explore import main; main(sys.argv[1:]);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning')))"
    )
    done = subprocess.run([sys.executable, "-c", code, *request_of], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_names_the_size_that_most_tiles_have(request_of, tiles, here, capsys) -> None:
    Image.new("RGB", (40, 40), "white").save(tiles / "0" / "other.png")
    assert cli(["explore", *request_of, "data.image_size=64", "hydra.run.dir=out"]) == 2
    advice = re.search(r"\d+ of all \d+ tiles have 32x32 pixels: use data.image_size=32", capsys.readouterr().err)
    assert advice is not None
    assert f"{advice[0]}." in Path("out/report.html").read_text()


def test_what_is_read_otherwise_in_a_list_of_slides_is_said_once(request_of, tmp_path, capsys, caplog) -> None:
    groups = tmp_path / "slides.csv"
    rows = [f"{NAME}{number:02d};benign;p{number % 3}" for number in range(12)]
    groups.write_text("\n".join(["file;diagnosis;patient", *rows]) + "\n")
    assert cli(["explore", *request_of, f"data.groups={groups}"]) == 0
    assert "12 tiles of 3 slides" in capsys.readouterr().out
    for words in ("separated by semicolons", "the column file is read as id", "of its columns patient names the slide"):
        assert caplog.text.count(words) == 1
