"""Sets of Hugging Face `datasets`, written by it: read by index, and refused in one line."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from data_sets import everything, refused, take
from ddpm_jax.data import image_folder, loading
from ddpm_jax.data import source as source_lib
from pngs import png

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (12, 4, 6, 3)).astype(np.uint8)
KINDS = np.arange(12) % 3


def pictures(images=IMAGES, **columns):
    """A set of pictures in the column "photo", beside others."""
    content = {"id": list(range(len(images))), "photo": [Image.fromarray(x) for x in images]}
    kinds = {"kind": datasets.ClassLabel(names=["cat", "dog", "owl"])}
    features = {"id": datasets.Value("int64"), "photo": datasets.Image()}
    rows = datasets.Dataset.from_dict(
        content | {"kind": KINDS[:len(images)].tolist()},
        features=datasets.Features(features | kinds),
    )
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return rows


def saved(path, rows):
    rows.save_to_disk(str(path))
    return dict(name="hf", data_dir=str(path))


def test_a_folder_of_save_to_disk(tmp_path):
    source = loading.load(**saved(tmp_path / "a", pictures()), labels=True)
    assert source.image_shape == (4, 6, 3) and source.in_memory
    assert_array_equal(everything(source), IMAGES)
    assert_array_equal(source.labels, KINDS)
    assert source.classes == (0, 1, 2) and source.class_names == ("cat", "dog", "owl")
    assert loading.load("hf", data_dir=str(tmp_path / "a"), split="test") is None
    half = loading.load("hf", data_dir=str(tmp_path / "a"), image_size=2, channels=1)
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, image in enumerate(IMAGES):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    as_folder = loading.load("image_folder", data_dir=str(folder), image_size=2, channels=1)
    assert_array_equal(everything(half), everything(as_folder))


@pytest.mark.parametrize("test", ["test", "validation"])
def test_splits(tmp_path, test):
    splits = datasets.DatasetDict({
        "train": pictures(), "other": pictures(IMAGES[:1]), test: pictures(IMAGES[:4])
    })
    settings = saved(tmp_path / "a", splits)
    assert_array_equal(everything(loading.load(**settings, split="test")), IMAGES[:4])
    assert len(loading.load(**settings, holdout=2)) == 12  # Only of a set without a test split.


def test_images_are_held_out_and_found_again(tmp_path):
    settings = saved(tmp_path / "a", pictures()) | dict(holdout=3, seed=5, labels=True)
    train, test = (loading.load(**settings, split=split) for split in ("train", "test"))
    assert len(train) == 9 and len(test) == 3
    every = np.concatenate([everything(train), everything(test)]).reshape(12, -1)
    assert_array_equal(np.sort(every, axis=0), np.sort(IMAGES.reshape(12, -1), axis=0))
    chosen = [np.flatnonzero((IMAGES == x).all(axis=(1, 2, 3)))[0] for x in everything(test)]
    assert_array_equal(test.labels, KINDS[chosen])
    assert set(test.fingerprints()) == set(map(str, chosen))
    assert len(set(test.fingerprints().values())) == 3


def test_a_batch_is_the_same_streamed_and_in_memory(tmp_path, monkeypatch):
    settings = saved(tmp_path / "a", pictures())
    in_memory = take(loading.load(**settings), 5)
    monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 0)
    monkeypatch.setattr(image_folder, "THREADS", 4)
    source = loading.load(**settings)
    assert not source.in_memory
    assert_array_equal(take(source, 5), in_memory)
    assert_array_equal(take(source, 2, start=3), in_memory[3:])


def test_columns_are_named(tmp_path):
    words = ["b", "a", "b", "c"] * 3
    rows = pictures(word=words).map(lambda row: {"second": row["photo"].rotate(180)})
    rows = rows.cast_column("second", datasets.Image())
    settings = saved(tmp_path / "a", rows)
    source = loading.load(
        **settings, image_column="second", label_column="word", labels=True
    )
    assert_array_equal(everything(source), IMAGES[:, ::-1, ::-1])
    assert source.classes == ("a", "b", "c") and source.labels[:4].tolist() == [1, 0, 1, 2]


def test_the_classes_are_those_of_training(tmp_path):
    splits = datasets.DatasetDict({
        "train": pictures(word=["b", "a", "c"] * 4), "test": pictures(IMAGES[:1], word=["c"])
    })
    settings = saved(tmp_path / "a", splits)
    test = loading.load(**settings, split="test", labels=True, label_column="word")
    assert test.labels.tolist() == [2]


@pytest.mark.parametrize("dtype, bounds, bins", [
    ("uint8", (), 256), ("uint16", (0, 4000), 4001), ("float32", (0, 4000), 0),
])
def test_arrays(tmp_path, dtype, bounds, bins):
    values = RANDOM.integers(0, 256 if dtype == "uint8" else 4001, (5, 4, 4, 2)).astype(dtype)
    features = datasets.Features({"x": datasets.Array3D((4, 4, 2), dtype)})
    rows = datasets.Dataset.from_dict({"x": list(values)}, features=features)
    source = loading.load(**saved(tmp_path / "a", rows), value_range=bounds)
    assert source.bins == bins
    expected = values if dtype == "uint8" else values / 2000 - 1
    assert_allclose(everything(source), expected, rtol=0, atol=1e-6)


def test_arrays_of_one_channel_that_are_resized(tmp_path):
    features = datasets.Features({"x": datasets.Array2D((6, 6), "uint8")})
    rows = datasets.Dataset.from_dict({"x": [np.full((6, 6), 9, np.uint8)]}, features=features)
    source = loading.load(**saved(tmp_path / "a", rows), image_size=3, channels=3)
    assert_array_equal(everything(source), np.full((1, 3, 3, 3), 9))


def test_pictures_of_16_bits(tmp_path):
    values = RANDOM.integers(0, 65536, (3, 4, 4, 3)).astype(np.uint16)
    content = [{"bytes": png(x), "path": None} for x in values]
    features = datasets.Features({"x": datasets.Image()})
    rows = datasets.Dataset.from_dict({"x": content}, features=features)
    source = loading.load(**saved(tmp_path / "a", rows), value_range=(0, 65535))
    assert source.bins == 65536
    assert_allclose(everything(source), values / 32767.5 - 1, rtol=0, atol=1e-7)


def test_an_example_that_cannot_be_read_is_named(tmp_path):
    content = [{"bytes": png(np.zeros((2, 2, 1), np.uint16)), "path": None}] * 3
    content[1] = {"bytes": b"no picture", "path": None}
    features = datasets.Features({"x": datasets.Image()})
    rows = datasets.Dataset.from_dict({"x": content}, features=features)
    refused(lambda: loading.load(**saved(tmp_path / "a", rows)), "x of example 1 cannot be read")
    sizes = [Image.fromarray(IMAGES[0]), Image.fromarray(IMAGES[0, :2])]
    rows = datasets.Dataset.from_dict({"x": sizes}, features=features)
    settings = saved(tmp_path / "b", rows)
    refused(lambda: loading.load(**settings),
            r"config.data.image_size=0: .* example 1 is uint8 \[2, 6, 3\]")
    assert loading.load(**settings, image_size=2).image_shape == (2, 2, 3)


def test_what_is_not_there_is_refused(tmp_path, monkeypatch):
    settings = saved(tmp_path / "a", pictures())
    refused(lambda: loading.load(**settings, image_column="image"),
            "config.data.image_column='image' is no column of images .*'id', 'photo', 'kind'.*"
            "--config.data.image_column=photo")
    refused(lambda: loading.load(**settings, labels=True, label_column="no"),
            "config.data.label_column='no' is no column of")
    numbers = datasets.Dataset.from_dict({"x": [1, 2]})
    other = saved(tmp_path / "b", numbers)
    refused(lambda: loading.load(**other), "no column of images .*name another data set")
    refused(lambda: loading.load("hf"), "config.data.dir='': not given")
    (tmp_path / "c").mkdir()
    refused(lambda: loading.load("hf", data_dir=str(tmp_path / "c")), "no folder of save_to_disk")
    (tmp_path / "c" / "state.json").write_text("{")
    refused(lambda: loading.load("hf", data_dir=str(tmp_path / "c")), "cannot be read")

    def unreachable(name):
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    refused(lambda: loading.load("hf", data_dir="nobody/nothing"),
            "config.data.dir='nobody/nothing': cannot be read .*on the Hub.*OWNER/NAME")


def test_a_set_of_the_hub(monkeypatch):
    monkeypatch.setattr(
        datasets, "load_dataset", {"owner/name": datasets.DatasetDict(train=pictures())}.get
    )
    assert_array_equal(everything(loading.load("hf", data_dir="owner/name")), IMAGES)
