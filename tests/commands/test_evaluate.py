"""One tiny training, and evaluations of it: on its own tiles and on others."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from pcam_files import write_pcam
from PIL import Image
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from histolight import cli, files, runs
from histolight.commands.evaluate import main
from histolight.errors import RequestError
from histolight.inference.networks import load_classifier
from histolight.reports.run_page import write_run_report
from histolight.statistics.calibration import fit_line, fit_temperature
from histolight.statistics.metrics import best_threshold

SIZE = 32


def write_tiles(root: Path, count: int, seed: int, size: int = SIZE) -> Path:
    random = np.random.default_rng(seed)
    for number in range(count):
        tile = random.normal(170, 40, (size, size, 3))
        tile[8:24, 8:24] -= 45 * (number % 2)
        path = root / str(number % 2) / f"seed{seed}_{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile.clip(0, 255).astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a validation and a test part, its tiles beside it."""
    from histolight.config.compose import compose_config, typed
    from histolight.data.prepare import prepare
    from histolight.training.fit import check_request, train

    place = tmp_path_factory.mktemp("trained")
    write_tiles(place / "tiles", 60, seed=0)
    overrides = [
        *("data=folder", f"data.root={place}/tiles", f"data.cache={place}/cache", f"data.image_size={SIZE}"),
        *("data.batch_size=8", "data.test_fraction=0.2", "model.name=shufflenet_v2_x0_5", "model.weights=null"),
        *("trainer=cpu", "trainer.max_epochs=2", "logger=csv"),
    ]
    config = check_request(typed(compose_config(overrides)))
    train(config, prepare(config.data), place / "run", progress=False)
    return place / "run"


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("others") / "tiles", 30, seed=1)


def metrics_of(directory: Path) -> dict:
    return json.loads((directory / "metrics.json").read_text())


def all_files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*"))


def test_its_own_parts_have_exactly_the_figures_of_the_training(trained, here, capsys) -> None:
    before = all_files(trained)
    assert main([f"run={trained}"]) == 0
    assert all_files(trained) == before
    (place,) = Path("outputs/evaluations").iterdir()
    assert place.name.startswith("run-20")
    found, recorded = metrics_of(place), metrics_of(trained)
    for name in ("val", "test", "val_at_threshold", "test_at_threshold", "threshold", "split", "data_fingerprint"):
        assert found[name] == recorded[name], name
    assert found["tiles"] == {part: recorded["tiles"][part] for part in ("val", "test")}
    for part in ("val", "test"):
        name = f"predictions/{part}.csv"
        assert (place / name).read_bytes() == (trained / name).read_bytes()
        for figure in ("roc", "precision_recall", "reliability", "confusion", "worst_calls"):
            assert (place / "figures" / f"{part}_{figure}.png").is_file()
    printed = capsys.readouterr().out
    assert "test: the same logits, bit for bit, as in the training" in printed
    assert "the run's own test part, which chose nothing; split by overlap, slides unknown" in printed
    auroc = found["test"]["auroc"]
    assert f"{auroc['value']:.4f} [{auroc['low']:.4f}, {auroc['high']:.4f}]" in printed


def test_other_tiles_calibrated(trained, others, here, capsys) -> None:
    """With validation predictions that are too sure by a factor of three."""
    run = shutil.copytree(trained, here / "run")
    random = np.random.default_rng(0)
    true = random.normal(0, 2, 500)
    logits = (3 * true).astype(np.float32)
    labels = (random.random(500) < expit(true)).astype(int)
    table = pd.DataFrame({"id": [f"{number}" for number in range(500)], "label": labels, "group": None})
    files.write_csv(run / "predictions" / "val.csv", table.assign(logit=logits, score=expit(logits)))

    assert main([f"run={run}", "data=folder", f"data.root={others}", "calibrate=true", "hydra.run.dir=out"]) == 0
    found = metrics_of(Path("out"))
    assert (found["status"], found["split"], found["tiles"]) == ("completed", "other", {"test": {"0": 15, "1": 15}})
    assert "val" not in found
    predictions = pd.read_csv("out/predictions/test.csv")
    paths = [
        others / str(label) / f"{name}.png" for name, label in zip(predictions["id"], predictions["label"], strict=True)
    ]
    tiles = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths]))
    expected = load_classifier(trained)(tiles.permute(0, 3, 1, 2).float() / 255)
    np.testing.assert_allclose(predictions["logit"], expected, rtol=1e-3, atol=1e-4)

    assert found["test"]["auroc"]["value"] == pytest.approx(roc_auc_score(predictions["label"], predictions["score"]))
    called = predictions["score"] > found["threshold"]
    assert found["threshold"] == metrics_of(trained)["threshold"]
    assert found["test_at_threshold"]["accuracy"]["value"] == pytest.approx(
        accuracy_score(predictions["label"], called)
    )

    slope = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(logits[:, None].astype(float), labels)
    assert found["temperature"] == pytest.approx(1 / slope.coef_[0, 0], rel=1e-4)
    scores = expit(predictions["logit"] / found["temperature"])
    assert found["test_calibrated"]["nll"]["value"] == pytest.approx(log_loss(predictions["label"], scores), rel=1e-4)
    before = log_loss(predictions["label"], predictions["score"])
    assert found["test"]["nll"]["value"] == pytest.approx(before, rel=1e-4)
    for name in ("auroc", "average_precision", "accuracy"):
        assert found["test_calibrated"][name]["value"] == found["test"][name]["value"]
    assert Image.open("out/figures/test_reliability_calibrated.png").size[0] > 300
    assert "which chose nothing" in Path("out/report.html").read_text()
    assert OmegaConf.load("out/config.yaml").data.root == str(others)

    printed = capsys.readouterr().out
    assert "slides unknown: the intervals take tiles that overlap for one sample" in printed
    assert f"test: 15 benign and 15 tumour tiles, data=folder data.root={others}, which chose nothing" in printed
    assert f"temperature {found['temperature']:.4f}, fitted on the validation predictions of" in printed
    assert f"NLL {before:.4f} to {found['test_calibrated']['nll']['value']:.4f}" in printed


def test_tta_averages_the_views(trained, others, here, undrawn) -> None:
    main([f"run={trained}", "data=folder", f"data.root={others}", "data.limit=10", "tta=dihedral", "hydra.run.dir=out"])
    predictions = pd.read_csv("out/predictions/test.csv")
    assert len(predictions) == 10
    paths = [
        others / str(label) / f"{name}.png" for name, label in zip(predictions["id"], predictions["label"], strict=True)
    ]
    tiles = np.stack([np.asarray(Image.open(path)) for path in paths])
    views = [np.rot90(tiles, turn, axes=(1, 2)) for turn in range(4)]
    views += [np.flip(view, 2) for view in views]
    classifier = load_classifier(trained)
    logits = [classifier(torch.from_numpy(view.copy()).permute(0, 3, 1, 2).float() / 255) for view in views]
    np.testing.assert_allclose(predictions["logit"], torch.stack(logits).mean(0), rtol=1e-3, atol=1e-4)


def test_its_own_tiles_in_another_place_are_its_own_and_never_augmented(trained, here, undrawn, capsys) -> None:
    run = shutil.copytree(trained, here / "run")
    config = OmegaConf.load(run / "config.yaml")
    config.data.root, config.data.augment_val = "/nowhere", True
    OmegaConf.save(config, run / "config.yaml")
    moved = shutil.copytree(trained.parent / "tiles", here / "moved")
    main([f"run={run}", f"data.root={moved}", "hydra.run.dir=out"])
    assert metrics_of(Path("out"))["test"] == metrics_of(trained)["test"]
    assert "val: the same logits, bit for bit" in capsys.readouterr().out


def test_of_a_source_with_its_own_split_the_test_part_is_measured(trained, here, undrawn) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (14, SIZE, SIZE, 3), dtype=np.uint8)
    cuts = {"train": slice(0, 4), "valid": slice(4, 8), "test": slice(8, 14)}
    write_pcam(here, {part: (tiles[cut], np.arange(14)[cut] % 2) for part, cut in cuts.items()})
    main([f"run={trained}", "data=pcam", "data.root=.", "hydra.run.dir=out"])
    ids = pd.read_csv("out/predictions/test.csv")["id"].tolist()
    assert ids == [f"test_{row:07d}" for row in range(6)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "run= is missing: histolight evaluate run=DIR"),
        (["runs=[{run},{run}]"], "runs= can be predicted, not evaluated: give one of them"),
        (["run=nowhere"], "nowhere is not a folder"),
        (["run=."], "is not a run directory: it has no metrics.json"),
        (["run=unfinished"], "unfinished is failed, not completed"),
        (["run={run}", "tta=flip"], "tta=flip is not known: did you mean flips?"),
        (["run={run}", "calibrate=yes"], "calibrate=yes is not known: valid: false, line, true"),
        (["run={run}", "model=resnet18"], "model= has no place in histolight evaluate"),
        (["run={run}", "optimizer.lr=1"], "optimizer.lr= has no place in histolight evaluate"),
        (["run={run}", "data.val_fraction=0.3"], "data.val_fraction= has no place in histolight evaluate"),
        (["run={run}", "chosen_on={run}"], "chosen_on=.* is for other tiles: give them with data=SOURCE"),
        (["run={run}", "adapt=prior"], "adapt=prior is for other tiles"),
        (["run={run}", "adapt=priors"], "adapt=priors is not known: did you mean prior"),
        (["run={run}", "data=folder", "data.root=large", "adapt=prior", "calibrate=true"], "leave calibrate out"),
        (["run={run}", "data=folder", "data.root=large", "chosen_on={run}"], "is not an evaluation of other tiles"),
        (["run={run}", "data=folder", "data.root={tiles}", "adapt=batch_norm"], "these are its own: leave adapt out"),
        (["run={run}", "report.prevalence=1"], "report.prevalence=1.0 is out of range"),
        (["run={run}", "data.rot=x"], "data.rot is not a key of histolight evaluate: did you mean data.root"),
        (["run={run}", "data=folder", "data.root=/nowhere"], "data.root=/nowhere is not a folder"),
        (["run={run}", "data=folder", "data.root=flat"], "has files but no class folders .* histolight predict"),
        (["run={run}", "data=kaggle", "data.root=unlabelled"], "train_labels.csv is missing: .* histolight predict"),
        (["run={run}", "data=folder", "data.root=empty"], "has no two class folders"),
        (["run={run}", "data=folder", "data.root=large"], "wrong size: 4 .*48x48 pixels where data.image_size=32"),
        (["run={run}", "data=folder", "data.root=large", "data.image_size=48"], "trained on tiles of 32 pixels"),
        (["run={run}", "data.limit=40"], "tiles trained or chose .*without data.limit its own"),
        (["run=other_tiles"], "no longer those that other_tiles was trained and validated on"),
        (["run={run}", "trainer.accelerator=tpu"], "trainer.accelerator=tpu is not known"),
        (["run={run}", "hydra.run.dir={run}"], "holds files already .*: choose another folder"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    overrides: list[str], message: str, trained: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("unlabelled/test").mkdir(parents=True)
    Path("unlabelled/sample_submission.csv").write_text("id,label\na,0\n")
    Path("flat").mkdir()
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save("flat/a.png")
    write_tiles(Path("large"), 4, 0, size=48)
    shutil.copytree(trained, "unfinished", ignore=shutil.ignore_patterns("checkpoints"))
    runs.update_metrics(Path("unfinished"), status="failed", reason="x")
    shutil.copytree(trained, "other_tiles")
    runs.update_metrics(Path("other_tiles"), data_fingerprint="0" * 32)
    before = all_files(trained, here)
    assert (
        cli.main(
            ["evaluate", *(override.format(run=trained, tiles=trained.parent / "tiles") for override in overrides)]
        )
        == 2
    )
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("histolight:")]
    assert re.search(message, line), line
    assert all_files(trained, here) == before


def test_tiles_of_one_class_are_refused(trained, others, here) -> None:
    table = pd.DataFrame({"id": ["seed1_000"], "label": [0]})
    (here / "kaggle" / "train").mkdir(parents=True)
    Image.open(others / "0" / "seed1_000.png").save(here / "kaggle" / "train" / "seed1_000.tif")
    table.to_csv(here / "kaggle" / "train_labels.csv", index=False)
    with pytest.raises(RequestError, match="all 1 tiles have the label 0: the figures need both classes"):
        main([f"run={trained}", "data=kaggle", "data.root=kaggle"])
    assert not Path("outputs").exists()


def test_predictions_that_say_nothing_are_not_calibrated(trained, here) -> None:
    run = shutil.copytree(trained, here / "run")
    path = run / "predictions" / "val.csv"
    table = pd.read_csv(path)
    table.assign(logit=4.0 * table["label"] - 2).to_csv(path, index=False)
    with pytest.raises(RequestError, match="finds no temperature: .* are all on the right side of 0.5"):
        main([f"run={run}", "calibrate=true"])
    path.unlink()
    with pytest.raises(RequestError, match=r"val\.csv is missing"):
        main([f"run={run}", "calibrate=true"])
    assert not Path("outputs").exists()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_tiles_that_trained_are_recognised_under_any_name_and_as_jpegs(trained, here, undrawn, capsys, suffix) -> None:
    splits = pd.read_csv(trained / "splits.csv").set_index("id")["split"]
    for number, path in enumerate(sorted((trained.parent / "tiles").rglob("*.png"))[::3]):
        target = here / "tiles" / path.parent.name / f"other{number}{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(target, quality=75) if suffix == ".jpg" else shutil.copy(path, target)
        (here / f"{target.stem}.txt").write_text(path.stem)
    main([f"run={trained}", "data=folder", f"data.root={here / 'tiles'}", "hydra.run.dir=out"])
    known = pd.read_csv("out/recognised.csv").set_index("id")
    names = {f"other{number}": (here / f"other{number}.txt").read_text() for number in range(20)}
    used = {name: old for name, old in names.items() if splits[old] != "test"}
    assert known["known_id"].to_dict() == used
    assert known["part"].to_dict() == {name: splits[old] for name, old in used.items()}
    assert set(known["how"]) == {"same pixels" if suffix == ".png" else "same luma"}
    printed = capsys.readouterr().out
    assert f"of which {len(used)} trained or chose the run\n" in printed
    page = re.sub(r"<[^>]+>|\s+", " ", write_run_report(Path("out")).read_text())
    assert f"On 20 tiles, of which {len(used)} trained or chose the run, shufflenet" in page
    assert f"No split: of these tiles {len(used)} trained or chose the run." in page
    assert "none of the parts that the run was trained" not in page
    assert f"by their pixels, of these 20 tiles {(known['part'] == 'train').sum()} trained the run" in printed


def test_a_run_without_hashes_knows_tiles_by_their_ids(trained, here, undrawn, capsys) -> None:
    run = shutil.copytree(trained, here / "run")
    pd.read_csv(run / "splits.csv")[["id", "split"]].to_csv(run / "splits.csv", index=False)
    for path in run.glob("predictions/*.csv"):
        pd.read_csv(path).drop(columns="cluster").to_csv(path, index=False)
    tiles = shutil.copytree(trained.parent / "tiles", here / "tiles")
    seen = (pd.read_csv(run / "splits.csv")["split"] != "test").sum()
    next(tiles.rglob("*.png")).rename(tiles / "0" / "new.png")
    main([f"run={run}", "data=folder", f"data.root={tiles}", "hydra.run.dir=out"])
    assert "of these tiles have the id of one that trained or chose the run" in capsys.readouterr().out
    assert len(pd.read_csv("out/recognised.csv")) in (seen, seen - 1)


def of_others(run: Path, others: Path, *words: str) -> list[str]:
    return [f"run={run}", "data=folder", f"data.root={others}", *words]


@pytest.mark.slow
def test_levels_are_chosen_on_an_earlier_evaluation(trained, others, here, capsys) -> None:
    main(of_others(trained, others, "hydra.run.dir=first", "tta=flips"))
    more = write_tiles(here / "more", 40, seed=2)
    words = ["chosen_on=first", "tta=flips", "calibrate=true", "report.abstain=0.2", "report.prevalence=0.05"]
    main(of_others(trained, more, *words, "hydra.run.dir=second"))
    found, chosen = metrics_of(Path("second")), runs.read_predictions(Path("first/predictions/test.csv"))
    scores, labels = (torch.tensor(chosen[name].to_numpy()) for name in ("score", "label"))
    assert found["threshold"] == best_threshold(scores, labels)
    assert found["temperature"] == fit_temperature(chosen["logit"], chosen["label"])
    assert found["chosen_on"] == "the 30 tiles of first"
    tiles, band = runs.read_predictions(Path("second/predictions/test.csv")), found["abstention"]
    called = (tiles["score"] < band["low"]) | (tiles["score"] > band["high"])
    assert found["test_abstaining"]["coverage"]["value"] == pytest.approx(called.mean())
    assert (chosen["score"][chosen["label"] == 1] < band["low"]).mean() <= 0.2
    at, rare = found["test_at_threshold"], found["test_at_prevalence"]
    right, wrong = 0.05 * at["sensitivity"]["value"], 0.95 * (1 - at["specificity"]["value"])
    assert rare["ppv"]["value"] == pytest.approx(right / (right + wrong) if right else None)
    printed, page = capsys.readouterr().out, Path("second/report.html").read_text()
    own = metrics_of(Path("first"))["threshold"]
    assert f"the threshold {own:.3f} was chosen on the run's validation tiles" in printed
    assert f"the threshold {found['threshold']:.3f} was chosen on the 30 tiles of first" in printed
    for text in (printed, page):
        assert "fitted on the 30 tiles of first" in text
        assert "tumour among tiles called tumour (PPV)" in text
        assert "no more than 20% of the tumour tiles lie below" in text
    assert "the threshold of the highest balanced accuracy on the 30 tiles of first" in page

    overlapping = shutil.copytree(more, here / "overlapping")
    shutil.copy(next((others / "1").iterdir()), overlapping / "1" / "renamed.png")
    main(of_others(trained, more, *words[:2], "calibrate=line", "hydra.run.dir=line"))
    found, (slope, shift) = metrics_of(Path("line")), fit_line(chosen["logit"], chosen["label"])
    expected = log_loss(tiles["label"], expit(slope * tiles["logit"] + shift))
    assert found["test_calibrated"]["nll"]["value"] == pytest.approx(expected, rel=1e-4)
    for wrong_words, message in (
        (
            of_others(trained, others, "chosen_on=first", "tta=flips"),
            "30 of these 30 tiles are among those of chosen_on",
        ),
        (of_others(trained, overlapping, "chosen_on=first", "tta=flips"), "1 of these 41 tiles are among those"),
        (
            of_others(trained, more, "chosen_on=first"),
            "chosen_on=first has tta=flips, and this evaluation needs tta=none",
        ),
    ):
        with pytest.raises(RequestError, match=message):
            main(wrong_words)


@pytest.mark.slow
def test_what_is_adapted_says_so_and_has_seen_no_label(trained, here, undrawn, capsys, monkeypatch) -> None:
    others = write_tiles(here / "others", 128, seed=3)
    switched = here / "switched"
    switched.mkdir()
    (others / "0").rename(switched / "1")
    (others / "1").rename(switched / "0")
    for way in ("prior", "batch_norm"):  # after so little training the scores say next to nothing
        with pytest.raises(RequestError, match=f"adapt={way} can't tell whether these 128 tiles hold both classes"):
            main(of_others(trained, switched, f"adapt={way}"))
    monkeypatch.setattr("histolight.inference.adaptation.speaks_for_both", lambda *_: True)
    tables, sentences = {}, {}
    for way in ("none", "batch_norm", "prior"):
        main(of_others(trained, switched, f"adapt={way}", f"hydra.run.dir={way}"))
        metrics = metrics_of(Path(way))
        sentences[way] = metrics["adapted"] and metrics["adapted"]["sentence"]
        tables[way] = pd.read_csv(f"{way}/predictions/test.csv").set_index("id").sort_index()
    assert sentences["none"] is None
    assert sentences["batch_norm"] == "adapted to 128 unlabelled tiles (batch-norm statistics)"
    assert f"which chose nothing; {sentences['batch_norm']}" in capsys.readouterr().out

    classifier = load_classifier(trained)  # torch's own function gives the statistics of the same tiles
    paths = [next(switched.glob(f"*/{name}.png")) for name in tables["none"].index]
    tiles = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths])).permute(0, 3, 1, 2) / 255
    torch.optim.swa_utils.update_bn([tiles], classifier)
    expected = classifier.eval()(tiles)
    np.testing.assert_allclose(tables["batch_norm"]["logit"], expected, rtol=1e-2, atol=1e-3)
    assert np.abs(tables["batch_norm"]["logit"] - tables["none"]["logit"]).mean() > 0.01

    for name in ("0", "1"):
        (switched / name).rename(others / str(1 - int(name)))
    main(of_others(trained, others, "adapt=prior", "hydra.run.dir=labelled_otherwise"))
    again = pd.read_csv("labelled_otherwise/predictions/test.csv").set_index("id").sort_index()
    pd.testing.assert_series_equal(again["logit"], tables["prior"]["logit"])
    for way in ("batch_norm", "prior"):
        with pytest.raises(RequestError, match=f"adapt={way} needs at least 100 tiles, and there are 20"):
            main(of_others(trained, others, f"adapt={way}", "data.limit=20"))
