"""Data sets of tensorflow-datasets, prepared or to be; read without TensorFlow where possible."""

import contextlib
import io
import json
import os
import re

import numpy as np
from etils import epath

from ddpm_jax.data import decoding
from ddpm_jax.data import source as source_lib
from ddpm_jax.data.source import Source
from ddpm_jax.errors import UserError, one_line
from ddpm_jax.runtime import files

_CHUNK = 1000  # images decoded at a time


def load(
    name: str, data_dir: str, split: str, part, want: tuple[int, int, int], labels: bool = False
) -> Source | None:
    """One split of a TFDS data set; None where it has no test split and `part` leaves none.

    Args:
        name: such as "cifar10", "cifar10:3.0.2" or "celeb_a_hq/256".
        data_dir: of the data sets; "" for $TFDS_DATA_DIR or ~/tensorflow_datasets.
        split: "train" or "test".
        part: number of images -> indices to take, for a set without a test split.
        want: (height, width, channels); 0 for as the data are.
        labels: with the set's labels.

    Raises:
        ValueError: the set is not there and cannot be prepared, cannot be read, or has no
            labels where they are asked for.
    """
    root = _root(data_dir)
    if data_dir and not root.exists():
        raise UserError(
            f"config.data.dir={data_dir!r}: does not exist; write --config.data.dir=PATH, "
            f"the TFDS directory that holds {name}."
        )
    folder = _prepared(root, name) or _prepare(root, name)
    import tensorflow_datasets as tfds

    builder = _builder(name, folder)
    splits = builder.info.splits
    own_test = next((key for key in ("test", "validation") if key in splits), None)
    stored = own_test if split == "test" and own_test else "train"
    if stored not in splits:
        raise UserError(
            f"config.data.name={name!r}: has no split 'train', only {sorted(splits)}; "
            "write --config.data.name= with another data set."
        )
    size = splits[stored].num_examples
    indices = np.arange(size) if own_test else part(size)
    if not len(indices):
        return None
    features = builder.info.features
    key, shape = _image_feature(name, features, want)
    label = _label_feature(name, features) if labels else None
    if tfds.core.FileFormat.ARRAY_RECORD in builder.info.available_file_formats():
        source, found = _read_array_record(name, builder, stored, key, indices, shape, label)
    else:
        source, found = _read_tfrecord(name, builder, stored, key, indices, shape, label)
    if not labels:
        return source
    name = f"config.data.name={name!r} {label}"
    return source.with_labels(found, features[label].num_classes, name)


def is_prepared(name: str, data_dir: str) -> bool:
    """Whether a set can be read without downloading it; arguments and errors as of `load`."""
    return _prepared(_root(data_dir), name) is not None


def _root(data_dir):
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return files.path(root)


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
        raise UserError(
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
        raise UserError(
            f"config.data.name={name!r}: not prepared in {root}, and preparing it needs "
            f'TensorFlow once; pip install -e ".[tf]", {folder_instead}'
        )
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError:
        raise UserError(
            f"config.data.name={name!r}: not digits, image_folder, npz or a TFDS data set; "
            "write one of those, such as --config.data.name=cifar10."
        ) from None
    manual = root / "downloads" / "manual"
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not manual.exists():
        raise UserError(
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


def _builder(name, folder):
    """TFDS's view of a prepared set."""
    import tensorflow_datasets as tfds
    from google.protobuf import json_format

    try:
        for feature in _feature_classes(json.loads((folder / "features.json").read_text())):
            if not feature.startswith("tensorflow_datasets."):  # TFDS would import its module.
                raise UserError(f"features.json names {feature}, which is not TFDS's own")
        return tfds.builder_from_directory(folder)
    except (json_format.ParseError, OSError, ValueError, LookupError, AttributeError,
            TypeError, RecursionError) as error:
        raise UserError(
            f"config.data.name={name!r}: {folder} is damaged or foreign "
            f"({one_line(error)}); prepare the set again."
        ) from None


def _feature_classes(tree):
    """The Python classes that a features.json names, at any depth, in JSON within it too."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in ("pythonClassName", "python_class_name", "type") and isinstance(value, str):
                yield value
            else:
                yield from _feature_classes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _feature_classes(value)
    elif isinstance(tree, str) and tree.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(json.JSONDecodeError):
            yield from _feature_classes(json.loads(tree))


def _image_feature(name, features, want):
    """The key of the first image among the features, and the shape it is to have."""
    import tensorflow_datasets as tfds

    keys = [key for key in features if isinstance(features[key], tfds.features.Image)]
    if not keys or features[keys[0]].np_dtype != np.uint8:
        raise UserError(
            f"config.data.name={name!r}: has no uint8 image among {sorted(features)}; "
            "write --config.data.name= with a data set of images."
        )
    height, width, channels = features[keys[0]].shape
    shape = decoding.target(want, (height, width, channels or 3))
    if None in shape:
        raise UserError(
            f"config.data.image_size=0: the images of {name} vary in size; choose one, "
            "such as --config.data.image_size=64."
        )
    return keys[0], shape


def _label_feature(name, features):
    """The key of the first label among the features."""
    import tensorflow_datasets as tfds

    keys = [key for key in features if isinstance(features[key], tfds.features.ClassLabel)]
    if not keys:
        raise UserError(
            f"config.data.labels=True: {name} has no label among {sorted(features)}; write "
            "--config.data.labels=False."
        )
    return keys[0]


def _read_array_record(name, builder, split, key, indices, shape, label):
    """The source, and the labels or None; the pictures are decoded as those of folders are."""
    import tensorflow_datasets as tfds
    from google.protobuf import message

    def refuse(index, error):
        raise UserError(
            f"config.data.name={name!r}: image {index} of split {split!r} in {builder.data_path} "
            f"cannot be read ({one_line(error)}); prepare the set again."
        ) from None

    def fetch(chosen):
        try:
            return records.__getitems__(chosen)
        except (message.DecodeError, OSError, RuntimeError, ValueError, LookupError) as error:
            if len(chosen) == 1:
                refuse(chosen[0], error)
        return [example for index in chosen for example in fetch([index])]

    def decoded(index, example):
        try:
            with decoding.open_picture(io.BytesIO(example[key])) as image:
                return decoding.pixels(image, shape)
        except decoding.UNREADABLE as error:
            refuse(index, error)

    def read(i):
        chosen = indices[i].tolist()
        return np.stack(list(map(decoded, chosen, fetch(chosen))))

    records = builder.as_data_source(
        split, file_format="array_record", decoders={key: tfds.decode.SkipDecoding()}
    )
    chunks = np.split(np.arange(len(indices)), range(_CHUNK, len(indices), _CHUNK))
    labels = None if label is None else np.array([
        example[label] for chunk in chunks for example in fetch(indices[chunk].tolist())
    ], np.int32)
    if not source_lib.fits(len(indices), shape):
        return Source(len(indices), shape, read), labels
    images = np.empty((len(indices), *shape), np.uint8)
    for chunk in chunks:
        images[chunk] = read(chunk)
    return source_lib.from_array(images), labels


def _read_tfrecord(name, builder, split, key, indices, shape, label):
    """All images of a TFRecord directory, which only TensorFlow reads, in memory; labels."""
    if _tensorflow() is None:
        raise UserError(
            f"config.data.name={name!r}: {builder.data_path} is in TFRecord format, which "
            'needs TensorFlow to read; pip install -e ".[tf]".'
        )
    if not source_lib.fits(len(indices), shape):
        raise UserError(
            f"config.data.name={name!r}: too large to read from TFRecord; convert it with "
            "`pip install apache-beam mlcroissant; tfds convert_format "
            f"--dataset_version_dir={builder.data_path} "
            "--out_file_format=array_record`, once."
        )
    import tensorflow_datasets as tfds

    wanted = [key] if label is None else [key, label]
    examples = builder.as_dataset(
        split=split,
        read_config=tfds.ReadConfig(interleave_cycle_length=1),  # the order of the files
        decoders=tfds.decode.PartialDecoding(dict.fromkeys(wanted, True)),
    )
    chosen = set(indices.tolist())
    kept = [e for i, e in enumerate(tfds.as_numpy(examples)) if i in chosen]
    images = source_lib.from_array(np.stack([decoding.convert(e[key], shape) for e in kept]))
    return images, None if label is None else np.array([e[label] for e in kept], np.int32)
