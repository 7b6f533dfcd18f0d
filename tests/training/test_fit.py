"""Trains for real: a small ShuffleNet on 60 tiles of 32x32, two epochs, a second or two."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn import metrics as sklearn_metrics
from small_disk import small_disk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from histolight.cli import main
from histolight.config.compose import compose_config, typed
from histolight.config.schema import Config
from histolight.data.datamodule import TileDataModule
from histolight.data.prepare import PreparedData, prepare
from histolight.errors import HistolightError, InterruptionError, RequestError
from histolight.hardware import resolve_precision
from histolight.models.classifier import Classifier
from histolight.training.callbacks import Speed
from histolight.training.fit import check_request, train

pytestmark = pytest.mark.usefixtures("undrawn")  # but for the run of ``finished``, which is made before


def run(overrides: list[str], directory: Path, resume: bool = False) -> dict:
    config = check_request(typed(compose_config(overrides)))
    return train(config, prepare(config.data), directory, resume)


@pytest.fixture(scope="module")
def finished(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "finished"
    run([*small, "data.test_fraction=0.2"], directory)
    return directory


def test_every_file_of_the_run_directory_is_there(finished: Path) -> None:
    for name in (
        "config.yaml",
        "metrics.json",
        "splits.csv",
        "predictions/val.csv",
        "predictions/test.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "figures/val_roc.png",
        "figures/test_worst_calls.png",
    ):
        assert (finished / name).is_file(), name
    for figure in (finished / "figures").glob("*.png"):
        assert Image.open(figure).size[0] > 300


def test_metrics_are_complete_and_agree_with_the_predictions(finished: Path) -> None:
    found = json.loads((finished / "metrics.json").read_text())
    assert (found["status"], found["reason"], found["split"]) == ("completed", None, "overlap")
    for part in ("val", "test"):
        table = pd.read_csv(finished / "predictions" / f"{part}.csv", dtype={"id": str, "score": np.float32})
        assert list(table.columns) == ["id", "label", "group", "cluster", "logit", "score"]
        assert len(table) == sum(found["tiles"][part].values()) == 12
        np.testing.assert_allclose(table["score"], 1 / (1 + np.exp(-table["logit"])), atol=1e-6)
        figures = found[part]
        assert figures["auroc"]["value"] == pytest.approx(sklearn_metrics.roc_auc_score(table["label"], table["score"]))
        assert figures["auroc"]["method"] in ("delong", "clopper-pearson")
        called = table["score"] > 0.5
        assert figures["accuracy"]["value"] == pytest.approx(sklearn_metrics.accuracy_score(table["label"], called))
        assert figures["nll"]["value"] == pytest.approx(
            sklearn_metrics.log_loss(table["label"], table["score"]), rel=1e-4
        )
        called = table["score"] > found["threshold"]
        expected = sklearn_metrics.balanced_accuracy_score(table["label"], called)
        assert found[f"{part}_at_threshold"]["balanced_accuracy"]["value"] == pytest.approx(expected)
    assert found["parameters"] == 342_817
    assert found["tiles_per_second"] > 0
    assert found["seconds"] > 0
    assert found["epochs"] == 2
    assert len(found["data_fingerprint"]) == 32
    assert torch.__version__.startswith(found["versions"]["torch"])


def test_splits_name_every_tile_once_and_predictions_are_of_their_part(finished: Path) -> None:
    splits = pd.read_csv(finished / "splits.csv", dtype=str)
    assert len(splits) == 60
    assert splits["id"].is_unique
    for part in ("val", "test"):
        table = pd.read_csv(finished / "predictions" / f"{part}.csv", dtype={"id": str})
        assert set(table["id"]) == set(splits.loc[splits["split"] == part, "id"])


def test_the_best_checkpoint_gives_the_recorded_logits(finished: Path, small: list[str]) -> None:
    classifier = Classifier.load_from_checkpoint(finished / "checkpoints" / "best.ckpt", weights_only=True).eval()
    config = typed(compose_config([*small, "data.test_fraction=0.2"]))
    data = prepare(config.data)
    part = data.part("test")
    tiles = torch.from_numpy(data.tiles.gather(part["row"].to_numpy())).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        logits = classifier(tiles)
    table = pd.read_csv(finished / "predictions" / "test.csv")
    assert table["id"].tolist() == part["id"].tolist()
    np.testing.assert_allclose(logits.numpy(), table["logit"], atol=1e-4)


def test_tensorboard_has_curves_pictures_and_final_hyperparameters(finished: Path) -> None:
    events = EventAccumulator(str(finished / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    scalars = {"train/loss", "learning_rate", "speed/tiles_per_second", "speed/data_wait_seconds", "train/auroc"}
    scalars |= {"val/auroc", "val/accuracy", "val/ece", "final/val_auroc", "final/test_auroc"}
    assert scalars <= set(tags["scalars"])
    assert "hp_metric" not in tags["scalars"]
    pictures = {tag.split("/image")[0] for tag in tags["images"]}
    expected = {f"{part}/{name}" for part in ("val", "test") for name in ("roc", "precision_recall", "confusion")}
    assert expected | {"augmented training tiles", "val/worst_calls"} <= pictures
    found = json.loads((finished / "metrics.json").read_text())
    assert events.Scalars("final/val_auroc")[-1].value == pytest.approx(found["val"]["auroc"]["value"])
    assert "_hparams_/session_start_info" in events.summary_metadata


def predictions(directory: Path) -> pd.DataFrame:
    return pd.read_csv(directory / "predictions" / "val.csv")


def test_an_interrupted_run_continues_to_the_same_result(small: list[str], tmp_path: Path, monkeypatch) -> None:
    overrides = [*small, "trainer.max_epochs=3", "model.dropout=0.3", "trainer.ema=0.9"]
    whole = run(overrides, tmp_path / "whole")

    original = Classifier.training_step

    def interrupt(self: Classifier, batch, batch_idx: int):
        if self.trainer.current_epoch == 1 and batch_idx == 3:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", interrupt)
    with pytest.raises(InterruptionError, match=r"interrupted in epoch 2: continue with histolight train run=.*cut"):
        run(overrides, tmp_path / "cut")
    recorded = json.loads((tmp_path / "cut" / "metrics.json").read_text())
    assert recorded["status"] == "interrupted"
    assert "val" not in recorded
    monkeypatch.setattr(Classifier, "training_step", original)
    continued = run(overrides, tmp_path / "cut", resume=True)

    assert continued["status"] == "completed"
    assert continued["val"] == whole["val"]
    pd.testing.assert_frame_equal(predictions(tmp_path / "cut"), predictions(tmp_path / "whole"), check_exact=True)


def test_the_moving_average_is_what_is_validated_measured_and_kept(
    small: list[str], tmp_path: Path, monkeypatch
) -> None:
    weights: list[torch.Tensor] = []
    in_validation: list[torch.Tensor] = []
    monkeypatch.setattr(
        Classifier, "on_train_batch_end", lambda self, *_: weights.append(self.backbone.fc.weight.detach().clone())
    )
    validate = Classifier.validation_step

    def watch(self: Classifier, batch, batch_idx: int) -> None:
        in_validation.append(self.backbone.fc.weight.detach().clone())
        validate(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "validation_step", watch)
    run([*small, "trainer.max_epochs=1", "trainer.ema=0.7"], tmp_path / "run")
    average = weights[0]
    for weight in weights[1:]:
        average = 0.7 * average + 0.3 * weight
    kept = Classifier.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    torch.testing.assert_close(kept.backbone.fc.weight.detach(), average)
    assert not torch.allclose(average, weights[-1], rtol=1e-3)
    assert len(in_validation) > 1
    assert all(torch.equal(weight, kept.backbone.fc.weight) for weight in in_validation)


def test_a_run_that_was_moved_still_knows_its_best_epoch(small: list[str], tmp_path: Path, monkeypatch) -> None:
    original = Classifier.on_validation_epoch_end

    def worse_and_worse(self: Classifier) -> None:
        epoch = self.trainer.current_epoch
        if self.trainer.state.fn == "fit" and epoch == interrupted:
            raise KeyboardInterrupt
        original(self)
        if self.trainer.state.fn == "fit":
            self.log("val/auroc", 0.9 - 0.1 * epoch)

    monkeypatch.setattr(Classifier, "on_validation_epoch_end", worse_and_worse)
    overrides, interrupted = [*small, "trainer.max_epochs=3"], 1
    with pytest.raises(InterruptionError):
        run(overrides, tmp_path / "here")
    best = (tmp_path / "here/checkpoints/best.ckpt").read_bytes()
    assert (tmp_path / "here/checkpoints/best.ckpt").samefile(
        tmp_path / "here/checkpoints/last.ckpt"
    )  # the last epoch so far is the best
    (tmp_path / "here").rename(tmp_path / "there")
    interrupted = -1
    assert run(overrides, tmp_path / "there", resume=True)["epochs"] == 3
    assert (tmp_path / "there/checkpoints/best.ckpt").read_bytes() == best
    assert torch.load(tmp_path / "there/checkpoints/last.ckpt", weights_only=True)["epoch"] == 2


def test_seconds_count_what_was_before_an_interruption(small: list[str], tmp_path: Path, monkeypatch) -> None:
    elapsed: list[float] = []
    original = Classifier.on_train_epoch_end

    def interrupt(self: Classifier) -> None:
        original(self)
        if self.trainer.current_epoch == 1:
            (speed,) = (callback for callback in self.trainer.callbacks if isinstance(callback, Speed))
            elapsed.append(speed.elapsed)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(InterruptionError):
        patch.setattr(Classifier, "on_train_epoch_end", interrupt)
        run(small, tmp_path / "run")
    assert 0 < elapsed[0] < run(small, tmp_path / "run", resume=True)["seconds"]


def test_a_full_disk_is_one_line_and_the_run_can_go_on(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(2_000_000):  # a checkpoint takes 4.4 MB
        assert main(["train", *small, f"hydra.run.dir={tmp_path / 'run'}"]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("histolight:"))
    assert "can't be written (File too large): make room" in line
    assert json.loads((tmp_path / "run/metrics.json").read_text())["status"] == "failed"
    assert not list((tmp_path / "run/checkpoints").glob("*.ckpt"))
    assert run(small, tmp_path / "run", resume=True)["status"] == "completed"


def test_each_epoch_is_a_line_where_no_terminal_is(small: list[str], tmp_path: Path, capsys) -> None:
    run(small, tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("epoch")] == ["epoch 1 of 2", "epoch 2 of 2"]


def test_paths_are_saved_so_that_they_hold_from_anywhere(monkeypatch, tmp_path: Path, tile_folder: Path) -> None:
    monkeypatch.chdir(tile_folder.parent)
    config = check_request(
        typed(compose_config(["data=folder", f"data.root={tile_folder.name}", "data.groups=~/a.csv"]))
    )
    assert config.data.root == str(tile_folder)
    assert config.data.groups == str(Path.home() / "a.csv")


def test_a_training_compiles_once_and_computes_the_same(small: list[str], tmp_path: Path, monkeypatch) -> None:
    compiled: list[bool] = []

    def eager(graph: torch.fx.GraphModule, _: list[torch.Tensor]):  # a backend that only counts
        compiled.append(torch.is_grad_enabled())
        return graph.forward

    monkeypatch.setattr(
        "histolight.training.fit.compile_module", lambda module, mode, device: module.compile(backend=eager)
    )
    torch.compiler.reset()
    overrides = [*small, "data.batch_size=5", "trainer.max_epochs=1"]
    found = run([*overrides, "trainer.compile=default"], tmp_path / "run")
    torch.compiler.reset()
    assert sum(found["tiles"]["val"].values()) % 5  # a last batch of another size
    assert compiled == [True]
    assert found["val"] == run(overrides, tmp_path / "plain")["val"]


def test_without_a_compiler_training_goes_on_with_a_warning(
    small: list[str], tmp_path: Path, monkeypatch, caplog
) -> None:
    import torch._inductor.config

    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, str(tmp_path / "no-compiler")))
    found = run([*small, "trainer.max_epochs=1", "trainer.compile=default"], tmp_path / "run")
    assert found["status"] == "completed"
    assert "trainer.compile=default is not possible here, training goes on without it" in caplog.text


def test_the_same_seed_gives_the_same_predictions_whatever_the_residency(small: list[str], tmp_path: Path) -> None:
    for residency in ("auto", "device", "memmap"):
        run([*small, "trainer.max_epochs=1", "seed=5", f"data.residency={residency}"], tmp_path / residency)
        expected, found = predictions(tmp_path / "auto"), predictions(tmp_path / residency)
        pd.testing.assert_frame_equal(found, expected, check_exact=True)


def plain_losses(config: Config, data: PreparedData, device: str) -> list[float]:
    """Train as a tutorial would: float32, contiguous NCHW, an optimizer that is not fused, no Lightning."""
    import lightning as L

    part = data.part("train")
    tiles = torch.from_numpy(data.tiles.gather(part["row"].to_numpy())).permute(0, 3, 1, 2).float().contiguous() / 255
    labels = torch.tensor(part["label"].to_numpy()).float()
    L.seed_everything(config.seed, verbose=False)
    weight = float((labels == 0).sum() / (labels == 1).sum())
    network = Classifier.from_config(config, weight).to(memory_format=torch.contiguous_format).to(device).train()
    settings = config.optimizer
    optimizer = torch.optim.SGD(
        network.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay, nesterov=True
    )
    criterion = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weight, device=device))
    losses = []
    for epoch in range(config.trainer.max_epochs):
        order = np.random.default_rng([config.seed, epoch]).permutation(len(labels))
        for step in range(len(labels) // config.data.batch_size):
            places = order[step * config.data.batch_size :][: config.data.batch_size]
            loss = criterion(network(tiles[places].to(device)), labels[places].to(device))
            (loss / config.trainer.accumulate).backward()
            losses.append(loss.item())
            if (step + 1) % config.trainer.accumulate == 0:
                if config.trainer.clip is not None:
                    torch.nn.utils.clip_grad_norm_(network.parameters(), config.trainer.clip)
                optimizer.step()
                optimizer.zero_grad()
    return losses


ACCUMULATED = ["trainer.accumulate=2", "trainer.clip=0.1", "data.batch_size=12"]


@pytest.mark.parametrize(
    ("device", "options", "tolerance"),
    [
        ("cpu", [], 1e-3),
        ("cpu", ACCUMULATED, 1e-3),
        pytest.param("gpu", [], 0.05, marks=pytest.mark.gpu),
        pytest.param("gpu", ["trainer.compile=reduce-overhead"], 0.05, marks=pytest.mark.gpu),
    ],
)
def test_the_fast_path_has_the_losses_of_a_plain_loop(
    device: str, options: list[str], tolerance: float, small: list[str], data: PreparedData, tmp_path: Path, monkeypatch
) -> None:
    overrides = [*small, "model.name=resnet18", "augment=none", "scheduler=constant", f"trainer={device}"]
    # Small batches under batch norm and the first steps of Adam magnify what rounding does.
    overrides += ["optimizer=sgd", "optimizer.lr=0.003", "data.batch_size=24", "trainer.max_epochs=2", *options]
    losses: list[float] = []
    original = Classifier.training_step

    def watch(self: Classifier, batch, batch_idx: int):
        loss = original(self, batch, batch_idx)
        losses.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(Classifier, "training_step", watch)
    run(overrides, tmp_path / "run")
    expected = plain_losses(typed(compose_config(overrides)), data, "cuda" if device == "gpu" else "cpu")
    np.testing.assert_allclose(losses, expected, rtol=tolerance, atol=tolerance)
    assert len(set(losses)) == (8 if options == ACCUMULATED else 4)


def test_what_has_no_deterministic_implementation_is_named(small: list[str], tmp_path: Path, monkeypatch) -> None:
    original = Classifier.training_step

    def unpooling(self: Classifier, batch, batch_idx: int):  # as average pooling of VGG on a GPU
        pooled, places = torch.nn.functional.max_pool2d(batch.tiles, 2, return_indices=True)
        torch.nn.functional.max_unpool2d(pooled, places, 2)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", unpooling)
    try:
        with pytest.raises(
            HistolightError, match=r"PyTorch's max_unpool\w+ has no deterministic implementation on this"
        ):
            run([*small, "trainer.deterministic=true"], tmp_path / "run")
    finally:
        torch.use_deterministic_algorithms(False)
    run([*small, "trainer.deterministic=false", "trainer.max_epochs=1"], tmp_path / "again")


def test_another_seed_trains_another_network_on_the_same_tiles(
    small: list[str], finished: Path, tmp_path: Path
) -> None:
    run([*small, "data.test_fraction=0.2", "seed=1", "trainer.max_epochs=1"], tmp_path / "other")
    assert (tmp_path / "other" / "splits.csv").read_text() == (finished / "splits.csv").read_text()
    assert not np.allclose(predictions(tmp_path / "other")["logit"], predictions(finished)["logit"])


def test_a_loss_that_is_not_finite_is_recorded_as_a_failure(small: list[str], tmp_path: Path) -> None:
    with pytest.raises(HistolightError, match=r"(the loss became|NaN or infinite).* optimizer.lr"):
        run([*small, "optimizer=sgd", "optimizer.lr=100", "trainer.max_epochs=20"], tmp_path / "nan")
    recorded = json.loads((tmp_path / "nan" / "metrics.json").read_text())
    assert recorded["status"] == "failed"
    assert "optimizer.lr" in recorded["reason"]


def test_learning_happens(small: list[str], tmp_path: Path) -> None:
    found = run([*small, "trainer.max_epochs=8", "augment=flips"], tmp_path / "run")
    assert found["val"]["auroc"]["value"] > 0.8


@pytest.mark.parametrize(
    "options",
    [
        ["trainer.precision=bf16-mixed", "trainer.clip=1"],
        ["model.freeze=backbone"],
        ["loss.label_smoothing=0.1"],
    ],
)
def test_options_of_the_trainer_run(options: list[str], small: list[str], tmp_path: Path) -> None:
    assert run([*small, "trainer.max_epochs=1", *options, "logger=csv"], tmp_path / "run")["status"] == "completed"
    assert (tmp_path / "run" / "csv" / "metrics.csv").is_file()


def test_a_frozen_backbone_does_not_move(small: list[str], tmp_path: Path) -> None:
    run([*small, "trainer.max_epochs=1", "model.freeze=backbone", "seed=3"], tmp_path / "run")
    trained = Classifier.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    torch.manual_seed(3)
    import lightning as L

    L.seed_everything(3, verbose=False)
    fresh = Classifier(**dict(trained.hparams))
    moved = {key for key, value in trained.state_dict().items() if not torch.equal(value, fresh.state_dict()[key])}
    assert moved == {"backbone.fc.weight", "backbone.fc.bias"}


@pytest.mark.parametrize(("name", "line"), [("simple", "optimizer_step"), ("pytorch", "aten::")])
def test_a_profile_lies_in_the_run_directory(name: str, line: str, small: list[str], tmp_path: Path) -> None:
    run([*small, "trainer.max_epochs=1", f"trainer.profiler={name}"], tmp_path / "run")
    assert line in (tmp_path / "run" / "fit-profile.txt").read_text()


def test_the_logged_learning_rate_is_that_of_the_last_layer(small: list[str], tmp_path: Path) -> None:
    overrides = [*small, "optimizer.backbone_lr_factor=0.1", "scheduler=constant", "trainer.max_epochs=1"]
    run([*overrides, "optimizer.lr=1e-4", "logger=csv"], tmp_path / "run")
    logged = pd.read_csv(tmp_path / "run" / "csv" / "metrics.csv")["learning_rate"].dropna()
    assert set(logged.round(9)) == {1e-4}


def test_a_run_whose_patience_is_over_trains_no_further_epoch(small: list[str], tmp_path: Path, monkeypatch) -> None:
    auroc = iter([0.9, 0.8, 0.7, 0.99])
    original = Classifier.log_dict
    monkeypatch.setattr(
        Classifier, "log_dict", lambda self, figures: original(self, {**figures, "val/auroc": next(auroc)})
    )

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    overrides = [*small, "trainer.patience=2", "trainer.max_epochs=8"]
    with monkeypatch.context() as patch, pytest.raises(InterruptionError):
        patch.setattr("histolight.training.fit.measure_parts", interrupt)
        run(overrides, tmp_path / "run")
    assert run(overrides, tmp_path / "run", resume=True)["epochs"] == 3


def test_half_precision_that_a_cpu_does_not_have_is_refused(small: list[str]) -> None:
    with pytest.raises(RequestError, match="trainer.precision=16-mixed needs a GPU"):
        check_request(typed(compose_config([*small, "trainer.precision=16-mixed"])))


def test_precision_is_never_half_on_a_cpu(small_config: Config) -> None:
    assert resolve_precision("auto", "cpu") == "32-true"
    assert resolve_precision("bf16-mixed", "cpu") == "bf16-mixed"


def test_the_checkpoint_holds_plain_types_only(finished: Path) -> None:
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["model"]["name"] == "shufflenet_v2_x0_5"
    assert not [key for key in checkpoint["state_dict"] if "_orig_mod" in key]


@pytest.fixture(scope="module")
def data(small: list[str]) -> PreparedData:
    return prepare(typed(compose_config(small)).data)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["none", "default", "reduce-overhead"])
def test_a_gpu_trains_in_half_precision_with_resident_tiles(
    mode: str, small: list[str], tmp_path: Path, monkeypatch
) -> None:
    seen: set[tuple[torch.dtype, str]] = set()
    original = Classifier.training_step

    def watch(self: Classifier, batch, batch_idx: int):
        loss = original(self, batch, batch_idx)
        seen.add((self._trained._kept[2].dtype, batch.tiles.device.type))
        return loss

    monkeypatch.setattr(Classifier, "training_step", watch)
    run([*small, "trainer=gpu", f"trainer.compile={mode}"], tmp_path / "run")
    half = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    assert seen == {(half, "cuda")}
    table = predictions(tmp_path / "run")
    plain = run([*small, "trainer=gpu", "trainer.precision=32-true"], tmp_path / "plain")
    assert len(table) == sum(plain["tiles"]["val"].values())
    assert table["logit"].nunique() > 1


@pytest.mark.gpu
def test_tiles_stay_on_the_gpu_when_they_fit(small_config: Config, data: PreparedData, tmp_path: Path) -> None:
    import lightning as L

    from histolight.data.loader import DeviceTiles

    datamodule = TileDataModule(data, small_config)
    datamodule.trainer = L.Trainer(accelerator="gpu", devices=1, logger=False, default_root_dir=tmp_path)
    assert isinstance(datamodule._tiles(torch.device("cuda", 0)), DeviceTiles)


def test_validation_is_never_augmented_and_training_is(
    small_config: Config, data: PreparedData, tmp_path: Path
) -> None:
    from histolight.training.trainer import build_trainer

    config = dataclasses.replace(small_config, trainer=dataclasses.replace(small_config.trainer, max_epochs=1))
    seen: dict[str, torch.Tensor] = {}

    class Watching(Classifier):
        def training_step(self, batch, batch_idx):
            seen.setdefault("train", batch.tiles.clone()), seen.setdefault("train_rows", batch.rows)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            seen.setdefault("val", batch.tiles.clone()), seen.setdefault("val_rows", batch.rows)
            super().validation_step(batch, batch_idx)

    def fit(config: Config) -> None:
        seen.clear()
        classifier = Watching.from_config(config, 1.0)
        trainer = build_trainer(config, tmp_path, Speed())
        trainer.fit(classifier, TileDataModule(data, config))

    def stored(part: str) -> torch.Tensor:
        return torch.from_numpy(data.tiles.gather(seen[f"{part}_rows"].numpy())).permute(0, 3, 1, 2).float() / 255

    fit(config)
    torch.testing.assert_close(seen["val"], stored("val"))
    assert not torch.allclose(seen["train"], stored("train"))
    fit(dataclasses.replace(config, data=dataclasses.replace(config.data, augment_val=True)))
    assert not torch.allclose(seen["val"], stored("val"))
