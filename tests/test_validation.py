"""Mistakes in a config: one line, before any device work, that says what to write instead."""

import re

import ml_collections
import numpy as np
import pytest

from ddpm_jax import validation
from ddpm_jax.configs import cifar10
from ddpm_jax.errors import UserError
from tiny_run import tiny_config

MISTAKES = {
    "train.batch_size": (130, "8 devices", "128"),
    "train.accumulate": (3, "divide", "2"),
    "train.num_steps": (0, "at least 1", "800000"),
    "train.matmul_precision": ("bf16", "not known", "highest"),
    "train.extra_ema_decays": ((1, "a"), "between 0 and 1", "0.999"),
    "train.schedule": ("cosin", "not known", "inverse_sqrt"),
    "train.decay_start": (9, "has no effect", "0"),
    "train.checkpoint_minutes": (-1.0, "at least 0", "30.0"),
    "train.weight_decay": (-0.1, "at least 0", "0.01"),
    "train.adam_b1": (1.0, "[0, 1]", "0.9"),
    "train.adam_b2": (1.0, "[0, 1]", "0.999"),
    "train.adam_eps": (0.0, "at least 1e-30", "1e-08"),
    "data.image_size": (30, "divide by 8", "32"),
    "model.attention_resolutions": ((12,), "never occurs", "16"),
    "model.channel_multipliers": ((), "at least one", "1, 2, 2, 2"),
    "model.num_groups": (5, "divide", "32"),
    "model.num_heads": (3, "divide", "1"),
    "model.dtype": ("float16", "not known", "bfloat16"),
    "model.embedding_order": ("sin", "not known", "sin_cos"),
    "model.downsample_padding": ("none", "not known", "symmetric"),
    "diffusion.num_timesteps": (0, "at least 1", "1000"),
    "diffusion.beta_start": (0.0, "(0, 1)", "0.0001"),
    "diffusion.beta_end": (1.5, "(0, 1]", "0.02"),
    "diffusion.schedule": ("linaer", "not known", "linear"),
    "diffusion.variance": ("fixed_medium", "not known", "fixed_small"),
    "diffusion.mean": ("score", "not known", "eps"),
    "diffusion.loss": ("l3", "not known", "simple"),
    "diffusion.weighting": ("snr", "not known", "min_snr"),
    "diffusion.min_snr_gamma": (0.0, "at least", "5.0"),
    "diffusion.p2_gamma": (-1.0, "at least 0", "1.0"),
    "model.timestep_scale": (0.0, "at least", "1.0"),
    "data.augment": (12.0, "[0, 1]", "0.12"),
    "model.block_size": (0, "at least 1", "1"),
    "train.t_sampling": ("stratified", "not known", "antithetic"),
    "sample.num_steps": (1001, "[0, 1000]", "0"),
    "sample.variants": (0, "at least 1", "4"),
    "sample.resamplings": (0, "at least 1", "1"),
    "sample.jump_length": (0, "at least 1", "10"),
    "sample.dynamic_threshold": (99.5, "[0, 1]", "0.995"),
}


def with_setting(name, value):
    config = cifar10.get_config()
    group, name = name.split(".")
    config[group][name] = value
    return config


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_with_setting_value_rule_and_remedy(name):
    value, rule, remedy = MISTAKES[name]
    with pytest.raises(ValueError) as error:
        validation.validate(with_setting(name, value), num_devices=8)
    message = str(error.value)
    assert f"{name}={value}" in message or f"{name}={value!r}" in message
    assert rule in message and remedy in message and "\n" not in message


@pytest.mark.parametrize("name, value, rule", [
    ("model.channels", None, "a whole number"), ("train.batch_size", True, "a whole number"),
    ("data.random_flip", None, "True or False"), ("train.learning_rate", None, "a number"),
    ("data.name", None, "a string"), ("evaluate.metrics", None, "a tuple"),
    ("train.learning_rate", float("nan"), "in [1e-12"), ("train.grad_clip", np.inf, "in [0, "),
    ("train.num_steps", 2**31, "in [1, "), ("seed", 2**32, "in [0, "),
    ("train.batch_size", 10**40, "in [1, "), ("model.num_res_blocks", 1000, "in [1, 100]"),
    ("diffusion.num_timesteps", 10**9, "at most 1,000,000"),
    ("data.num_classes", 2**31 - 1, "in [0, 1e+06]"),
    ("train.extra_ema_decays", (0.9, float("nan")), "between 0 and 1"),
    ("train.extra_ema_decays", (1.0,), "between 0 and 1"),
    ("train.piecewise_steps", (0,), "whole numbers of steps"),
    ("train.piecewise_scales", (0.1, float("nan")), "numbers above 0"),
    ("train.piecewise_scales", (-1,), "numbers above 0"),
    ("model.channel_multipliers", (1, True), "whole numbers"),
])
def test_values_of_another_kind_or_absurd_are_refused(name, value, rule):
    config = cifar10.get_config()
    group, _, key = name.rpartition(".")
    (config[group] if group else config)[key] = value
    with pytest.raises(ValueError) as error:
        validation.validate(config, num_devices=1)
    assert f"config.{name}={value}" in str(error.value) and rule in str(error.value)
    assert "\n" not in str(error.value)


def test_groups_of_one_channel_only_suit_a_network_that_has_learned_with_them():
    config = with_setting("model.num_groups", 128)
    with pytest.raises(ValueError, match="config.model.num_groups=128 makes groups of one channel"):
        validation.validate(config, num_devices=8)
    config.train.warm_start = "someone/model"
    validation.validate(config, num_devices=8)


def test_a_decay_that_a_run_does_not_reach_is_said():
    config = with_setting("train.schedule", "cosine")
    assert validation.warnings(config) == []
    config.train.num_steps, config.train.ema_warmup = 5000, True
    assert validation.warnings(config)[:1] == [
        "config.train.schedule='cosine' has no effect before step 5,000, but "
        "config.train.num_steps=5000; lower --config.train.warmup_steps or "
        "--config.train.decay_start."
    ]
    config.train.schedule, config.train.warmup_steps = "constant", 100
    assert validation.warnings(config) == []


def test_a_warm_up_or_an_average_that_outlasts_the_run_is_said():
    """Each line's remedy silences it."""
    config = with_setting("train.num_steps", 150)
    warm_up, average = validation.warnings(config)
    assert warm_up.startswith("config.train.warmup_steps=5000 outlasts config.train.num_steps=150:")
    assert warm_up.endswith("; write --config.train.warmup_steps=15.")
    assert average.startswith("config.train.ema_decay=0.9999 averages over 10,000 steps, and")
    assert "num_steps=150: 99% of the average is where" in average  # 0.9999**150 = 0.985
    config.train.warmup_steps = 15
    assert validation.warnings(config) == [average]
    config.train.ema_warmup = True
    assert validation.warnings(config) == []
    config.train.ema_warmup, config.train.ema_decay = False, 0.99
    assert validation.warnings(config) == []


def test_the_remedies_work():
    """The value that a message offers is accepted."""
    for name, (value, _, _) in MISTAKES.items():
        with pytest.raises(ValueError) as error:
            validation.validate(with_setting(name, value), num_devices=8)
        remedy = r'--config\.([\w.]+?)="?([^"]+?)"?(?:\.$|,? or|; | and )'
        match = re.search(remedy, str(error.value))
        if match:
            name, text = match.groups()
            value = text if re.fullmatch("[a-z_]+", text) else eval(text)  # noqa: S307
            validation.validate(with_setting(name, value), num_devices=8)


@pytest.mark.parametrize("betas, rule", [
    ((0.1, 1.5), "must lie"), ((1.0, 0.5), "only the last"), ((), "T >= 1"),
    ((0.1, 1.0), "mean=x_0"), ((-0.1,), "(0, 1]"),
])
def test_betas_out_of_range_are_refused(betas, rule):
    config = with_setting("diffusion.schedule", "betas")
    config.diffusion.betas = betas
    with pytest.raises(ValueError) as error:
        validation.validate(config, num_devices=1)
    assert rule in str(error.value) and "\n" not in str(error.value)


def test_a_last_beta_of_one_suits_the_prediction_of_x_0():
    config = with_setting("diffusion.schedule", "jsd")
    with pytest.raises(ValueError, match="the noise does not tell x_0"):
        validation.validate(config, num_devices=1)
    config.diffusion.mean = "x_0"
    validation.validate(config, num_devices=1)


def test_a_schedule_that_ends_too_soon_is_warned_about():
    assert validation.warnings(cifar10.get_config()) == []
    config = with_setting("diffusion.num_timesteps", 100)
    (line,) = validation.warnings(config)
    assert "cosine" in line and "0.364" in line and "--config.diffusion.beta_end=0.2" in line
    config.diffusion.beta_end = 0.2
    assert validation.warnings(config) == []


def test_what_the_paper_found_unstable_is_warned_about():
    config = cifar10.get_config()
    config.diffusion.mean = "x_prev"
    (line,) = validation.warnings(config)
    assert "unstable" in line and "--config.diffusion.loss=vlb" in line
    config.diffusion.loss = "vlb"
    assert validation.warnings(config) == []
    config.diffusion.mean, config.diffusion.variance = "eps", "learned"
    (line,) = validation.warnings(config)
    assert "unstable" in line and "learned_range" in line
    config.diffusion.variance, config.diffusion.loss = "learned_range", "rescaled_hybrid"
    assert validation.warnings(config) == []


def test_a_pair_that_trains_nothing_is_refused_by_its_setting():
    config = with_setting("diffusion.variance", "learned_range")
    with pytest.raises(ValueError, match="the squared error does not train a variance"):
        validation.validate(config, num_devices=1)


@pytest.mark.parametrize("profile", [(3,), (0, 2), (4, 3), (5, 7), (1, 2, 3), (1.0, 2), ("1", 2)])
def test_steps_that_do_not_exist_are_refused(profile):
    with pytest.raises(ValueError, match=r"config.train.profile=.* in 1..6.*profile=\"\(6, 6\)\""):
        validation.validate(tiny_config(**{"train.profile": profile}), num_devices=8)


def test_every_step_may_be_traced():
    validation.validate(tiny_config(**{"train.profile": (1, 6)}), num_devices=8)


@pytest.mark.parametrize("name, given, used", [
    ("train.num_steps", 1e3, 1000), ("train.batch_size", np.int64(16), 16),
    ("sample.num_steps", 10.0, 10), ("model.channel_multipliers", (1.0, 2), (1, 2)),
    ("train.learning_rate", 1, 1.0), ("evaluate.sweep_steps", [5.0], (5,)),
])
def test_a_whole_float_is_a_whole_number(name, given, used):
    """In a config of one's own that does not know the types of its settings."""
    group, key = name.split(".")
    config = ml_collections.ConfigDict(cifar10.get_config().to_dict(), type_safe=False)
    config[group][key] = given
    before = config[group][key]
    value = validation.validate(config, num_devices=1)[group][key]
    assert value == used and type(value) is type(used)
    assert config[group][key] is before


@pytest.mark.parametrize("name", ["train.num_steps", "sample.seed", "model.channels"])
def test_a_config_of_the_package_takes_a_whole_float(name):
    config = with_setting(name, 64.0)
    group, key = name.split(".")
    assert type(config[group][key]) is int and config[group][key] == 64
    for value in (1.5, float("nan"), "64"):
        with pytest.raises(TypeError):
            with_setting(name, value)


def test_a_setting_that_does_not_exist_is_refused():
    config = cifar10.get_config()
    with config.unlocked():
        config.train.bach_size = 4
    with pytest.raises(UserError, match="config.train.bach_size=4 is no setting; did you mean "
                                        "config.train.batch_size?"):
        validation.validate(config, num_devices=1)


@pytest.mark.parametrize("config", [{"seed": 0}, 5, None])
def test_what_is_no_config_is_refused(config):
    with pytest.raises(UserError, match="^config=.* is no config; write config="):
        validation.checked(config)


def test_seeds_of_samples_have_64_bits():
    config = with_setting("sample.seed", 2**40)
    assert validation.validate(config, num_devices=1).sample.seed == 2**40
    with pytest.raises(UserError, match=r"config.sample.seed=18446744073709551616 must be in"):
        validation.validate(with_setting("sample.seed", 2**64), num_devices=1)
