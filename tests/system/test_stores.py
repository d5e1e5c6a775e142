"""Paths in an object store, here in memory, without append, rename or folders."""

import pathlib
import sys

import fsspec
import numpy as np
import pytest
from etils import epath

from ddpm_jax.data import loading
from ddpm_jax.evaluation import references
from ddpm_jax.runtime import files, partial_results
from ddpm_jax.workdir import pictures
from object_store import Store, local_copy, objects

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), np.uint8)


def test_home_is_expanded_and_stores_are_left_alone(bucket):
    assert files.path("~/runs") == epath.Path(pathlib.Path.home() / "runs")
    assert str(files.path("gs://bucket/~/x")) == "gs://bucket/~/x"
    assert files.in_store("gs://bucket/x") and files.in_store(bucket)
    assert not files.in_store("/gs/x") and not files.in_store(epath.Path("runs"))


def test_a_store_without_its_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"^gs://b/x needs .*pip install \"ddpm_jax\[gcs\]\"\.$"):
        files.path("gs://b/x")


@pytest.mark.parametrize("name", ["memory://x", "http://x/y", "nothing://x"])
def test_other_stores_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name} is in no known store.* gs://BUCKET/NAME.$"):
        files.path(name)


def test_an_object_is_written_once_and_whole(bucket):
    seen = []

    def fill(file):
        file.write(b"half")
        seen.append(objects())
        file.seek(0)  # As zipfile does; a stream to a store could not.
        file.write(b"all")

    files.write(bucket / "a" / "b.txt", fill)
    files.write(str(bucket / "a" / "b.txt"), b"next")
    assert seen == [[]] and Store.writes == ["bucket/a/b.txt"] * 2
    assert (bucket / "a" / "b.txt").read_bytes() == b"next"


def test_a_write_that_fails_leaves_the_old_object_alone(bucket):
    files.write(bucket / "a", b"first")

    def full(file):
        file.write(b"sec")
        raise OSError("no")

    with pytest.raises(OSError):
        files.write(bucket / "a", full)
    assert (bucket / "a").read_bytes() == b"first" and objects() == ["bucket/a"]


def test_a_folder_is_written_in_order_or_not_at_all(bucket):
    files.write_folder(bucket / "f", {"x/a": b"1", "b": b"2"})
    assert Store.writes == ["bucket/f/x/a", "bucket/f/b"]
    with pytest.raises(TypeError):
        files.write_folder(bucket / "g", {"a": b"1", "b": None})
    assert objects() == ["bucket/f/b", "bucket/f/x/a"]


def test_parts_pictures_and_arrays_are_written_to_a_store(bucket, tmp_path):
    partial_results.keep(bucket / "parts", 0, {"rows": np.arange(3)})
    partial_results.keep(bucket / "parts", 3, {"rows": np.arange(3, 5)})
    rows = np.concatenate([part["rows"] for part in partial_results.finished(bucket / "parts")])
    np.testing.assert_array_equal(rows, np.arange(5))
    paths = pictures.save_process(str(bucket / "way"), PIXELS[:, None], PIXELS[:, None])
    copied = local_copy(bucket, tmp_path)
    for path in paths:
        pictures.save_process(str(tmp_path / "local"), PIXELS[:, None], PIXELS[:, None])
        name = epath.Path(path).name
        if not name.endswith(".mp4"):  # It contains the time of its creation.
            want = (tmp_path / name.replace("way", "local")).read_bytes()
            assert (copied / name).read_bytes() == want
    files.write_npz(bucket / "reference.npz", {"arr_0": PIXELS})
    batches = list(references.image_batches("gs://bucket/reference.npz", 8))
    np.testing.assert_array_equal(np.concatenate(batches), PIXELS)


def test_data_are_read_from_a_store(bucket, tmp_path):
    names = ["a/0.png", "a/1.PNG", "b/2.png", ".hidden/3.png", "b/.4.png", "notes.txt"]
    for name, picture in zip(names, PIXELS):
        for folder in (bucket / "pictures", tmp_path):
            pictures.save_png(folder / name, picture)
    settings = dict(split="train", holdout=0, labels=True)
    there = loading.load("image_folder", data_dir="gs://bucket/pictures", **settings)
    here = loading.load("image_folder", data_dir=str(tmp_path), **settings)
    np.testing.assert_array_equal(there.read(np.arange(3)), PIXELS[:3])
    np.testing.assert_array_equal(here.read(np.arange(3)), PIXELS[:3])
    np.testing.assert_array_equal(there.labels, [0, 0, 1])
    files.write_npz(bucket / "d.npz", {"train": PIXELS})
    source = loading.load("npz", data_dir="gs://bucket/d.npz", split="train", holdout=2)
    assert len(source) == 10
    assert loading.is_there("npz", "gs://bucket/d.npz")
    assert not loading.is_there("npz", "gs://bucket/e.npz")
    for name, missing in (("npz", "gs://bucket/e.npz"), ("image_folder", "gs://bucket/gone")):
        with pytest.raises(ValueError, match=f"config.data.dir='{missing}'"):
            loading.load(name, data_dir=missing, split="train")


def test_files_of_other_processes_appear(bucket):
    files.path("gs://bucket/x")  # With its cache, gcsfs would list what was there a minute ago.
    assert fsspec.filesystem("gcs").storage_options["use_listings_cache"] is False
