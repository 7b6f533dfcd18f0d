"""A training that runs out of memory says with which keys it fits, and fits with them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from histolight import runs
from histolight.cli import main
from histolight.config.compose import compose_config, typed
from histolight.errors import RequestError
from histolight.models.classifier import Classifier
from histolight.training.memory import halved, out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_out_of_memory_names_keys_that_help(
    error: RuntimeError, small: list[str], tmp_path: Path, monkeypatch, capsys, undrawn: None
) -> None:
    step = Classifier.training_step

    def limited(self: Classifier, batch, batch_idx: int):
        if len(batch.rows) > 6:
            raise error
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", limited)
    monkeypatch.chdir(tmp_path)
    command = ["train", *small, "trainer.max_epochs=1"]
    assert main([*command, "data.batch_size=12", "hydra.run.dir=full"]) == 1
    assert runs.read_metrics(tmp_path / "full")["status"] == "failed"
    [said] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("histolight:")]
    assert said == (
        "histolight: out of GPU memory with data.batch_size=12: use data.batch_size=6 trainer.accumulate=2 for the "
        "same optimizer steps, or data.residency=memmap"
    )
    assert main([*command, *shlex.split(re.search(r"use (.*) for", said)[1]), "hydra.run.dir=half"]) == 0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.batch_size=64"], "use data.batch_size=32 trainer.accumulate=2 for"),
        (["data.batch_size=9", "trainer.accumulate=3"], "use data.batch_size=4 trainer.accumulate=6 for"),
        (["trainer.compile=reduce-overhead"], "trainer.accumulate=2 trainer.compile=default for"),
        (["data.batch_size=1"], "with data.batch_size=1: use model.checkpointing=true or a smaller network, or"),
    ],
)
def test_the_keys_fit_the_training(overrides: list[str], words: str) -> None:
    config = typed(compose_config(overrides))
    assert words in out_of_memory(config)
    assert out_of_memory(config).endswith(", or data.residency=memmap")
    if config.data.batch_size > 1:
        keys = re.search(r"use (.*) for", out_of_memory(config))[1].split()
        assert typed(compose_config([*overrides, *keys])) == halved(config)


def test_tiles_that_are_on_the_disk_need_not_be_put_there() -> None:
    assert "memmap" not in out_of_memory(typed(compose_config(["data.residency=memmap"])))


def test_graphs_and_added_gradients_exclude_each_other() -> None:
    with pytest.raises(RequestError, match="trainer.accumulate=2 batches in its CUDA graphs: use trainer.compile=def"):
        typed(compose_config(["trainer.compile=reduce-overhead", "trainer.accumulate=2"]))
    assert typed(compose_config(["trainer.compile=default", "trainer.accumulate=2"])).trainer.accumulate == 2
