"""Images from an .npz file."""

import contextlib
import zipfile

import numpy as np

from ddpm_jax.data import decoding
from ddpm_jax.data import source as source_lib
from ddpm_jax.errors import UserError, one_line
from ddpm_jax.runtime import files


def load(data_dir, split, part, want, labels, condition):
    with _open_npz(data_dir) as arrays:
        beside = ("labels", "condition")
        alone = [key for key in arrays.files if not key.endswith(beside)]
        names = [key for key in ("train", "images", "arr_0") if key in arrays]
        names = names or (alone if len(alone) == 1 else [])
        if not names:
            raise UserError(
                f"config.data.dir={data_dir!r}: holds {arrays.files}, none called 'train'; "
                "write np.savez('images.npz', train=images)."
            )
        own_test = "test" in arrays and names[0] != "test"
        key = "test" if own_test and split == "test" else names[0]
        images = _entry(arrays, key, data_dir)
        source_lib.in_memory(images, f"config.data.dir={data_dir!r} {key!r}")
        told = {
            name: _beside(arrays, key, len(images), name, data_dir)
            for name, wanted in zip(beside, (labels, condition)) if wanted
        }
        classes = told.get("labels")
        if labels and own_test and split == "test":  # Counted where they are trained on.
            classes = _beside(arrays, names[0], None, "labels", data_dir)
    if not own_test:
        chosen = part(len(images))
        images = images[chosen]
        told = {name: array[chosen] for name, array in told.items()}
    if not len(images):
        return None
    source = decoding.from_pixels(images, want)
    if labels:
        name = f"config.data.dir={data_dir!r} {key}_labels"
        source = source.with_labels(told["labels"], max(1, int(classes.max()) + 1), name)
    if condition:
        source_lib.in_memory(told["condition"], f"config.data.dir={data_dir!r} {key}_condition")
        planes = [  # One by one, for there may be any number of channels.
            decoding.from_pixels(plane[..., None], (*source.image_shape[:2], 1))
            for plane in np.moveaxis(told["condition"], -1, 0)
        ]
        source = source.with_condition(
            lambda indices: np.concatenate([plane.read(indices) for plane in planes], axis=-1),
            len(planes),
        )
    return source


@contextlib.contextmanager
def _open_npz(data_dir):
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(files.path(data_dir).open("rb"))
            if not zipfile.is_zipfile(file):
                raise zipfile.BadZipFile
            file.seek(0)
            arrays = stack.enter_context(np.load(file, allow_pickle=False))
        except files.NPZ_DAMAGE:
            raise UserError(
                f"config.data.dir={data_dir!r}: not an .npz file; make one with "
                "np.savez('images.npz', train=images), and write --config.data.dir=images.npz."
            ) from None
        yield arrays


def _entry(arrays, key, data_dir):
    """An array of an .npz file."""
    try:
        return np.asarray(arrays[key])  # Bytes where the zip holds something else.
    except files.NPZ_DAMAGE as error:
        raise UserError(
            f"config.data.dir={data_dir!r}: {key!r} cannot be read ({one_line(error)}); "
            f"make it again with np.savez('images.npz', {key}=array), of plain numbers."
        ) from None


def _beside(arrays, key, rows, name, data_dir):
    """What an .npz file has for the images `key`, so many `rows` unless that is None."""
    found = [k for k in (f"{key}_{name}", name) if k in arrays]
    array = _entry(arrays, found[0], data_dir) if found else None
    if array is None or not array.shape or rows not in (None, len(array)) or not len(array) or (
        name == "labels" and not np.issubdtype(array.dtype, np.integer)
    ):
        kind = "uint8 [n, h, w, k]" if name == "condition" else "int [n]"
        raise UserError(
            f"config.data.dir={data_dir!r}: has no {key}_{name}, {kind}, a row for each image; "
            f"write np.savez('images.npz', {key}=images, {key}_{name}={name})."
        )
    return array
