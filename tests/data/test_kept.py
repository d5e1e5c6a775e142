"""What a run keeps of its data: the same images stay held out, whatever is asked for later."""

import dataclasses

import numpy as np
import pytest

from ddpm_jax.data import kept as kept_lib
from ddpm_jax.data import loading
from ddpm_jax.data.kept import Kept
from data_sets import everything, folder, numbered, refused, write_pictures, write_tfds

N, HELD = 20, 5


class Folder:
    """Pictures, each with its number as its grey."""

    def __init__(self, path):
        self.path = path
        write_pictures(path, N)

    def load(self, **settings):
        return folder(self.path, **settings)

    def add(self):
        for name in ("0000", "009a", "zz"):
            (self.path / f"{name}.png").write_bytes((self.path / "000.png").read_bytes())

    def change(self, number):
        (self.path / f"{number:03}.png").write_bytes((self.path / "000.png").read_bytes())

    def remove(self, number):
        (self.path / f"{number:03}.png").unlink()


class Npz:
    """The same as an array; images cannot be removed from its inside."""

    def __init__(self, path):
        self.path, self.images = path / "x.npz", numbered(N)
        np.savez(self.path, train=self.images)

    def load(self, **settings):
        return loading.load("npz", data_dir=str(self.path), **settings)

    def add(self):
        np.savez(self.path, train=np.concatenate([self.images, self.images[[0] * 3]]))

    def change(self, number):
        self.images[number, 1, 1] ^= 1
        np.savez(self.path, train=self.images)

    def remove(self, number):
        np.savez(self.path, train=self.images[:number])


class Array(Npz):
    """The same, given in Python."""

    def load(self, split="train", holdout=0, seed=0, kept=None):
        return loading.part_of(
            super().load(), split, holdout=holdout, seed=seed, num_classes=0, kept=kept)


@pytest.fixture(params=[Folder, Npz, Array])
def begun(request, tmp_path):
    """(the data, what a run with held-out images keeps of them, the numbers of those)."""
    data = request.param(tmp_path)
    train, test = (data.load(split=split, holdout=HELD, seed=3) for split in ("train", "test"))
    return data, kept_lib.of(train, test, HELD), numbers(test)


def numbers(source):
    return everything(source)[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("settings", [
    {}, {"seed": 4}, {"holdout": HELD}, {"holdout": HELD, "seed": 9},
])
@pytest.mark.parametrize("grows", [False, True])
def test_the_same_images_stay_held_out(begun, settings, grows):
    data, kept, held = begun
    if grows:
        data.add()
    train, test = (data.load(split=split, kept=kept, **settings) for split in ("train", "test"))
    assert numbers(test) == held and len(train) == N - HELD + 3 * grows
    assert not set(held) & (set(numbers(train)) - {0})  # Those added equal image 0.
    assert kept_lib.of(train, test, HELD).held_out == kept.held_out


def test_without_what_is_kept_another_seed_holds_out_others(begun):
    data, _, held = begun
    assert numbers(data.load(split="test", holdout=HELD, seed=4)) != held
    older = Kept()  # An older version kept nothing: there the seed decides for data of a name.
    if isinstance(data, Array):
        assert data.load(split="test", holdout=HELD, kept=older) is None
    else:
        assert numbers(data.load(split="test", holdout=HELD, seed=3, kept=older)) == held


def test_images_that_changed_are_refused(begun):
    data, kept, held = begun
    data.change(held[1])
    refused(lambda: data.load(split="test", kept=kept),
            "1 of the 5 images that the run keeps from training are not what they were",
            rf"\(0*{held[1]}(.png)?\); put them back")
    assert len(data.load(kept=kept)) == N - HELD


def test_images_that_are_gone_are_refused(begun):
    data, kept, held = begun
    data.remove(held[-1])
    for split in ("train", "test"):
        refused(lambda: data.load(split=split, kept=kept),
                rf"1 of the 5 .* are gone \(0*{held[-1]}(.png)?\)")


@pytest.mark.parametrize("holdout", [1, HELD + 1, 100])
def test_another_number_of_images_is_refused(begun, holdout):
    data, kept, _ = begun
    refused(lambda: data.load(kept=kept, holdout=holdout),
            f"config.data.holdout={holdout} is not the 5 images", "--config.data.holdout=5")


def test_a_run_that_trained_on_all_holds_out_none_later(tmp_path):
    data = Folder(tmp_path)
    kept = kept_lib.of(data.load(), data.load(split="test"), 0)
    assert kept == Kept(held_out={}) and data.load(split="test", kept=kept) is None
    refused(lambda: data.load(kept=kept, holdout=3), "holdout=3 is not the 0 images")


@pytest.mark.parametrize("asked", [{}, {"seed": 8}])
def test_images_of_a_tfds_set_stay_held_out(tmp_path, asked):
    write_tfds(tmp_path, list(numbered(9, (2, 5, 3))))
    settings = dict(data_dir=str(tmp_path))
    train, test = (loading.load("tiny", split=split, holdout=3, seed=1, **settings)
                   for split in ("train", "test"))
    kept = kept_lib.of(train, test, 3)
    again = loading.load("tiny", split="test", kept=kept, **settings, **asked)
    assert numbers(again) == numbers(test) and len(kept.held_out) == 3


def test_a_test_split_of_the_data_is_theirs(tmp_path):
    np.savez(tmp_path / "x.npz", train=numbered(9), test=numbered(4))
    settings = dict(data_dir=str(tmp_path / "x.npz"), holdout=2)
    train, test = (loading.load("npz", split=split, **settings) for split in ("train", "test"))
    kept = kept_lib.of(train, test, 2)
    assert kept.held_out == {}
    assert numbers(loading.load("npz", split="test", kept=kept, **settings)) == [0, 1, 2, 3]


def test_images_of_other_data_are_not_those_held_out(begun):
    _, kept, _ = begun
    refused(lambda: loading.load("digits", split="test", kept=kept), "'digits': 5 of the 5 images")


@pytest.fixture
def of_folder(tmp_path):
    """The arguments of `loading.load` for a folder, and what a run on it keeps."""
    (tmp_path / "own").mkdir()
    write_pictures(tmp_path / "own", N)
    settings = dict(name="image_folder", data_dir=str(tmp_path / "own"), holdout=HELD, seed=3)
    return settings, kept_lib.of(*(
        loading.load(split=split, **settings) for split in ("train", "test")), HELD)


@pytest.mark.parametrize("asked", [{}, {"seed": 8}, {"holdout": 0}])
def test_data_that_moved_have_the_same_images_held_out(of_folder, tmp_path, asked):
    settings, kept = of_folder
    (tmp_path / "own").rename(tmp_path / "moved")
    settings |= {"data_dir": str(tmp_path / "moved")} | asked
    assert loading.kept_for(kept, False, **settings) is kept


@pytest.mark.parametrize("held_out", ["some", "none"])
def test_other_data_are_divided_by_their_seed(of_folder, tmp_path, held_out):
    settings, kept = of_folder
    kept = dataclasses.replace(kept, held_out=kept.held_out if held_out == "some" else {})
    np.savez(tmp_path / "x.npz", train=numbered(N)[::-1])
    settings |= {"name": "npz", "data_dir": str(tmp_path / "x.npz"), "holdout": HELD + 2}
    other = loading.kept_for(kept, False, **settings)
    assert other == dataclasses.replace(kept, held_out=None)
    test, by_seed = (
        loading.load(split="test", kept=known, **settings) for known in (other, None))
    assert numbers(test) == numbers(by_seed) and len(test) == HELD + 2


def test_the_own_data_of_a_run_are_never_taken_for_others(of_folder, tmp_path):
    settings, kept = of_folder
    (tmp_path / "own" / next(iter(kept.held_out))).unlink()
    assert loading.kept_for(kept, True, **settings) is kept
    assert loading.kept_for(None, False, **settings) is None
    assert loading.kept_for(Kept(), False, **settings) == Kept()  # Of an older version.


@pytest.mark.parametrize("classes, wanted", [((1, 2, 3), [0, 1, 0]), ((0, 1, 2, 3), [1, 2, 1])])
def test_classes_stay_what_they_were(tmp_path, classes, wanted):
    labels = np.array([1, 2, 1])
    np.savez(tmp_path / "x.npz", train=numbered(3), train_labels=labels)
    settings = dict(data_dir=str(tmp_path / "x.npz"), labels=True)
    kept = Kept(classes=classes, held_out={})
    source = loading.load("npz", kept=kept, **settings)
    assert source.classes == classes and source.labels.tolist() == wanted
    np.savez(tmp_path / "x.npz", train=numbered(3), train_labels=labels + 3)
    refused(lambda: loading.load("npz", kept=kept, **settings),
            f"labels: image 0 has the label 4, which is none of the {len(classes)} classes")


def test_labels_of_an_older_run_are_classes_as_they_are(tmp_path):
    np.savez(tmp_path / "x.npz", train=numbered(8), train_labels=np.arange(8) % 4 + 1)
    source = loading.load(
        "npz", data_dir=str(tmp_path / "x.npz"), labels=True, kept=Kept(num_classes=5))
    assert source.num_classes == 5 and source.labels.tolist() == [1, 2, 3, 4] * 2
