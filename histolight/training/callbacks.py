"""What is shown and recorded while Lightning trains: progress, speed, averaged weights; and that all is finite."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, TQDMProgressBar, WeightAveraging
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_only
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from histolight.data.loader import Batch
from histolight.errors import HistolightError
from histolight.models.classifier import Classifier
from histolight.training.loggers import log_tiles

EVERY = 10  # steps between two points of the curves


class Losses:
    """Losses on their way from the device; reading those that have arrived makes neither side wait for the other."""

    def __init__(self) -> None:
        self._coming: deque[tuple[int, dict[str, float] | None, torch.Tensor, torch.cuda.Event | None]] = deque()

    def add(self, step: int, figures: dict[str, float] | None, loss: torch.Tensor) -> None:
        """Send the loss of a step, a scalar, on its way.

        Args:
            step: Its number in the epoch.
            figures: What is to be logged beside it; None is no point of the curves.
            loss: On any device.
        """
        self._coming.append((step, figures, *_sent(loss.detach())))

    def read(self, wait: bool) -> Iterator[tuple[int, dict[str, float] | None, float]]:
        """Yield step, figures and loss of those that have arrived, or of all of them, in their order."""
        while self._coming and (wait or self._coming[0][3] is None or self._coming[0][3].query()):
            step, figures, loss, arrival = self._coming.popleft()
            if arrival is not None:
                arrival.synchronize()
            yield step, figures, float(loss)


def _sent(loss: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Begin to copy a scalar to the host; the event says when it is there, None that reading it is what waits."""
    if not loss.is_cuda:
        return loss, None
    copy = torch.empty(loss.shape, dtype=loss.dtype, pin_memory=True).copy_(loss, non_blocking=True)
    arrival = torch.cuda.Event()
    arrival.record()
    return copy, arrival


class Speed(L.Callback):
    """Measure tiles/s and how long the device waits for data; log them with loss and learning rate.

    A loss that is not finite stops the training: at once, on a GPU as soon as it has arrived, and where processes share
    the training at the next point of the curves, which is the same for all of them.

    Args:
        guards: Stop it; false lets a search for learning rates go too far.
    """

    def __init__(self, guards: bool = True) -> None:
        self.guards = guards
        self.tiles = 0
        self.seconds = 0.0
        self.waited = 0.0
        self.loss = math.nan
        self.rate = math.nan  # training tiles per second in this epoch, when the loss was read
        self.anonymous_memory_mb = math.nan  # the most that was seen when the loss was read
        self._begun = self._ended = self._fit_begun = 0.0
        self._elapsed_before = 0.0
        self._tiles_of_epoch = 0
        self._losses = Losses()

    @property
    def tiles_per_second(self) -> float:
        """Training tiles per second over all epochs, validation not counted."""
        return self.tiles / self.seconds if self.seconds else math.nan

    @property
    def elapsed(self) -> float:
        """Seconds of training and validation so far, those before an interruption included."""
        return self._elapsed_before + time.perf_counter() - self._fit_begun

    def state_dict(self) -> dict[str, Any]:
        """Keep the totals in the checkpoint, so that a resumed run goes on counting."""
        return {"tiles": self.tiles, "seconds": self.seconds, "waited": self.waited, "elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the totals from the checkpoint."""
        self.tiles, self.seconds, self.waited = state_dict["tiles"], state_dict["seconds"], state_dict["waited"]
        self._elapsed_before = state_dict["elapsed"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start the clock of the whole training."""
        self._fit_begun = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._begun = self._ended = time.perf_counter()
        self._tiles_of_epoch = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Count the time since the last batch as waiting for data."""
        self.waited += time.perf_counter() - self._ended

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the batch; read the loss, and every few steps log it."""
        self._tiles_of_epoch += len(batch.rows) * trainer.world_size
        last = batch_idx + 1 == trainer.num_training_batches
        point = last or batch_idx % EVERY == 0
        assert isinstance(pl_module, Classifier)
        assert pl_module.loss is not None
        if point:
            self.anonymous_memory_mb = max(anonymous_memory_mb(), self.anonymous_memory_mb)
        self._losses.add(batch_idx, self._figures(trainer) if point else None, pl_module.loss)
        each = trainer.world_size == 1 and pl_module.device.type in ("cpu", "cuda")
        if each or point:
            self._read(trainer, wait=last or not each)
        if last:
            seconds = time.perf_counter() - self._begun
            self.tiles += self._tiles_of_epoch
            self.seconds += seconds
        self._ended = time.perf_counter()

    def _figures(self, trainer: L.Trainer) -> dict[str, float]:
        return {
            "step": trainer.global_step,
            # The last group holds the last layer, whose peak is optimizer.lr.
            "learning_rate": trainer.optimizers[0].param_groups[-1]["lr"],
            "tiles": self._tiles_of_epoch,
            "speed/data_wait_seconds": self.waited,
        }

    def _read(self, trainer: L.Trainer, wait: bool) -> None:
        for step, figures, loss in self._losses.read(wait):
            if self.guards and not math.isfinite(loss):
                raise HistolightError(
                    f"the loss became {loss} in epoch {trainer.current_epoch + 1}, step {step + 1}: "
                    "try a lower optimizer.lr or trainer.clip=1"
                )
            if figures is not None:
                total, tiles = int(figures.pop("step")), figures.pop("tiles")
                self.loss, self.rate = loss, tiles / (time.perf_counter() - self._begun)
                if trainer.logger is not None:
                    figures |= {"train/loss": loss, "speed/tiles_per_second": self.rate}
                    trainer.logger.log_metrics(figures, total)


class Progress(TQDMProgressBar):
    """A progress bar with the loss, tiles/s and the validation AUROC of the last epoch, which counts epochs from 1."""

    def __init__(self, speed: Speed) -> None:
        super().__init__(refresh_rate=EVERY)
        self._speed = speed

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Name the figures at the end of the bar."""
        figures = {"loss": f"{self._speed.loss:.3f}"}
        figures["tiles/s"] = f"{self._speed.rate:.0f}"
        if "val/auroc" in trainer.callback_metrics:
            figures["val_auroc"] = f"{float(trainer.callback_metrics['val/auroc']):.4f}"
        return figures

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Begin again, with the epoch as people count it."""
        self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch + 1} of {trainer.max_epochs}", False)
        self.train_progress_bar.reset(int(self.total_train_batches))

    def init_validation_tqdm(self) -> Tqdm:
        """Show a bar below that of the epoch."""
        return self._passing("Validation", self.trainer.num_val_batches, int(self.trainer.state.fn == "fit"))

    def init_test_tqdm(self) -> Tqdm:
        """Show a bar."""
        return self._passing("Test", self.trainer.num_test_batches, 0)

    def _passing(self, what: str, batches: list[int | float], position: int) -> Tqdm:
        """Make a bar that leaves nothing behind: Lightning's stay on the terminal, and begin without a total."""
        shown: dict[str, Any] = {"disable": self.is_disabled, "leave": False, "dynamic_ncols": True, "file": sys.stdout}
        return Tqdm(desc=what, total=int(sum(batches)), position=position, bar_format=self.BAR_FORMAT, **shown)

    def on_validation_batch_start(self, *_: Any) -> None:
        """Leave the bar as it is: there is one loader."""

    def on_test_batch_start(self, *_: Any) -> None:
        """Leave the bar as it is: there is one loader."""


class EpochLines(L.Callback):
    """A line for each epoch, where no terminal shows a progress bar."""

    def __init__(self, speed: Speed) -> None:
        self._speed = speed

    @rank_zero_only
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the line."""
        print(
            f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: loss {self._speed.loss:.3f}, "
            f"val AUROC {float(trainer.callback_metrics['val/auroc']):.4f}, "
            f"{self._speed.tiles_per_second:.0f} tiles/s, {self._speed.elapsed:.0f} s",
            file=sys.stderr,
            flush=True,
        )


class Watched(L.Callback):
    """Tell a search the validation AUROC of each epoch before the next one begins; it may end the training.

    Args:
        watched: Takes the AUROCs so far, by epoch, counted from 1; that of the last epoch is the training's result.
    """

    def __init__(self, watched: Callable[[Mapping[int, float]], None]) -> None:
        self._watched = watched
        self._aurocs: dict[int, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Keep the AUROCs in the checkpoint."""
        return {"aurocs": self._aurocs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them from the checkpoint."""
        self._aurocs = state_dict["aurocs"]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the AUROC."""
        self._aurocs[trainer.current_epoch + 1] = float(trainer.callback_metrics["val/auroc"])

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell the AUROCs of the epochs before."""
        if self._aurocs:
            self._watched(self._aurocs)


class Patience(EarlyStopping):
    """Lightning's early stopping, which also where it is continued after its last epoch trains no further one."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once where the patience was at its end when the checkpoint was saved."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class AveragedWeights(WeightAveraging):
    """Lightning's averaging of weights and batch-norm statistics, for validation and checkpoints.

    Lightning's own StochasticWeightAveraging validates and keeps the weights that are not averaged, and replaces the
    schedule. PyTorch's update of its AveragedModel asks the device how many steps it holds, and waits for the answer:
    here the host counts them.

    Args:
        decay: Part of itself that an exponential average keeps each step; None is the plain mean.
        start: Part of the steps after which the average begins; until then it is the weights themselves.
    """

    def __init__(self, decay: float | None, start: float = 0.0) -> None:
        super().__init__()
        self._mean = None if decay is None else get_ema_multi_avg_fn(decay)
        self._start = start
        self._count = 0  # of steps that the average holds
        self._pair: tuple[Values, Values] | None = None  # of the average and of the network

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin to average, where the training computes; afterwards let go: what is measured holds its own."""
        self._device, self._pair = trainer.strategy.root_device, None
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            self._average_model = None

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average once a step, which copies the weights where nothing has been averaged yet."""
        if trainer.global_step <= self._latest_update_step:
            return
        if self._latest_update_step <= self._start * trainer.estimated_stepping_batches:
            self._count = 0
        if self._pair is None:  # only now: before, Lightning moves the network to its device
            assert self._average_model is not None
            self._pair = _values(self._average_model.module), _values(pl_module)
        self._update(*self._pair)
        self._count += 1
        self._latest_update_step = trainer.global_step

    def _update(self, averages: Values, values: Values) -> None:
        if self._count == 0:
            torch._foreach_copy_(averages.floats, values.floats)
        elif self._mean is not None:
            self._mean(averages.floats, values.floats, self._count)
        else:
            change = torch._foreach_sub(values.floats, averages.floats)
            torch._foreach_div_(change, self._count + 1)
            torch._foreach_add_(averages.floats, change)
        if averages.counts:
            torch._foreach_copy_(averages.counts, values.counts)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average, with how many steps it holds."""
        if self._average_model is not None:
            self._average_model.n_averaged.fill_(self._count)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the average, and how many steps it holds."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if self._average_model is not None:
            self._count = int(self._average_model.n_averaged)


class Values(NamedTuple):
    """Parameters and buffers of a network: numbers, and what counts, as a batch norm counts its batches."""

    floats: list[torch.Tensor]
    counts: list[torch.Tensor]


def _values(module: torch.nn.Module) -> Values:
    every = [*(parameter.detach() for parameter in module.parameters()), *module.buffers()]
    return Values(
        [values for values in every if values.is_floating_point()],
        [values for values in every if not values.is_floating_point()],
    )


class TileGrid(L.Callback):
    """Show the first batch of augmented training tiles: what the network really sees."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Log the grid at the very first step."""
        if trainer.global_step == batch_idx == 0 and batch.tiles.ndim == 4:  # no features
            log_tiles(trainer.logger, "augmented training tiles", batch.tiles[:32], 0)


def peak_memory_mb() -> float:
    """Return the peak memory in MB (1e6 bytes): of the GPU if one is used, else of this process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        import resource  # not on Windows
    except ImportError:
        return math.nan

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def anonymous_memory_mb() -> float:
    """Return the memory in MB (1e6 bytes) that is this process's own now: no page cache; NaN where only Linux tells."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return math.nan
    return next(
        (int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("RssAnon")), math.nan
    )


def flops_per_tile(classifier: Classifier) -> int:
    """Count the floating-point operations of one tile's way forward, a multiplication and an addition being two."""
    mode, size = classifier.training, classifier.image_size
    with FlopCounterMode(display=False) as counter:  # with gradients: without, attention takes an uncounted short cut
        classifier.eval()(torch.zeros(1, 3, size, size, device=classifier.device))
    classifier.train(mode)
    return int(counter.get_total_flops())
