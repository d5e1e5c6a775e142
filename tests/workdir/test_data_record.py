"""`data.json`: what a run keeps of its data, written once and read by later processes."""

import json
import shutil

import pytest

from ddpm_jax import config as config_lib
from ddpm_jax.configs import digits
from ddpm_jax.data import loading
from ddpm_jax.data.kept import Kept
from ddpm_jax.workdir import data_record, run_folder
from data_sets import refused

KEPT = Kept(
    classes=("cat", "\udcff\n", "日"), class_counts=(3, 4, 5), split_folders=True,
    held_out={"val/a.png": "0123456789abcdef", "val/\udcff.png": ""},
)


def config_of(path, **data):
    config = config_lib.resolved(digits.get_config(), loading.load("digits"))
    config.data.update(data)
    run_folder.store_config(config, path)


@pytest.mark.parametrize("kept", [
    KEPT, Kept(held_out={}), Kept(classes=(-5, 3, 1_900_000), class_counts=(1, 1, 1), held_out={}),
    Kept(classes=("a",), class_counts=(2,)),
])
def test_what_is_kept_is_found_again(tmp_path, kept):
    assert data_record.read(tmp_path) is None
    data_record.write(kept, tmp_path)
    assert data_record.read(tmp_path) == data_record.read(str(tmp_path)) == kept
    data_record.copy(tmp_path, tmp_path / "best")
    assert data_record.read(tmp_path / "best") == kept


def test_it_is_one_small_file_of_json(tmp_path):
    data_record.write(KEPT, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]
    text = (tmp_path / "data.json").read_text()
    assert json.loads(text) == {
        "classes": list(KEPT.classes), "class_counts": [3, 4, 5], "split_folders": True,
        "held_out": KEPT.held_out,
    }
    assert len(text.splitlines()) == 6


@pytest.mark.parametrize("data, num_classes", [
    ({}, 0), ({"labels": True, "num_classes": 5}, 5), ({"num_classes": 5}, 0),
])
def test_a_run_of_an_older_version_keeps_its_classes_alone(tmp_path, data, num_classes):
    config_of(tmp_path, **data)
    assert data_record.read(tmp_path) == Kept(num_classes=num_classes)
    assert data_record.to_resume(tmp_path) == Kept(num_classes=num_classes)
    data_record.copy(tmp_path, tmp_path / "best")
    assert not (tmp_path / "best").exists()


def test_a_run_without_checkpoints_begins_anew(tmp_path):
    data_record.write(KEPT, tmp_path)
    config_of(tmp_path)
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    assert data_record.to_resume(tmp_path) == KEPT
    shutil.rmtree(tmp_path / "checkpoints")
    assert data_record.to_resume(tmp_path) is None and data_record.read(tmp_path) == KEPT


@pytest.mark.parametrize("text", [
    "", "{", "[]", "3", "[" * 100_000, "{}", '{"classes": 3}',
    '{"classes": [], "class_counts": [], "split_folders": false, "held_out": [1]}',
])
def test_a_damaged_file_is_one_line(tmp_path, text):
    (tmp_path / "data.json").write_text(text)
    refused(lambda: data_record.read(tmp_path), "data.json cannot be read .*put back the file")
