"""Small data sets written to disk, and what is read of them."""

import io
import itertools
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import batching, loading
from ddpm_jax.errors import UserError

TFDS = os.environ.get("TFDS_DATA_DIR", "")


def needs(name):
    there = TFDS and os.path.isdir(os.path.join(TFDS, name))
    return pytest.mark.skipif(not there, reason=f"no {name} below $TFDS_DATA_DIR")


def numbered(n, shape=(2, 3, 1)):
    """Images [n, h, w, c] whose first pixel is their number."""
    images = np.random.default_rng(0).integers(0, 256, (n, *shape)).astype(np.uint8)
    images[:, 0, 0, 0] = np.arange(n)
    return images


def take(source, count, **kwargs):
    """The images of the first `count` batches; ends the reading thread."""
    iterator = batching.batches(source, **{"seed": 0, "batch_size": 4, **kwargs})
    images = [batch["images"] for batch in itertools.islice(iterator, count)]
    iterator.close()
    return np.stack(images)


def everything(source):
    return source.read(np.arange(len(source)))


def write_pictures(folder, n, suffix="png", size=(6, 4)):
    """n pictures, 000.png and so on, each of its own grey; returns the folder."""
    for i in range(n):
        Image.new("RGB", size, (i, i, i)).save(folder / f"{i:03}.{suffix}")
    return str(folder)


def folder(path, **settings):
    return loading.load("image_folder", data_dir=str(path), **settings)


def write_tfds(root, images, file_format="array_record", version="1.0.0", labels=None,
               beside=None):
    """Writes the TFDS data set "tiny", one train split, without TensorFlow; returns `root`.

    With labels it has five classes. `beside` is, by its name, a further feature and its values.
    """
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module

    path = root / "tiny" / version
    path.mkdir(parents=True)
    one = len({image.shape for image in images}) == 1
    shape = images[0].shape if one else (None, None, images[0].shape[-1])
    kinds = {"photo": tfds.features.Image(shape=shape)}
    if labels is not None:
        kinds["kind"] = tfds.features.ClassLabel(num_classes=5)
    beside = beside or {}
    kinds |= {name: feature for name, (feature, _) in beside.items()}
    features = tfds.features.FeaturesDict(kinds)
    features.save_config(path)
    record = str(path / f"tiny-train.{file_format}-00000-of-00001")
    writer = array_record_module.ArrayRecordWriter(record, "group_size:1")
    for i, image in enumerate(images):
        png = io.BytesIO()
        Image.fromarray(image).save(png, "png")
        png.seek(0)
        label = {} if labels is None else {"kind": int(labels[i])}
        told = label | {name: values[i] for name, (_, values) in beside.items()}
        writer.write(features.serialize_example({"photo": png, **told}))
    writer.close()
    split = {
        "name": "train", "numBytes": "1", "shardLengths": [str(len(images))],
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }  # fmt: skip
    info = {"name": "tiny", "version": version, "fileFormat": file_format}
    (path / "dataset_info.json").write_text(json.dumps({**info, "splits": [split]}))
    return str(root)


def ramp(n, sizes=(4,)):
    return [np.full((sizes[i % len(sizes)], 5, 3), 10 * i, np.uint8) for i in range(n)]


def refused(call, *words):
    """Checks that a call ends in one line, which the command line prints without a trace."""
    with pytest.raises(ValueError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and isinstance(error.value, UserError), text
    for word in words:
        assert re.search(word, text), (word, text)
