"""Overrides from Python: strings as on the command line, a dictionary, or a whole configuration."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

from histolight.config.schema import Config, valid_keys
from histolight.errors import RequestError

Overrides = Sequence[str] | Mapping[str, Any] | Config

# Keys whose value is a list itself, not one value for each point of a sweep; and mappings, whose values may be lists.
LISTS = ("data.classes", "data.slides.positive", "model.mean", "model.std")
_MAPPINGS = ("model.kwargs.", "model.card.")


def as_words(overrides: Overrides) -> list[str]:
    """Turn overrides into the words of the command line.

    Args:
        overrides: Strings; or keys, dotted or nested, with their values, of which several in a list are swept; or a
            configuration, every key of which counts.

    Raises:
        RequestError: They are something else.

    >>> as_words({"data": "kaggle", "data.root": "my tiles", "optimizer": {"lr": [1e-4, 1e-3]}, "data.limit": None})
    ['data=kaggle', "data.root='my tiles'", 'optimizer.lr=0.0001,0.001', 'data.limit=null']
    """
    if isinstance(overrides, Config):
        flat = {key: _get(overrides, key) for key in valid_keys() if key not in ("run", "like")}
        return as_words(flat)
    if isinstance(overrides, Mapping):
        return [word for key, value in overrides.items() for word in _words(str(key), value)]
    words: list[Any] = list(overrides) if isinstance(overrides, Iterable) else [overrides]
    if isinstance(overrides, str) or not all(isinstance(word, str) for word in words):
        raise RequestError(f"overrides={overrides!r} can't be read: give a list of strings, a dictionary or a Config")
    return words


def _get(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _words(key: str, value: Any) -> list[str]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return [word for name, inner in value.items() for word in _words(f"{key}.{name}", inner)]
    if isinstance(value, list | tuple) and key not in LISTS and not key.startswith(_MAPPINGS):
        return [f"{key}={','.join(map(_text, value))}"]
    return [f"{key}={_text(value)}"]


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(float(value) if isinstance(value, float) else int(value))
    if isinstance(value, str | PathLike):
        text = str(value)
        # What begins like a number might become one.
        plain = re.fullmatch(r"(?!(null|true|false|nan|inf)$)[A-Za-z./][A-Za-z0-9_./+-]*", text, re.IGNORECASE)
        return text if plain else quoted(text)
    if (number := getattr(value, "item", None)) is not None:  # NumPy's and PyTorch's numbers
        return _text(number())
    raise RequestError(f"{value!r} can't be a value of a configuration: give text, a number, true, false or None")


def quoted(value: str) -> str:
    r"""Quote a value for Hydra's grammar, where a backslash counts in front of a quote only.

    >>> print(quoted("it's a\\"))
    'it\'s a\\'
    """
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    ending = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{ending * chr(92)}'"
