"""The memory of a step against layers counted by hand, compiled steps, and given limits."""

import re

import flax.linen as nn
import jax
import numpy as np
import pytest

from ddpm_jax import validation
from ddpm_jax import config as config_lib
from ddpm_jax.configs import digits, lsun_bedroom256
from ddpm_jax.runtime import memory
from ddpm_jax.training import memory_check
from ddpm_jax.training import run as run_lib
from nonzero import TinyNet, tiny_unet

GIB = 2**30


class TwoConvolutions(nn.Module):
    """Two layers, of which the backward pass needs the inputs."""

    condition_channels: int = 0

    @nn.compact
    def __call__(self, x, t, *, train, remat=False):
        return nn.Conv(2, (3, 3))(nn.Conv(6, (3, 3))(x))


def test_two_convolutions_counted_by_hand():
    pixels = 5 * 8 * 4
    assert memory_check.of_images(TwoConvolutions(), (8, 4, 3), 5) == 4 * pixels * (3 + 6)


def test_twice_the_images_or_the_pixels_are_twice_the_memory():
    one = memory_check.of_images(TinyNet(), (8, 8, 1), 16)
    assert memory_check.of_images(TinyNet(), (8, 8, 1), 32) == 2 * one
    assert memory_check.of_images(TinyNet(), (8, 16, 1), 16) == pytest.approx(2 * one, rel=0.01)


def test_a_compiled_backward_pass_lies_between_the_shares():
    model, batch = tiny_unet(), 256
    x, t = np.zeros((batch, 8, 8, 1), np.float32), np.zeros(batch, np.int32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), x[:1], t[:1], train=False))

    def loss(params):
        return (model.apply(params, x, t, train=False) ** 2).sum()

    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    held = compiled.memory_analysis().temp_size_in_bytes
    least, most = memory_check.SHARES[False]
    assert least < held / memory_check.of_images(model, (8, 8, 1), batch) < most


def test_with_remat_a_block_keeps_what_goes_into_it():
    """One more block down and one up keep the features twice; the skip is one of them."""
    def kept(num_res_blocks):
        model = tiny_unet(
            num_res_blocks=num_res_blocks, channel_multipliers=(1,), attention_resolutions=()
        )
        return memory_check.of_images(model, (8, 8, 1), 5, True)

    assert kept(3) - kept(2) == 2 * 5 * 8 * 8 * 8 * 4


def need(config):
    return run_lib.memory_need(config, config_lib.image_shape(config))


def refused(config, available):
    with pytest.raises(ValueError) as error:
        memory_check.check(need(config), available)
    text = str(error.value)
    assert "\n" not in text and "a training step needs at least" in text
    name, value = re.search(r"write --config\.([\w.]+)=(\d+)\.$", text).groups()
    config.update_from_flattened_dict({name: int(value)})
    return text


def passes(config, available):
    memory_check.check(need(config), available)
    validation.validate(config, num_devices=jax.device_count())


@pytest.fixture
def single(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def test_a_batch_too_large_is_to_be_accumulated(single):
    config = digits.get_config()
    config.train.batch_size = 2**18
    assert "config.train.batch_size=262144 is too much: " in refused(config, 2 * GIB)
    passes(config, 2 * GIB)
    config.train.accumulate //= 2
    refused(config, 2 * GIB)


def test_where_nothing_divides_the_batch_is_to_be_smaller(single):
    config = digits.get_config()
    config.train.batch_size = 2**19 - 1  # a prime
    refused(config, 2 * GIB)
    assert config.train.batch_size < 2**14 and config.train.accumulate == 1
    passes(config, 2 * GIB)


def test_a_network_too_large_is_to_be_narrower(single):
    config = digits.get_config()
    config.model.channels = 4096
    text = refused(config, 2 * GIB)
    assert "config.model.channels=4096 is too much: " in text and config.model.channels == 2048
    needed = float(re.search(r"\(([\d.,]+) GiB for parameters", text)[1].replace(",", ""))
    # Parameters of convolutions grow as the square of the width; digits has 701,345, five times.
    assert needed == pytest.approx(5 * 4 * 701_345 * (4096 / 32) ** 2 / GIB, rel=0.02)


def test_an_image_too_large_is_to_be_smaller(single):
    config = digits.get_config()
    config.data.image_size = 4096
    config.model.attention_resolutions = ()
    config.train.batch_size = 1
    assert "config.data.image_size=4096 is too much: " in refused(config, 2 * GIB)
    assert config.data.image_size == 2048


def test_the_papers_network_passes_where_it_was_trained(single):
    """On a TPU v3-8: 16 GB and an eighth of the batch per core."""
    config = lsun_bedroom256.get_config()
    config.train.batch_size //= 8
    memory_check.check(need(config), 16 * 10**9)


def test_memory_that_may_not_suffice_is_warned_about(single, monkeypatch):
    needed = need(digits.get_config())
    assert memory_check.warnings(needed) == []
    monkeypatch.setattr(memory, "device_total", lambda: 40 * 2**20)
    memory_check.check(needed)
    (line,) = memory_check.warnings(needed)
    assert "which has 0.04 GiB" in line and "--config.train.accumulate=2" in line
