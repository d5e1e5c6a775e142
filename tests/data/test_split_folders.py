"""Folders of splits, with and without folders of classes below them."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import kept as kept_lib
from ddpm_jax.data import split_folders
from ddpm_jax.data.kept import Kept
from data_sets import everything, folder, refused

SPLITS = ("train", "test")


def write_splits(path, **greys):
    """Pictures path/FOLDER/i.png of one grey a folder, where FOLDER has / for __."""
    for name, grey in greys.items():
        inside = path / name.replace("__", "/")
        inside.mkdir(parents=True)
        for i in range(3):
            Image.new("L", (4, 4), grey + i).save(inside / f"{i}.png")


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation", "Test"])
@pytest.mark.parametrize("labels", [False, True])
def test_folders_of_splits_are_the_splits(tmp_path, streamed, test, labels):
    write_splits(tmp_path, **{"train__cat": 10, "train__dog": 20, f"{test}__dog": 30})
    train, held = (folder(tmp_path, split=split, labels=labels, channels=1, holdout=2)
                   for split in SPLITS)
    assert everything(train)[:, 0, 0, 0].tolist() == [10, 11, 12, 20, 21, 22]
    assert everything(held)[:, 0, 0, 0].tolist() == [30, 31, 32]
    assert train.split_folders == held.split_folders == ("train", test)
    if labels:
        assert train.classes == held.classes == ("cat", "dog")
        assert train.labels.tolist() == [0, 0, 0, 1, 1, 1] and held.labels.tolist() == [1, 1, 1]


@pytest.mark.parametrize("folders, wanted", [
    (("train",), ("train",)), (("train", "val", "test"), ("train", "test", "val")),
    (("TRAIN", "Val"), ("TRAIN", "Val")), (("train", "cat"), ()), (("test", "val"), ()),
    (("train", "Train", "val"), ()), (("training", "testing"), ()), (("a/train", "a/val"), ()),
])
def test_which_folders_are_splits(folders, wanted):
    names = [f"{name}/x/{i}.png" for name in folders for i in range(2)]
    assert split_folders.find(names) == wanted
    assert split_folders.find([*names, "bare.png"]) == ()


def test_images_are_set_aside_where_there_is_only_a_folder_for_training(tmp_path):
    write_splits(tmp_path, train__cat=10, train__dog=20)
    train, test = (folder(tmp_path, split=split, holdout=2, labels=True) for split in SPLITS)
    assert (len(train), len(test)) == (4, 2) and train.classes == ("cat", "dog")
    kept = kept_lib.of(train, test, 2)
    write_splits(tmp_path, val__cat=40)  # Added later: it is not the run's.
    again = [folder(tmp_path, split=split, labels=True, kept=kept) for split in SPLITS]
    for source, before in zip(again, (train, test)):
        np.testing.assert_array_equal(everything(source), everything(before))
        assert source.split_folders == ("train",)


def test_a_run_keeps_its_classes_and_the_files_of_its_splits(tmp_path):
    write_splits(tmp_path, train__cat=10, train__dog=20, val__cat=40)
    older = folder(tmp_path, labels=True, kept=Kept(num_classes=2))
    assert older.classes == ("train", "val") and len(older) == 9 and not older.split_folders
    train, test = (folder(tmp_path, split=split, labels=True) for split in SPLITS)
    kept = kept_lib.of(train, test, 0)
    assert kept.split_folders and sorted(kept.held_out) == [f"val/cat/{i}.png" for i in range(3)]
    Image.new("L", (4, 4), 99).save(tmp_path / "val/cat/00.png")
    again = folder(tmp_path, split="test", labels=True, kept=kept)
    np.testing.assert_array_equal(everything(again), everything(test))
    (tmp_path / "val/cat/1.png").unlink()
    refused(lambda: folder(tmp_path, split="test", labels=True, kept=kept), "are gone .val/cat/1")


def test_classes_of_a_split_that_training_lacks(tmp_path):
    write_splits(tmp_path, train__cat=10, train__dog=20, val__zebra=40)
    refused(lambda: folder(tmp_path, split="test", labels=True),
            "has the label zebra, which is none of the 2 classes to train on .cat, dog.")
    write_splits(tmp_path / "flat", train__cat=10, test=20)
    assert len(folder(tmp_path / "flat", split="test")) == 3
    refused(lambda: folder(tmp_path / "flat", split="test", labels=True),
            "test/0.png is in no folder of a class")
