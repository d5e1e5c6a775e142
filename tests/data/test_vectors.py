"""Numbers beside images, from every kind of data (`tfds_features.py` too), and their scale."""

import csv

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ddpm_jax import data
from ddpm_jax.data import loading, vectors
from ddpm_jax.data import source as source_lib
from ddpm_jax.training import run
from data_sets import everything, folder, numbered, refused, write_pictures, write_tfds
from tiny_run import tiny_config

RANDOM = np.random.default_rng(0)


def test_the_scale_is_that_of_float64():
    """Unix times: float32 tells them apart by two minutes only."""
    seconds = 1.7e9 + np.arange(50) * 3.0
    source = data.from_array(numbered(50), vectors=seconds)
    (mean,), (std,) = source.vector_scale
    assert mean == 1.7e9 + 73.5
    assert_allclose(std, 3 * np.sqrt((50**2 - 1) / 12), rtol=1e-12)  # Of 0..49.
    expected = (np.arange(50) - 24.5) / np.sqrt((50**2 - 1) / 12)
    got = source.model_kwargs(np.arange(50))["vectors"]
    assert got.dtype == np.float32 and got.shape == (50, 2)
    assert_array_equal(got[:, 0], 1)
    assert_allclose(got[:, 1], expected, rtol=1e-6)
    assert_array_equal(source.sample_kwargs(np.array([3, 1]))["vectors"], seconds[[3, 1], None])


def test_equal_numbers_are_zeros():
    source = data.from_array(numbered(3), vectors=[[7.0, 1], [7, 2], [7, 4]])
    assert source.vector_scale[1][0] == 1 and source.num_equal_numbers() == 1
    assert_array_equal(source.model_kwargs(np.arange(3))["vectors"][:, 1], 0)
    tenth = data.from_array(numbered(3), vectors=[0.1, 0.1, 0.1])  # Their mean is not 0.1.
    assert tenth.vector_scale[1] == (1.0,)


@pytest.mark.parametrize("given", [
    np.arange(4), [True, False, True, True], np.arange(8, dtype=np.float16).reshape(4, 2),
    [[1.5], [2], [3], [4]], np.arange(4, dtype=np.uint8),
])
def test_numbers_of_many_kinds(given):
    source = data.from_array(numbered(4), vectors=given)
    assert_array_equal(source.vectors, np.asarray(given, float).reshape(4, -1))
    assert source.vector_size == source.vectors.shape[1]
    chosen = source.select(np.array([2, 0]))
    assert_array_equal(chosen.vectors, source.vectors[[2, 0]])
    assert chosen.vector_scale == source.vector_scale


@pytest.mark.parametrize("given, says", [
    (np.arange(3), r"vectors=\[3\]: must be numbers for each of 4 images"),
    (np.zeros((4, 2, 2)), r"vectors=\[4, 2, 2\]: must"),
    (np.zeros((4, 0)), r"vectors=\[4, 0\]: must"),
    (["a", "b", "c", "d"], "vectors: must be numbers, .*they are <U1.*one-hot"),
    ([[1], [1, 2], [3], [4]], "vectors: must be numbers"),
    ([1, 2, np.nan, np.inf], r"vectors: image 2 has \[nan\] .2 of 4 images"),
    ([1, None, 2, 3], "vectors: must be numbers"),
    (5.0, r"vectors=\[\]: must"),
])
def test_what_is_no_vector_is_refused(given, says):
    refused(lambda: data.from_array(numbered(4), vectors=given), says)


def test_another_scale_must_be_of_as_many_numbers():
    source = data.from_array(numbered(4), vectors=np.arange(8.0).reshape(4, 2))
    moved = source.with_vector_scale(((1.0, 2.0), (2.0, 4.0)))
    assert_array_equal(moved.model_kwargs(np.array([1]))["vectors"], [[1, 0.5, 0.25]])
    refused(lambda: source.with_vector_scale(((1.0,), (1.0,))), "2 numbers .* model takes 1")
    assert source.with_vector_scale(()) is source


# `.npz`, by the names of its arrays.


def npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def test_arrays_of_an_npz(tmp_path):
    age, place = np.arange(10) * 2.0, RANDOM.normal(size=(10, 3))
    path = npz(tmp_path / "x.npz", train=numbered(10), age=age, train_place=place)
    asked = dict(data_dir=path, vectors=("place", "age"), holdout=4, seed=5)
    for split in ("train", "test"):
        source = loading.load("npz", split=split, **asked)
        numbers = everything(source)[:, 0, 0, 0]
        assert_array_equal(source.vectors, np.c_[place, age][numbers])
    with_test = npz(
        tmp_path / "y.npz", train=numbered(3), test=numbered(2), train_age=[1, 2, 3],
        test_age=[8, 9],
    )
    test = loading.load("npz", data_dir=with_test, split="test", vectors=("age",))
    assert_array_equal(test.vectors[:, 0], [8, 9])
    refused(lambda: loading.load("npz", data_dir=path, vectors=("size",)),
            r"has no train_size, numbers \[n\] or \[n, k\], a row for each image")
    short = npz(tmp_path / "z.npz", train=numbered(3), age=[1, 2])
    refused(lambda: loading.load("npz", data_dir=short, vectors=("age",)), "has 2 age for 3")
    alone = npz(tmp_path / "w.npz", pictures=numbered(3), age=[1, 2, 3])
    assert len(loading.load("npz", data_dir=alone, vectors=("age",))) == 3
    ending = npz(tmp_path / "v.npz", packages=numbered(3), ages=[1, 2, 3])  # "packages" ends so.
    assert_array_equal(
        loading.load("npz", data_dir=ending, vectors=("ages",)).vectors[:, 0], [1, 2, 3])


@pytest.mark.parametrize("given", ["age", 5, [1], ("age", "")])
def test_names_are_a_list_of_words(given):
    refused(lambda: loading.load("digits", vectors=given), "config.data.vectors=.*must be names",
            r"\('age',\)")


def test_numbers_of_digits():
    source = loading.load("digits", split="test", vectors=("ink", "label"))
    images, labels = loading.digits("test")
    assert_allclose(source.vectors[:, 0], images.mean(axis=(1, 2, 3)) / 255, rtol=1e-12)
    assert_array_equal(source.vectors[:, 1:].argmax(axis=1), labels)
    assert_array_equal(source.vectors[:, 1:].sum(axis=1), 1)
    refused(lambda: loading.load("digits", vectors=("age",)), "vectors='age'.*label, ink")


# A table beside pictures.


def table(path, rows, heading=("file_name", "age", "height"), **settings):
    with open(path, "w", newline="", **settings) as file:
        csv.writer(file).writerows([heading, *rows])


def test_a_table_beside_pictures(tmp_path, streamed):
    write_pictures(tmp_path, 6)
    rows = [[f"./{i:03}.png" if i == 2 else f"{i:03}.png", i * 1.5, "tall"] for i in range(6)]
    table(tmp_path / "metadata.csv", [*rows[::-1], ["gone.png", "x", ""]], encoding="utf-8-sig")
    for split in ("train", "test"):
        source = folder(tmp_path, split=split, holdout=2, vectors=("age",))
        assert_array_equal(source.vectors[:, 0], everything(source)[:, 0, 0, 0] * 1.5)
    refused(lambda: folder(tmp_path, vectors=("age", "height")),
            r"metadata.csv, line 2: height is 'tall', and must be a number")
    refused(lambda: folder(tmp_path, vectors=("size",)), "has no column 'size', only .*'age'")


def test_tables_of_splits(tmp_path):
    for k, split in enumerate(("train", "test")):
        (tmp_path / split / "a").mkdir(parents=True)
        write_pictures(tmp_path / split / "a", 3)
        rows = [[rf"a\{i:03}.png", 10 * k + i, 0] for i in range(3)]
        table(tmp_path / split / "metadata.csv", rows)
    for k, split in enumerate(("train", "test")):
        source = folder(tmp_path, split=split, vectors=("age",), labels=True)
        assert_array_equal(source.vectors[:, 0], 10 * k + np.arange(3))
        assert_array_equal(source.labels, 0)
    (tmp_path / "test" / "metadata.csv").unlink()
    assert len(folder(tmp_path, vectors=("age",))) == 3
    refused(lambda: folder(tmp_path, split="test", vectors=("age",)),
            "3 of 3 pictures have no row in train/metadata.csv, the first 'test/a/000.png'")


@pytest.mark.parametrize("content, says", [
    (None, "is read from metadata.csv beside the pictures.*file_name,age and a row"),
    (b"", "has no column 'file_name', only"),
    (b"file_name;age\n000.png;3\n", "has no column 'file_name', only .*'file_name;age'.*commas"),
    (b"file_name,age\n000.png,3\n", "2 of 3 pictures have no row in metadata.csv, the first '001"),
    (b"file_name,age\n000.png\n001.png,1\n002.png,2\n", "line 2: age is None, and must be a num"),
    (b"file_name,age\n000.png,nan\n001.png,1\n002.png,2\n", "line 2: age is 'nan', and must"),
    (b"file_name,age\n000.png,1\n000.png,1\n", "line 3: has a second row for '000.png'"),
    (b'file_name,age\n"000.png,1\n', "cannot be read"),
    (b"file_name,age\n\xff\xfe,1\n", "cannot be read .*UTF-8"),
])
def test_what_is_wrong_with_a_table(tmp_path, content, says):
    write_pictures(tmp_path, 3)
    if content is not None:
        (tmp_path / "metadata.csv").write_bytes(content)
    refused(lambda: folder(tmp_path, vectors=("age",)), says)


def test_a_damaged_picture_takes_no_other_vector(tmp_path, monkeypatch, logged):
    write_pictures(tmp_path, 21)
    table(tmp_path / "metadata.csv", [[f"{i:03}.png", i, 0] for i in range(21)])
    (tmp_path / "007.png").write_text("damaged")
    source = folder(tmp_path, vectors=("age",))
    assert_array_equal(source.vectors[:, 0], np.delete(np.arange(21), 7))
    assert_array_equal(source.vectors[:, 0], everything(source)[:, 0, 0, 0])
    monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 10)
    streamed = folder(tmp_path, vectors=("age",))
    assert_array_equal(streamed.read(np.array([8]))[0, 0, 0, 0], 8)
    refused(lambda: streamed.read(np.array([7])), "007.png cannot be read, and no other picture")


# TFDS and Hugging Face.


@pytest.fixture
def tiny_tfds(tmp_path):
    import tensorflow_datasets as tfds

    features = tfds.features
    place = np.float32(RANDOM.normal(size=(6, 2)))
    inner = [{"bald": i % 2 == 0, "name": f"n{i}"} for i in range(6)]
    beside = {
        "age": (features.Scalar(np.int64), np.arange(6) * 7),
        "place": (features.Tensor(shape=(2,), dtype=np.float32), place),
        "looks": (features.FeaturesDict({"bald": np.bool_, "name": features.Text()}), inner),
    }
    images = list(numbered(6, (2, 5, 3)))
    return place, write_tfds(tmp_path, images, labels=np.arange(6) % 5, beside=beside)


def test_features_of_a_tfds_set(tiny_tfds, streamed):
    place, root = tiny_tfds
    names = ("looks/bald", "age", "place", "kind")
    for split in ("train", "test"):
        source = loading.load(
            "tiny", data_dir=root, split=split, holdout=2, vectors=names, labels=True
        )
        n = everything(source)[:, 0, 0, 0]
        expected = np.c_[n % 2 == 0, 7 * n, place[n], np.eye(5)[n % 5]]
        assert_array_equal(source.vectors, expected)
        assert_array_equal(source.labels, n % 5)


@pytest.mark.parametrize("name", ["size", "photo", "looks", "looks/name", "looks/size"])
def test_features_that_are_no_numbers(tiny_tfds, name):
    refused(lambda: loading.load("tiny", data_dir=tiny_tfds[1], vectors=(name,)),
            f"has '{name}', which is no feature of numbers of tiny", "'looks/bald'", "'age'")


def test_columns_of_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    pictures = [Image.fromarray(x[..., 0]) for x in numbered(5)]
    rows = datasets.Dataset.from_dict(
        {"image": pictures, "age": [3, 1, 4, 1, 5], "place": [[i, 2.5] for i in range(5)],
         "kind": [0, 1, 2, 1, 0], "word": list("abcde"), "ragged": [[1]] * 4 + [[1, 2]]},
        features=datasets.Features({
            "image": datasets.Image(), "age": datasets.Value("int32"),
            "place": datasets.Sequence(datasets.Value("float64")),
            "kind": datasets.ClassLabel(names=["x", "y", "z"]), "word": datasets.Value("string"),
            "ragged": datasets.Sequence(datasets.Value("int64")),
        }),
    )
    rows.save_to_disk(tmp_path / "set")
    asked = dict(data_dir=str(tmp_path / "set"), seed=1)
    for split in ("train", "test"):
        source = loading.load(
            "hf", split=split, holdout=2, vectors=("place", "kind", "age"), **asked
        )
        n = everything(source)[:, 0, 0, 0]
        kinds, ages = np.array([0, 1, 2, 1, 0])[n], np.array([3, 1, 4, 1, 5])[n]
        assert_array_equal(source.vectors, np.c_[n, np.full(len(n), 2.5), np.eye(3)[kinds], ages])
    refused(lambda: loading.load("hf", vectors=("size",), **asked), "has 'size', .*'place'")
    refused(lambda: loading.load("hf", vectors=("word",), **asked), "set' word: must be numbers")
    refused(lambda: loading.load("hf", vectors=("ragged",), **asked), "ragged: must be numbers")


def test_a_class_outside_is_no_one_hot():
    assert_array_equal(vectors.one_hot(np.array([1, 0]), 2), [[0, 1], [1, 0]])
    assert np.isnan(vectors.one_hot(np.array([-1, 2]), 2)).all()


# Training and held-out images.


def test_held_out_images_are_on_the_scale_of_training():
    config = tiny_config(**{"data.holdout": 4})
    given = data.from_array(numbered(12, (8, 8, 1)), vectors=np.arange(12.0) ** 2)
    source, held_out = run.open_data(config, given)
    assert_allclose(source.vector_scale[0][0], source.vectors.mean(), rtol=1e-12)
    assert held_out.vector_scale == source.vector_scale
    config.data.vectors, config.data.vector_mean, config.data.vector_std = ("a",), (5.0,), (2.0,)
    source, held_out = run.open_data(config, given)
    assert held_out.vector_scale == source.vector_scale == ((5.0,), (2.0,))
    config.data.vector_mean = config.data.vector_std = (5.0, 1.0)
    refused(lambda: run.open_data(config, given), r"config.data.vectors=\('a',\): 1 numbers")
    refused(lambda: run.open_data(config, numbered(12, (8, 8, 1))), "config.data.vectors=.*none")
