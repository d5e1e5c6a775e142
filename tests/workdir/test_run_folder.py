"""The config stored in the folder of a run."""

import contextlib
import json
import os
import pathlib
import shutil

import pytest

from ddpm_jax import config as config_lib
from ddpm_jax.configs import cifar10, digits
from ddpm_jax.data import loading
from ddpm_jax.errors import UserError
from ddpm_jax.workdir import checkpoints, run_folder
from object_store import objects
from saved_state import METADATA, tree_of
from tiny_run import tiny_config


def test_a_config_keeps_a_path_of_any_bytes():
    config = digits.get_config()
    config.data.dir = os.fsdecode(b"/data/\xff\n")
    assert run_folder.parse(run_folder.dump(config)).data.dir == config.data.dir


@pytest.mark.parametrize("text", [
    "{", "[]", "3", "[" * 100_000, '{"model": 3}', '{"model": {"channels": "x"}}', '{"evil": 1}',
    '{"model": {"evil": 1}}', '{"__class__": 1}', '{"train": {"batch_size": 1.5}}',
])
def test_a_stored_config_that_is_none_is_one_line(text):
    with pytest.raises(ValueError, match="^the stored config cannot be read .*--workdir.$"):
        run_folder.parse(text)


def test_json_gives_the_config_back():
    config = digits.get_config()
    again = run_folder.parse(run_folder.dump(config))
    assert again.to_dict() == config.to_dict() and again.is_locked


def test_settings_that_a_stored_config_has_not_are_those_of_the_base():
    stored = json.loads(run_folder.dump(digits.get_config()))
    del stored["data"]["labels"], stored["evaluate"], stored["train"]["ema_decay"]
    config = run_folder.parse(json.dumps(stored))
    assert config.data.labels is False and config.evaluate == cifar10.get_config().evaluate
    assert config.train.ema_decay == 0.9999 and config.train.batch_size == 64
    assert config.is_locked and config.model.channels == 32


def resolved():
    return config_lib.resolved(digits.get_config(), loading.load("digits"))


def test_another_model_is_refused_by_name_and_another_speed_is_not():
    stored = resolved()
    for name, value in (("diffusion.beta_end", 0.01), ("model.channels", 64),
                        ("train.extra_ema_decays", (0.9,)), ("data.image_size", 16)):
        config = resolved()
        group, key = name.split(".")
        config[group][key] = value
        with pytest.raises(ValueError, match=f"config.{name}=.*runs/x was made with"):
            run_folder.check_same_run(config, stored, "runs/x")
    config = resolved()
    config.train.learning_rate, config.model.dropout, config.train.num_steps = 1e-5, 0.3, 9
    run_folder.check_same_run(config, stored, "runs/x")


@pytest.mark.parametrize("before, now, refused", [
    (0, 100, True), (100, 0, True), (100, 50, False), (0, 0, False),
])
def test_snapshots_of_averages_begin_with_the_run(before, now, refused):
    stored, config = resolved(), resolved()
    stored.train.ema_snapshot_every, config.train.ema_snapshot_every = before, now
    with contextlib.ExitStack() as stack:
        if refused:
            line = f"config.train.ema_snapshot_every={now}, .* with {before}; write"
            stack.enter_context(pytest.raises(ValueError, match=line))
        run_folder.check_same_run(config, stored, "runs/x")


def begun(folder, steps=(4, 8)):
    """A run of the base config with checkpoints of TinyNet-sized trees."""
    config = resolved()
    run_folder.store_config(config, run_folder.create(folder))
    with checkpoints.Checkpoints(folder) as saved:
        for step in steps:
            saved.save(step, tree_of(step), METADATA | {"config": run_folder.dump(config)})
    return config


def kernel(trained):
    return trained.params["conv"]["kernel"].tolist()


def wanted(step):
    return tree_of(step)["ema_params"]["conv"]["kernel"].tolist()


def test_a_run_is_also_loaded_by_the_folder_of_a_checkpoint(tmp_path, monkeypatch):
    begun(tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    assert kernel(run_folder.load(folder / "4")) == wanted(4)
    assert kernel(run_folder.load(str(folder / "8"))) == wanted(8)
    assert kernel(run_folder.load(folder)) == wanted(8)
    assert kernel(run_folder.load(folder, step=4)) == wanted(4)
    monkeypatch.chdir(tmp_path / "run")
    assert kernel(run_folder.load("checkpoints/4")) == wanted(4)
    with pytest.raises(UserError, match="no checkpoint of step 6"):
        run_folder.load(folder / "6")


def test_a_guide_is_a_step_or_another_run(tmp_path):
    begun(tmp_path / "run", (4, 8))
    begun(tmp_path / "worse", (2,))
    run = str(tmp_path / "run")
    assert run_folder.load_guide("", run) is None
    assert kernel(run_folder.load_guide("4", run)) == wanted(4)
    assert kernel(run_folder.load_guide(str(tmp_path / "worse"), run)) == wanted(2)
    for name, says in (("5", "guide_weights='5': .*no checkpoint"),
                       (str(tmp_path / "gone"), "guide_weights=.*gone.*nothing was trained there")):
        with pytest.raises(ValueError, match=says) as error:
            run_folder.load_guide(name, run)
        assert "\n" not in str(error.value)


def test_other_modes_ask_for_the_folder_of_the_run(tmp_path):
    begun(tmp_path / "run")
    for inside in ("checkpoints", "checkpoints/8"):
        for use in (run_folder.create, run_folder.stored_config):
            with pytest.raises(UserError, match=f"is inside .*write --workdir={tmp_path}/run"):
                use(tmp_path / "run" / inside)
    own = run_folder.create(tmp_path / "checkpoints" / "8")  # In no run: a name like any other.
    assert begun(own) and kernel(run_folder.load(own)) == wanted(8)


def test_a_lost_config_is_that_of_the_newest_checkpoint(tmp_path):
    config = begun(tmp_path)
    (tmp_path / "config.json").unlink()
    assert run_folder.stored_config(tmp_path).to_dict() == config.to_dict()
    assert kernel(run_folder.load(tmp_path)) == wanted(8)
    other = resolved()
    other.model.channels = 64
    with pytest.raises(UserError, match="config.model.channels=64, but .* was made with 32"):
        run_folder.store_config(other, tmp_path)
    (tmp_path / "checkpoints" / "8" / "metadata" / "metadata").unlink()
    assert run_folder.stored_config(tmp_path).to_dict() == config.to_dict()
    run_folder.store_config(config, tmp_path)
    assert (tmp_path / "config.json").exists()


def test_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(UserError, match="neither config.json nor a checkpoint.*--mode=train"):
        run_folder.load(tmp_path)


@pytest.mark.parametrize("name", ["exp[1]", "a\\b"])
def test_a_store_whose_checkpoints_could_not_be_found_is_refused(bucket, name):
    with pytest.raises(UserError, match="is in a store and has"):
        run_folder.create(bucket / name / "run")
    assert not objects()


@pytest.mark.parametrize("name", ["shards", "half", "checkpoint-500"])
def test_a_model_of_diffusers_is_no_run_and_stays_as_it_is(tmp_path, name):
    folder = tmp_path / name
    shutil.copytree(pathlib.Path(__file__).parents[1] / "fixtures" / "wrappings" / name, folder)
    before = sorted(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    with pytest.raises(ValueError, match="is a model of diffusers.*from_pretrained opens it"):
        run_folder.load(folder)
    if name == "shards":  # Its config.json would be overwritten.
        with pytest.raises(ValueError, match="is a model of diffusers"):
            run_folder.store_config(tiny_config(), folder)
    assert sorted(path.read_bytes() for path in folder.rglob("*") if path.is_file()) == before
