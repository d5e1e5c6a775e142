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
from data_sets import refused, write_pictures
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
            "num_classes=2 is too few: image_folder has 3; write --config.data.num_classes=3")


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
