"""Labels of the kinds that people have, checked against Python's `sorted` and `index`."""

import ml_dtypes
import numpy as np
import pytest

from ddpm_jax.data import labels as labels_lib
from ddpm_jax.data import loading
from ddpm_jax.data.source import from_array
from ddpm_jax.errors import UserError
from data_sets import numbered, refused

N = 12
TURNS = np.arange(N) * 5 % 12 % 4  # 0..3, mixed.
VALUES = {  # Labels as integers or as strings, of which class i is the i-th in order.
    "0..n-1": TURNS, "1..n": TURNS + 1, "negative": TURNS - 2, "gaps": TURNS * 3,
    "sparse ids": np.array([5, 1_900_000, 70_000, 12])[TURNS],
    "one class": np.full(N, 7), "huge": np.array([2**63, 5, 2**64 - 1, 1], np.uint64)[TURNS],
    "strings": np.array(["dog", "cat", "10", "9"])[TURNS], "accents": np.array(list("éa日b"))[TURNS],
}
SHAPES = {
    "as they are": lambda x: x, "a list": lambda x: x.tolist(), "[n, 1]": lambda x: x[:, None],
    "objects": lambda x: x.astype(object), "a list of lists": lambda x: x[:, None].tolist(),
}


def images():
    return numbered(N)


def checked(source, wanted):
    """Checks the classes of a source against the labels that it should have."""
    order = sorted(set(wanted))
    assert source.classes == tuple(order) and source.num_classes == len(order)
    assert source.labels.dtype == np.int32
    assert source.labels.tolist() == [order.index(value) for value in wanted]
    assert source.class_counts == tuple(wanted.count(value) for value in order)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", VALUES)
def test_labels_become_classes_in_their_order(kind, shape):
    checked(from_array(images(), labels=SHAPES[shape](VALUES[kind])), VALUES[kind].tolist())


@pytest.mark.parametrize("dtype", [
    np.int8, np.uint8, np.uint16, np.int64, np.float16, np.float32, np.float64, bool, "S1",
])
def test_labels_of_every_type_of_number_and_bytes(dtype):
    turns = TURNS % 2 if dtype is bool else TURNS
    wanted = turns.astype(str) if dtype == "S1" else turns
    checked(from_array(images(), labels=turns.astype(dtype)), wanted.tolist())


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64, bool, object])
@pytest.mark.parametrize("columns", [4, 9])
def test_one_hot_rows_are_the_columns_of_their_ones(dtype, columns):
    rows = np.zeros((N, columns), dtype)
    rows[np.arange(N), TURNS] = 1
    checked(from_array(images(), labels=rows), TURNS.tolist())
    checked(from_array(images(), labels=rows.tolist()), TURNS.tolist())
    checked(from_array(images()[:1], labels=rows[:1]), TURNS[:1].tolist())


@pytest.mark.parametrize("labels, words", [
    (TURNS[:11], "labels: 11 labels for 12 images"), (3, "labels: 1 labels for 12 images"),
    (np.tile(TURNS, 2), "24 labels for 12 images"), (TURNS[None], "1 labels for 12 images"),
    ([], "0 labels for 12"), (np.linspace(0, 1, N), r"image 1 has the label 0.09.*no whole number"),
    (np.where(TURNS == 2, np.nan, 1.0), r"image \d has no label \(nan\)"),
    (np.full(N, np.inf), "label inf, which is too large"),
    (np.full(N, 1e300), "label 1e.300, which is too"),
    (np.array([1] * 3 + [None] * 9), r"image 3 has no label \(None\)"),
    (np.ma.masked_equal(np.arange(N), 4), r"image 4 has no label \(None\)"),
    ([1.0] * 3 + [float("nan")] * 9, r"image 3 has no label \(nan\)"),
    (["a"] * 5 + [float("nan")] * 7, r"image 5 has no label \(nan\)"),
    (["a"] * 5 + [3] * 7, "image 5 has the label 3, of type int"),
    ([[1]] * 5 + [[1, 2]] * 7, r"image 0 has the label \[1\], of type list"),
    (np.ones((N, 3), int), r"int64 \[12, 3\], and image 0 has \[1, 1, 1\], which is not one-hot"),
    (np.eye(N)[:, :5] * 0.9, r"image 0 has \[0.9, 0.0.*labels.argmax"),
    (np.full((N, 2), np.nan), "not one-hot"), (np.zeros((N, 2, 2)), "more than one number"),
    (np.full((N, 2), "a"), "more than one number"), (np.full(N, 1j), r"complex128 \[12\] are no"),
    (np.full(N, "2026-01-01", "datetime64[D]"), "are no labels"),
    (np.ones(N, ml_dtypes.bfloat16), "are no labels"),
    ([2**70] * N, "1805916207174113e.21, which is too large"),
])
def test_labels_that_are_none_are_one_line(labels, words):
    refused(lambda: from_array(images(), labels=labels), words)


@pytest.mark.parametrize("num_classes, wanted", [
    (0, (1, 2, 3, 4)), (4, (1, 2, 3, 4)), (5, (0, 1, 2, 3, 4)), (9, tuple(range(9))),
])
def test_labels_below_a_number_of_classes_that_is_set_are_classes_as_they_are(
    tmp_path, num_classes, wanted
):
    np.savez(tmp_path / "x.npz", train=images(), train_labels=TURNS + 1)
    for source in (
        from_array(images(), labels=TURNS + 1, num_classes=num_classes),
        loading.load("npz", data_dir=str(tmp_path / "x.npz"), labels=True, num_classes=num_classes),
    ):
        assert source.classes == wanted
        assert [wanted[label] for label in source.labels] == (TURNS + 1).tolist()


@pytest.mark.parametrize("ids", [np.arange(10_001) * 3, np.arange(10_001).astype(str)])
def test_more_than_ten_thousand_classes_are_taken_for_ids(tmp_path, ids):
    many = np.zeros((len(ids), 1, 1, 1), np.uint8)
    words = f"10,001 different labels, the largest {max(ids.tolist())}, are more than 10,000"
    refused(lambda: from_array(many, labels=ids), words, "write num_classes=10001 if")
    np.savez(tmp_path / "x.npz", train=many, train_labels=ids)
    settings = dict(data_dir=str(tmp_path / "x.npz"), labels=True)
    refused(lambda: loading.load("npz", **settings), words, "write --config.data.num_classes=10001")
    assert from_array(many, labels=ids, num_classes=10_001).num_classes == 10_001
    assert loading.load("npz", num_classes=10_001, **settings).num_classes == 10_001
    assert from_array(many[:-1], labels=ids[:-1]).num_classes == 10_000


@pytest.mark.parametrize("values", [TURNS + 1, np.array(["b", "a", "d", "c"])[TURNS]])
def test_labels_of_the_test_images_are_the_classes_of_training(tmp_path, values):
    settings = dict(data_dir=str(tmp_path / "x.npz"), labels=True, split="test")
    order = sorted(set(values.tolist()))
    np.savez(tmp_path / "x.npz", train=images(), train_labels=values, test=images()[:3],
             test_labels=np.array([order[2], order[0], order[2]]))
    assert loading.load("npz", **settings).labels.tolist() == [2, 0, 2]
    stranger = np.array([order[0], 77, order[1]]).astype(values.dtype)
    np.savez(tmp_path / "x.npz", train=images(), train_labels=values, test=images()[:3],
             test_labels=stranger)
    refused(lambda: loading.load("npz", **settings),
            "test_labels: image 1 has the label 7+, which is none of the 4 classes", r"1 of 3\)")


@pytest.mark.parametrize("labels, numbers", [
    ("dog", 1), (["owl", "cat"], [2, 0]), (("cat", 2, "1"), [0, 2, 1]), (np.array(["dog"]), [1]),
    ("2", 2), (("cat,dog",), [0, 1]), ("owl,1", [2, 1]),
])
def test_labels_by_name(labels, numbers):
    assert labels_lib.numbered(labels, ("cat", "dog", "owl")) == numbers


def test_labels_that_are_numbers_stay_as_they_are():
    for labels in (3, None, [1, 2], np.arange(3), (), [[1], [2, 3]]):
        assert labels_lib.numbered(labels, ("cat",)) is labels


def test_a_name_that_is_no_class_is_one_line():
    with pytest.raises(UserError, match="labels='Dogs' is none of the 3 classes: cat, dog, owl; "
                                        "write labels='dog'"):
        labels_lib.numbered(["cat", "Dogs"], ("cat", "dog", "owl"))
    with pytest.raises(UserError, match="labels='cat' is a name, and the classes of this model"):
        labels_lib.numbered("cat", ())


def test_the_line_of_the_classes_is_bounded():
    assert labels_lib.line((0, 1), (3, 1200), ("cat", "dog")) == (
        "classes: 2, numbered 0..1 in the order cat (3 images), dog (1,200 images)")
    assert labels_lib.line((0, 1), (3, 1200)) == "classes: 2, of 3 to 1,200 images each"
    assert labels_lib.line((1, 2), (3, 1200)) == (
        "classes: 2, numbered 0..1 in the order 1 (3 images), 2 (1,200 images)")
    for names in (tuple(f"kind {i}" for i in range(1000)), ("x" * 10_000, "\udcff\n"),
                  tuple(range(1, 10_001))):
        line = labels_lib.line(names, (5,) * len(names))
        assert len(line) < 600 and line.isprintable()
    assert "kind 999 (5 images)" in labels_lib.line(
        tuple(f"kind {i}" for i in range(1000)), (5,) * 1000)
