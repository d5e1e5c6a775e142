"""Data sets of tensorflow-datasets, read without TensorFlow where that is possible."""

import contextlib
import io
import json
import os
import re

import numpy as np
from etils import epath

from ddpm_jax.data import decoding, tfds_features
from ddpm_jax.data import source as source_lib
from ddpm_jax.data.request import Request
from ddpm_jax.data.source import Source
from ddpm_jax.errors import UserError, one_line
from ddpm_jax.runtime import files

_CHUNK = 1000  # Images decoded at a time.


def load(request: Request) -> Source | None:
    """One split of a TFDS data set; None if it has no test split and none is set aside.

    `request.name` is for example "cifar10", "cifar10:3.0.2" or "celeb_a_hq/256", `data_dir` the
    folder of the data sets; "" is $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
        UserError: the set is not there and cannot be prepared, cannot be read, or has no
            labels but they are asked for.
    """
    name, root = request.name, _root(request.data_dir)
    if request.data_dir and not root.exists():
        raise UserError(
            f"config.data.dir={request.data_dir!r}: does not exist; write --config.data.dir=PATH, "
            f"the TFDS directory that holds {name}."
        )
    builder = _builder(name, _prepared(root, name) or _prepare(root, name))
    split, indices = _split(request, builder.info.splits)
    if not len(indices):
        return None
    features = builder.info.features
    key, shape = tfds_features.image(name, features, request.shape)
    label = (tfds_features.label(name, features),) if request.labels else ()
    vectors = tfds_features.vectors(name, features, request.vectors)
    read = _read_array_record if _is_array_record(builder) else _read_tfrecord
    source, columns = read(name, builder, split, key, indices, shape, {*label, *vectors})
    if request.split == "test" and split == "train":  # A version of a set does not change.
        version = f"{builder.info.full_name} {builder.info.splits[split].num_examples}"
        source = source.with_fingerprints(indices, lambda place: version.encode())
    for path in label:
        source = source.with_labels(
            columns[path], features[path].num_classes, f"config.data.name={name!r} {path}",
            names=tfds_features.class_names(features[path]),
        )
    return source.with_vectors({
        f"config.data.name={name!r} {path}": as_numbers(columns[path])
        for path, as_numbers in vectors.items()
    })


def is_prepared(name: str, data_dir: str) -> bool:
    """Whether a set can be read without downloading it.

    Raises:
        UserError: it is there in another version than the one named.
    """
    return _prepared(_root(data_dir), name) is not None


def _root(data_dir):
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return files.path(root)


def _prepared(root, name):
    """The folder of a prepared set, of its newest version unless one is named; else None."""
    base, _, version = name.partition(":")
    prepared = _versions(root / base)
    right = [path for path in prepared if version in ("", path.name)]
    if right:
        return max(right, key=lambda path: list(map(int, re.findall(r"\d+", path.name))))
    prepared += [path for inner in files.folders(root / base) for path in _versions(inner)]
    if prepared:
        parts = (os.fspath(path.relative_to(root)).rpartition("/") for path in prepared)
        names = sorted(f"{path}:{number}" for path, _, number in parts)
        raise UserError(
            f"config.data.name={name!r}: not prepared in {root}, which has "
            f"{', '.join(names)}; write --config.data.name={names[-1]}."
        )
    return None


def _versions(folder):
    return [path for path in files.folders(folder) if (path / "dataset_info.json").exists()]


def _split(request, splits):
    """The name of the stored split to read, and the int64 indices of its images to take."""
    own_test = next((key for key in ("test", "validation") if key in splits), None)
    stored = own_test if request.split == "test" and own_test else "train"
    if stored not in splits:
        raise UserError(
            f"config.data.name={request.name!r}: has no split 'train', only {sorted(splits)}; "
            "write --config.data.name= with another data set."
        )
    size = splits[stored].num_examples
    return stored, np.arange(size) if own_test else request.part(size)


def _prepare(root, name):
    """Downloads and prepares a set with TensorFlow, and gives its folder."""
    or_a_folder = (
        "or use your own pictures: --config.data.name=image_folder --config.data.dir=PATH."
    )
    if _tensorflow() is None:
        raise UserError(
            f"config.data.name={name!r}: not prepared in {root}, and preparing it needs "
            f'TensorFlow once; pip install -e ".[tf]", {or_a_folder}'
        )
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError:
        raise UserError(
            f"config.data.name={name!r}: not digits, image_folder, npz or a TFDS data set; "
            "write one of those, for example --config.data.name=cifar10."
        ) from None
    manual = root / "downloads" / "manual"
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not manual.exists():
        raise UserError(
            f"config.data.name={name!r}: must be downloaded by hand into {manual} (see "
            f"tensorflow.org/datasets/catalog/{builder.name}), {or_a_folder}"
        )
    builder.download_and_prepare()
    return epath.Path(builder.data_path)


def _tensorflow():
    """TensorFlow, kept off the GPUs; None if it is not installed."""
    try:
        import tensorflow as tf
    except ImportError:
        return None
    with contextlib.suppress(RuntimeError):  # They are in use already, too late to hide them.
        tf.config.set_visible_devices([], "GPU")
    return tf


def _builder(name, folder):
    """TFDS's builder of a prepared set."""
    import tensorflow_datasets as tfds
    from google.protobuf import json_format

    try:
        for feature in _feature_classes(json.loads((folder / "features.json").read_text())):
            if not feature.startswith("tensorflow_datasets."):  # TFDS would import its module.
                raise ValueError(f"features.json names {feature}, which is not TFDS's own")
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


def _is_array_record(builder):
    import tensorflow_datasets as tfds

    return tfds.core.FileFormat.ARRAY_RECORD in builder.info.available_file_formats()


class _Records:
    """The examples of one split in ArrayRecord files, each with its picture still encoded."""

    def __init__(self, name, builder, split, key):
        import tensorflow_datasets as tfds

        self._records = builder.as_data_source(
            split, file_format="array_record", decoders={key: tfds.decode.SkipDecoding()}
        )
        self._name, self._key = name, key
        self._place = f"split {split!r} in {builder.data_path}"

    def examples(self, indices):
        """The examples of the given indices, a list of dicts."""
        from google.protobuf import message

        try:
            return self._records.__getitems__(indices)
        except (message.DecodeError, OSError, RuntimeError, ValueError, LookupError) as error:
            if len(indices) == 1:
                self._refuse(indices[0], error)
        return [example for index in indices for example in self.examples([index])]

    def images(self, indices, shape):
        """The images of the given indices, uint8 [n, *shape], decoded as those of folders are."""
        images = []
        for index, example in zip(indices, self.examples(indices)):
            try:
                with decoding.open_picture(io.BytesIO(example[self._key])) as image:
                    images.append(decoding.to_array(image, shape))
            except decoding.UNREADABLE as error:
                self._refuse(index, error)
        return np.stack(images)

    def _refuse(self, index, error):
        raise UserError(
            f"config.data.name={self._name!r}: image {index} of {self._place} cannot be read "
            f"({one_line(error)}); prepare the set again."
        ) from None


def _read_array_record(name, builder, split, key, indices, shape, beside):
    """(the source, its features `beside`) of an ArrayRecord directory."""
    records = _Records(name, builder, split, key)

    def read(places):
        return records.images(indices[places].tolist(), shape)

    chunks = np.split(np.arange(len(indices)), range(_CHUNK, len(indices), _CHUNK))
    columns = {}
    if beside:
        parts = [
            tfds_features.read(records.examples(indices[chunk].tolist()), beside)
            for chunk in chunks
        ]
        columns = {path: np.concatenate([part[path] for part in parts]) for path in beside}
    if not source_lib.fits(len(indices), shape):
        return Source(len(indices), shape, read), columns
    images = np.empty((len(indices), *shape), np.uint8)
    for chunk in chunks:
        images[chunk] = read(chunk)
    return source_lib.from_array(images), columns


def _read_tfrecord(name, builder, split, key, indices, shape, beside):
    """(a source in memory, its features `beside`) of a TFRecord directory, by TensorFlow."""
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

    examples = builder.as_dataset(
        split=split,
        read_config=tfds.ReadConfig(interleave_cycle_length=1),  # The order of the files.
        decoders=tfds.decode.PartialDecoding(tfds_features.tree({key, *beside})),
    )
    chosen = set(indices.tolist())
    kept = [e for i, e in enumerate(tfds.as_numpy(examples)) if i in chosen]
    images = source_lib.from_array(np.stack([decoding.convert(e[key], shape) for e in kept]))
    return images, tfds_features.read(kept, beside)
