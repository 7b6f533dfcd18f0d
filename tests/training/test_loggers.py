"""A tiny training with each logger, read back with the tool's own means."""

from __future__ import annotations

import http.server
import importlib.util
import json
import re
import socket
import threading
import time
from pathlib import Path

import pytest

from histolight.commands.train import summary
from histolight.config.compose import compose_config, typed
from histolight.config.schema import LoggerConfig
from histolight.data.prepare import prepare
from histolight.errors import InterruptionError, RequestError
from histolight.models.classifier import Classifier
from histolight.training import loggers
from histolight.training.fit import check_request, train
from histolight.training.loggers import build_logger, check_logger, closed_at_the_end

CURVES = {"train/loss", "learning_rate", "speed/tiles_per_second", "train/auroc", "val/auroc", "val/ece"}
FINAL = {"final/val_auroc", "final/val_accuracy", "final/val_nll"}


def run(overrides: list[str], directory: Path, resume: bool = False) -> dict:
    config = check_request(typed(compose_config(overrides)))
    return train(config, prepare(config.data), directory, resume, progress=False)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    original = socket.socket.connect

    def connect(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and not (isinstance(address, tuple) and address[0] == "127.0.0.1"):
            raise AssertionError(f"connects to {address}")
        original(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.mark.slow
def test_mlflow_keeps_curves_figures_and_hyperparameters_in_one_run_also_when_continued(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    overrides, directory = [*small, "logger=mlflow", "logger.project=my tiles"], tmp_path / "run (1)"
    original = Classifier.training_step

    def interrupt(self: Classifier, batch, batch_idx: int):
        if self.trainer.current_epoch == 1:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", interrupt)
    with pytest.raises(InterruptionError):
        run(overrides, directory)
    monkeypatch.setattr(Classifier, "training_step", original)
    metrics = run(overrides, directory, resume=True)

    client = MlflowClient(f"sqlite:///{directory}/mlflow/mlflow.db")
    (experiment,) = [found for found in client.search_experiments() if found.name == "my tiles"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("run (1)", "FINISHED")
    assert set(found.data.metrics) >= CURVES | FINAL
    assert found.data.metrics["final/val_auroc"] == pytest.approx(metrics["val"]["auroc"]["value"])
    assert len(client.get_metric_history(found.info.run_id, "val/auroc")) == 2
    assert found.data.params["optimizer.lr"] == "0.001"
    assert found.data.params["seed"] == "0"
    pictures = {path.name for path in (directory / "mlflow" / "artifacts").rglob("*.png")}
    assert {"roc.png", "worst_calls.png", "augmented training tiles.png"} <= pictures
    assert list(tmp_path.iterdir()) == [directory]
    assert f"MLflow       sqlite:///{directory}/mlflow/mlflow.db" in summary(metrics, directory)
    assert not (directory / "tensorboard").exists()


@pytest.mark.slow
def test_wandb_is_offline_and_writes_inside_the_run_only(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    import wandb

    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    metrics = run([*small, "trainer.max_epochs=1", "logger=wandb"], tmp_path / "run")
    assert wandb.run is None
    assert not list((tmp_path / "home").rglob("*wandb*"))
    (record,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    content = record.read_bytes()
    for name in CURVES | FINAL | {"optimizer.lr", "seed"}:
        assert name.encode() in content, name
    assert json.dumps(metrics["val"]["auroc"]["value"]).encode() in content
    pictures = {path.stem.rpartition("_")[0].rpartition("_")[0] for path in record.parent.rglob("*.png")}
    assert {"roc", "worst_calls", "augmented training tiles"} <= pictures
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_continued_wandb_run_keeps_its_id_and_the_next_run_has_its_own(small: list[str], tmp_path: Path) -> None:
    config = typed(compose_config([*small, "logger=wandb"]))
    found = []
    for name in ("a", "a", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        with closed_at_the_end():
            logger = build_logger(config, tmp_path / name)
            logger.log_metrics({"x": 1.0}, 0)
            found.append(logger.version)
    assert found[0] == found[1] != found[2]


def test_csv_logs_curves_and_final_figures(small: list[str], tmp_path: Path, undrawn: None) -> None:
    metrics = run([*small, "trainer.max_epochs=1", "logger=csv"], tmp_path / "run")
    header = (tmp_path / "run" / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert set(header) >= CURVES | FINAL
    assert f"CSV          {tmp_path}/run/csv" in summary(metrics, tmp_path / "run")


def test_a_store_that_cannot_be_opened_is_one_line(small: list[str], tmp_path: Path) -> None:
    config = typed(compose_config([*small, "logger=mlflow", "logger.uri=nonsense://x"]))
    with pytest.raises(RequestError, match=r"logger=mlflow can't be opened \(.*nonsense.*\): see logger.uri") as caught:
        build_logger(config, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        ("mlflow", "mlflow", r"logger=mlflow needs mlflow: install histolight with its extra, histolight\[mlflow\]"),
        ("mlflow", "alembic", r"logger=mlflow needs alembic: .*histolight\[mlflow\]"),
        ("wandb", "wandb", r"logger=wandb needs wandb: .*histolight\[wandb\]"),
    ],
)
def test_a_missing_package_names_the_extra_before_anything_is_written(
    name: str, missing: str, message: str, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == missing else found(package))
    with pytest.raises(RequestError, match=message):
        check_request(typed(compose_config([*small, f"logger={name}"])))
    check_logger(LoggerConfig())


class Mlflow(http.server.BaseHTTPRequestHandler):
    """As much of MLflow's server as a run asks for; after ``left`` batches it is gone."""

    left = 3

    def do_GET(self) -> None:  # pictures are refused: nothing knows where x:/a is
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        info = {
            "run_id": "r1",
            "run_uuid": "r1",
            "experiment_id": "1",
            "status": "RUNNING",
            "artifact_uri": "mlflow:/a",
        }
        run = {"run": {"info": info, "data": {}}, "experiment": {"experiment_id": "1", "lifecycle_stage": "active"}}
        if "log-batch" in self.path:
            type(self).left -= 1
            if self.left < 0:
                self.connection.close()
                threading.Thread(target=self.server.shutdown, daemon=True).start()
                return
        content = json.dumps({**run, "run_info": info}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def curves_of(run_directory: Path) -> list[str]:
    lines = (run_directory / "csv" / "metrics.csv").read_text().splitlines()
    assert set(lines[0].split(",")) >= CURVES | FINAL
    return lines


def test_a_server_that_is_away_from_the_beginning_costs_a_warning(small: list[str], tmp_path: Path, caplog) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    begun = time.monotonic()
    logger = build_logger(typed(compose_config([*small, "logger=mlflow", f"logger.uri={uri}"])), tmp_path)
    assert time.monotonic() - begun < 10
    assert f"logger=mlflow: {uri} is away (Connection refused); the curves are kept in {tmp_path}/csv" in caplog.text
    logger.log_metrics({"x": 1.0}, 0)
    logger.save()
    assert (tmp_path / "csv" / "metrics.csv").read_text().splitlines()[0].split(",") == ["step", "x"]


def test_a_server_behind_a_proxy_is_asked_for_there(small: list[str], tmp_path: Path, monkeypatch, caplog) -> None:
    for name in ("http_proxy", "all_proxy", "no_proxy", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"127.0.0.1:{proxy.getsockname()[1]}"
        monkeypatch.setenv("HTTP_PROXY", address)
        assert loggers._away("http://mlflow.invalid:5000") == ""
        monkeypatch.setenv("NO_PROXY", "localhost,.invalid")
        assert loggers._away("http://mlflow.invalid:5000") != ""
        assert loggers._away("http://mlflow.example.invalid:5000") != ""
        monkeypatch.setenv("NO_PROXY", "mlflow.invalid:1")
        assert loggers._away("http://mlflow.invalid:5000") == ""
        monkeypatch.setenv("HTTP_PROXY", "http://someone:secret@proxy:99999")
        assert re.fullmatch("its proxy is no address: (?!.*secret).*", loggers._away("http://mlflow.invalid:5000"))
        monkeypatch.setenv("HTTP_PROXY", address)
    config = typed(compose_config([*small, "logger=mlflow", "logger.uri=http://mlflow.invalid:5000"]))
    build_logger(config, tmp_path)
    assert f"mlflow.invalid:5000 is away (its proxy {address}: Connection refused); the curves are kept" in caplog.text


@pytest.mark.slow
def test_a_server_that_goes_away_does_not_end_the_training(small, tmp_path, caplog, undrawn, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")  # asks again at once
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mlflow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_port}"
    metrics = run([*small, "logger=mlflow", f"logger.uri={uri}"], tmp_path / "run")
    server.server_close()
    assert metrics["status"] == "completed"
    assert Mlflow.left < 0
    said = [record.getMessage() for record in caplog.records if "went away" in record.getMessage()]
    assert len(said) == 1
    assert f"curves are kept in {tmp_path}/run/csv" in said[0]
    assert len(curves_of(tmp_path / "run")) > 2


def test_weights_and_biases_away_is_kept_for_later(small, tmp_path, caplog, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    config = typed(compose_config([*small, "logger=wandb", "logger.offline=false"]))
    with closed_at_the_end():
        build_logger(config, tmp_path).log_metrics({"x": 1.0}, 0)
    assert "logger=wandb: http://127.0.0.1:9 is away (Connection refused); the curves are kept in" in caplog.text
    assert list((tmp_path / "wandb").glob("offline-run-*")) != []
