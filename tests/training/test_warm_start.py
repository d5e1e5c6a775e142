"""Training that starts from the weights of another run, or of diffusers."""

import dataclasses
import functools

import jax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import ddpm_jax
from configs import digits
from ddpm_jax.diffusion.process import Parameterization
from ddpm_jax.diffusion.schedule import linear
from ddpm_jax.network.trained import Trained
from ddpm_jax.network.unet import UNet
from ddpm_jax.training import warm_start
from ddpm_jax.training import run as run_lib
from nonzero import SHAPE, nonzero_params, tiny_unet

MODEL = tiny_unet(num_groups=2, channel_multipliers=(1,), attention_resolutions=(8,))


def config_for(source):
    """A run of one step, of the network in `weights`."""
    config = digits.get_config()
    config.model.update(dict(
        channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(8,),
        num_groups=2, dropout=0.0,
    ))
    config.train.update(dict(
        num_steps=1, warmup_steps=1, batch_size=8, eval_images=0, sample_images=1,
        sample_num_steps=2, extra_ema_decays=(0.5,), warm_start=str(source),
    ))
    return config


def started(run, fresh):
    """`fresh` from the weights that the run's config names."""
    source = run.settings.warm_start
    return warm_start.state(fresh, source, run.model, run.source.image_shape)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of diffusers with the network of `config_for`."""
    folder = tmp_path_factory.mktemp("weights") / "saved"
    trained = Trained(nonzero_params(MODEL), MODEL, linear(20), Parameterization(), SHAPE)
    ddpm_jax.save_pretrained(trained, folder)
    return folder


def test_weights_and_averages_start_there_and_nothing_else(weights, tmp_path):
    run = run_lib.prepare(config_for(weights), tmp_path / "run", None)
    fresh, trained = run_lib.fresh_state(run), ddpm_jax.from_pretrained(weights)
    state = started(run, fresh)
    trees = [state.params, state.ema_params, state.extra_ema_params["0.5"]]
    for tree in trees:
        jax.tree.map(assert_array_equal, tree, trained.params)
    assert state.opt_state is fresh.opt_state and state.step is fresh.step
    copies = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(trees)]
    assert len(set(copies)) == len(copies)  # The state is donated.
    assert warm_start.state(fresh, "", run.model, run.source.image_shape) is fresh


def test_a_file_of_weights_alone_is_of_the_network_at_hand(weights, tmp_path):
    (file,) = weights.glob("unet/*.safetensors")
    params, model = warm_start.find(file, MODEL, SHAPE)
    jax.tree.map(assert_array_equal, params, ddpm_jax.from_pretrained(weights).params)
    assert model is MODEL
    with pytest.raises(ValueError, match=r"safetensors: conv_in.bias is \(8,\)"):
        warm_start.find(file, dataclasses.replace(MODEL, channels=16), SHAPE)


@pytest.mark.slow
def test_a_run_starts_there_once(weights, tmp_path):
    trained = ddpm_jax.train(config_for(weights), tmp_path / "run")
    # The first step has learning rate 0 (warm-up) and leaves the weights as they were, up to the
    # rounding of their average.
    jax.tree.map(functools.partial(assert_allclose, rtol=1e-6),
                 trained.params, ddpm_jax.from_pretrained(weights).params)
    again = ddpm_jax.train(config_for(tmp_path / "gone"), tmp_path / "run")
    jax.tree.map(assert_array_equal, again.params, trained.params)
    jax.tree.map(assert_array_equal, warm_start.find(tmp_path / "run", MODEL, SHAPE)[0],
                 trained.params)


@pytest.mark.parametrize("model, message", [
    ({"channels": 16}, r"does not fit at conv_in/bias: the network of config.model has "
                       r"\(16,\), it \(8,\)"),
    ({"num_res_blocks": 2}, "does not fit at down_0_attn_1/k/bias: .* it nothing"),
    ({"attention_resolutions": ()}, "does not fit at down_0_attn_0/k/bias: .* has nothing"),
    ({"num_groups": 4}, "num_groups=4 does not suit .* has 2; write --config.model.num_groups=2"),
    ({"num_groups": 0}, "num_groups=0 does not suit .* has 2; write --config.model.num_groups=2"),
    ({"num_heads": 2}, "config.model.num_heads=2 does not suit config.train.warm_start='.*', which "
                       "has 1; write --config.model.num_heads=1"),
    ({"embedding_order": "cos_sin"}, "--config.model.embedding_order=sin_cos"),
    ({"embedding_freq_shift": 0}, "--config.model.embedding_freq_shift=1"),
    ({"downsample_padding": "symmetric"}, "--config.model.downsample_padding=asymmetric"),
    ({"timestep_scale": 2.0}, "--config.model.timestep_scale=1.0"),
    ({"norm_eps": 1e-5}, "--config.model.norm_eps=1e-06"),
    ({"scale_shift": True}, "--config.model.scale_shift=False"),
    ({"self_condition": True}, "--config.model.self_condition=False"),
    ({"block_size": 2, "attention_resolutions": (4,)}, "--config.model.block_size=1"),
])
def test_another_network_is_refused(weights, tmp_path, model, message):
    config = config_for(weights)
    config.model.update(model)
    run = run_lib.prepare(config, tmp_path / "run", None)
    with pytest.raises(ValueError, match=message) as error:
        started(run, None)
    assert "\n" not in str(error.value)


class Scaled(UNet):
    """A network with a field of its own."""

    skip_scale: float = 1.0


def test_a_new_field_of_the_network_must_agree_too(monkeypatch):
    settings = {f.name: getattr(MODEL, f.name) for f in dataclasses.fields(MODEL) if f.init}
    del settings["parent"], settings["name"]
    params = nonzero_params(MODEL)
    monkeypatch.setattr(warm_start, "find", lambda *_: (params, Scaled(**settings)))
    assert warm_start.params("other", Scaled(**settings), SHAPE) is params
    with pytest.raises(ValueError, match="skip_scale=0.7 .* write --config.model.skip_scale=1.0"):
        warm_start.params("other", Scaled(**settings, skip_scale=0.7), SHAPE)


def test_missing_weights_are_named(tmp_path):
    run = run_lib.prepare(config_for(tmp_path / "gone"), tmp_path / "run", None)
    with pytest.raises(ValueError, match="gone is no folder"):
        started(run, None)
