"""The checkpoints of a run: which epochs are kept, and that a kill leaves whole files."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from histolight.files import link_atomically, write_atomically

SPARED = 10  # epochs on computed features, of which each may take less time than ten checkpoints


class RunCheckpoint(ModelCheckpoint):
    """The checkpoints of the best epoch and of the last one: one file with two names where these are the same epoch.

    Which epoch is the best is remembered in a run directory that was moved, too.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            filename="best",
            monitor="val/auroc",
            mode="max",
            # Once the epoch is counted, so that its number is right in a resumed training.
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the epoch: as the best so far, or as the last one alone, which a kill must not lose."""
        super().on_train_epoch_end(trainer, pl_module)
        best, last = (os.path.join(str(self.dirpath), f"{name}{self.FILE_EXTENSION}") for name in ("best", "last"))
        done = trainer.current_epoch + 1
        every = SPARED if trainer.datamodule.features is not None else 1  # type: ignore[attr-defined]  # set by its fit
        if self._last_global_step_saved == trainer.global_step:
            link_atomically(Path(last), Path(best))
        elif done % every == 0 or done == trainer.max_epochs or trainer.should_stop:
            trainer.save_checkpoint(last)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put this folder in the place of the one that the state was saved in."""

        def here(path: str) -> str:  # whatever name the state holds: Lightning deletes the file of the epoch before
            return os.path.join(str(self.dirpath), f"{self.filename}{self.FILE_EXTENSION}") if path else path

        paths = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        scores = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "dirpath": self.dirpath, "best_k_models": scores})


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place; Lightning's own may copy it there from another disk, which can be cut."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the file, or leave the one before it."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getbuffer())
