"""Data sets as deterministic batches of this process's share.

`load` opens a data set as a `Source` of uint8 images [h, w, c] of one size; `batches`
shuffles it. Batch k is a function of (seed, k) alone: a run resumes at any batch without
reading those before it, and any number of processes together see the same batches.
"""

import concurrent.futures
import contextlib
import dataclasses
import importlib.resources
import math
import os
import pathlib
import re
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator

from absl import logging
from etils import epath
import numpy as np
from PIL import Image, ImageOps

MEMORY_BUDGET = 2 * 2**30  # bytes of decoded images; a larger set is streamed
MAX_UNREADABLE = 0.05  # share of a folder's files that may be skipped
_CHUNK = 1000  # images decoded at a time
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's name for them
_THREADS = min(16, os.cpu_count() or 1)
_UNREADABLE = (  # what Pillow raises on damaged files
    OSError, RuntimeError, SyntaxError, EOFError, ValueError, TypeError, LookupError,
    ArithmeticError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A random-access set of uint8 images of one size.

    Attributes:
        size: number of images; also `len(source)`.
        image_shape: (height, width, channels).
        read: maps an int array [k] of indices in 0..size-1 to uint8 [k, h, w, c]; pure,
            and safe to call from several threads.
        in_memory: whether `read` only copies, rather than decodes.
    """

    size: int
    image_shape: tuple[int, int, int]
    read: Callable[[np.ndarray], np.ndarray]
    in_memory: bool = False

    def __len__(self) -> int:
        return self.size


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
) -> Source | None:
    """Opens one split of a data set; None for the test split of a set that has none.

    A picture of another size is resized until it covers the size asked for (Lanczos) and
    cropped around its centre. Colour becomes grey by ITU-R 601 luma, grey becomes colour
    by repetition; transparent pictures are laid over white, unless 4 channels (RGBA) are
    asked for. For folders also: EXIF orientation is applied, 16-bit grey is divided by
    257, and an animation gives its first frame. What decodes to more than `MEMORY_BUDGET`
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
        seed: chooses which images are set aside.

    Raises:
        ValueError: a setting is out of range or the data are missing, empty, damaged
            beyond `MAX_UNREADABLE`, or of varying size with `image_size=0`.
    """
    _check_settings(split, image_size, image_width, channels, holdout)
    want = (image_size, image_width or image_size, channels)
    if name == "digits":
        return _from_pixels(digits(split)[0], want)
    part = lambda n: _split_indices(n, split, holdout, seed)
    if name == "image_folder":
        return _load_folder(data_dir, part, want)
    if name == "npz":
        return _load_npz(data_dir, split, part, want)
    return _load_tfds(name, data_dir, split, part, want)


def from_array(images: np.ndarray) -> Source:
    """A source of the images of an array, uint8 [n, h, w, c]; not copied.

    Raises:
        ValueError: `images` has another dtype or shape, or is empty.
    """
    return _in_memory(np.asarray(images), "data")


def batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[np.ndarray]:
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
        An iterator of uint8 [batch_size // process_count, h, w, c].

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
    threads = 1 if source.in_memory else _THREADS
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(4, threads))
    return iter(shares[start:].map(source.read).to_iter_dataset(options))


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
    if channels not in (0, *_MODES):
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


# Arrays.


def _in_memory(images, name):
    """A source of `images`, which a message calls `name`."""
    got = f"{name}={images.dtype} {list(images.shape)}: must be uint8 [n, h, w, c]"
    if images.ndim == 3:
        raise ValueError(f"{got}; write images[..., None] for grey images [n, h, w].")
    if images.ndim != 4 or not images.size:
        raise ValueError(f"{got} and not empty; write np.stack(list_of_images).")
    if images.dtype != np.uint8:
        raise ValueError(
            f"{got}, 0..255; write np.uint8(np.round((x + 1) * 127.5)) for x in [-1, 1]."
        )
    return Source(len(images), images.shape[1:], lambda indices: images[indices], True)


def _from_pixels(images, want):
    """A source of an array's images, converted if they are not as wanted."""
    shape = _target(want, images.shape[1:])
    if shape != images.shape[1:]:
        images = np.stack([_convert(image, shape) for image in images])
    return from_array(images)


def _load_npz(data_dir, split, part, want):
    if not zipfile.is_zipfile(data_dir):
        raise ValueError(
            f"config.data.dir={data_dir!r}: not an .npz file; make one with "
            "np.savez('images.npz', train=images), and write --config.data.dir=images.npz."
        )
    with np.load(data_dir, allow_pickle=False) as arrays:
        names = [key for key in ("train", "images", "arr_0") if key in arrays]
        names = names or (arrays.files if len(arrays.files) == 1 else [])
        if not names:
            raise ValueError(
                f"config.data.dir={data_dir!r}: holds {arrays.files}, none called 'train'; "
                "write np.savez('images.npz', train=images)."
            )
        own_test = "test" in arrays and names[0] != "test"
        key = "test" if own_test and split == "test" else names[0]
        images = arrays[key]
    _in_memory(images, f"config.data.dir={data_dir!r} {key!r}")
    if not own_test:
        images = images[part(len(images))]
    return _from_pixels(images, want) if len(images) else None


# Pictures.


def _target(want, shape):
    """The wanted (height, width, channels), with 0 for "as the data are" filled in."""
    return tuple(w or s for w, s in zip(want, shape))


def _convert(array, shape):
    """One decoded image [h, w, c], as uint8 of the given shape."""
    if array.shape == shape and array.dtype == np.uint8:
        return array
    return _pixels(Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array), shape)


def _decode(path, shape):
    """The first frame of a picture file, uint8 [h, w, c]; a 0 in shape: as the file is."""
    with Image.open(path) as image:
        # A JPEG far too large is cheaper to decode at 1/2, 1/4 or 1/8 of its size.
        if shape[0]:
            image.draft(None, (2 * max(shape[:2]), 2 * max(shape[:2])))
        return _pixels(ImageOps.exif_transpose(image), shape)


def _pixels(image, shape):
    """A Pillow image as uint8 [h, w, c], by the rules of `load`."""
    height, width, channels = shape
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion to 8 bits clips.
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if channels != 4:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image).convert("RGB")
    elif image.mode not in ("1", "L", "F"):
        image = image.convert("RGB")  # CMYK and palettes have no way straight to grey.
    image = image.convert(_MODES[channels])
    if height and image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(image.height, image.width, channels)


def _fits(size, shape):
    return size * math.prod(shape) <= MEMORY_BUDGET


# Folders of pictures.


def picture_files(folder: str) -> list[str]:
    """Relative paths, sorted, of the files below a folder that Pillow has a reader for.

    They are told by their extension; hidden files and folders are left out.
    """
    Image.init()
    known = {e for e, form in Image.registered_extensions().items() if form in Image.OPEN}
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in known:
                found.append(pathlib.Path(root, name).relative_to(folder).as_posix())
    return sorted(found)


class _Folder:
    """Picture files decoded one by one, with an account of those that cannot be."""

    def __init__(self, path, files, want):
        self.path, self.files, self.want = path, files, want
        self.unreadable, self.lock = {}, threading.Lock()
        self.shape = None
        self.shape = self.nearest(0).shape

    def decode(self, i):
        """Image i, or None where its file is unreadable, which is logged."""
        if i in self.unreadable:
            return None
        try:
            image = _decode(os.path.join(self.path, self.files[i]), self.want)
        except _UNREADABLE as error:
            self.note(i, error)
            return None
        if self.shape and image.shape != self.shape:
            self.refuse_size(i, *image.shape[:2])
        return image

    def nearest(self, i):
        """Image i, or the next one that can be read."""
        while (image := self.decode(i)) is None:
            self.check()
            i = (i + 1) % len(self.files)
        return image

    def note(self, i, error):
        with self.lock:
            if i not in self.unreadable and len(self.unreadable) < 10:
                logging.warning("Skipping %s: %s", self.files[i], error)
            self.unreadable[i] = self.files[i]

    def check(self):
        """Raises where more files are unreadable than may be."""
        with self.lock:
            bad, total = sorted(self.unreadable.values()), len(self.files)
        if len(bad) > MAX_UNREADABLE * total:
            raise ValueError(
                f"config.data.dir={self.path!r}: {len(bad)} of {total} files "
                f"({len(bad) / total:.0%}) are unreadable, {MAX_UNREADABLE:.0%} may be; "
                f"mend or remove {', '.join(bad[:3])}{', ...' * (len(bad) > 3)}."
            )

    def check_sizes(self):
        """Refuses pictures of varying size by their headers, before any is streamed."""
        for i, file in enumerate(self.files):
            size = self.shape[:2]
            with contextlib.suppress(*_UNREADABLE):
                with Image.open(os.path.join(self.path, file)) as image:
                    size = (image.height, image.width)
            if sorted(size) != sorted(self.shape[:2]):  # In either order: EXIF may turn it.
                self.refuse_size(i, *size)

    def refuse_size(self, i, height, width):
        raise ValueError(
            f"config.data.image_size=0: needs pictures of one size, but {self.files[i]} is "
            f"{height}x{width} and others are {self.shape[0]}x{self.shape[1]}; choose a "
            "size, such as --config.data.image_size=64."
        )

    def in_memory(self):
        """A source of the readable pictures, all decoded now."""
        images = np.empty((len(self.files), *self.shape), np.uint8)

        def fill(i):
            image = self.decode(i)
            if image is not None:
                images[i] = image
            return image is not None

        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            kept = np.array(list(pool.map(fill, range(len(images)))))
        if len(self.unreadable) > 10:
            logging.warning("Skipped %d files in all.", len(self.unreadable))
        self.check()
        return from_array(images if kept.all() else images[kept])

    def streamed(self):
        """A source that decodes pictures as they are asked for."""
        read = lambda indices: np.stack([self.nearest(int(i)) for i in indices])
        return Source(len(self.files), self.shape, read)


def _load_folder(data_dir, part, want):
    if not os.path.isdir(data_dir):
        raise ValueError(
            f"config.data.dir={data_dir!r}: not a folder; write --config.data.dir=PATH, "
            "the folder that holds the pictures."
        )
    files = picture_files(data_dir)
    if not files:
        raise ValueError(
            f"config.data.dir={data_dir!r}: no pictures there or below; write "
            "--config.data.dir=PATH, a folder with .png, .jpg or other picture files."
        )
    files = [files[i] for i in part(len(files))]
    if not files:
        return None
    folder = _Folder(data_dir, files, (*want[:2], want[2] or 3))
    if _fits(len(files), folder.shape):
        return folder.in_memory()
    if not want[0]:
        folder.check_sizes()
    return folder.streamed()


# TFDS.


def _load_tfds(name, data_dir, split, part, want):
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = epath.Path(root).expanduser()
    if data_dir and not root.exists():
        raise ValueError(
            f"config.data.dir={data_dir!r}: does not exist; write --config.data.dir=PATH, "
            f"the TFDS directory that holds {name}."
        )
    folder = _prepared(root, name) or _prepare(root, name)
    import tensorflow_datasets as tfds

    logging.get_absl_logger().addFilter(_not_about_opencv)
    builder = tfds.builder_from_directory(folder)
    splits = builder.info.splits
    own_test = next((key for key in ("test", "validation") if key in splits), None)
    stored = own_test if split == "test" and own_test else "train"
    if stored not in splits:
        raise ValueError(
            f"config.data.name={name!r}: has no split 'train', only {sorted(splits)}; "
            "write --config.data.name= with another data set."
        )
    size = splits[stored].num_examples
    indices = np.arange(size) if own_test else part(size)
    if not len(indices):
        return None
    key, shape = _image_feature(name, builder.info.features, want)
    if tfds.core.FileFormat.ARRAY_RECORD in builder.info.available_file_formats():
        return _read_array_record(builder, stored, key, indices, shape)
    return _read_tfrecord(name, builder, stored, key, indices, shape)


def _not_about_opencv(record):
    return "OpenCV is not installed" not in record.getMessage()


def _prepared(root, name):
    """The folder of a prepared TFDS data set, of the newest version unless one is named."""
    base, _, version = name.partition(":")
    found = [path.parent for path in (root / base).glob("*/dataset_info.json")]
    asked = [path for path in found if version in ("", path.name)]
    if asked:
        return max(asked, key=lambda path: list(map(int, re.findall(r"\d+", path.name))))
    found += [path.parent for path in (root / base).glob("*/*/dataset_info.json")]
    if found:
        parts = (os.fspath(path.relative_to(root)).rpartition("/") for path in found)
        names = sorted(f"{path}:{number}" for path, _, number in parts)
        raise ValueError(
            f"config.data.name={name!r}: not prepared in {root}, which has "
            f"{', '.join(names)}; write --config.data.name={names[-1]}."
        )
    return None


def _prepare(root, name):
    """Downloads and prepares a TFDS data set with TensorFlow; its folder."""
    folder_instead = (
        "or use your own pictures: --config.data.name=image_folder --config.data.dir=PATH."
    )
    if _tensorflow() is None:
        raise ValueError(
            f"config.data.name={name!r}: not prepared in {root}, and preparing it needs "
            f'TensorFlow once; pip install "ddpm_jax[prepare]", {folder_instead}'
        )
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError:
        raise ValueError(
            f"config.data.name={name!r}: not digits, image_folder, npz or a TFDS data set; "
            "write one of those, such as --config.data.name=cifar10."
        ) from None
    manual = root / "downloads" / "manual"
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not manual.exists():
        raise ValueError(
            f"config.data.name={name!r}: must be downloaded by hand into {manual} (see "
            f"tensorflow.org/datasets/catalog/{builder.name}), {folder_instead}"
        )
    builder.download_and_prepare()
    return epath.Path(builder.data_path)


def _tensorflow():
    """TensorFlow, kept off the GPUs; None where it is not installed."""
    try:
        import tensorflow as tf
    except ImportError:
        return None
    with contextlib.suppress(RuntimeError):  # In use already: too late to hide them.
        tf.config.set_visible_devices([], "GPU")
    return tf


def _image_feature(name, features, want):
    """The key of the first image among the features, and the shape it is to have."""
    import tensorflow_datasets as tfds

    keys = [key for key in features if isinstance(features[key], tfds.features.Image)]
    if not keys or features[keys[0]].np_dtype != np.uint8:
        raise ValueError(
            f"config.data.name={name!r}: has no uint8 image among {sorted(features)}; "
            "write --config.data.name= with a data set of images."
        )
    height, width, channels = features[keys[0]].shape
    shape = _target(want, (height, width, channels or 3))
    if None in shape:
        raise ValueError(
            f"config.data.image_size=0: the images of {name} vary in size; choose one, "
            "such as --config.data.image_size=64."
        )
    return keys[0], shape


def _read_array_record(builder, split, key, indices, shape):
    source = builder.as_data_source(split, file_format="array_record")

    def read(i):
        examples = source.__getitems__(indices[i].tolist())
        return np.stack([_convert(example[key], shape) for example in examples])

    if not _fits(len(indices), shape):
        return Source(len(indices), shape, read)
    images = np.empty((len(indices), *shape), np.uint8)
    for chunk in np.split(np.arange(len(images)), range(_CHUNK, len(images), _CHUNK)):
        images[chunk] = read(chunk)
    return from_array(images)


def _read_tfrecord(name, builder, split, key, indices, shape):
    """All images of a TFRecord directory, which only TensorFlow reads, in memory."""
    if _tensorflow() is None:
        raise ValueError(
            f"config.data.name={name!r}: {builder.data_path} is in TFRecord format, which "
            'needs TensorFlow to read; pip install "ddpm_jax[prepare]".'
        )
    if not _fits(len(indices), shape):
        raise ValueError(
            f"config.data.name={name!r}: too large to read from TFRecord; convert it with "
            "`pip install apache-beam mlcroissant; tfds convert_format "
            f"--dataset_version_dir={builder.data_path} "
            "--out_file_format=array_record`, once."
        )
    import tensorflow_datasets as tfds

    examples = builder.as_dataset(
        split=split,
        read_config=tfds.ReadConfig(interleave_cycle_length=1),  # the order of the files
        decoders=tfds.decode.PartialDecoding({key: True}),
    )
    chosen = set(indices.tolist())
    examples = (e for i, e in enumerate(tfds.as_numpy(examples)) if i in chosen)
    return from_array(np.stack([_convert(example[key], shape) for example in examples]))
