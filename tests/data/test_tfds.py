"""Data sets of TFDS: prepared ones, compared with TFDS itself, and damaged ones."""

import io
import sys

import numpy as np
import pytest

from ddpm_jax.data import loading
from ddpm_jax.data import source as source_lib
from broken_pictures import BROKEN, encoded, png
from data_sets import TFDS, everything, needs, numbered, ramp, refused, take, write_tfds

SPLITS = ("train", "test")


@needs("cifar10")
def test_cifar10_is_what_tfds_reads(monkeypatch):
    import tensorflow_datasets as tfds

    expected = tfds.data_source("cifar10", split="test", data_dir=TFDS, download=False)
    source = loading.load("cifar10:3.0.2", data_dir=TFDS, split="test", channels=3)
    assert len(source) == 10000 and source.image_shape == (32, 32, 3) and source.in_memory
    for i in (0, 1, 999, 1000, 9999):
        np.testing.assert_array_equal(source.read(np.array([i]))[0], expected[i]["image"])
    monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 10)
    streamed = loading.load("cifar10", split="test")
    assert not streamed.in_memory
    np.testing.assert_array_equal(take(source, 3), take(streamed, 3))


@needs("fashion_mnist")
def test_fashion_mnist_is_streamed_and_resized(monkeypatch):
    monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 10)
    train, test = (loading.load("fashion_mnist", split=split) for split in SPLITS)
    assert len(train) == 60000 and len(test) == 10000 and train.image_shape == (28, 28, 1)
    image = train.read(np.array([0]))[0]
    coloured = loading.load("fashion_mnist", channels=3).read(np.array([0]))[0]
    np.testing.assert_array_equal(coloured, np.repeat(image, 3, axis=-1))
    assert loading.load("fashion_mnist", image_size=32).image_shape == (32, 32, 1)


@pytest.mark.parametrize("budget", [10, source_lib.MEMORY_BUDGET])
def test_tfds_set_without_a_test_split_is_split_here(tmp_path, monkeypatch, budget):
    monkeypatch.setattr(source_lib, "MEMORY_BUDGET", budget)
    root = write_tfds(tmp_path, ramp(12))
    settings = {"data_dir": root, "holdout": 4}
    train, test = (loading.load("tiny", split=split, **settings) for split in SPLITS)
    assert train.in_memory == (budget > 10) and train.image_shape == (4, 5, 3)
    greys = [everything(source)[:, 1, 1, 1].tolist() for source in (train, test)]
    assert len(greys[1]) == 4 and sorted(greys[0] + greys[1]) == list(range(0, 120, 10))
    assert len(loading.load("tiny", data_dir=root)) == 12
    assert loading.load("tiny", data_dir=root, split="test") is None


def test_tfds_images_of_varying_size_need_a_size(tmp_path):
    root = write_tfds(tmp_path, ramp(5, sizes=(4, 6)))
    with pytest.raises(ValueError, match="image_size=0: .*tiny vary in size"):
        loading.load("tiny", data_dir=root)
    source = loading.load("tiny", data_dir=root, image_size=8, channels=1)
    assert source.image_shape == (8, 8, 1)
    assert everything(source)[:, 3, 3, 0].tolist() == [0, 10, 20, 30, 40]


def test_newest_prepared_version_is_read_unless_one_is_named(tmp_path, monkeypatch):
    for i, version in enumerate(["9.0.0", "10.0.0", "1.2.3"]):
        root = write_tfds(tmp_path, ramp(3 + i), version=version)
    monkeypatch.setenv("TFDS_DATA_DIR", root)
    assert len(loading.load("tiny")) == 4 and len(loading.load("tiny:9.0.0")) == 3
    with pytest.raises(ValueError, match=r"tiny:2.0.0'.*has tiny:1.2.3, tiny:10.0.0, "):
        loading.load("tiny:2.0.0")
    (tmp_path / "tiny").rename(tmp_path / "some")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "some").rename(tmp_path / "tiny" / "some")
    assert len(loading.load("tiny/some")) == 4
    with pytest.raises(ValueError, match="name='tiny': .*--config.data.name=tiny/some:"):
        loading.load("tiny")


@pytest.mark.parametrize("name", ["Drive [2024]", "a*b?", "back\\slash"])
def test_a_set_is_found_whatever_its_path(tmp_path, name):
    write_tfds(tmp_path / "Drive 2", ramp(5))  # Of the name's pattern.
    root = write_tfds(tmp_path / name, ramp(3))
    np.testing.assert_array_equal(loading.load("tiny", data_dir=root).examples([0, 1, 2])["images"],
                                  ramp(3))


def test_what_needs_tensorflow_says_so(tmp_path, monkeypatch):
    loading.load("tiny", data_dir=write_tfds(tmp_path, ramp(3)))  # TFDS has looked for it already.
    root = write_tfds(tmp_path / "tf", ramp(3), file_format="tfrecord")
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # As if it were not installed.
    with pytest.raises(ValueError, match=r"TFRecord .*pip install -e \"\.\[tf\]\""):
        loading.load("tiny", data_dir=root)
    for name in ("lsun/bedroom", "celeb_a_hq/256"):
        with pytest.raises(ValueError, match=r"\[tf\].*name=image_folder") as error:
            loading.load(name, data_dir=root)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="nowhere': does not exist"):
        loading.load("tiny", data_dir=str(tmp_path / "nowhere"))


@needs("cifar10")
def test_labels_of_cifar10_are_those_of_tfds():
    import tensorflow_datasets as tfds

    source = loading.load("cifar10", split="test", labels=True)
    chosen = np.array([0, 7, 999, 1000, 9999])
    examples = tfds.data_source("cifar10", split="test", data_dir=TFDS)
    expected = [examples[int(i)] for i in chosen]
    examples = source.examples(chosen)
    np.testing.assert_array_equal(examples["labels"], [e["label"] for e in expected])
    np.testing.assert_array_equal(examples["images"], [e["image"] for e in expected])
    assert source.num_classes == 10 and len(source.labels) == 10_000
    assert source.class_names[:3] == ("airplane", "automobile", "bird")


@pytest.mark.parametrize("streamed", [False, True])
def test_labels_of_a_tfds_set_that_is_split_here(tmp_path, monkeypatch, streamed):
    write_tfds(tmp_path, list(numbered(9, (2, 5, 3))), labels=np.arange(9) % 4)
    if streamed:
        monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 1)
    for split, size in (("train", 6), ("test", 3)):
        source = loading.load("tiny", data_dir=str(tmp_path), split=split, holdout=3, labels=True)
        examples = source.examples(np.arange(size))
        np.testing.assert_array_equal(examples["labels"], examples["images"][:, 0, 0, 0] % 4)
        assert source.num_classes == 5 and source.in_memory != streamed


def test_a_tfds_set_without_labels_is_refused(tmp_path):
    write_tfds(tmp_path, ramp(3))
    with pytest.raises(ValueError, match="config.data.labels=True: tiny has no label among"):
        loading.load("tiny", data_dir=str(tmp_path), labels=True)


def with_records(root, entries):
    """Replaces the entries of a set of `write_tfds` by files of pictures or records as bytes."""
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module

    (path,) = root.glob("tiny/*/*.array_record*")
    features = tfds.features.FeaturesDict.from_config(path.parent)
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for entry in entries:
        writer.write(entry if isinstance(entry, bytes) else
                     features.serialize_example({"photo": entry}))
    writer.close()


def whole(n):
    return [io.BytesIO(png(5, 4, (b"\0" + bytes([i]) * 15) * 4)) for i in range(n)]


@pytest.mark.parametrize("kind", [*BROKEN, "20000x20000", "no record", "an empty record"])
def test_a_record_that_cannot_be_read_is_named(tmp_path, streamed, kind):
    root, entries = write_tfds(tmp_path, ramp(6)), whole(6)
    if kind in BROKEN:
        entries[3] = io.BytesIO(BROKEN[kind])
    else:
        entries[3] = {"20000x20000": io.BytesIO(png(20000, 20000)),
                      "no record": b"\xff\xff\xffgarbage", "an empty record": b""}[kind]
    with_records(tmp_path, entries)
    refused(lambda: take(loading.load("tiny", data_dir=root), 2),
            "name='tiny': image 3 of split 'train' in .*tiny/1.0.0 cannot be read", "prepare the")


def test_records_of_other_shapes_and_modes_are_made_to_fit(tmp_path, streamed):
    root, entries = write_tfds(tmp_path, ramp(6)), whole(6)
    entries[1] = io.BytesIO(encoded("png", "L", (5, 4)))
    entries[2] = io.BytesIO(encoded("jpeg", "CMYK", (50, 40)))
    entries[3] = io.BytesIO(encoded("png", "RGBA", (1, 1)))
    with_records(tmp_path, entries)
    images = everything(loading.load("tiny", data_dir=root))
    assert images.shape == (6, 4, 5, 3) and images[:, 0, 0, 0].tolist() == [0, 0, 255, 255, 4, 5]


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("name, old, new, words", [
    ("dataset_info.json", '"6"', '"9"', "image 6 of split 'train'.*cannot be read"),
    ("dataset_info.json", "{", "", "1.0.0 is damaged or foreign"),
    ("features.json", "{", "", "1.0.0 is damaged or foreign"),
    ("features.json", '"4"', '"four"', "1.0.0 is damaged or foreign"),
    ("features.json", "image_feature.Image", "image_feature.None", "damaged or foreign"),
])
def test_descriptions_of_a_set_that_are_damaged(tmp_path, name, old, new, words):
    root = write_tfds(tmp_path, ramp(6))
    change(tmp_path / "tiny" / "1.0.0" / name, old, new)
    refused(lambda: loading.load("tiny", data_dir=root), words, "prepare the set again")


@pytest.mark.parametrize("fault", ["flipped", "cut", "gone", "no features"])
def test_files_of_a_set_that_are_damaged(tmp_path, fault):
    root = write_tfds(tmp_path, ramp(6))
    (path,) = tmp_path.glob("tiny/*/*.array_record*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    if fault in ("flipped", "cut"):
        path.write_bytes(content if fault == "flipped" else content[:-40])
    else:
        (path if fault == "gone" else path.with_name("features.json")).unlink()
    refused(lambda: loading.load("tiny", data_dir=root), "prepare the set again")


def test_a_set_whose_labels_exceed_its_classes(tmp_path):
    root = write_tfds(tmp_path, ramp(6), labels=[0, 1, 2, 3, 4, 4])
    change(tmp_path / "tiny" / "1.0.0" / "features.json", '"5"', '"3"')
    refused(lambda: loading.load("tiny", data_dir=root, image_size=4, labels=True),
            "name='tiny' kind: image 3 has the label 3, which is none of the 3 classes")
