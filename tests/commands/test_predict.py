from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.special import expit
from untrained_runs import untrained_run

from histolight import cli, files
from histolight.commands.predict import main
from histolight.errors import InterruptionError, RequestError
from histolight.inference.networks import load_classifier
from histolight.inference.predict import members_of

SIZE = 32
RUN = [f"data.image_size={SIZE}", "model.name=shufflenet_v2_x0_5", "model.weights=null", "trainer=cpu"]
IDS = ["b2", "a1", "c3", "0012", "d4", "e5", "f6", "g7", "h8", "i9"]  # the order of sample_submission.csv


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three completed points, and one that is not."""
    root = tmp_path_factory.mktemp("sweep")
    for number, auroc in enumerate((0.7, 0.9, 0.8)):
        untrained_run(root / f"{number}_x", [*RUN, "data.batch_size=4"], seed=number, auroc=auroc)
    untrained_run(root / "3_x", RUN, status="interrupted")
    return root


@pytest.fixture(scope="module")
def kaggle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kaggle tiles")
    random = np.random.default_rng(0)
    (root / "test").mkdir()
    for name in IDS:
        tile = random.random((SIZE, SIZE, 3)) * random.integers(20, 256, (1, 1, 3))
        Image.fromarray(tile.astype(np.uint8)).save(root / "test" / f"{name}.tif")
    (root / "sample_submission.csv").write_text("id,label\n" + "".join(f"{name},0\n" for name in IDS))
    return root


@pytest.fixture
def data(kaggle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return ["data=kaggle", f"data.root={kaggle}", f"data.cache={tmp_path_factory.getbasetemp() / 'cache'}"]


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"id": str})


def test_kaggles_test_tiles_become_a_submission_in_its_order(sweep, kaggle, data, here, capsys) -> None:
    assert main([f"run={sweep}/0_x", *data]) == 0
    (place,) = Path("outputs/predictions").iterdir()
    assert place.name.startswith("0_x-20")
    assert {path.name for path in place.iterdir()} == {
        ".histolight.lock",
        "predictions.csv",
        "submission.csv",
        "prediction.json",
    }
    printed = capsys.readouterr()
    assert str(place / "submission.csv") in printed.out
    assert "10 tiles, 1 network, tta=none (1 view)" in printed.err
    submission, predictions = read(place / "submission.csv"), read(place / "predictions.csv")
    assert submission.columns.tolist() == ["id", "label"]
    assert predictions.columns.tolist() == ["id", "logit", "score"]
    assert submission["id"].tolist() == predictions["id"].tolist() == IDS
    np.testing.assert_array_equal(submission["label"], predictions["score"])
    np.testing.assert_allclose(predictions["score"], expit(predictions["logit"]), rtol=1e-6)
    tiles = [np.asarray(Image.open(kaggle / "test" / f"{name}.tif")) for name in IDS]
    logits = load_classifier(sweep / "0_x")(torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).float() / 255)
    np.testing.assert_allclose(predictions["logit"], logits, rtol=1e-3, atol=1e-4)
    about = json.loads((place / "prediction.json").read_text())
    assert about["runs"] == [str(sweep / "0_x")]


def test_an_ensemble_has_the_scores_of_each_member(sweep, data, here) -> None:
    single = {}
    for number in (1, 2):
        main([f"run={sweep}/{number}_x", *data, f"hydra.run.dir=single{number}"])
        single[number] = read(Path(f"single{number}/predictions.csv"))
    for mean in ("logit", "probability"):
        main([f"runs={sweep}", "best=2", f"mean={mean}", *data, f"hydra.run.dir={mean}"])
        found = read(Path(f"{mean}/predictions.csv"))
        np.testing.assert_array_equal(found["score_1"], single[1]["score"])
        np.testing.assert_array_equal(found["score_2"], single[2]["score"])
        if mean == "logit":
            np.testing.assert_allclose(found["logit"], (single[1]["logit"] + single[2]["logit"]) / 2, rtol=1e-5)
        else:
            np.testing.assert_allclose(found["score"], (single[1]["score"] + single[2]["score"]) / 2, rtol=1e-5)


def test_members_are_the_completed_runs_or_the_best_of_them(sweep) -> None:
    assert [run.name for run in members_of([sweep], None)] == ["0_x", "1_x", "2_x"]
    assert [run.name for run in members_of([sweep], 2)] == ["1_x", "2_x"]
    assert members_of([sweep / "2_x", sweep / "0_x"], None) == [sweep / "2_x", sweep / "0_x"]


def test_a_folder_of_images_needs_no_labels(sweep, kaggle, data, here) -> None:
    main([f"run={sweep}/1_x", "data=folder", f"data.root={kaggle / 'test'}", data[2], "hydra.run.dir=out"])
    assert not Path("out/submission.csv").exists()
    assert read(Path("out/predictions.csv"))["id"].tolist() == sorted(IDS)


def test_scores_are_fitted_to_tiles_without_labels(sweep, here, tmp_path_factory, capsys, caplog) -> None:
    caplog.set_level("WARNING", "histolight")
    run, random = here / "run", np.random.default_rng(0)
    shutil.copytree(sweep / "0_x", run)
    tiles = random.random((120, SIZE, SIZE, 3)) * random.integers(20, 256, (120, 1, 1, 3))
    for number, tile in enumerate(tiles.astype(np.uint8)):
        path = here / "tiles" / f"{number:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(tile).save(path)
    request = [f"run={run}", "data=folder", "data.root=tiles", f"data.cache={tmp_path_factory.getbasetemp() / 'cache'}"]
    main([*request, "hydra.run.dir=none"])
    plain = read(Path("none/predictions.csv"))["logit"].to_numpy()

    # Validation has as many tumour tiles as others, and tumour has the higher logits; here they are a quarter.
    edge, deviation = np.quantile(plain, 0.75), plain.std()
    logits = edge + deviation * np.concatenate([random.normal(-1.5, 1, 200), random.normal(1.5, 1, 200)])
    own = pd.DataFrame({"id": np.arange(400), "label": np.repeat([0, 1], 200), "logit": logits, "score": expit(logits)})
    files.write_csv(run / "predictions" / "val.csv", own.assign(group=None, cluster=None))

    main([*request, "adapt=prior", "tta=flips", "hydra.run.dir=prior"])
    found, about = read(Path("prior/predictions.csv")), json.loads(Path("prior/prediction.json").read_text())["adapted"]
    np.testing.assert_allclose(found["score"].mean(), about["prevalence"], atol=1e-3)  # where the estimation ends
    assert about["prevalence"] < 0.4
    assert about["sentence"].startswith("adapted to 120 unlabelled tiles (the prior, ")
    assert about["sentence"].endswith("; calibrated on scores without tta=flips")
    assert about["sentence"] in capsys.readouterr().err

    main([*request, "adapt=batch_norm", "hydra.run.dir=batch_norm"])
    assert "% of these tiles are tumour, and 50% of validation's: the order" in caplog.text
    classifier = load_classifier(run)  # torch's own function gives the statistics of the same tiles
    batch = torch.from_numpy(tiles.astype(np.uint8)).permute(0, 3, 1, 2) / 255
    torch.optim.swa_utils.update_bn([batch], classifier)
    found = read(Path("batch_norm/predictions.csv"))["logit"]
    np.testing.assert_allclose(found, classifier.eval()(batch).detach(), rtol=1e-2, atol=1e-3)
    assert np.abs(found - plain).mean() > 0.01
    about = json.loads(Path("batch_norm/prediction.json").read_text())
    assert about["adapted"]["sentence"] == "adapted to 120 unlabelled tiles (batch-norm statistics)"
    assert json.loads(Path("none/prediction.json").read_text())["adapted"] is None

    for way in ("prior", "batch_norm"):
        files.write_csv(run / "predictions" / "val.csv", own.assign(logit=logits + 100, group=None, cluster=None))
        folder = f"hydra.run.dir={way}_of_one_class"
        with pytest.raises(RequestError, match=f"adapt={way} can't tell whether these 120 tiles hold both") as caught:
            main([*request, f"adapt={way}", folder])
        assert (f"({folder} keeps the scores)" in str(caught.value)) == (way == "prior")
    assert not Path("batch_norm_of_one_class").exists()
    main([*request, "hydra.run.dir=prior_of_one_class"])  # what was scored is not lost
    assert read(Path("prior_of_one_class/predictions.csv")).equals(read(Path("none/predictions.csv")))


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_bytes(sweep, data, here, capsys) -> None:
    request = [f"runs=[{sweep}/0_x,{sweep}/1_x]", *data, "tta=flips"]
    main([*request, "hydra.run.dir=whole"])
    code = (
        "import os, signal, sys, torch; torch.set_num_threads(1)\n"
        "from histolight.inference import networks as inference\n"
        "from histolight.commands.predict import main\n"
        "def predict(*arguments, original=inference.predict_logits):\n"
        "    for number, logits in enumerate(original(*arguments)):\n"
        "        if number == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield logits\n"
        "inference.predict_logits = predict\n"
        "main(sys.argv[1:])"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, *request, "hydra.run.dir=cut"],
        env=dict(os.environ),
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    cut = Path("cut")
    assert {path.name for path in cut.iterdir()} == {".histolight.lock", "predictions.partial"}
    half = (cut / "predictions.partial").read_bytes()
    with pytest.raises(RequestError, match="is the beginning of another prediction"):
        main([*request[:-1], "tta=none", "hydra.run.dir=cut"])
    assert (cut / "predictions.partial").read_bytes() == half
    main([*request, "hydra.run.dir=cut"])
    for name in ("predictions.csv", "submission.csv"):
        assert (cut / name).read_bytes() == Path("whole", name).read_bytes()
    assert not (cut / "predictions.partial").exists()


def test_interrupted_it_says_how_to_continue(sweep, data, here, monkeypatch) -> None:
    from histolight.inference import networks as inference

    def interrupt(*arguments):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(inference, "predict_logits", interrupt)
    with pytest.raises(InterruptionError, match=r"continue with .*histolight predict run=.* hydra.run.dir=out"):
        main([f"run={sweep}/0_x", *data, "hydra.run.dir=out"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "run= and runs= are missing: histolight predict run=DIR"),
        (["run={sweep}/0_x", "runs={sweep}"], "run= and runs= are both given"),
        (["run=nowhere"], "nowhere is not a folder"),
        (["run={sweep}"], "is not a run directory: it has no metrics.json"),
        (["run={sweep}/3_x", "data=kaggle", "data.root={kaggle}"], "3_x is interrupted, not completed: continue it"),
        (["runs=[{sweep}/0_x,{sweep}/3_x]"], "3_x is interrupted, not completed"),
        (["runs={kaggle}"], "holds no run"),
        (["runs={sweep}", "best=4"], "best=4 are more than the 3 completed runs"),
        (["runs={sweep}", "best=0"], "best=0 is out of range: give a number of runs"),
        (["run={sweep}/0_x", "best=1"], "best= chooses among several runs"),
        (["run={sweep}/0_x", "tta=flip"], "tta=flip is not known: did you mean flips?"),
        (["run={sweep}/0_x", "++mean=median"], "mean=median is not known"),  # plus signs change nothing
        (["run={sweep}/0_x", "adapt=priors"], "adapt=priors is not known: did you mean prior"),
        (["runs={sweep}", "adapt=prior"], "adapt=prior fits one network to tiles, not an ensemble, .* 3 runs"),
        (["run={sweep}/0_x", "data=slides", "data.root={kaggle}", "adapt=prior"], "not whole slides: leave adapt out"),
        (["run={sweep}/0_x", "data=kaggle", "data.root={kaggle}", "adapt=prior"], "at least 100 tiles, .* are 10"),
        (["run={sweep}/0_x", "model=resnet18"], "model= has no place in histolight predict"),
        (["run={sweep}/0_x", "data.limit=3"], "data.limit= has no place in histolight predict"),
        (["run={sweep}/0_x", "report.abstain=0.1"], "gives scores, not calls: a run's metrics.json has the threshold"),
        (["run={sweep}/0_x", "dta=kaggle"], "dta is not a key of histolight predict: did you mean data"),
        (["run={sweep}/0_x"], "data=synthetic has no unlabelled tiles"),
        (["run={sweep}/0_x", "data=folder"], "data.root= is missing|needs data.root=FOLDER"),
        (["run={sweep}/0_x", "data=kaggle", "data.root=/nowhere"], "data.root=/nowhere is not a folder"),
        (["run={sweep}/0_x", "data=folder", "data.root=empty"], "has no images"),
        (["run={sweep}/0_x", "data=kaggle", "data.root=lacking"], "id without a tile: 1 \\(zz\\)"),
        (
            ["run={sweep}/0_x", "data=folder", "data.root=large"],
            "wrong size: 1 .*48x48 pixels where data.image_size=32",
        ),
        (
            ["run={sweep}/0_x", "data=folder", "data.root=large", "data.image_size=48"],
            "was trained on tiles of 32 pixels",
        ),
        (["run={sweep}/0_x", "data=kaggle", "data.root={kaggle}", "hydra.run.dir={sweep}/1_x"], "holds files already"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    overrides: list[str], message: str, sweep: Path, kaggle: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("lacking/test").mkdir(parents=True)
    Path("lacking/sample_submission.csv").write_text("id,label\nzz,0\n")
    Path("large").mkdir()
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save("large/a.png")
    before = sorted(sweep.rglob("*")) + sorted(here.rglob("*"))
    filled = [override.format(sweep=sweep, kaggle=kaggle) for override in overrides]
    if any(override.startswith("data") for override in overrides):
        filled.append(f"data.cache={kaggle.parent / 'cache of mistakes'}")
    assert cli.main(["predict", *filled]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("histolight:")]
    assert re.search(message, line), line
    assert sorted(sweep.rglob("*")) + sorted(here.rglob("*")) == before
