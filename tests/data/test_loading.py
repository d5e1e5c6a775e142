"""Data sets by name: the digits, the settings of all sets (request.py), and the holdout."""

import pathlib
import runpy

import numpy as np
import pytest
from sklearn import datasets

from ddpm_jax.data import loading
from ddpm_jax.data import source as source_lib
from ddpm_jax.data.request import Request
from data_sets import everything, folder, numbered, refused, write_pictures

SPLITS = ("train", "test")


def test_digits_are_scikit_learns():
    parts = zip(*map(loading.digits, SPLITS))
    images, labels = (np.concatenate(both) for both in parts)
    bunch = datasets.load_digits()
    originals = zip(bunch.images.astype(np.uint8), bunch.target)
    expected = {(v.tobytes(), y) for v, y in originals}
    values = np.array([round(v * 16 / 255) for v in range(256)], np.uint8)[images[..., 0]]
    found = {(v.tobytes(), y) for v, y in zip(values, labels)}
    assert found == expected and len(images) == 1797
    # Half of 255 is the only tie, and is rounded up.
    assert set(np.unique(images)) == {int(v * 255 / 16 + 0.5) for v in range(17)}


def test_digits_split_is_fixed_and_stratified():
    (train, train_labels), (test, test_labels) = map(loading.digits, SPLITS)
    assert train.shape == (1497, 8, 8, 1) and test.shape == (300, 8, 8, 1)
    counts = np.bincount(train_labels, minlength=10) / 1497
    np.testing.assert_allclose(np.bincount(test_labels) / 300, counts, atol=1 / 300)
    assert not {x.tobytes() for x in train} & {x.tobytes() for x in test}
    np.testing.assert_array_equal(everything(loading.load("digits", split="test")), test)


def test_digits_file_is_what_its_script_makes():
    script = pathlib.Path(__file__).parents[1] / "fixtures" / "make_digits.py"
    made = runpy.run_path(str(script))["arrays"]()
    with np.load(pathlib.Path(loading.__file__).with_name("digits.npz")) as stored:
        assert set(stored.files) == set(made)
        for key in made:
            np.testing.assert_array_equal(stored[key], made[key])


def test_images_are_resized_and_converted():
    source = loading.load("digits", image_size=16, image_width=12, channels=3)
    assert source.image_shape == (16, 12, 3)
    image = source.read(np.array([5]))[0]
    assert (image[..., 0] == image[..., 2]).all() and image.max() > 200


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"split": "dev"}, "split='dev'"),
        ({"image_size": -1}, "config.data.image_size=-1"),
        ({"image_width": 8}, "config.data.image_width=8: .*--config.data.image_size=8"),
        ({"channels": 2}, "config.data.channels=2"),
        ({"holdout": -5}, "config.data.holdout=-5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        loading.load("digits", **settings)


@pytest.mark.parametrize("holdout, seed", [(1, 0), (4, 0), (4, 7)])
def test_holdout_splits_into_two_complete_parts(tmp_path, holdout, seed):
    path = str(tmp_path / "x.npz")
    np.savez(path, numbered(20))
    settings = {"data_dir": path, "holdout": holdout, "seed": seed}
    train = everything(loading.load("npz", **settings))[:, 0, 0, 0]
    test = everything(loading.load("npz", split="test", **settings))[:, 0, 0, 0]
    assert len(test) == holdout
    assert sorted([*train, *test]) == list(range(20))
    if seed == 0:  # From NumPy's frozen generator, so no version may change it.
        order = [18, 1, 19, 8, 10, 17, 6, 13, 4, 2, 5, 14, 9, 7, 16, 11, 3, 0, 15, 12]
        assert sorted(test) == sorted(order[:holdout])


def test_a_kind_of_data_set_is_a_function_in_a_table(monkeypatch):
    requests = []

    def load(request):
        requests.append(request)
        return source_lib.from_array(numbered(20)[request.part(20)])

    monkeypatch.setitem(loading.KINDS, "mine", load)
    source = loading.load("mine", split="test", holdout=4, image_size=2, condition="noisy")
    assert len(source) == 4 and source.condition_channels == 1
    assert requests == [Request("mine", "", "test", (2, 2, 0), holdout=4)]


def test_holdout_must_leave_something(tmp_path):
    np.savez(tmp_path / "x.npz", numbered(20))
    with pytest.raises(ValueError, match="holdout=20: .*--config.data.holdout=2"):
        loading.load("npz", data_dir=str(tmp_path / "x.npz"), holdout=20)


@pytest.mark.parametrize("split", SPLITS)
def test_labels_of_digits(split):
    source = loading.load("digits", split=split, labels=True)
    np.testing.assert_array_equal(source.labels, loading.digits(split)[1])
    assert source.num_classes == 10 and source.labels.dtype == np.int32
    assert loading.load("digits", split=split).labels is None


def test_settings_of_the_split_that_leave_nothing(tmp_path):
    write_pictures(tmp_path, 3)
    refused(lambda: folder(tmp_path, holdout=3), "holdout=3: must leave some of the 3 images")
