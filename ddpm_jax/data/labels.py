"""Labels as people have them, as classes 0..n-1: one label per image or one-hot, of most types."""

import contextlib
import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError, shown

Value = int | str  # A label as the data have it: floats and bools that are whole become int.

MAX_CLASSES = 10_000  # More than that are likely ids of images.
_WHOLE = (int, np.integer, np.bool_)
_NUMBERS = (*_WHOLE, float, np.floating)
_OF_OBJECTS = ((str, str), (_WHOLE, np.int64), (_WHOLE, np.uint64), (_NUMBERS, np.float64))
_LISTED = 8  # Values and classes in one line, at most.
_LONGEST = 40  # Characters of each.


def read(labels: Any, size: int, name: str) -> tuple[np.ndarray, tuple[Value, ...]]:
    """(codes, values): the label of image i is values[codes[i]]; values are sorted.

    Args:
        labels: [size], [size, 1], or one-hot [size, k]; whole numbers of any type, bools or
            strings.
        size: number of images.
        name: of the labels in messages.

    Returns:
        Codes int32 [size], and each value that occurs.

    Raises:
        UserError: there is not one label for each image, or some cannot be a class.
    """
    array = _plain(_one_per_image(_array(labels), size, name), name)
    values, codes = np.unique(array, return_inverse=True)
    return codes.reshape(-1).astype(np.int32), tuple(values.tolist())


def encode(
    codes: np.ndarray, values: Sequence[Value], classes: Sequence[Value], name: str
) -> np.ndarray:
    """The class of each image, int32, where class i is the label classes[i].

    Args:
        codes, values: of `read`.
        classes: the label of each class; further ones than occur do no harm.
        name: of the labels in messages.

    Raises:
        UserError: a label is none of the classes.
    """
    number = {value: i for i, value in enumerate(classes)}
    missing = [code for code in np.unique(codes) if values[code] not in number]
    if missing:
        strangers = np.isin(codes, missing)
        raise _refused(
            name, int(strangers.argmax()),
            f"the label {shortened(values[missing[0]])}, which is none of the {len(classes)} "
            f"classes to train on ({listed(map(shortened, classes))})",
            f"leave out the images of other classes ({strangers.sum()} of {len(codes)}), or train "
            "on them too, in a new --workdir",
        )
    return np.array([number.get(value, 0) for value in values], np.int32)[codes]


def classes_of(values: Sequence[Value], num_classes: int) -> tuple[Value, ...]:
    """The label of each class: the values in order, unless they are classes as they are.

    Args:
        values: of `read`.
        num_classes: as the user set it; whole numbers in 0..num_classes-1 are classes as they
            are. 0: the data decide.
    """
    as_they_are = all(isinstance(v, int) and 0 <= v < num_classes for v in values)
    return tuple(range(num_classes)) if as_they_are else tuple(values)


def check_number(
    values: Sequence[Value], num_classes: int, name: str, field: str = "config.data.num_classes"
) -> None:
    """Raises UserError where there are more classes than are likely, unless the user set as many.

    Args:
        values: of `read`.
        num_classes: as the user set it; 0: the data decide.
        name: of the labels in messages.
        field: what the user sets `num_classes` by.
    """
    if len(values) > max(MAX_CLASSES, num_classes):
        raise UserError(
            f"{name}: {len(values):,} different labels, the largest {shortened(max(values))}, are "
            f"more than {MAX_CLASSES:,} classes and likely the ids of images; give each image the "
            "label of its class, or write {instead} if there are so many.",
            instead={field: len(values)},
        )


def numbered(labels: Any, class_names: Sequence[str]) -> Any:
    """The labels, names of classes as their numbers.

    Args:
        labels: numbers or names, one or several; "cat,dog" is two.
        class_names: in order.

    Raises:
        UserError: a name is none of these.
    """
    try:
        items = np.asarray(labels, object)
    except ValueError:  # Lists of different lengths.
        return labels
    if not any(isinstance(item, str) for item in items.reshape(-1)):
        return labels
    table = {name: i for i, name in enumerate(class_names)}
    if items.size == 1 and "," in items.item() and items.item() not in table:
        items = np.array(items.item().split(","), object)
    numbers = [_number(item, table) for item in items.reshape(-1)]
    return np.array(numbers).reshape(items.shape).tolist()


def _number(item, table):
    if not isinstance(item, str):
        return item
    if item not in table and item.isdecimal():
        return int(item)
    if not table:
        raise UserError(
            "is a name, and the classes of this model have none; write their numbers.",
            field="labels", value=item, instead={"labels": 0},
        )
    if item not in table:
        raise UserError(
            f"is none of the {len(table)} classes: {listed(map(shortened, table))}",
            field="labels", value=item, instead={"labels": _nearest(item, table)},
        )
    return table[item]


def _nearest(name, names):
    alike = {each.lower(): each for each in reversed(list(names))}
    close = difflib.get_close_matches(name.lower(), alike, 1, cutoff=0)
    return alike[close[0]]


def line(
    classes: Sequence[Value], counts: Sequence[int], class_names: Sequence[str] = ()
) -> str:
    """What the classes are, in one line of bounded length.

    Args:
        classes: the label of each class.
        counts: images of each class.
        class_names: what they are called, if it is not that.
    """
    n, classes = len(classes), class_names or classes
    if are_plain(classes):
        return f"classes: {n}, of {min(counts):,} to {max(counts):,} images each"
    images = [f"{shortened(v)} ({count:,} images)" for v, count in zip(classes, counts)]
    return f"classes: {n}, numbered 0..{n - 1} in the order {listed(images)}"


def are_plain(classes: Sequence[Value]) -> bool:
    """Whether the labels are the numbers of the classes."""
    return tuple(classes) == tuple(range(len(classes)))


def listed(words) -> str:
    """The words with commas; of many only the first and the last."""
    words = list(words)
    if len(words) > _LISTED:
        words = [*words[:_LISTED - 1], "...", words[-1]]
    return ", ".join(words)


def shortened(value: Value) -> str:
    """A label or a name as a part of one line."""
    text = str(value)
    text = text if text.isprintable() and text else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST - 3]}..."


def _array(labels):
    """The labels as an array of integers, floats, bools or strings, or of what cannot be read."""
    if np.ma.is_masked(labels):
        labels = labels.tolist()  # None where one is masked.
    # Lists as objects, because NumPy would write numbers among strings as strings.
    array = np.array(labels, object) if isinstance(labels, (list, tuple)) else np.asarray(labels)
    if array.dtype.kind == "O":
        items = [x.decode() if isinstance(x, bytes) else x for x in array.reshape(-1).tolist()]
        for kinds, dtype in _OF_OBJECTS:
            if items and all(isinstance(item, kinds) for item in items):
                with contextlib.suppress(OverflowError):
                    return np.array(items, dtype).reshape(array.shape)
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8", "backslashreplace")
    return array.astype(str) if array.dtype.kind == "T" else array


def _one_per_image(array, size, name):
    """The labels [size] of an array [size], [size, 1] or one-hot [size, k]."""
    found = len(array) if array.ndim else 1
    if array.ndim == 0 or found != size:
        raise UserError(
            f"{name}: {found:,} labels for {size:,} images; give one label for each image."
        )
    if array.size == size:
        return array.reshape(size)
    problem = "more than one number for each image"
    if array.ndim == 2 and array.size and array.dtype.kind in "biuf":
        one_hot = ((array == 1).sum(axis=1) == 1) & ((array != 0).sum(axis=1) == 1)
        if one_hot.all():
            return array.argmax(axis=1)
        row = int(one_hot.argmin())
        problem = f"and image {row} has {shown(array[row].tolist())}, which is not one-hot"
    raise UserError(
        f"{name}: {array.dtype} {list(array.shape)}, {problem}; give one label for each image, "
        "for example labels.argmax(axis=1) where a row has the score of each class."
    )


def _plain(array, name):
    """The labels [size] as integers or as str."""
    kind = array.dtype.kind
    if kind in "iuU":
        return array
    if kind == "b":
        return array.astype(np.int32)
    if kind == "f":
        array = array.astype(np.float64)
        whole = (array == np.round(array)) & (abs(array) < 2.0**53)
        if whole.all():
            return array.astype(np.int64)
        row = int(whole.argmin())
        if np.isnan(array[row]):
            raise _refused(name, row, "no label (nan)", _LEAVE_OUT)
        rule = "too large" if array[row] == np.round(array[row]) else "no whole number"
        raise _refused(
            name, row, f"the label {array[row]}, which is {rule}", "give the number of "
            "its class, or np.unique(labels, return_inverse=True)[1] if each value is a class"
        )
    if kind == "O":
        raise _mixed(array.tolist(), name)
    raise UserError(
        f"{name}: {array.dtype} {list(array.shape)} are no labels; give whole numbers or strings, "
        "for example labels.astype(str)."
    )


_LEAVE_OUT = "leave such images out, or give them a label of their own"


def _mixed(items, name):
    """The error for objects that are neither all strings nor all numbers."""
    for row, item in enumerate(items):
        if item is None or type(item).__name__ in ("NAType", "NaTType"):
            return _refused(name, row, f"no label ({item})", _LEAVE_OUT)
        if isinstance(item, float) and np.isnan(item):
            return _refused(name, row, "no label (nan)", _LEAVE_OUT)
    kind = str if isinstance(items[0], str) else _NUMBERS
    row = next((i for i, item in enumerate(items) if not isinstance(item, kind)), 0)
    return _refused(
        name, row, f"the label {shown(items[row])}, of type {type(items[row]).__name__}",
        "give a whole number for each image, or a string for each",
    )


def _refused(name, row, what, instead):
    return UserError(f"{name}: image {row} has {what}; {instead}.")
