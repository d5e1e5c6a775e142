"""Redaction: no folder of a path stays, and what is no path stays as it is."""

import pytest

from ddpm_jax.configs import cifar10
from ddpm_jax.reporting import redaction


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
