"""The config stored in the folder of a run."""

import json
import os

import pytest

from ddpm_jax import config as config_lib
from ddpm_jax.configs import cifar10, digits
from ddpm_jax.data import loading
from ddpm_jax.workdir import run_folder


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
