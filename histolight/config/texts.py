"""Values that are text by the schema reach the program as typed, whatever Hydra's grammar would make of them.

Hydra reads ``2026_11_27`` as a number, ``1e3`` as 1000.0, ``false`` as a boolean, and can't read ``a=b`` or an umlaut.
Here such a value is put into quotes, unless it is ``null`` where the schema allows it, in quotes already, or one of
Hydra's functions. A comma outside quotes and brackets separates the values of a sweep.
"""

from __future__ import annotations

import functools
import re
import typing
from collections.abc import Sequence
from typing import Any

from histolight.config import hydra_adapter as hydra
from histolight.config.overrides import quoted
from histolight.config.schema import RequestedConfig, valid_keys
from histolight.errors import RequestError

OF_HYDRA = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.sweeper.study_name")  # text as well
OPEN_KEYS = re.compile(r"model\.(kwargs|card)[.=]")  # hold any keys, which Hydra's grammar adds with a plus sign
_OPEN_TO_HYDRA = re.compile(r"\+*hydra\.(?!(run|sweep|runtime|job\.(name|chdir|num|id))[.=])")

_FUNCTION = re.compile(r"(choice|shuffle|sort|range|glob|interval|tag|str|int|float|bool|extend_list)\(.*\)", re.DOTALL)
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def kinds(key: str) -> list[Any]:
    """Return the types that the schema allows for a key, dotted, without None; empty for other keys.

    >>> kinds("data.root"), kinds("optimizer.lr"), kinds("zebra")
    ([<class 'str'>], [<class 'float'>], [])
    """
    return [kind for kind in _types(key) if kind is not type(None)]


@functools.cache
def _types(key: str) -> tuple[Any, ...]:
    kind: Any = RequestedConfig
    for name in key.split("."):
        kind = typing.get_type_hints(kind).get(name) if isinstance(kind, type) else None
    return () if kind is None else typing.get_args(kind) if type(None) in typing.get_args(kind) else (kind,)


def as_typed(overrides: Sequence[str]) -> list[str]:
    """Put the words of the command line so that Hydra reads every text of them as it was typed.

    A key with ``+`` or ``++`` becomes the key itself, so that it is checked like any other; only what holds open
    mappings (``model.kwargs``, and parts of Hydra's own node) is added to.

    Raises:
        RequestError: A mapping, ``data={root:2026_11}``, holds a text that Hydra would read as something else.

    >>> as_typed(["data.root=/tiles (1)/a=b", "name=2026_11_27", "++seed=3", "model.kwargs.depth=2"])
    ["data.root='/tiles (1)/a=b'", "name='2026_11_27'", 'seed=3', '++model.kwargs.depth=2']
    """
    return [_as_typed(override) for override in overrides]


def _as_typed(override: str) -> str:
    plain = override.lstrip("+")
    if plain.startswith("slides."):
        plain = override = f"data.{plain}"
    if OPEN_KEYS.match(plain):
        return f"++{plain}"
    if not _OPEN_TO_HYDRA.match(override):
        override = plain
    key, separator, value = override.partition("=")
    if not separator or not value:
        return override
    if kinds(key) == [list[str]]:
        return f"{key}={','.join(_list(key, item) for item in split(value))}"
    if kinds(key) == [str] or key in OF_HYDRA:
        return f"{key}={','.join(_text(key, item) for item in split(value))}"
    if value.startswith("{"):
        _check_mapping(key, override)
    return override


def _list(key: str, value: str) -> str:
    if not (value.startswith("[") and value.endswith("]")):
        return value
    return f"[{','.join(_text(key, item) for item in split(value[1:-1]))}]"


def _text(key: str, text: str) -> str:
    """Quote one text, unless Hydra reads it as typed, or it is no plain text."""
    if text.lower() == "null" and type(None) in _types(key):
        return text
    if text.startswith("choice(") and text.endswith(")"):
        return f"choice({','.join(_text(key, item) for item in split(text[len('choice(') : -1]))})"
    if _FUNCTION.fullmatch(text):
        return text
    try:
        [override] = hydra.parse([f"{key}={text}"])
        found = override.value()
    except hydra.HydraException:
        return quoted(text)
    in_quotes = text[:1] in "'\"" and isinstance(found, str)
    as_it_is = found == text and not text.endswith("\\")  # which would take the comma behind it along
    return text if in_quotes or as_it_is else quoted(text)


def split(value: str) -> list[str]:
    """Split a value at the commas outside quotes and brackets; a bracket that is never closed is a letter.

    >>> split("w/epoch=1.pth, '/a,b',/tiles (1,2),it's")
    ['w/epoch=1.pth', "'/a,b'", '/tiles (1,2)', "it's"]
    """
    items, closing = [""], list[str]()
    quote = ""
    for letter in value:
        if quote:
            quote = "" if letter == quote and not items[-1].endswith("\\") else quote
        elif letter in "'\"" and not items[-1].strip():
            quote = letter
        elif letter in _CLOSING:
            closing.append(_CLOSING[letter])
        elif closing and letter == closing[-1]:
            closing.pop()
        elif letter == "," and not closing:
            items.append("")
            continue
        items[-1] += letter
    if quote or closing:
        items = value.split(",")
    return items if len(items) == 1 else [item.strip() for item in items]


def _check_mapping(key: str, override: str) -> None:
    """Refuse a mapping in which Hydra reads a text as a number or a boolean, whose letters are then lost."""
    try:
        [parsed] = hydra.parse([override])
        values = parsed.value()
    except hydra.HydraException:
        return  # said when it is composed
    for name, value in values.items() if isinstance(values, dict) else ():
        inner = f"{key}.{name}"
        if kinds(inner) == [str] and value is not None and not isinstance(value, str):
            raise RequestError(f"{inner} is a text, which a mapping in braces would change: write {inner}=VALUE apart")


def texts() -> list[str]:
    """List the keys whose value is a text."""
    return [key for key in valid_keys() if kinds(key) == [str]] + list(OF_HYDRA)
