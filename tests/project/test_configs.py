"""Every config: its full-size network by shape, and two steps of a small one on real pictures."""

import contextlib
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax import validation
from ddpm_jax import config as config_lib
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.training import monitoring
from ddpm_jax.training import run as run_lib
from ddpm_jax.weights import diffusers_export
from data_sets import TFDS, needs, write_tfds
from shipped_configs import NAMES, PARAMETERS, get_config


def test_every_config_is_here():
    files = pathlib.Path(__file__).parents[2].glob("configs/[a-z]*.py")
    assert {path.stem for path in files} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_full_size_by_shape(name):
    config = get_config(name)
    validation.validate(config, num_devices=8)
    assert validation.warnings(config) == []
    shape = config_lib.image_shape(config)
    config.data.num_classes, config.data.condition_channels = 10, 1  # as with data
    config.data.vector_mean = (0.0,) * 11
    model = config_lib.model(config, shape[-1])
    x, t = jnp.zeros((2, *shape)), jnp.zeros((2,), jnp.int32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), x, t, train=False))
    assert trained_lib.num_params(params) == PARAMETERS[name]
    model_kwargs = {"condition": x[..., :1]} if config.data.condition else {}
    output = jax.eval_shape(lambda p: model.apply(p, x, t, train=False, **model_kwargs), params)
    channels = config_lib.parameterization(config).out_channels(shape[-1])
    assert output.shape == (*x.shape[:-1], channels) and output.dtype == jnp.float32


NOT_OF_DIFFUSERS = {"digits_vectors": "vector_size=11", "improved_cifar10": "timestep_scale=0.25"}


@pytest.mark.parametrize("name", NAMES)
def test_models_are_for_diffusers_too_but_for_two(name):
    config = get_config(name)
    h, w, c = config_lib.image_shape(config)
    config.data.num_classes, config.data.condition_channels = 10, 1  # as with data
    config.data.vector_mean = (0.0,) * 11
    model = config_lib.model(config, c)
    x, t = jnp.zeros((1, h, w, c)), jnp.zeros((1,), jnp.int32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), x, t, train=False))["params"]
    trained = trained_lib.Trained(
        params, model, config_lib.schedule(config), config_lib.parameterization(config), (h, w, c))
    refused = NOT_OF_DIFFUSERS.get(name)
    with pytest.raises(ValueError, match=refused) if refused else contextlib.nullcontext():
        diffusers_export.network_settings(trained)
        diffusers_export.process_settings(trained, clip=True)


def shrunk(name):
    """The config with a network that compiles in seconds, for two steps."""
    config = get_config(name)
    config.model.channels, config.model.num_groups = 4, 0
    config.model.num_res_blocks = 1
    config.model.channel_multipliers = config.model.channel_multipliers[:2]
    config.model.attention_resolutions = config.model.attention_resolutions[:1]
    if config.data.image_size > 32:
        config.data.image_size = 32
    config.train.batch_size = 8
    config.train.num_steps = 2
    config.train.eval_images = 8
    return config


def pictures(n, shape=(40, 48, 3)):
    return list(np.random.default_rng(0).integers(0, 256, (n, *shape)).astype(np.uint8))


def check_run(config, workdir):
    trained = ddpm_jax.train(config, workdir)
    images, steps = monitoring.grid_cost(  # what the run has compiled
        run_lib.loop_settings(config), config.diffusion.num_timesteps, sets=1
    )
    height, width, channels = trained.image_shape
    model_kwargs = {"condition": np.zeros((height, width, 1))} if config.data.condition else {}
    samples = ddpm_jax.sample(ddpm_jax.load(workdir), 0, images, num_steps=steps, **model_kwargs)
    assert samples.shape == (images, height, width, channels)
    assert np.all(np.isfinite(samples)) and np.all(np.abs(samples) <= 1 + 1e-6)
    with Image.open(pathlib.Path(workdir) / "samples" / "step_00000002.png") as picture:
        assert picture.mode == {1: "L", 3: "RGB"}[channels]
    return trained


@pytest.mark.parametrize("name", [
    pytest.param("digits", marks=pytest.mark.slow),
    pytest.param("digits_segment", marks=pytest.mark.slow),
    pytest.param("cifar10", marks=[needs("cifar10"), pytest.mark.slow]),
    pytest.param("improved_cifar10", marks=[needs("cifar10"), pytest.mark.slow]),
    pytest.param("fashion_mnist", marks=needs("fashion_mnist")),
])
def test_two_steps_on_the_real_data(name, tmp_path):  # others: test_conditional_draws.py
    assert os.path.isdir(TFDS) or name.startswith("digits")
    check_run(shrunk(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["celebahq256", "lsun_bedroom256", "lsun_cat256",
                                  "lsun_church256"])
def test_two_steps_on_a_prepared_set(name, tmp_path):
    config = shrunk(name)
    data_dir, (folder, variant) = tmp_path / "data", config.data.name.split("/")
    write_tfds(data_dir, pictures(9))
    (data_dir / folder).mkdir()
    (data_dir / "tiny").rename(data_dir / folder / variant)
    config.data.dir = str(data_dir)
    check_run(config, tmp_path / "run")


@pytest.mark.slow
@needs("cifar10")
def test_two_steps_on_a_folder_with_damaged_files(tmp_path, capsys):
    """PNG and JPEG files of CIFAR-10 images, one in thirty of them cut short."""
    from ddpm_jax.data import loading

    images = loading.load("cifar10", split="test").read(np.arange(60))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate(images):
        path = folder / f"{i:03d}.{('png', 'jpg')[i % 2]}"
        Image.fromarray(image).save(path)
        if i in (7, 22):
            path.write_bytes(path.read_bytes()[:200])
    config = shrunk("image_folder")
    config.data.dir = str(folder)
    config.data.holdout = 10
    check_run(config, tmp_path / "run")
    output = capsys.readouterr().out
    in_train = [line for line in output.splitlines() if line.startswith("data: ")]
    assert in_train and " held out" in in_train[0]
    kept = [int(word) for word in in_train[0].replace(",", "").split() if word.isdigit()]
    assert sum(kept[:2]) == 58
