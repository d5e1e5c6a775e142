"""Data sets of tensorflow-datasets, prepared or to be; read without TensorFlow where possible."""

import contextlib
import os
import re

import numpy as np
from absl import logging
from etils import epath

from ddpm_jax import sources
from ddpm_jax.sources import Source

_CHUNK = 1000  # images decoded at a time


def load(name: str, data_dir: str, split: str, part, want: tuple[int, int, int]) -> Source | None:
    """One split of a TFDS data set; None where it has no test split and `part` leaves none.

    Args:
        name: such as "cifar10", "cifar10:3.0.2" or "celeb_a_hq/256".
        data_dir: of the data sets; "" for $TFDS_DATA_DIR or ~/tensorflow_datasets.
        split: "train" or "test".
        part: number of images -> indices to take, for a set without a test split.
        want: (height, width, channels); 0 for as the data are.

    Raises:
        ValueError: the set is not there and cannot be prepared, or cannot be read.
    """
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
            f'TensorFlow once; pip install -e ".[prepare]", {folder_instead}'
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
    shape = sources.target(want, (height, width, channels or 3))
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
        return np.stack([sources.convert(example[key], shape) for example in examples])

    if not sources.fits(len(indices), shape):
        return Source(len(indices), shape, read)
    images = np.empty((len(indices), *shape), np.uint8)
    for chunk in np.split(np.arange(len(images)), range(_CHUNK, len(images), _CHUNK)):
        images[chunk] = read(chunk)
    return sources.from_array(images)


def _read_tfrecord(name, builder, split, key, indices, shape):
    """All images of a TFRecord directory, which only TensorFlow reads, in memory."""
    if _tensorflow() is None:
        raise ValueError(
            f"config.data.name={name!r}: {builder.data_path} is in TFRecord format, which "
            'needs TensorFlow to read; pip install -e ".[prepare]".'
        )
    if not sources.fits(len(indices), shape):
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
    return sources.from_array(np.stack([
        sources.convert(example[key], shape)
        for i, example in enumerate(tfds.as_numpy(examples)) if i in chosen
    ]))
