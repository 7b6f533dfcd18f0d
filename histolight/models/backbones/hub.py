"""Files of a model: of a folder, or of Hugging Face's hub, downloaded once into its own cache."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from histolight.config.schema import ModelConfig
from histolight.errors import HistolightError, RequestError

FOLDER = "local-dir:"


def complete(config: ModelConfig) -> bool:
    """Whether a network is described in full and no weights of the hub are asked for: then nothing is read there."""
    described = (config.architecture, config.mean, config.std, config.input_size)
    return config.weights != "hub" and None not in described


def place_of(name: str, prefixes: tuple[str, ...]) -> tuple[str, Path | None]:
    """Split a name behind its prefix: (ORG/NAME, None) of a hub's model, (name, folder) of a folder's.

    >>> place_of("hf/owkin/phikon-v2", ("hf/",))
    ('owkin/phikon-v2', None)
    """
    prefix = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len)
    place = name[len(prefix) :]
    if prefix.endswith(FOLDER):
        return place, Path(place).expanduser()
    return place, None


def model_file(name: str, place: tuple[str, Path | None], *candidates: str) -> Path:
    """Find the first of some files, and download it where the model is the hub's and the file is not cached.

    Args:
        name: ``model.name``, for messages.
        place: From :func:`place_of`.
        candidates: File names, the best first.

    Raises:
        RequestError: None of them is there, there is no such model, or access to it is refused.
        HistolightError: The download failed.
    """
    repository, folder = place
    if folder is not None:
        path = next((folder / file for file in candidates if (folder / file).is_file()), None)
        if path is None:
            raise RequestError(f"model.name={name}: the folder {folder} holds no {' or '.join(candidates)}")
        return path
    with hub_faults(name, repository):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        for file in candidates:
            try:
                return Path(hf_hub_download(repository, file))
            except LocalEntryNotFoundError:  # no network, which the other files need too
                raise
            except EntryNotFoundError:
                continue
    raise RequestError(f"model.name={name}: huggingface.co/{repository} has no {' or '.join(candidates)}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a model's configuration.

    Raises:
        RequestError: It is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{path} can't be read as a model's configuration ({error})") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path} can't be read as a model's configuration: it is no JSON object")
    return content


@contextlib.contextmanager
def hub_faults(name: str, repository: str) -> Iterator[None]:
    """Say in one line what the hub refuses, and what leads on."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    where = f"https://huggingface.co/{repository}"
    try:
        yield
    except Exception as error:
        causes = list(_causes(error))
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            raise RequestError(
                f"model.name={name} is gated: accept its licence at {where}, then give your token in the variable "
                "HF_TOKEN, or once with `hf auth login`"
            ) from error
        if any(isinstance(cause, RepositoryNotFoundError | HFValidationError) for cause in causes):
            raise RequestError(
                f"model.name={name}: there is no {where}, or it is private (a token is read from HF_TOKEN)"
            ) from error
        if not any(isinstance(cause, OSError) for cause in causes):  # those of the hub and of the network all are
            raise
        reason = " ".join(str(causes[-1]).split())[:120] or type(causes[-1]).__name__
        raise HistolightError(
            f"model.name={name} could not be downloaded ({reason}): without internet access use model.weights=FILE, "
            "with model.architecture and model.kwargs, or a file of conf/model that has them"
        ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
