"""Vectors: numbers that go with each image, as the data have them and as a network gets them.

A network gets a one and then the numbers less their mean, over their standard deviation. Zeros
stand for no vector: a linear layer without a bias makes nothing of them.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from ddpm_jax.errors import UserError, one_line, shown

Scale = tuple[tuple[float, ...], tuple[float, ...]] | tuple[()]  # (mean, standard deviation).
TABLE = "metadata.csv"  # Beside the pictures of a folder, as in Hugging Face's.
_LISTED = 6  # Numbers in one line, at most.
FILE_COLUMN = "file_name"  # The path of a picture, from the folder of the table on.


def names(vectors: Any) -> tuple[str, ...]:
    """The names of numbers in the data, as `config.data.vectors` has them.

    Raises:
        UserError: it is no list of names.
    """
    field = "config.data.vectors"
    wrong = isinstance(vectors, str) or not isinstance(vectors, Sequence)
    if wrong or not all(isinstance(name, str) and name for name in vectors):
        example = vectors if isinstance(vectors, str) and vectors else "age"
        raise UserError(
            "must be names of numbers in the data, or () for none", field=field, value=vectors,
            instead={field: (example,)},
        )
    return tuple(vectors)


def joined(columns: Mapping[str, Any], size: int) -> np.ndarray:
    """The numbers of each image, [size, k], in the order of the columns.

    Args:
        columns: name in messages -> [size] or [size, m] real numbers or bools.
        size: number of images.

    Raises:
        UserError: there is not one row for each image, or a value is no number, NaN or infinite.
    """
    return np.concatenate([_checked(name, values, size) for name, values in columns.items()], -1)


def _checked(name, values, size):
    """A column as numbers [size, m]; floats stay what they are."""
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "buif":  # Also strings of digits: those of a table are read.
            raise ValueError(f"they are {array.dtype}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{name}: must be numbers, [{size}] or [{size}, m] ({one_line(error)[:200]}); write "
            "each as numbers, a class as labels or as one-hot."
        ) from None
    if array.ndim not in (1, 2) or len(array) != size or not array.size:
        raise UserError(
            f"{name}={list(array.shape)}: must be numbers for each of {size:,} images, in the same "
            f"order; write them as [{size}] or [{size}, m]."
        )
    array = array.reshape(size, -1)
    array = array if array.dtype.kind == "f" else array.astype(np.float64)
    wrong = ~np.isfinite(array).all(axis=1)
    if wrong.any():
        raise UserError(
            f"{name}: image {wrong.argmax()} has {array[wrong.argmax()].tolist()!s:.60} "
            f"({wrong.sum():,} of {size:,} images have NaN or infinity); leave these images out."
        )
    return array


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Labels [n] in 0..num_classes-1 as float64 [n, num_classes], a one each; others as NaN."""
    classes = np.asarray(labels)[:, None] == np.arange(num_classes)
    return np.where(classes.any(axis=1, keepdims=True), classes, np.nan)


def scale_of(vectors: np.ndarray) -> Scale:
    """The mean and the standard deviation of each number over all images, in float64.

    The latter is 1 where all are equal: they are 0 to the network.

    Args:
        vectors: [n, k].
    """
    mean = vectors.mean(axis=0, dtype=np.float64)
    std = vectors.std(axis=0, dtype=np.float64)
    equal = vectors.min(axis=0) == vectors.max(axis=0)
    return tuple(mean.tolist()), tuple(np.where(equal, 1.0, std).tolist())


def line(scale: Scale) -> str:
    """What the numbers are, in one line of bounded length."""
    about = ", ".join(f"{mean:.4g} +- {std:.4g}" for mean, std in list(zip(*scale))[:_LISTED])
    more = ", ..." if len(scale[0]) > _LISTED else ""
    return f"vectors: {len(scale[0])} numbers for each image, {about}{more}"


def standardized(vectors: np.ndarray, scale: Scale) -> np.ndarray:
    """What the network gets: float32 [..., k + 1], a one and the numbers by their scale.

    Args:
        vectors: [..., k], as the data have them.
        scale: of the images that the network was trained on.
    """
    mean, std = map(np.asarray, scale)
    numbers = (np.asarray(vectors, np.float64) - mean) / std
    return np.concatenate([np.ones_like(numbers[..., :1]), numbers], axis=-1, dtype=np.float32)


def read_tables(
    folder: epath.Path, inner: Sequence[str], names: Sequence[str], columns: Sequence[str],
    where: str,
) -> np.ndarray:
    """The numbers of pictures [n, k] in `TABLE`, of a folder and of those in it that have one.

    A table has a heading, with `FILE_COLUMN` and the columns; further columns and rows do no harm.

    Args:
        folder: of the pictures.
        inner: the folders in it that may have a table of their own: those of splits.
        names: of the pictures, relative to the folder.
        columns: which numbers.
        where: the folder in messages.

    Raises:
        UserError: there is no table, it cannot be read or has no such column, or a picture has no
            row, two rows, or a value that is no number.
    """
    found = [prefix for prefix in ("", *(f"{name}/" for name in inner))
             if (folder / prefix / TABLE).exists()]
    if not found:
        raise UserError(
            f"is read from {TABLE} beside the pictures, and {where} has none; write one with the "
            f"columns {','.join((FILE_COLUMN, *columns))} and a row for each picture.",
            field="config.data.vectors", value=tuple(columns),
        )
    wanted, rows = set(names), {}
    for prefix in found:
        _read_table(folder / prefix / TABLE, prefix, columns, wanted, rows)
    missing = [name for name in names if name not in rows]
    if missing:
        raise UserError(
            f"{where}: {len(missing):,} of {len(names):,} pictures have no row in "
            f"{' or '.join(prefix + TABLE for prefix in found)}, the first {shown(missing[0])}; "
            "write a row for each, or remove these pictures."
        )
    return np.array([rows[name] for name in names])


def _read_table(path, prefix, columns, wanted, rows):
    """Puts the numbers of the pictures `wanted` into `rows`, by their names."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # Excel begins with a mark.
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        heading = [name.strip() for name in table.fieldnames or ()]
        table.fieldnames = heading
        lines = [(table.line_num, row) for row in table]
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)[:200]}); write it as UTF-8 with commas, a "
            "heading and a row for each picture."
        ) from None
    absent = [name for name in (FILE_COLUMN, *columns) if name not in heading]
    if absent:
        raise UserError(
            f"{path} has no column {shown(absent[0])}, only {shown(heading)}; name others by "
            f"config.data.vectors, or write it with commas and {FILE_COLUMN} in its heading."
        )
    for line, row in lines:
        name = prefix + (row[FILE_COLUMN] or "").strip().replace("\\", "/").removeprefix("./")
        if name not in wanted:
            continue
        if name in rows:
            raise UserError(
                f"{path}, line {line}: has a second row for {shown(name)}; leave one of them."
            )
        rows[name] = [_number(path, line, column, row[column]) for column in columns]


def _number(path, line, column, text):
    try:
        value = float(text)
        if not np.isfinite(value):
            raise ValueError
    except (TypeError, ValueError):
        raise UserError(
            f"{path}, line {line}: {column} is {shown(text)}, and must be a number; write it, or "
            "remove the picture."
        ) from None
    return value
