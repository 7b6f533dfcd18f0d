from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_slides import Ellipse, MadeSlide
from PIL import Image
from untrained_runs import untrained_run

import histolight
from histolight import runs
from histolight.cli import main as cli
from histolight.commands.predict import main
from histolight.errors import RequestError
from histolight.files import lock_file
from histolight.inference import networks

SIZE = 32
MADE = MadeSlide((800, 700), [Ellipse(400, 350, 380, 330)], [Ellipse(400, 350, 150, 120)], mpp=0.972)


def overrides(mpp: str = "0.972") -> list[str]:
    size = [f"data.image_size={SIZE}", "data.batch_size=64", f"data.mpp={mpp}"]
    return ["data=folder", "data.root=x", *size, "model.name=shufflenet_v2_x0_5", "trainer=cpu"]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [untrained_run(root / str(seed), overrides(), seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    MADE.write(folder / "one.tif", levels=2, compression="zlib")
    return folder


def scores(directory: str, name: str = "one") -> pd.DataFrame:
    return pd.read_parquet(Path(directory, "slides", name, "scores.parquet"))


def test_a_slides_scores_are_those_of_its_tiles_one_by_one(members, slides, here) -> None:
    """Views and ensembles included: each tile as a file of its own, predicted as any folder of tiles."""
    ensemble = [f"runs=[{members[0]},{members[1]}]", "tta=flips", "mean=probability"]
    assert main([*ensemble, "data=slides", f"data.root={slides}", "hydra.run.dir=out"]) == 0
    table = scores("out")
    some = table.iloc[:: max(1, len(table) // 12)].reset_index(drop=True)
    Path("tiles").mkdir()
    slide = MADE.whole()
    for number, place in some.iterrows():
        x, y = int(place["x"]) - SIZE // 2, int(place["y"]) - SIZE // 2
        Image.fromarray(slide[y : y + SIZE, x : x + SIZE]).save(f"tiles/{number:03d}.png")
    main([*ensemble, "data=folder", "data.root=tiles", "data.cache=cache", "hydra.run.dir=tiles_out"])
    expected = pd.read_csv("tiles_out/predictions.csv")
    np.testing.assert_allclose(some["score"], expected["score"], rtol=1e-4)
    np.testing.assert_allclose(some["logit"], expected["logit"], rtol=1e-3, atol=1e-4)


def test_the_tables_page_and_maps_are_written(members, slides, here, capsys) -> None:
    shutil.copy(slides / "one.tif", here / "two.tif")
    shutil.copy(slides / "one.tif", here / "one.tif")
    (here / "notes.txt").write_text("no slide")
    run = shutil.copytree(members[0], here.with_name(f"{here.name}_run"))
    runs.update_metrics(run, val_at_threshold={"specificity": {"value": 0.938, "low": 0.92, "high": 0.951}})
    assert cli(["predict", f"run={run}", "data=slides", f"data.root={here}", "hydra.run.dir=out"]) == 0
    output = capsys.readouterr()
    assert "2 slides, 1 network, tta=none, 0.972 µm a pixel, a tile every 32 pixels" in output.err
    assert "out/slides.csv" in output.out
    table = pd.read_csv("out/slides.csv")
    assert table["slide"].tolist() == ["one", "two"]
    assert table["tissue_mm2"].to_numpy() == pytest.approx(np.pi * 380 * 330 * 0.972e-3**2, rel=0.05)
    assert table["problem"].isna().all()
    top = scores("out")["score"].sort_values(ascending=False)
    assert table["highest_score"][0] == pytest.approx(top.iloc[0])
    assert table["mean_of_top_1_percent"][0] == pytest.approx(top.iloc[: round(len(top) / 100)].mean())
    page = Path("out/report.html").read_text()
    assert page.count("data:image/jpeg") == 4
    assert "notes.txt" in page
    assert "At this threshold the run has a specificity of 0.938 [0.920, 0.951] on its own tiles" in page
    about = json.loads(Path("out/prediction.json").read_text())
    assert about["model_mpp"] == 0.972
    assert about["threshold"] == 0.5
    assert not Path("out/predictions.partial").exists()


def test_from_python_slides_are_a_table_and_what_failed(members, slides, here, capfd) -> None:
    shutil.copytree(slides, "slides")
    Path("slides/broken.svs").write_bytes(b"none")
    words = ["data=slides", "data.root=slides", "slides.stride=24"]
    found = histolight.predict(members, words, directory="python")
    assert capfd.readouterr().out == ""
    assert main([f"runs=[{members[0]},{members[1]}]", *words, "hydra.run.dir=command"]) == 1
    assert Path("python/slides.csv").read_bytes() == Path("command/slides.csv").read_bytes()
    assert found.table["slide"].tolist() == ["one", "broken"]
    assert list(found.problems) == ["broken.svs"]
    assert found.directory == Path("python")
    with pytest.raises(RequestError, match="slides.stride= is for whole slides"):
        histolight.predict(members, ["data=folder", "data.root=slides", "slides.stride=64"])
    with pytest.raises(RequestError, match=r"slides\.strid"):
        histolight.predict(members, ["data=slides", "data.root=slides", "slides.strid=64"])


def test_what_fails_is_listed_at_the_end_with_exit_status_1_and_mended_it_goes_on(
    members, slides, here, capsys
) -> None:
    folder = here / "folder"
    folder.mkdir()
    shutil.copy(slides / "one.tif", folder)
    for name, content in (("empty.svs", b""), ("twice.png", b"x"), ("twice.tif", b"x"), ("film.mp4", b"x")):
        (folder / name).write_bytes(content)
    (folder / "one.geojson").write_text("{}")
    request = ["predict", f"run={members[0]}", "data=slides", f"data.root={folder}", "hydra.run.dir=out"]
    assert cli(request) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines[-4:]] == [
        f"not scored   {name}" for name in ("twice.png", "twice.tif", "film.mp4", "empty.svs")
    ]
    assert "left out     one.geojson: no slides" in lines
    assert pd.read_csv("out/slides.csv")["problem"].notna().tolist() == [False, True, True, True, True]
    before = Path("out/slides/one/slide.json").stat().st_mtime_ns
    for name in ("empty.svs", "twice.png", "twice.tif", "film.mp4"):
        (folder / name).unlink()
    assert cli(request) == 0
    assert Path("out/slides/one/slide.json").stat().st_mtime_ns == before


def dies_at_the_fourth_batch(request: list[str]) -> None:
    seen, original = itertools.count(1), networks._record

    def record(logits: np.ndarray) -> bytes:
        if next(seen) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(logits)

    networks._record = record
    main(request)


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_bytes(members, slides, here) -> None:
    request = [f"run={members[0]}", "data=slides", f"data.root={slides}"]
    child = multiprocessing.get_context("fork").Process(
        target=dies_at_the_fourth_batch, args=([*request, "hydra.run.dir=cut"],)
    )
    child.start()
    child.join(120)
    exitcode = child.exitcode
    child.kill()  # one that hangs
    assert exitcode == -signal.SIGKILL
    assert main([*request, "hydra.run.dir=whole"]) == 0
    assert {path.name for path in Path("cut/slides/one").iterdir()} == {"logits.partial"}
    assert Path("cut/slides/one/logits.partial").stat().st_size > 3 * 64 * 4
    with pytest.raises(RequestError, match="is the beginning of another prediction"):
        main([*request, "tta=flips", "hydra.run.dir=cut"])
    assert main([*request, "hydra.run.dir=cut"]) == 0
    names = {path.relative_to("whole") for path in Path("whole").rglob("*") if path.is_file()}
    names -= {lock_file(Path()).relative_to(Path())}
    assert len(names) == 9
    for name in names:
        assert Path("cut", name).read_bytes() == Path("whole", name).read_bytes(), name


def test_a_run_that_does_not_know_its_pixel_size_asks_for_it(slides, here) -> None:
    run = untrained_run(here / "old", overrides("null"))
    request = [f"run={run}", "data=slides", f"data.root={slides}", "hydra.run.dir=out"]
    with pytest.raises(RequestError, match=r"old does not say at which pixel size .* slides.model_mpp=MICRONS"):
        main(request)
    assert not Path("out").exists()
    assert main([*request, "slides.model_mpp=1.944"]) == 0
    assert pd.read_csv("out/slides.csv")["tile_mpp"].tolist() == pytest.approx([1.944])


def test_members_of_different_pixel_sizes_are_refused(members, slides, here) -> None:
    other = untrained_run(here / "other", overrides("0.5"))
    with pytest.raises(RequestError, match=r"trained at 0.5 to 0.972 µm a pixel"):
        main([f"runs=[{members[0]},{other}]", "data=slides", f"data.root={slides}"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=slides"], "data.root= is missing|needs data.root=FOLDER"),
        (["data=slides", "data.root=nowhere"], "data.root=.*nowhere can't be read"),
        (["data=slides", "data.root=.", "slides.stride=0"], "slides.stride=0 is out of range: it must be at least 1"),
        (["data=slides", "data.root=.", "slides.stride=x"], "slides.stride=x is of the wrong type"),
        (["data=slides", "data.root=.", "slides.threshold=2"], "slides.threshold=2.0 is out of range"),
        (["data=slides", "data.root=.", "slides.strid=3"], "slides.strid is not a key .*did you mean slides.stride"),
        (["data=slides", "data.root=.", "data.mpp=-1"], "data.mpp=-1.0 is out of range"),
        (["data=folder", "data.root=.", "slides.stride=16"], "slides.stride= is for whole slides: add data=slides"),
    ],
)
def test_a_wrong_request_is_one_line_and_writes_nothing(members, here, words, message) -> None:
    with pytest.raises(RequestError, match=message):
        main([f"run={members[0]}", *words, "hydra.run.dir=out"])
    assert not Path("out").exists()


def test_options_that_the_slides_decide_are_refused_too(members, slides, here) -> None:
    request = [f"run={members[0]}", "data=slides", f"data.root={slides}", "hydra.run.dir=out"]
    with pytest.raises(RequestError, match=r"slides.stride=33 leaves gaps between tiles of 32 pixels"):
        main([*request, "slides.stride=33"])
    with pytest.raises(RequestError, match=r"slides.tissue=nowhere is not known"):
        main([*request, "slides.tissue=nowhere"])
    assert not Path("out").exists()


def test_without_the_extra_it_says_what_to_install(members, slides, here, monkeypatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openslide" else find(name))
    with pytest.raises(RequestError, match=r"whole slides need openslide-python: install .*histolight\[slides\]"):
        main([f"run={members[0]}", "data=slides", f"data.root={slides}"])
