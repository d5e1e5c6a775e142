"""Data sets by name: `load` opens one as a `Source` of images [h, w, c] of one size.

A new kind of data set is a file with a function from `Request` to `Source`, and a line in `KINDS`.
"""

import dataclasses
import importlib.resources
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm_jax import errors
from ddpm_jax.data import decoding, hugging_face, image_folder, image_pairs, npz
from ddpm_jax.data import labels as labels_lib
from ddpm_jax.data import tfds as tfds_lib
from ddpm_jax.data import value_range as range_lib
from ddpm_jax.data import vectors as vectors_lib
from ddpm_jax.data.kept import Kept, OtherImagesError
from ddpm_jax.data.request import Request
from ddpm_jax.data.source import Source
from ddpm_jax.errors import UserError
from ddpm_jax.runtime import files, parallel


def load(
    name: str,
    *,
    data_dir: str = "",
    split: str = "train",
    image_size: int = 0,
    image_width: int = 0,
    channels: int = 0,
    holdout: int = 0,
    seed: int = 0,
    labels: bool = False,
    num_classes: int = 0,
    vectors: Sequence[str] = (),
    condition: str = "",
    factor: int = 2,
    image_column: str = "",
    label_column: str = "",
    value_range: Any = (),
    named: str = "",
    kept: Kept | None = None,
) -> Source | None:
    """Opens one split of a data set; None for the test split of a set that has none.

    A picture of another size is resized until it covers the wanted size (Lanczos) and
    cropped around its centre. Colour becomes grey by ITU-R 601 luma, and grey becomes colour
    by repetition; transparent pictures are laid over white, unless 4 channels (RGBA) are
    wanted. For folders also: EXIF orientation is applied, 16-bit grey is divided by 257, pixels of
    a range that no file says are refused, and an animation gives its first frame. A set of more
    than `source.MEMORY_BUDGET` bytes of decoded images is streamed; any other is decoded once,
    here.

    Args:
        name: "digits" (8x8x1, part of the package); "image_folder" (every picture below
            `data_dir`); "npz" (uint8 [n, h, w, c] arrays "train" and, optionally, "test"
            in the file `data_dir`); "hf" (a set of Hugging Face `datasets`, `data_dir` being a
            folder of `save_to_disk` or a name of the hub); or a TFDS name, for example "cifar10",
            "cifar10:3.0.2" or "celeb_a_hq/256". TFDS sets that are not prepared yet are
            downloaded if TensorFlow is installed.
        data_dir: the folder or file; for TFDS by default $TFDS_DATA_DIR or
            ~/tensorflow_datasets.
        split: "train" or "test" (TFDS: "validation" if there is no "test").
        image_size: height in pixels, and width unless `image_width` is given; 0 keeps
            the size of the images, which must then have one.
        image_width: width in pixels; 0 means `image_size`.
        channels: 1, 3 or 4; 0 keeps those of the images (for folders: 3).
        holdout: number of images to set aside as "test" if the set has no test split.
        seed: chooses the images that are set aside, and the noise of `image_pairs.noisy`.
        labels: with labels: those of digits or of a TFDS set, the first folder below
            `data_dir` on the way to each picture, or the .npz file's "train_labels" and
            "test_labels". The labels that occur become the classes 0..n-1, in order.
        num_classes: labels in 0..num_classes-1 are classes as they are; 0: the data decide.
        vectors: with numbers for each, of these names: arrays [n] or [n, k] of the .npz file
            ("train_age" and "test_age", or "age"), columns of the `vectors.TABLE` in the folder
            or of the "hf" set, features of a TFDS set; classes there become one-hot. Those of
            digits are "label", one-hot, and "ink", the mean of the pixels in 0..1.
        condition: with a second image for each: "low_resolution" or "noisy" (see
            `image_pairs`), or "stored", the .npz file's uint8 [n, h, w, k] "train_condition"
            and "test_condition".
        factor: of "low_resolution".
        image_column, label_column: of "hf"; "" is the first column of images, and of classes.
        value_range: (low, high), the pixels that are -1 and 1, of "npz" with any real dtype and of
            an "image_folder" or "hf" of PNG and TIFF with up to 32 bits; with any number of
            channels.
        named: what messages call `data_dir` if it is not that of config.data.
        kept: of the run that reads the data: its classes, and the images that it has set aside
            whatever `seed` is.

    Raises:
        UserError: a setting is out of range, or the data are missing, empty, damaged
            beyond `image_folder.MAX_UNREADABLE`, of varying size with `image_size=0`, or without
            the labels or the condition asked for, or with other images set aside than those kept.
    """
    image_size, image_width, channels, holdout, factor = (
        errors.whole_number(f"config.data.{setting}", value) for setting, value in (
            ("image_size", image_size), ("image_width", image_width), ("channels", channels),
            ("holdout", holdout), ("factor", factor),
        )
    )
    seed = errors.whole_number("config.seed", seed, low=0, high=2**32 - 1)  # As NumPy's are.
    value_range = range_lib.checked(value_range)
    _check_settings(name, split, image_size, image_width, holdout, condition)
    _check_channels(name, channels, value_range)
    request = Request(
        name, os.fspath(files.path(data_dir)) if data_dir else "", split,
        (image_size, image_width or image_size, channels), holdout, seed,
        labels, num_classes, vectors_lib.names(vectors), condition == "stored", image_column,
        label_column, value_range, named, kept,
    )
    source = KINDS.get(name, _tfds)(request)
    if split == "test" and kept is not None:
        kept.check(source, request.origin)
    if source is not None and source.labels is not None:
        source = _with_classes_of_run(source, request)
    return _with_condition(source, condition, factor, seed, split)


def _with_condition(source, condition, factor, seed, split):
    if source is not None and condition == "low_resolution":
        return image_pairs.low_resolution(source, factor)
    if source is not None and condition == "noisy":
        return image_pairs.noisy(source, seed=seed, training=split == "train")
    return source


def kept_for(kept: Kept | None, is_own: bool, **settings: Any) -> Kept | None:
    """What a run keeps of its data, for data that may be others.

    Args:
        kept: of the run.
        is_own: whether the data have the name and folder of those the run began with. Others are
            the run's where the images that it has set aside are among them, as after a move; else
            the seed sets images aside, and only the classes are the run's.
        **settings: arguments of `load`.

    Raises:
        UserError: the data cannot be opened.
    """
    if kept is None or is_own or kept.held_out is None:
        return kept
    by_seed = dataclasses.replace(kept, held_out=None)
    try:
        load(split="test", kept=kept, **settings | {"holdout": 0})
    except OtherImagesError:
        return by_seed
    return kept if kept.held_out else by_seed


def part_of(
    source: Source, split: str, *, holdout: int, seed: int, num_classes: int, kept: Kept | None
) -> Source | None:
    """One split of images that were not opened by name; None for "test" if none are set aside.

    Args:
        source: all of the images.
        split, holdout, seed, num_classes, kept: as of `load`.

    Raises:
        UserError: too many are to be set aside, or the images or labels are not those kept.
    """
    if kept is not None and kept.held_out is None:
        holdout = 0  # In runs of older versions, all were trained on.
    request = Request(
        "", "", split, holdout=holdout, seed=seed, num_classes=num_classes, named="data", kept=kept
    )
    if source.labels is not None:
        source = _with_classes_of_run(source, request)
    chosen = request.part(len(source))
    part = source if len(chosen) == len(source) else source.select(chosen)
    if split == "train":
        return part
    part = part.with_fingerprints(chosen, lambda i: part.read(np.array([i])).tobytes())
    if kept is not None:
        kept.check(part, request.origin)
    return part if len(part) else None


def is_there(name: str, data_dir: str) -> bool:
    """Whether `load` finds these data on this machine, without downloading anything.

    Raises:
        UserError: TFDS has the set prepared, but in another version than the one named.
    """
    if name not in KINDS:
        return tfds_lib.is_prepared(name, data_dir)
    return name == "digits" or bool(data_dir) and files.path(data_dir).exists()


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits: uint8 images [n, 8, 8, 1] and int32 labels [n].

    The original values 0..16 become round(v * 255 / 16). The 300 test images are fixed
    and stratified by label; the other 1,497 are for training.

    Args:
        split: "train" or "test".
    """
    path = importlib.resources.files("ddpm_jax.data") / "digits.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        values, labels, index = arrays["images"], arrays["labels"], arrays["test_index"]
    chosen = np.isin(np.arange(len(values)), index) == (split == "test")
    images = np.round(values[chosen, :, :, None] * (255 / 16)).astype(np.uint8)
    return images, labels[chosen].astype(np.int32)


def _with_classes_of_run(source, request):
    known = request.kept or Kept()
    classes = known.classes or labels_lib.classes_of(
        source.classes, known.num_classes or request.num_classes
    )
    return source.with_classes(classes, f"{request.origin} labels")


def _digits(request: Request) -> Source:
    images, labels = digits(request.split)
    source = decoding.converted_source(images, request.shape)
    source = source.with_labels(labels, 10) if request.labels else source
    columns = {
        "label": vectors_lib.one_hot(labels, 10), "ink": images.mean(axis=(1, 2, 3)) / 255
    }
    for name in request.vectors:
        errors.check_known("config.data.vectors", name, tuple(columns))
    return source.with_vectors({name: columns[name] for name in request.vectors})


def _tfds(request: Request) -> Source | None:
    with parallel.first_goes_ahead():  # The others find what the first downloads.
        return tfds_lib.load(request)


# By name; any other name is a data set of TFDS.
KINDS = {
    "digits": _digits, "hf": hugging_face.load,
    "image_folder": image_folder.load, "npz": npz.load,
}
RANGED = ("npz", "image_folder", "hf")  # Those whose pixels may be other than uint8.


def _check_settings(name, split, image_size, image_width, holdout, condition):
    if not isinstance(name, str):
        raise UserError(
            "must be a string; write --config.data.name=digits.", field="config.data.name",
            value=name,
        )
    if split not in ("train", "test"):
        raise UserError(f"split={split!r}: must be 'train' or 'test'.")
    sizes = {"image_size": image_size, "image_width": image_width, "holdout": holdout}
    for setting, value in sizes.items():
        if value < 0:
            raise UserError(
                f"config.data.{setting}={value}: must not be negative; the default is "
                f"--config.data.{setting}=0."
            )
    if image_width and not image_size:
        raise UserError(
            f"config.data.image_width={image_width}: needs a height too; add "
            f"--config.data.image_size={image_width}."
        )
    if condition not in ("", *image_pairs.NAMED) and (name, condition) != ("npz", "stored"):
        raise UserError(
            f"config.data.condition={condition!r}: must be one of {', '.join(image_pairs.NAMED)}, "
            "'stored' with --config.data.name=npz, or '' for none."
        )


def _check_channels(name, channels, value_range):
    """Refuses channels, and a range of values, that the kind of data does not have."""
    if value_range and name not in RANGED:
        raise UserError(
            f"is for {', '.join(RANGED)}, and config.data.name={errors.shown(name)} has 8 bits",
            field="config.data.range", value=value_range, instead={"config.data.range": ()},
        )
    of_pictures = not value_range and name != "npz"
    if channels < 0 or of_pictures and channels not in (0, *decoding.MODES):
        raise UserError(
            f"config.data.channels={channels}: must be 1 (grey), 3 (RGB), 4 (RGBA) or 0 "
            "(as the data are); try --config.data.channels=3."
        )
