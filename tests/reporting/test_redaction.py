"""Redaction: no folder of a path stays, and what is no path stays as it is."""

import json

import pytest

from ddpm_jax.configs import cifar10
from ddpm_jax.reporting import redaction
from ddpm_jax.workdir import run_folder


@pytest.mark.parametrize("path", [
    "/home/ada/data/birds", "/home/ada/data/birds/", "~/data/birds", "~ada/data/birds",
    "gs://ada-bucket/data/birds", "C:\\Users\\ada\\birds", "../ada/birds", "ada/birds",
    "/home/ada/my own pictures/birds",
])
def test_of_a_setting_that_is_a_path_the_last_name_stays(path):
    assert redaction.setting("data.dir", path) == "birds"
    assert redaction.setting("sample.inputs", (path, path)) == ("birds", "birds")


@pytest.mark.parametrize("before, after", [
    ("read from /home/ada/x.npz, twice", "read from x.npz, twice"),
    ("folder='/home/ada/x'", "folder='x'"), ("(/mnt/ada/x)", "(x)"),
    ("gs://ada/x and ~/ada/y", "x and y"), ("in C:\\Users\\ada\\x.png", "in x.png"),
])
def test_absolute_paths_in_a_text_are_reduced(before, after):
    assert redaction.text(before) == after
    assert redaction.tree({before: [before, 1]}) == {after: [after, 1]}


@pytest.mark.parametrize("text", [
    "bits/dim", "fid/train", "1/2", "loss / step", "google/ddpm-ema-cifar10-32", "a\\b", "10,10,20",
    "3 images/s", "sha256:0f",
])
def test_other_texts_stay(text):
    assert redaction.text(text) == text
    assert redaction.setting("evaluate.best", text) == text


def test_every_setting_that_is_known_for_a_path_exists():
    config = cifar10.get_config()
    for name in redaction.PATHS:
        group, key = name.split(".")
        assert key in config[group]


@pytest.mark.parametrize("path", [
    "/home/grace/x", "gs://grace-bucket/data/x", "C:\\Users\\grace\\x",
])
def test_no_setting_of_a_config_keeps_a_folder(path):
    """Every setting that is a text is a path, and every tuple has one."""
    nested = json.loads(run_folder.dump(cifar10.get_config()))
    for group, values in nested.items():
        for name, value in values.items() if isinstance(values, dict) else ():
            nested[group][name] = {str: path, list: [path]}.get(type(value), value)
    text = json.dumps(redaction.settings(nested))
    assert text.count('"x"') > 50 and "grace" not in text and "data/" not in text


def test_the_settings_of_a_config_are_otherwise_as_they_were():
    config = cifar10.get_config()
    config.data.class_names, config.evaluate.best = ("T-shirt/top",), "fid/train"
    nested = json.loads(run_folder.dump(config))
    assert json.loads(json.dumps(redaction.settings(nested))) == nested


def test_the_reference_of_a_row_may_be_a_relative_path():
    protocol = {"weights": "ema", "reference": "ada/real", "eta": 0.5}
    row = {"metric": "fid", "reference": "ada/real", "value": 1.5, "protocol": protocol}
    assert redaction.row(row) == {
        "metric": "fid", "reference": "real", "value": 1.5,
        "protocol": {"weights": "ema", "reference": "real", "eta": 0.5},
    }
    assert row["protocol"]["reference"] == "ada/real"
