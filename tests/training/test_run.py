"""Preparing a run: its data, its classes, its memory."""

import jax
import numpy as np
import pytest

from ddpm_jax import validation
from ddpm_jax import config as config_lib
from ddpm_jax.configs import digits
from ddpm_jax.data.source import from_array
from ddpm_jax.runtime import memory
from ddpm_jax.training import memory_check, monitoring
from ddpm_jax.training import run as run_lib
from ddpm_jax.workdir import run_folder
from data_sets import everything, numbered, refused, write_pictures
from nonzero import TinyNet


def test_more_classes_than_the_config(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        write_pictures(tmp_path / name, 2)
    config = digits.get_config()
    config.data.name, config.data.dir = "image_folder", str(tmp_path)
    config.data.labels, config.data.num_classes = True, 2
    config.train.batch_size = 8
    refused(lambda: run_lib.prepare(config, None, None),
            "num_classes=2 is too few: the data have 3 classes; write --config.data.num_classes=3")


@pytest.mark.parametrize("shape, settings, words", [
    ((9, 16, 16, 1), {}, r"data.image_size=8 contradicts the data given, images of 16x16x1 .*"
     r"write --config.data.image_size=16\.$"),
    ((9, 8, 8, 3), {}, r"data.channels=1 contradicts .* 8x8x3 .*write --config.data.channels=3"),
    ((9, 8, 16, 1), {}, r"data.image_width=0 contradicts .*write --config.data.image_width=16"),
    ((9, 3, 4, 4), {"data.image_size": 4, "data.channels": 3},
     r"pass images.transpose\(0, 2, 3, 1\), or write"),
    ((9, 16, 8, 1), {"data.image_size": 8, "data.image_width": 16},
     r"pass images.transpose\(0, 2, 1, 3\), or write"),
])
def test_arrays_that_contradict_the_config_are_refused(shape, settings, words):
    config = digits.get_config()
    config.update_from_flattened_dict(settings)
    images = np.zeros(shape, np.uint8)
    refused(lambda: run_lib.open_data(config, images), words)
    refused(lambda: run_lib.open_data(config, from_array(images)), words)


def test_arrays_decide_what_the_config_leaves_open():
    config = digits.get_config()
    config.data.image_size = config.data.channels = 0
    assert run_lib.open_data(config, np.zeros((9, 8, 16, 2), np.uint8))[0].image_shape == (8, 16, 2)
    config.data.image_size, config.data.image_width = 8, 16
    assert run_lib.open_data(config, np.zeros((9, 8, 16, 4), np.uint8))[0].image_shape == (8, 16, 4)


@pytest.mark.parametrize("data, words", [
    (np.zeros((9, 3, 8, 8), np.uint8), r"data=uint8 .*images.transpose\(0, 2, 3, 1\)"),
    ((np.zeros((9, 8, 8, 1), np.uint8), np.arange(9)), "from_array.images.0., labels=images.1.."),
    ("pictures", "write data=ddpm_jax.data.load.'image_folder'"),
])
def test_data_of_another_kind_are_refused(data, words):
    refused(lambda: run_lib.prepare(digits.get_config(), None, data), words)


@pytest.fixture
def single(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def test_a_run_begins_with_the_warning(monkeypatch):
    monkeypatch.setattr(config_lib, "model", lambda config, channels: TinyNet())
    monkeypatch.setattr(validation, "check_images", lambda config, shape: None)
    monkeypatch.setattr(
        memory_check, "warnings", lambda need: [f"images of {need.image_shape}"]
    )
    run = run_lib.prepare(digits.get_config(), None, None)
    lines = monitoring.opening_lines(run, run_lib.fresh_state(run))
    assert lines[0] == "warning: images of (8, 8, 1)"


def test_a_run_is_refused_before_its_data_are_opened(single, monkeypatch):
    config = digits.get_config()
    config.data.name = "not_there"
    monkeypatch.setattr(memory, "device_total", lambda: 2**20)
    with pytest.raises(ValueError, match="a training step needs at least"):
        run_lib.prepare(config, None, None)
    config.data.name, config.data.image_size = "digits", 0  # The data decide it.
    with pytest.raises(ValueError, match="a training step needs at least"):
        run_lib.prepare(config, None, None)


# What a run keeps of its data.


@pytest.fixture
def begin(single, monkeypatch, tmp_path):
    """(data, settings) -> a run of a tiny network in one workdir, as if it had a checkpoint."""
    monkeypatch.setattr(
        config_lib, "model",
        lambda config, channels: TinyNet(num_classes=config.data.num_classes))
    monkeypatch.setattr(validation, "check_images", lambda config, shape: None)

    def begin(data=None, **settings):
        config = digits.get_config()
        config.data.image_size = config.data.channels = 0
        config.update_from_flattened_dict(settings)
        run = run_lib.prepare(config, tmp_path / "run", data)
        run_lib.store_config(run)
        (tmp_path / "run" / "checkpoints" / "2").mkdir(parents=True, exist_ok=True)
        return run

    return begin


def lines(run, word):
    all_lines = monitoring.opening_lines(run, run_lib.fresh_state(run))
    return [line for line in all_lines if line.startswith(word)]


TURNS = np.arange(12) % 4 + 1


def test_labels_from_one_make_no_class_zero(begin):
    run = begin(from_array(numbered(12), labels=TURNS))
    assert run.model.num_classes == run.step_settings.null_label == 4
    assert run.source.labels.tolist() == (TURNS - 1).tolist()
    assert lines(run, "classes") == ["classes: 4, numbered 0..3 in the order 1 (3 images), "
                                     "2 (3 images), 3 (3 images), 4 (3 images)"]
    some = TURNS > 1  # Without the first class, the others stay what they are.
    again = begin(from_array(numbered(12)[some], labels=TURNS[some]))
    assert again.source.labels.tolist() == (TURNS[some] - 1).tolist() and again.kept == run.kept
    assert "no image to train on is of class 0 (1 of 4 classes)" in lines(again, "warning")[0]
    refused(lambda: begin(from_array(numbered(12), labels=TURNS + 1)),
            "data labels: image 3 has the label 5, which is none of the 4 classes")


def test_the_names_of_the_classes_are_stored_and_may_be_set(begin):
    named = from_array(numbered(12), labels=TURNS - 1, class_names=["ant", "bee", "cow", "doe"])
    run = begin(named)
    assert run_folder.parse(run.config_json).data.class_names == ("ant", "bee", "cow", "doe")
    own = ("a", "b", "c", "d")
    run = begin(named, **{"data.class_names": own})
    assert run_folder.parse(run.config_json).data.class_names == own
    refused(lambda: begin(named, **{"data.class_names": own[:3]}),
            "class_names=.'a', 'b', 'c'. has 3 names for 4 classes; write")


@pytest.mark.parametrize("num_classes, wanted", [
    (4, TURNS - 1), (5, TURNS), (7, TURNS), (3, None),
])
def test_a_number_of_classes_that_is_set(begin, num_classes, wanted):
    data, settings = from_array(numbered(12), labels=TURNS), {"data.num_classes": num_classes}
    if wanted is None:
        refused(lambda: begin(data, **settings), "num_classes=3 is too few: the data have 4")
        return
    run = begin(data, **settings)
    assert run.model.num_classes == num_classes
    assert run.source.labels.tolist() == wanted.tolist()
    assert begin(data, **settings).source.labels.tolist() == wanted.tolist()


def test_classes_without_an_image_are_said(begin, tmp_path):
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        write_pictures(tmp_path / "set" / name, 2)
    run = begin(**{"data.name": "image_folder", "data.dir": str(tmp_path / "set"),
                   "data.labels": True, "data.num_classes": 20})
    assert run.model.num_classes == 20 and run.source.num_classes == 2
    assert lines(run, "warning")[-1].startswith(
        "warning: no image to train on is of class 2, 3, 4, 5, 6, 7, 8, ..., 19 (18 of 20 classes)")


def test_a_run_of_an_older_version_keeps_labels_as_they_are(begin, tmp_path):
    """Its class 0 was never trained, and yet all weights of its embedding are where they were."""
    config = digits.get_config()
    config.data.image_size, config.data.image_width, config.data.channels = 2, 3, 1
    config.data.labels, config.data.num_classes = True, 5
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(config.to_json())
    run = begin(from_array(numbered(12), labels=TURNS), **{"data.holdout": 3})
    assert run.model.num_classes == 5 and run.source.labels.tolist() == TURNS.tolist()
    assert run.held_out is None and not (tmp_path / "run" / "data.json").exists()


def test_images_of_an_array_are_held_out(begin):
    images = numbered(20)
    run = begin(images, **{"data.holdout": 4})
    train, test = (everything(source)[:, 0, 0, 0].tolist() for source in (run.source, run.held_out))
    assert len(test) == 4 and sorted(train + test) == list(range(20))
    assert "data: 16 images of 2x3x1, 4 held out" in lines(run, "data")
    again = begin(np.concatenate([images, images[:2]]), **{"data.holdout": 4, "seed": 9})
    assert everything(again.held_out)[:, 0, 0, 0].tolist() == test and len(again.source) == 18
    refused(lambda: begin(images[::-1], seed=9), "data: . of the 4 images that the run keeps")
    refused(lambda: begin(images, **{"data.holdout": 5}), "holdout=5 is not the 4 images")
    refused(lambda: begin(images[:4], **{"data.holdout": 4}), "gone|must leave some")


def test_a_run_that_goes_on_with_other_data_keeps_images_of_those(begin, tmp_path):
    for name, images in (("a", numbered(20)), ("b", numbered(20)[::-1])):
        np.savez(tmp_path / f"{name}.npz", train=images)
    a, b = ({"data.name": "npz", "data.dir": str(tmp_path / f"{name}.npz"), "data.holdout": 4}
            for name in "ab")
    first, other = begin(**a), begin(**b, seed=5)
    assert len(other.held_out) == 4 and other.kept.held_out != first.kept.held_out
    for _ in range(2):  # Now these are the data of the run.
        again = begin(**b, seed=6)
        assert again.kept == other.kept
        np.testing.assert_array_equal(everything(again.held_out), everything(other.held_out))


def test_the_test_split_of_the_data_comes_before_a_holdout(begin):
    run = begin(**{"data.holdout": 7})
    assert len(run.held_out) == 300 and lines(run, "warning") == [
        "warning: config.data.holdout=7 is not used: the test split of digits is held out instead."]


def test_a_run_says_which_folders_it_trains_on(begin, tmp_path):
    for name in ("train/ant", "train/bee", "val/ant", "test/bee"):
        (tmp_path / "set" / name).mkdir(parents=True)
        write_pictures(tmp_path / "set" / name, 3)
    settings = {"data.name": "image_folder", "data.dir": str(tmp_path / "set"),
                "data.labels": True, "data.holdout": 2}
    for _ in range(2):
        run = begin(**settings)
        assert lines(run, "data") == ["data: 6 images of 4x6x3 in train, 3 held out in test"]
        assert lines(run, "classes") == [
            "classes: 2, numbered 0..1 in the order ant (3 images), bee (3 images)"]
        assert lines(run, "warning")[-2:] == [
            "warning: config.data.holdout=2 is not used: the folder test is held out instead.",
            "warning: the images in val are not used."]


def test_a_folder_of_an_older_run_keeps_its_classes(begin, tmp_path):
    for name in ("train", "val"):
        (tmp_path / "set" / name).mkdir(parents=True)
        write_pictures(tmp_path / "set" / name, 3)
    config = digits.get_config()
    config.data.image_size, config.data.image_width, config.data.channels = 4, 6, 3
    config.data.labels, config.data.num_classes = True, 2
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(config.to_json())
    run = begin(**{"data.name": "image_folder", "data.dir": str(tmp_path / "set"),
                   "data.labels": True})
    assert run.source.classes == ("train", "val") and len(run.source) == 6


# Vectors.


def test_a_run_keeps_the_scale_of_its_numbers(single, monkeypatch, tmp_path):
    monkeypatch.setattr(
        config_lib, "model",
        lambda config, channels: TinyNet(vector_size=len(config.data.vector_mean)))
    monkeypatch.setattr(validation, "check_images", lambda config, shape: None)

    def begin(vectors, **settings):
        config = digits.get_config()
        config.data.image_size = config.data.channels = 0
        config.update_from_flattened_dict(settings)
        data = from_array(numbered(4 if vectors is None else len(vectors)), vectors=vectors)
        run = run_lib.prepare(config, tmp_path / "run", data)
        run_lib.store_config(run)
        return run

    run = begin(np.array([[1.0, 5], [3, 5], [5, 5], [7, 5]]))
    assert run.source.vector_scale == ((4.0, 5.0), (5**0.5, 1.0))
    assert lines(run, "vectors") == ["vectors: 2 numbers for each image, 4 +- 2.236, 5 +- 1"]
    assert "1 of the 2 numbers of config.data.vectors=('vectors',) are the same" in run.warnings[-1]
    # More images have come; the network goes on as it began.
    again = begin(np.array([[1.0, 5], [3, 5], [5, 5], [7, 5], [100, 6]]))
    assert again.source.vector_scale == run.source.vector_scale
    stored = run_folder.stored_config(tmp_path / "run")
    assert config_lib.vector_scale(stored) == run.source.vector_scale
    assert config_lib.model(stored, 1).vector_size == 2
    with pytest.raises(ValueError, match=r"config.data.vector_mean=\(0.0, 0.0\), but .*made with"):
        begin(np.ones((4, 2)), **{
            "data.vector_mean": (0.0, 0.0), "data.vector_std": (1.0, 1.0)})
    with pytest.raises(ValueError, match="vectors=.*: 3 numbers for each image, and the model tak"):
        begin(np.ones((4, 3)))
    with pytest.raises(ValueError, match="config.data.vectors=.*was made with .*'vectors'"):
        begin(None)
