"""The LightningModule: a backbone, its loss, its optimizer, and validation figures over all tiles at once."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.nn.functional import interpolate
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities.distributed import gather_all_tensors

from histolight.config.schema import Config, LossConfig, ModelConfig, OptimizerConfig, SchedulerConfig, tile_mpp
from histolight.data.loader import Batch
from histolight.errors import RequestError
from histolight.models.backbones import IMAGENET, PIXELS, build_backbone, load_weights
from histolight.models.blocks import recompute_activations
from histolight.models.lora import add_adapters, merge_adapters
from histolight.models.losses import binary_loss
from histolight.models.neighbours import NearestNeighbours
from histolight.models.optimizers import build_optimizer, build_scheduler, parameter_groups
from histolight.statistics.metrics import classification_metrics


class Seen:
    """Rows, labels and logits of an epoch's tiles, in one tensor each.

    A small tensor kept from each batch would stop the C allocator from using the place of the large ones beside it
    again, and memory would grow with every step.
    """

    def __init__(self) -> None:
        self._kept: list[torch.Tensor] = []
        self._count = 0

    def add(self, rows: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor) -> None:
        """Copy those of one batch, each ``(n,)``, behind those before."""
        batch, end = (rows, labels, logits.detach()), self._count + len(rows)
        if not self._kept:
            self._kept = [values.new_empty(2**10) for values in batch]
        while end > len(self._kept[0]):
            self._kept = [torch.cat((values, torch.empty_like(values))) for values in self._kept]
        for kept, values in zip(self._kept, batch, strict=True):
            kept[self._count : end] = values
        self._count = end

    def take(self) -> list[torch.Tensor]:
        """Return rows, labels and logits, each ``(N,)``, and begin anew."""
        taken = [values[: self._count] for values in self._kept]
        self._kept, self._count = [], 0
        return taken


def enlarge(tiles: torch.Tensor, size: int, interpolation: str) -> torch.Tensor:
    """Enlarge tiles ``(N, 3, S, S)``, floats in [0, 1], to ``size`` pixels, as Pillow does."""
    if interpolation == "bicubic":  # Pillow's kernel is that of antialias=True, and its pixels stay pixels
        return interpolate(tiles, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    return interpolate(tiles, size=size, mode="bilinear")


class Classifier(L.LightningModule):
    """One logit per tile; positive means tumour in the centre.

    Its hyperparameters are plain dicts and numbers, so that a checkpoint loads with ``weights_only=True``.

    Args:
        model: Fields of :class:`ModelConfig`. Pretrained weights are loaded by :meth:`from_config`, not here: a
            checkpoint brings its own.
        optimizer: Fields of :class:`OptimizerConfig`.
        scheduler: Fields of :class:`SchedulerConfig`.
        loss: Fields of :class:`LossConfig`.
        pos_weight: ``loss.pos_weight`` as a number.
        image_size: Height and width of the tiles in pixels.
        stain: ``data.stain``, the normalisation of the tiles that it was trained on: whoever gives it tiles normalises
            them so first (:func:`histolight.data.datamodule.to_floats`).
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        model: dict[str, Any],
        optimizer: dict[str, Any],
        scheduler: dict[str, Any],
        loss: dict[str, Any],
        pos_weight: float = 1.0,
        image_size: int = 96,
        stain: str = "none",  # checkpoints of before it existed have none
        mpp: float | None = None,  # likewise
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.model_config = ModelConfig(**model)
        self.optimizer_config = OptimizerConfig(**optimizer)
        self.scheduler_config = SchedulerConfig(**scheduler)
        self.loss_config = LossConfig(**loss)
        self.pos_weight = pos_weight
        self.image_size = image_size
        self.input_size = self.model_config.input_size or image_size
        self.stain = stain
        self.mpp = mpp

        backbone = build_backbone(self.model_config, self.input_size)
        self.backbone, self.head = backbone.network, backbone.head
        if self.model_config.probe == "knn":
            last = self.backbone.get_submodule(self.head)
            if not isinstance(last, nn.Linear):
                raise RequestError(
                    f"model.probe=knn needs a network that ends in vectors, not {self.model_config.name}"
                )
            self.backbone.set_submodule(self.head, NearestNeighbours(last.in_features))
        self.backbone.to(memory_format=torch.channels_last)
        mean, std = {"none": PIXELS, "imagenet": IMAGENET, "auto": (backbone.mean, backbone.std)}[
            self.model_config.normalize
        ]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        if self.model_config.freeze == "backbone":
            self.backbone.requires_grad_(False).get_submodule(self.head).requires_grad_(True)

        self._adapted = False
        self.train()
        self.loss: torch.Tensor | None = None
        self.predictions: tuple[torch.Tensor, torch.Tensor] | None = None
        self._trained, self._evaluated = Seen(), Seen()

    @classmethod
    def from_config(cls, config: Config, pos_weight: float) -> Classifier:
        """Build a classifier as a configuration says and load its pretrained weights."""
        sections = {name: asdict(getattr(config, name)) for name in ("model", "optimizer", "scheduler", "loss")}
        data = config.data
        classifier = cls(
            **sections, pos_weight=pos_weight, image_size=data.image_size, stain=data.stain, mpp=tile_mpp(data)
        )
        load_weights(classifier.backbone, classifier.head, config.model, classifier.input_size)
        classifier.adapt()
        if config.model.checkpointing:
            recompute_activations(classifier.backbone)
        return classifier

    def adapt(self) -> None:
        """Add the adapters of ``model.lora_rank``: once pretrained weights are loaded, which know nothing of them."""
        if self.model_config.lora_rank is not None and not self._adapted:
            add_adapters(self.backbone, self.head, self.model_config.lora_rank)
            self._adapted = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the adapters that the checkpoint has."""
        self.adapt()

    def merge(self) -> Classifier:
        """Merge the adapters into the weights, for a network that is used; return itself."""
        if self._adapted:
            merge_adapters(self.backbone)
            self._adapted = False
        return self

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Map tiles ``(N, 3, S, S)``, floats in [0, 1], or their :meth:`features`, to logits ``(N,)``."""
        if tiles.ndim == 2:
            return self.backbone.get_submodule(self.head)(tiles).squeeze(1)
        # Only training is compiled: evaluation, whose last batch is smaller, would compile three times more.
        network = self.backbone if self.training else self.backbone.forward
        return network(self._network_input(tiles)).squeeze(1)

    def _network_input(self, tiles: torch.Tensor) -> torch.Tensor:
        if self.input_size != self.image_size:
            tiles = enlarge(tiles, self.input_size, self.model_config.interpolation)
        return (tiles - self.mean) / self.std

    def features(self, tiles: torch.Tensor) -> torch.Tensor:
        """Map tiles ``(N, 3, S, S)``, floats in [0, 1], to what enters the last layer: ``(N, F)`` in most networks."""
        seen: list[torch.Tensor] = []
        layer = self.backbone.get_submodule(self.head)
        handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            # Not called: a compiled network would not notice the hook.
            self.backbone.forward(self._network_input(tiles))
        finally:
            handle.remove()
        return seen[0]

    @torch.no_grad()
    def ends_in_head(self) -> bool:
        """Whether the last layer alone makes the logit of vectors: not of maps, nor together with another layer."""
        mode, size = self.training, self.image_size
        tiles = torch.linspace(0, 1, 2 * 3 * size**2, device=self.device).view(2, 3, size, size)
        features = self.eval().features(tiles)
        same = features.ndim == 2 and torch.allclose(self(features), self(tiles), rtol=1e-4, atol=1e-6)
        self.train(mode)
        return same

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode; a frozen backbone stays in evaluation mode, its batch-norm statistics too."""
        super().train(mode)
        if mode and self.frozen:
            self.backbone.eval().get_submodule(self.head).train()
        return self

    @property
    def frozen(self) -> bool:
        """Whether the backbone learns nothing, ever or in this epoch."""
        return self.model_config.freeze == "backbone" or self.current_epoch < self.model_config.freeze_epochs

    def on_train_epoch_start(self) -> None:
        """Freeze the backbone, or thaw it once its epochs are over; the optimizer has known it from the beginning."""
        if self.model_config.freeze == "none" and self.model_config.freeze_epochs > 0:
            self.backbone.requires_grad_(not self.frozen).get_submodule(self.head).requires_grad_(True)
            self.train()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and a schedule that steps with it."""
        groups = parameter_groups(self.backbone, self.head, self.optimizer_config)
        # Lightning can't clip the gradients of a fused optimizer in mixed precision.
        fused = self.trainer.gradient_clip_val is None or self.trainer.precision == "32-true"
        optimizer = build_optimizer(groups, self.optimizer_config, fused)
        steps = int(self.trainer.estimated_stepping_batches)
        if self.scheduler_config.total_epochs is not None:
            assert self.trainer.max_epochs is not None
            steps = steps * self.scheduler_config.total_epochs // self.trainer.max_epochs
        scheduler = build_scheduler(optimizer, self.scheduler_config, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch; dropout is seeded by the batch, so that a resumed run repeats it."""
        # torch.manual_seed formats a traceback at every call while CUDA is not in use: a fifth of a small step.
        seed = torch.default_generator.manual_seed if batch.tiles.device.type == "cpu" else torch.manual_seed
        seed(batch.seed)
        logits = self(batch.tiles)
        self.loss = binary_loss(logits, batch.labels, self.pos_weight, self.loss_config.label_smoothing)
        self._trained.add(batch.rows, batch.labels, logits)
        return self.loss

    def on_train_epoch_end(self) -> None:
        """Log the AUROC of the training tiles as they were seen: augmented, by a network that was changing.

        A tile that was mixed counts as tumour where more than half of its label is.
        """
        _, labels, logits = self._gather(self._trained)
        self.log("train/auroc", binary_auroc(logits.float().sigmoid(), (labels > 0.5).long(), thresholds=None))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the logits of a batch."""
        self._evaluated.add(batch.rows, batch.labels, self(batch.tiles))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the logits of a batch."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the figures over all validation tiles."""
        self._measure("val")

    def on_test_epoch_end(self) -> None:
        """Log the figures over all test tiles."""
        self._measure("test")

    def _measure(self, part: str) -> None:
        rows, labels, logits = self._gather(self._evaluated)
        self.predictions = (rows.cpu(), logits.float().cpu())
        figures = classification_metrics(logits, labels)
        if self.trainer.state.fn != "fit":
            return  # measuring the best epoch afterwards must not add a point to the curves
        self.log_dict({f"{part}/{name}": value for name, value in figures.items()})

    def _gather(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Take rows, labels and logits, over all processes: each tile once, however uneven their shares."""
        rows, labels, logits = seen.take()
        if self.trainer.world_size > 1:
            rows, labels, logits = (torch.cat(gather_all_tensors(part.contiguous())) for part in (rows, labels, logits))
        order = rows.argsort()
        return rows[order], labels[order], logits[order]
