"""Labels, as people write them: 0 and 1, truth values, or usual names of the two classes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from histolight.errors import RequestError

_TUMOUR = {"cancer", "cancerous", "malignant", "metastases", "metastasis", "metastatic", "tumor", "tumour"}
_POSITIVE = {"1", "class1", "pos", "positive"} | _TUMOUR
_NEGATIVE = {"0", "benign", "class0", "healthy", "neg", "negative", "normal"}


def class_of(name: str) -> int | None:
    """Say which class a usual name means, whatever its case, its dashes and the number before it; None for others.

    >>> [class_of(name) for name in ("Tumor", "non_tumor", "NoMetastasis", "0_normal", "class-1", "left")]
    [1, 0, 0, 0, 1, None]
    """
    word = re.sub(r"(?<=[a-z0-9])[\s_-]+(?=[a-z0-9])", "", re.sub(r"^[0-9]+[\s_.-]+(?=[^0-9])", "", name.lower()))
    if word in _POSITIVE:
        return 1
    return 0 if word in _NEGATIVE or re.sub("^non?", "", word) in _TUMOUR - {word} else None


def find_labels(
    values: pd.Series, classes: Sequence[str] | None, where: str
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int64]]:
    """Turn a column of labels into 0 and 1.

    Args:
        values: Numbers, truth values or names; missing ones are None or NaN.
        classes: ``data.classes``, or None: 0/1, true/false and the usual names are known.
        where: Name of the column, for messages.

    Returns:
        0 or 1 for each value (0 where it is missing), and the places of missing ones.

    Raises:
        RequestError: The values are not of two known classes.

    >>> find_labels(pd.Series(["tumor", "normal", None]), None, "the column label")
    (array([1, 0, 0], dtype=int8), array([2]))
    """
    missing = values.isna().to_numpy()
    # A name that is given counts as it is, also where it is a number or a truth value.
    names = values[~missing].map(lambda value: value if classes and value in classes else _label_name(value))
    found = sorted(names.unique())
    if classes is not None:
        known = {name: label for label, name in enumerate(classes)}
    else:
        known = {name: label for name in found if (label := class_of(name)) is not None}
    unknown = [name for name in found if name not in known]
    if unknown or len(found) > 2:
        shown = ", ".join(found[:4]) + (", …" if len(found) > 4 else "")
        raise RequestError(
            f"{where} has {len(found)} kinds of labels, {shown}: a label is 0 or 1, or one of two names that "
            "data.classes=[NEGATIVE,POSITIVE] gives"
        )
    labels = np.zeros(len(values), dtype=np.int8)
    labels[~missing] = names.map(known).to_numpy(dtype=np.int8)
    return labels, np.flatnonzero(missing)


def read_label(text: object) -> int | None:
    """Read a label in any plain form: 0/1, 0.0/1.0, true/false or a usual name, in quotes or not; else None.

    >>> [read_label(text) for text in ("1", "0.0", "True", '"1"', "Tumor", "2", "")]
    [1, 0, 1, 1, 1, None, None]
    """
    return class_of(_label_name(text))


def _label_name(value: object) -> str:
    """Write a label as its name: 1, 1.0 and true are one class.

    >>> [_label_name(value) for value in (True, 1.0, np.int8(0), " Tumor ", "1.0", "false", "'1'")]
    ['1', '1', '0', 'Tumor', '1', '0', '1']
    """
    if isinstance(value, bool | int | float | np.number | np.bool_):
        return str(int(value)) if float(value).is_integer() else str(value)
    name = str(value).strip().strip("'\"").strip()
    if name.lower() in ("true", "false"):
        return str(int(name.lower() == "true"))
    number = re.fullmatch(r"[+-]?[0-9]{1,9}(\.[0-9]*)?(e[+-]?[0-9])?", name, re.IGNORECASE)
    return str(int(float(name))) if number and float(name).is_integer() else name
