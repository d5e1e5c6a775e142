"""Data sets as deterministic batches of this process's share.

`load` opens a data set as a `Source` of uint8 images [h, w, c] of one size; `batches`
shuffles it. Batch k is a function of (seed, k) alone: a run resumes at any batch without
reading those before it, and any number of processes together see the same batches.
"""

import contextlib
import importlib.resources
import os
import zipfile
from collections.abc import Iterator

import numpy as np

from ddpm_jax.data import image_folder, image_pairs
from ddpm_jax.data import source as source_lib
from ddpm_jax.data import tfds as tfds_lib
from ddpm_jax.data.source import Source, from_array
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
    condition: str = "",
    factor: int = 2,
) -> Source | None:
    """Opens one split of a data set; None for the test split of a set that has none.

    A picture of another size is resized until it covers the size asked for (Lanczos) and
    cropped around its centre. Colour becomes grey by ITU-R 601 luma, grey becomes colour
    by repetition; transparent pictures are laid over white, unless 4 channels (RGBA) are
    asked for. For folders also: EXIF orientation is applied, 16-bit grey is divided by
    257, and an animation gives its first frame. What decodes to more than `source.MEMORY_BUDGET`
    bytes is streamed, the rest is decoded once, here.

    Args:
        name: "digits" (8x8x1, part of the package); "image_folder" (every picture below
            `data_dir`); "npz" (uint8 [n, h, w, c] arrays "train" and, optionally, "test"
            in the file `data_dir`); or a TFDS name such as "cifar10", "cifar10:3.0.2",
            "celeb_a_hq/256". TFDS sets that are not prepared yet are downloaded if
            TensorFlow is installed.
        data_dir: the folder or file; for TFDS by default $TFDS_DATA_DIR or
            ~/tensorflow_datasets.
        split: "train" or "test" (TFDS: "validation" where there is no "test").
        image_size: height in pixels, and width unless `image_width` is given; 0 keeps
            the size of the data, which must then have one.
        image_width: width in pixels; 0 means `image_size`.
        channels: 1, 3 or 4; 0 keeps those of the data (for folders: 3).
        holdout: number of images to set aside as "test" where the set has no test split.
        seed: chooses which images are set aside, and the noise of `image_pairs.noisy`.
        labels: the source is to have labels: those of digits or of a TFDS set, the first
            folder below `data_dir` on the way to each picture, or the .npz file's
            "train_labels" and "test_labels".
        condition: the source is to have an image beside each: "low_resolution" or "noisy" (see
            `pairs`), or "stored", the .npz file's uint8 [n, h, w, k] "train_condition" and
            "test_condition".
        factor: of "low_resolution".

    Raises:
        ValueError: a setting is out of range or the data are missing, empty, damaged
            beyond `image_folder.MAX_UNREADABLE`, of varying size with `image_size=0`, or without
            the labels or the condition asked for.
    """
    _check_settings(split, image_size, image_width, channels, holdout)
    known = ("", *image_pairs.NAMED, *(("stored",) if name == "npz" else ()))
    if condition not in known:
        raise ValueError(
            f"config.data.condition={condition!r}: must be one of {', '.join(image_pairs.NAMED)}, "
            "'stored' with --config.data.name=npz, or '' for none."
        )
    want = (image_size, image_width or image_size, channels)
    data_dir = os.fspath(files.path(data_dir)) if data_dir else data_dir

    def part(n):
        return _split_indices(n, split, holdout, seed)

    if name == "digits":
        images, classes = digits(split)
        source = _from_pixels(images, want)
        source = source.with_labels(classes, 10) if labels else source
    elif name == "image_folder":
        source = image_folder.load(data_dir, part, want, labels)
    elif name == "npz":
        source = _load_npz(data_dir, split, part, want, labels, condition == "stored")
    else:
        with parallel.first_goes_ahead():  # What it downloads is there for the others.
            source = tfds_lib.load(name, data_dir, split, part, want, labels)
    if source is not None and condition == "low_resolution":
        return image_pairs.low_resolution(source, factor)
    if source is not None and condition == "noisy":
        return image_pairs.noisy(source, seed=seed, training=split == "train")
    return source


def is_there(name: str, data_dir: str) -> bool:
    """Whether `load` finds these data on this machine, without downloading anything.

    Raises:
        ValueError: TFDS has the set prepared, but in another version than the one named.
    """
    if name in ("image_folder", "npz"):
        return bool(data_dir) and files.path(data_dir).exists()
    return name == "digits" or tfds_lib.is_prepared(name, data_dir)


def batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of batches `start`, `start + 1`, ... without end.

    Every epoch visits each image once, in an order of its own; batches run across the
    border of epochs. The shares of all processes, concatenated in order, are the batch
    that a single process would see. A thread reads ahead until `.close()` is called.

    Args:
        source: the images.
        seed: not negative; with the number of a batch it decides its images.
        batch_size: images a batch over all processes; may exceed `len(source)`.
        start: number of the first batch, from 0; earlier ones are not read.
        process_index: 0..process_count-1.
        process_count: divides `batch_size`.

    Returns:
        An iterator of `source.examples`: "images", uint8 [batch_size // process_count, h, w, c],
        and where the source has them "labels" and "condition".

    Raises:
        ValueError: `seed` is negative or `batch_size` does not divide.
    """
    if seed < 0:
        raise ValueError(f"config.seed={seed}: must not be negative; try --config.seed=0.")
    if batch_size < 1 or batch_size % process_count:
        nearest = max(1, round(batch_size / process_count)) * process_count
        raise ValueError(
            f"config.train.batch_size={batch_size}: must be a positive multiple of the "
            f"{process_count} processes; try --config.train.batch_size={nearest}."
        )
    import grain  # Imports take longer than the rest of this module.

    order = grain.MapDataset.range(len(source)).seed(int(seed)).shuffle().repeat()
    # Batch first, then slice: a share is a run of consecutive images of the batch.
    shares = order.batch(batch_size // process_count)[process_index::process_count]
    threads = 1 if source.in_memory else image_folder.THREADS
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(4, threads))
    return iter(shares[start:].map(source.examples).to_iter_dataset(options))


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits: uint8 images [n, 8, 8, 1] and int labels [n].

    The original values 0..16 become round(v * 255 / 16). The 300 test images are fixed
    and stratified by label; the other 1,497 are for training.

    Args:
        split: "train" or "test".
    """
    path = importlib.resources.files("ddpm_jax") / "digits.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        values, labels, index = arrays["images"], arrays["labels"], arrays["test_index"]
    chosen = np.isin(np.arange(len(values)), index) == (split == "test")
    images = np.round(values[chosen, :, :, None] * (255 / 16)).astype(np.uint8)
    return images, labels[chosen].astype(np.int32)


def _check_settings(split, image_size, image_width, channels, holdout):
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: must be 'train' or 'test'.")
    sizes = {"image_size": image_size, "image_width": image_width, "holdout": holdout}
    for setting, value in sizes.items():
        if value < 0:
            raise ValueError(
                f"config.data.{setting}={value}: must not be negative; the default is "
                f"--config.data.{setting}=0."
            )
    if image_width and not image_size:
        raise ValueError(
            f"config.data.image_width={image_width}: needs a height too; add "
            f"--config.data.image_size={image_width}."
        )
    if channels not in (0, *source_lib.MODES):
        raise ValueError(
            f"config.data.channels={channels}: must be 1 (grey), 3 (RGB), 4 (RGBA) or 0 "
            "(as the data are); try --config.data.channels=3."
        )


def _split_indices(n, split, holdout, seed):
    """Which of n images, without a test split of their own, are in `split`."""
    if holdout >= n:
        raise ValueError(
            f"config.data.holdout={holdout}: must leave some of the {n} images for "
            f"training; try --config.data.holdout={n // 10}."
        )
    # RandomState: its permutations are promised never to change.
    order = np.random.RandomState(seed).permutation(n)
    return np.sort(order[:holdout] if split == "test" else order[holdout:])


def _from_pixels(images, want):
    """A source of an array's images, converted if they are not as wanted."""
    shape = source_lib.target(want, images.shape[1:])
    if shape != images.shape[1:]:
        if images.shape[-1] not in source_lib.MODES:
            raise ValueError(
                f"config.data.channels={want[-1]}: images {list(images.shape)} are neither grey, "
                "RGB nor RGBA, and so only taken as they are; write --config.data.image_size=0 "
                "--config.data.channels=0."
            )

        def read(indices):
            return np.stack([source_lib.convert(image, shape) for image in images[indices]])

        if not source_lib.fits(len(images), shape):
            return Source(len(images), shape, read)
        images = read(np.arange(len(images)))
    return from_array(images)


def _load_npz(data_dir, split, part, want, labels, condition):
    with _open_npz(data_dir) as arrays:
        beside = ("labels", "condition")
        alone = [key for key in arrays.files if not key.endswith(beside)]
        names = [key for key in ("train", "images", "arr_0") if key in arrays]
        names = names or (alone if len(alone) == 1 else [])
        if not names:
            raise ValueError(
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
    source = _from_pixels(images, want)
    if labels:
        name = f"config.data.dir={data_dir!r} {key}_labels"
        source = source.with_labels(told["labels"], max(1, int(classes.max()) + 1), name)
    if condition:
        source_lib.in_memory(told["condition"], f"config.data.dir={data_dir!r} {key}_condition")
        planes = [  # One by one, for there may be any number of channels.
            _from_pixels(plane[..., None], (*source.image_shape[:2], 1))
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
            raise ValueError(
                f"config.data.dir={data_dir!r}: not an .npz file; make one with "
                "np.savez('images.npz', train=images), and write --config.data.dir=images.npz."
            ) from None
        yield arrays


def _entry(arrays, key, data_dir):
    """An array of an .npz file."""
    try:
        return np.asarray(arrays[key])  # Bytes where the zip holds something else.
    except files.NPZ_DAMAGE as error:
        raise ValueError(
            f"config.data.dir={data_dir!r}: {key!r} cannot be read ({files.one_line(error)}); "
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
        raise ValueError(
            f"config.data.dir={data_dir!r}: has no {key}_{name}, {kind}, a row for each image; "
            f"write np.savez('images.npz', {key}=images, {key}_{name}={name})."
        )
    return array
