"""Preparing a run: its data, its classes, its memory."""

import jax
import pytest

from ddpm_jax import validation
from ddpm_jax import config as config_lib
from ddpm_jax.configs import digits
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
