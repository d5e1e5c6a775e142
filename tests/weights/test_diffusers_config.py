"""Settings in diffusers' files: what they become, what ours become, and what has no counterpart.

The way back is in diffusers_export.py.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import ddpm_jax
from ddpm_jax.diffusion import rescaled
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import Parameterization
from ddpm_jax.network.trained import Trained
from diffusers_models import FOLDER, HINT, refused, same
from nonzero import TinyNet, nonzero_params, tiny_unet


def test_the_settings_are_those_of_the_files(plain, conditional):
    assert plain.model == ddpm_jax.UNet(
        channels=4, channel_multipliers=(1, 2, 2), num_res_blocks=2, attention_resolutions=(4,),
        dropout=0.0, out_channels=1, num_groups=2,
    )
    assert plain.diffusion == Parameterization("eps", "fixed_large")
    assert plain.image_shape == (8, 8, 1)
    assert_array_equal(plain.schedule.beta, schedule_lib.linear().beta)
    assert conditional.model == ddpm_jax.UNet(
        channels=4, channel_multipliers=(1, 2, 2), num_res_blocks=1, attention_resolutions=(4,),
        dropout=0.2, out_channels=2, num_heads=2, scale_shift=True, embedding_order="cos_sin",
        embedding_freq_shift=0, downsample_padding="symmetric", norm_eps=1e-3, num_groups=2,
        num_classes=3,
    )
    assert conditional.diffusion == Parameterization("v", "learned_range")
    assert conditional.image_shape == (8, 12, 1)
    assert_array_equal(conditional.schedule.beta, schedule_lib.cosine(4000).beta)


def tiny(**settings):
    """A `Trained` with each of our options that diffusers has too."""
    model = tiny_unet(**({"num_groups": 2} | settings))
    shape = (8, 8, model.out_channels)
    return Trained(nonzero_params(model, shape), model, schedule_lib.linear(20, 1e-3, 0.3),
                   Parameterization(), shape)


@pytest.mark.parametrize("change", [
    {"schedule": schedule_lib.cosine(50)},
    {"schedule": schedule_lib.quadratic(10)},
    {"schedule": schedule_lib.sigmoid(10), "diffusion": Parameterization("x_0", "fixed_small")},
    {"diffusion": Parameterization("v", "fixed_large")},
], ids=["cosine", "quadratic", "sigmoid", "v"])
def test_the_process_survives_to_the_bit(change, tmp_path):
    trained = tiny().replace(**change)
    ddpm_jax.save_pretrained(trained, tmp_path / "saved")
    same(ddpm_jax.from_pretrained(str(tmp_path / "saved")), trained)


def test_labels_and_conditions_survive(tmp_path):
    trained = tiny(num_classes=3, condition_channels=2, num_heads=4, scale_shift=True,
                   channel_multipliers=(1, 1))
    ddpm_jax.save_pretrained(trained, tmp_path / "saved", clip=False)
    with pytest.warns(UserWarning, match=HINT):
        again = ddpm_jax.from_pretrained(tmp_path / "saved")
    same(again, trained)
    assert again.model == trained.model


def test_groups_that_are_not_set_are_found(tmp_path):
    trained = tiny(num_groups=None, channels=8, channel_multipliers=(1,), attention_resolutions=())
    trained = trained.replace(params=jax.tree.map(jnp.asarray, trained.params))
    with pytest.raises(ValueError, match=r"model.num_groups=None is \[2, 4\] groups by width"):
        ddpm_jax.save_pretrained(trained, tmp_path / "saved")
    trained = tiny(num_groups=None, channels=128, channel_multipliers=(1,),
                   attention_resolutions=())
    ddpm_jax.save_pretrained(trained, tmp_path / "saved")
    assert ddpm_jax.from_pretrained(tmp_path / "saved").model.num_groups == 32


def test_what_a_network_was_told_of_augmentations_is_left_out(tmp_path):
    """Of an image as it is it was told zeros, which add nothing."""
    trained = tiny(augment_channels=9)
    ddpm_jax.save_pretrained(trained, tmp_path / "saved")
    saved = ddpm_jax.from_pretrained(tmp_path / "saved")
    assert saved.model.augment_channels == 0 and "augment_embedding" not in saved.params
    x, t = np.linspace(-1, 1, 128).reshape(2, 8, 8, 1).astype(np.float32), np.array([3, 40])
    outputs = [jax.jit(ddpm_jax.denoise_fn(each))(x, t) for each in (trained, saved)]
    assert_allclose(*outputs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("message, change", [
    ("model=TinyNet cannot be expressed", {"model": TinyNet()}),
    ("model.timestep_scale=0.5 cannot be expressed", {"model": {"timestep_scale": 0.5}}),
    ("model.block_size=2 cannot be expressed",
     {"model": {"block_size": 2, "attention_resolutions": (2,)}}),
    ("model.self_condition=True cannot be expressed", {"model": {"self_condition": True}}),
    ("model.vector_size=2 cannot be expressed", {"model": {"vector_size": 2}}),
    (r"model.num_heads=2 at \[8, 16\] channels cannot be expressed",
     {"model": {"num_heads": 2, "attention_resolutions": (8, 4)}}),
    ("diffusion.mean='x_prev' cannot be expressed", {"diffusion": Parameterization("x_prev")}),
    ("diffusion.variance='learned' cannot", {"diffusion": Parameterization("eps", "learned")}),
    ("respaced chain", {"schedule": schedule_lib.respace(schedule_lib.linear(20), [0, 9, 19])}),
])
def test_what_diffusers_lacks_is_refused(message, change, tmp_path):
    trained = tiny()
    if isinstance(change.get("model"), dict):
        change = {"model": dataclasses.replace(trained.model, **change["model"])}
    with pytest.raises(ValueError, match=message) as error:
        ddpm_jax.save_pretrained(trained.replace(**change), tmp_path / "saved")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting, value, message", [
    ("_class_name", "UNet2DConditionModel", "_class_name=\"UNet2DConditionModel\""),
    ("down_block_types", ["DownBlock2D", "SkipDownBlock2D", "DownBlock2D"],
     "down_block_types=.*SkipDownBlock2D.* only DownBlock2D and AttnDownBlock2D"),
    ("up_block_types", ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D"], "as in down_block_types"),
    ("up_block_types", ["AttnUpBlock2D", "UpBlock2D"], "as many as of block_out_channels"),
    ("act_fn", "relu", "act_fn=\"relu\""),
    ("attention_head_dim", 3, "attention_head_dim=3 cannot be taken over"),
    ("resnet_time_scale_shift", "spatial", "resnet_time_scale_shift=\"spatial\""),
    ("resnet_time_scale_shift", "scale_shift", "attn_norm_num_groups=null"),
    ("attn_norm_num_groups", 1, "attn_norm_num_groups=1"),
    ("center_input_sample", True, "center_input_sample=true"),
    ("add_attention", False, "add_attention=false"),
    ("mid_block_type", None, "mid_block_type=null"),
    ("mid_block_scale_factor", 1.4, "mid_block_scale_factor=1.4"),
    ("time_embedding_type", "fourier", "time_embedding_type=\"fourier\""),
    ("time_embedding_dim", 64, "time_embedding_dim=64"),
    ("downsample_type", "resnet", "downsample_type=\"resnet\""),
    ("upsample_type", "resnet", "upsample_type=\"resnet\""),
    ("class_embed_type", "timestep", "class_embed_type=\"timestep\""),
    ("downsample_padding", 2, "downsample_padding=2"),
    ("freq_shift", 2, "freq_shift=2"),
    ("block_out_channels", [4, 6, 8], r"block_out_channels=\[4, 6, 8\]"),
    ("block_out_channels", "4", "block_out_channels=\"4\""),
    ("norm_num_groups", None, "norm_num_groups=null"),
    ("sample_size", None, "sample_size=null"),
    ("sample_size", 6, "does not divide by 4"),
    ("in_channels", 0, "in_channels=0"),
    ("out_channels", 2, "in_channels=1 .* has 2"),
    ("num_class_embeds", 3, "class_embedding.weight is missing"),
    ("layers_per_block", 3, "down_blocks.0.resnets.2.conv1.bias is missing"),
    ("layers_per_block", 1, r"up_blocks.1.resnets.1.conv1.weight is \(3, 3, 16, 8\)"),
    ("block_out_channels", [4, 4, 4], r"down_blocks.1.attentions.0.to_k.bias is \(8,\)"),
])
def test_a_network_that_ours_cannot_be_is_refused(copied, setting, value, message):
    refused(copied("unet/config.json", **{setting: value}), message)


@pytest.mark.parametrize("setting, value, message", [
    ("_class_name", "EulerDiscreteScheduler", "_class_name=\"EulerDiscreteScheduler\""),
    ("beta_schedule", "laplace", "beta_schedule=\"laplace\""),
    ("prediction_type", "flow", "prediction_type=\"flow\""),
    ("variance_type", "learned", "variance_type=\"learned\""),
    ("variance_type", "learned_range", "out_channels=1"),
    ("rescale_betas_zero_snr", True, "mean='eps' cannot go with a schedule whose last beta is 1"),
    ("rescale_betas_zero_snr", "yes", "rescale_betas_zero_snr=\"yes\""),
    ("num_train_timesteps", 0, "num_train_timesteps=0"),
    ("trained_betas", [0.1, 2.0], r"beta\[1\]=2"),
    ("trained_betas", [0.1, "0.2"], "trained_betas=.* another kind of value"),
    ("beta_end", "0.02", "beta_end=\"0.02\" .* another kind of value"),
])
def test_a_process_that_ours_cannot_be_is_refused(copied, setting, value, message):
    refused(copied("scheduler/scheduler_config.json", **{setting: value}), message)


@pytest.mark.parametrize("settings, end", [
    ({"beta_schedule": "scaled_linear", "beta_end": 0.04}, [0.04, None]),
    # 1e-4 + (0.02 - 1e-4) / (1 + e^6): the sigmoid from -6 to 6 of GeoDiff.
    ({"beta_schedule": "sigmoid"},
     [1e-4 + 0.0199 / (1 + np.exp(-6)), 1e-4 + 0.0199 / (1 + np.exp(6))]),
    ({"trained_betas": [0.1, 0.2, 0.3]}, [0.3, 0.1]),
    ({"variance_type": "fixed_small_log", "prediction_type": "sample"}, [0.02, 1e-4]),
])
def test_other_schedules_are_read(copied, settings, end):
    trained = ddpm_jax.from_pretrained(copied("scheduler/scheduler_config.json", **settings))
    last, first = trained.schedule.beta[-1], trained.schedule.beta[0]
    assert_allclose(last, end[0], rtol=1e-12)
    assert end[1] is None or np.isclose(first, end[1], rtol=1e-12)
    if "variance_type" in settings:
        assert trained.diffusion == Parameterization("x_0", "fixed_small")


def test_a_schedule_without_signal_at_its_end_goes_there_and_back(copied, tmp_path):
    settings = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction",
                "timestep_spacing": "trailing"}
    with pytest.warns(UserWarning, match="timestep_spacing=\"trailing\": .*grid='trailing'"):
        trained = ddpm_jax.from_pretrained(copied("scheduler/scheduler_config.json", **settings))
    expected = rescaled.zero_terminal_snr(schedule_lib.linear())
    assert_array_equal(trained.schedule.beta, expected.beta)
    ddpm_jax.save_pretrained(trained, tmp_path / "saved")
    stored = json.loads((tmp_path / "saved/scheduler/scheduler_config.json").read_text())
    assert stored["timestep_spacing"] == "trailing" and stored["trained_betas"][-1] == 1
    with pytest.warns(UserWarning, match="trailing"):
        again = ddpm_jax.from_pretrained(tmp_path / "saved")
    assert_array_equal(again.schedule.beta, expected.beta)


def test_what_is_left_out_has_the_defaults_of_diffusers(copied, tmp_path):
    folder = copied("unet/config.json")
    path = folder / "unet" / "config.json"
    kept = json.loads(path.read_text())
    for name in ("downsample_padding", "flip_sin_to_cos", "freq_shift", "norm_eps"):
        del kept[name]
    path.write_text(json.dumps(kept))
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    trained = ddpm_jax.from_pretrained(folder)
    assert trained.model == dataclasses.replace(
        ddpm_jax.from_pretrained(FOLDER / "plain").model, downsample_padding="symmetric",
        embedding_order="cos_sin", embedding_freq_shift=0, norm_eps=1e-5,
    )
    assert trained.diffusion == Parameterization("eps", "fixed_small")


def test_how_its_scheduler_clips_is_told(copied):
    for settings, line in (
        ({"thresholding": True, "dynamic_thresholding_ratio": 0.9}, "dynamic_threshold=0.9"),
        ({"clip_sample_range": 2.0, "thresholding": False}, "clip_sample_range=2.0"),
    ):
        with pytest.warns(UserWarning, match=line):
            ddpm_jax.from_pretrained(copied("scheduler/scheduler_config.json", **settings))
