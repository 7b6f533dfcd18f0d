"""A trained network on tiles, without Lightning's Trainer: what evaluate, predict, explain and export share."""

from __future__ import annotations

import hashlib
import json
import pickle
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy.special import log_expit, logsumexp
from tqdm import tqdm

from histolight import files, runs
from histolight.config.compose import saved_config
from histolight.config.schema import TrainerConfig
from histolight.data.datamodule import to_floats
from histolight.data.loader import TileLoader
from histolight.data.pack import Tiles
from histolight.errors import NO_ROOM, HistolightError, RequestError, system_reason, unreadable_reason
from histolight.hardware import REDUCED, is_out_of_memory, prepare_matrix_products, resolve_precision
from histolight.models.classifier import Classifier

# Transposed or not, then mirrored or not along each axis: all eight are the symmetries of the square.
SYMMETRIES: dict[str, list[tuple[bool, ...]]] = {
    "none": [(False, False, False)],
    "flips": list(product([False], [False, True], [False, True])),
    "dihedral": list(product([False, True], repeat=3)),
}


def load_classifier(directory: Path) -> Classifier:
    """Load the best epoch of a completed run, in evaluation mode, on the CPU.

    Raises:
        RequestError: The folder holds no completed run, or its checkpoint is missing, damaged or another network's.
    """
    runs.completed_metrics(directory)
    path = directory / "checkpoints" / "best.ckpt"
    with files.reading(path):
        if not path.is_file():
            raise RequestError(f"{path} is missing: the run can't be used without its best epoch")
        path.open("rb").close()
    try:
        with files.reading(path):
            classifier = Classifier.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        reason = unreadable_reason(error)
        raise RequestError(f"{path} can't be read as a checkpoint of histolight ({reason})") from error
    name, expected = classifier.model_config.name, saved_config(directory).model.name
    if name != expected:
        raise RequestError(
            f"{path} is of {name}, and the run's config.yaml says {expected}: put the run's own checkpoint back"
        )
    return classifier.merge().eval().requires_grad_(False)


def load_classifiers(directories: Sequence[Path], image_size: int) -> list[Classifier]:
    """Load the members of an ensemble: any architectures and normalisations, for tiles of one size.

    Raises:
        RequestError: As :func:`load_classifier`, or a member was trained on tiles of another size.
    """
    classifiers = [load_classifier(directory) for directory in directories]
    for directory, classifier in zip(directories, classifiers, strict=True):
        if classifier.image_size != image_size:
            raise RequestError(
                f"{directory} was trained on tiles of {classifier.image_size} pixels, and these have {image_size}: "
                "give tiles of that size"
            )
    return classifiers


def inference_device(settings: TrainerConfig) -> torch.device:
    """Choose the device as Lightning would: the accelerator that there is, unless ``trainer.accelerator=cpu``.

    Raises:
        RequestError: A GPU is asked for, and there is none.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if settings.accelerator == "gpu" and accelerator is None:
        raise RequestError("trainer.accelerator=gpu, but PyTorch sees no GPU here: use trainer=cpu or trainer=auto")
    return torch.device("cpu") if settings.accelerator == "cpu" or accelerator is None else accelerator


def inference_precision(settings: TrainerConfig, device: torch.device) -> str:
    """Choose the precision that training would on a GPU; a CPU computes in float32."""
    return resolve_precision(settings.precision, settings.accelerator) if device.type == "cuda" else "32-true"


def tile_views(tiles: torch.Tensor, tta: str) -> Iterator[torch.Tensor]:
    """Show tiles as they are and, for test-time augmentation, mirrored and turned; the centre stays the centre.

    Args:
        tiles: ``(N, 3, S, S)``.
        tta: ``none`` (1 view), ``flips`` (4: each axis mirrored or not) or ``dihedral`` (8: the symmetries of the
            square).

    >>> len(list(tile_views(torch.zeros(1, 3, 32, 32), "dihedral")))
    8
    """
    for transposed, left_right, top_bottom in SYMMETRIES[tta]:
        view = tiles.transpose(-1, -2) if transposed else tiles
        axes = [axis for axis, mirrored in ((-1, left_right), (-2, top_bottom)) if mirrored]
        yield (view.flip(axes) if axes else view).contiguous(memory_format=torch.channels_last)


def predict_logits(
    classifiers: Sequence[Classifier],
    tiles: Tiles,
    rows: np.ndarray,
    settings: TrainerConfig,
    batch_size: int,
    tta: str = "none",
    first: int = 0,
) -> Iterator[np.ndarray]:
    """Run tiles through networks, batch by batch, in memory that does not grow with their number.

    On a CPU, with a run's own batch size and without ``tta``, the logits of its validation tiles are bit for bit those
    of its training. A progress bar shows where stderr is a terminal.

    Args:
        classifiers: The networks.
        tiles: The tile store.
        rows: ``(N,)`` int64, the tiles to predict.
        settings: Device and precision.
        batch_size: Tiles per batch.
        tta: As in :func:`tile_views`; the logits of the views are averaged.
        first: The batch to begin with.

    Yields:
        float32 (n, number of classifiers): the logits of one batch.

    Raises:
        HistolightError: A logit is not finite, or the device's memory does not hold a batch.
    """
    score = tile_scorer(classifiers, settings, tta)
    rest = rows[first * batch_size :]
    pin = inference_device(settings).type == "cuda"
    loader = TileLoader(tiles, rest, np.zeros(len(rest)), batch_size, pin=pin)
    bar = tqdm(total=len(rows), initial=len(rows) - len(rest), desc="predicting", unit="tile", disable=None)
    with bar:
        for batch in loader:
            logits = score(batch.tiles)
            yield logits
            bar.update(len(logits))


def tile_scorer(
    classifiers: Sequence[Classifier], settings: TrainerConfig, tta: str = "none"
) -> Callable[[torch.Tensor], np.ndarray]:
    """Move networks to the device and return what runs a batch of tiles through them.

    Args:
        classifiers: The networks.
        settings: Device and precision.
        tta: As in :func:`tile_views`; the logits of the views are averaged.

    Returns:
        A function from uint8 (n, S, S, 3) to float32 (n, number of classifiers). It raises :class:`HistolightError`
        where a logit is not finite, or the device's memory does not hold the batch.
    """
    device = inference_device(settings)
    precision = inference_precision(settings, device)
    reduced = REDUCED.get(precision)
    prepare_matrix_products()  # as in training
    torch.backends.cudnn.benchmark = not settings.deterministic
    networks = [classifier.to(device) for classifier in classifiers]

    @torch.inference_mode()
    def score(tiles: torch.Tensor) -> np.ndarray:
        try:
            on_device = tiles.to(device, non_blocking=True)
            pixels = {stain: to_floats(on_device, stain) for stain in {network.stain for network in networks}}
            with torch.autocast(device.type, reduced, enabled=reduced is not None):
                members = [
                    torch.stack([network(view).float() for view in tile_views(pixels[network.stain], tta)]).mean(0)
                    for network in networks
                ]
            logits: np.ndarray = torch.stack(members, 1).cpu().numpy()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise HistolightError(f"out of GPU memory: use data.batch_size={max(1, len(tiles) // 2)}") from error
        if not np.isfinite(logits).all():
            raise HistolightError(
                f"the network gives logits that are not finite ({precision}): try trainer.precision=32-true"
            )
        return logits

    return score


def mean_logits(logits: np.ndarray, mean: str) -> np.ndarray:
    """Join the members of an ensemble.

    Args:
        logits: float32 (N, members).
        mean: ``logit`` averages logits, ``probability`` their sigmoids.

    Returns:
        float32 (N,): the logit whose sigmoid is the ensemble's score. The mean of probabilities is turned back into a
        logit as log(mean p) - log(mean (1 - p)), from the logarithms, so that it stays finite for any logits.

    >>> mean_logits(np.array([[0.0, 2.0]], dtype=np.float32), "logit")
    array([1.], dtype=float32)
    """
    if logits.shape[1] == 1:
        return logits[:, 0]
    wide = logits.astype(np.float64)
    if mean == "logit":
        return wide.mean(axis=1).astype(np.float32)
    return (logsumexp(log_expit(wide), axis=1) - logsumexp(log_expit(-wide), axis=1)).astype(np.float32)


def request_header(directories: Sequence[Path], fingerprint: str, batch_size: int, tta: str, precision: str) -> bytes:
    """Identify what decides each bit of a prediction: the networks, the tiles, and how they are computed."""
    checkpoints = [(path / "checkpoints" / "best.ckpt").read_bytes() for path in directories]
    request = {
        "networks": [hashlib.blake2b(data, digest_size=16).hexdigest() for data in checkpoints],
        "tiles": fingerprint,
        "batch_size": batch_size,
        "tta": tta,
        "precision": precision,
        "torch": torch.__version__,
    }
    return json.dumps(request).encode() + b"\n"


def resumable_logits(
    path: Path,
    header: bytes,
    classifiers: Sequence[Classifier],
    tiles: Tiles,
    rows: np.ndarray,
    settings: TrainerConfig,
    batch_size: int,
    tta: str,
) -> np.ndarray:
    """Predict as :func:`predict_logits` does, keeping each finished batch in a file; go on where that file ends.

    Args:
        path: The file; its folder exists.
        header: From :func:`request_header`.
        classifiers: As the following, an argument of :func:`predict_logits`.
        tiles: Likewise.
        rows: Likewise.
        settings: Likewise.
        batch_size: Likewise.
        tta: Likewise.

    Returns:
        float32 (N, number of classifiers).

    Raises:
        RequestError: The file is the beginning of another prediction.
        HistolightError: As :func:`predict_logits`, or the file can't be written.
    """
    return resumed(
        path,
        header,
        (len(rows), len(classifiers)),
        batch_size,
        lambda first: predict_logits(classifiers, tiles, rows, settings, batch_size, tta, first),
    )


def resumed(
    path: Path,
    header: bytes,
    shape: tuple[int, int],
    batch_size: int,
    batches: Callable[[int], Iterator[np.ndarray]],
) -> np.ndarray:
    """Keep each finished batch of logits in a file, and go on where that file ends.

    The file is the header, then for each batch its logits (float32, little-endian) and their CRC-32. Whatever a kill
    left of an unfinished batch is cut off and computed again, in a batch of the same tiles: the result is the same.

    Args:
        path: The file; its folder exists.
        header: Identifies the request.
        shape: Number of tiles and of networks.
        batch_size: Tiles per batch.
        batches: From the first batch that is needed, the logits of each, float32 (n, networks).

    Returns:
        float32, of that shape.

    Raises:
        RequestError: The file is the beginning of another prediction.
        HistolightError: The file can't be written, or whatever ``batches`` raises.
    """
    try:
        finished = _finished_batches(path, header, shape[0], batch_size, shape[1])
        with open(path, "ab") as file:
            for logits in batches(len(finished)):
                file.write(_record(logits))
                file.flush()
                finished.append(logits)
    except OSError as error:
        again = "make that place writable for you" if error.errno not in NO_ROOM else "make room there"
        raise HistolightError(
            f"{path} can't be written ({system_reason(error)}): {again}, then give the same command again"
        ) from error
    return np.concatenate(finished)


def _record(logits: np.ndarray) -> bytes:
    data = logits.astype("<f4").tobytes()
    return data + zlib.crc32(data).to_bytes(4, "little")


def _finished_batches(path: Path, header: bytes, tiles: int, batch_size: int, members: int) -> list[np.ndarray]:
    """Read the batches that a file holds, and cut off what follows the last whole one."""
    if not path.exists():
        files.write_atomically(path, memoryview(header))
    content = path.read_bytes()
    finished: list[np.ndarray] = []
    if not content.startswith(header):
        raise RequestError(
            f"{path} is the beginning of another prediction (other runs, tiles or options): choose another folder with "
            "hydra.run.dir=FOLDER (directory=FOLDER in Python), or delete that file"
        )
    end = len(header)
    for start in range(0, tiles, batch_size):
        count = min(batch_size, tiles - start)
        logits = np.frombuffer(content[end : end + 4 * count * members].ljust(4 * count * members), "<f4")
        record = _record(logits)
        if content[end : end + len(record)] != record:
            break
        finished.append(logits.reshape(count, members).astype(np.float32))
        end += len(record)
    with open(path, "ab") as file:
        file.truncate(end)
    return finished
