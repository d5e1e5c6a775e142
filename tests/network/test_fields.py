"""Fields of a network that suit neither the images nor each other are refused."""

import dataclasses

import jax.numpy as jnp
import pytest

from ddpm_jax.network.fields import check, check_new, level_heights
from ddpm_jax.network.unet import UNet
from filled import shapes

TINY = UNet(
    channels=8, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,),
)


def unet_shapes(model, height, width):
    x, t = jnp.zeros((1, height, width, 3)), jnp.zeros(1, jnp.int32)
    return shapes(model, x, t, train=False)


def test_heights_of_the_levels():
    assert level_heights(UNet(), 32) == [32, 16, 8, 4]
    assert level_heights(UNet(block_size=2), 64) == [32, 16, 8, 4]


@pytest.mark.parametrize(
    "settings, size, message",
    [
        (dict(), (7, 8), r"height=7 does not divide by 2.*write height=8"),
        (dict(), (8, 9), r"width=9 does not divide by 2"),
        (dict(attention_resolutions=(4, 5)), (8, 8), r"\(4, 5\) has 5, which never occurs .* 8, 4"),
        (dict(block_size=2), (8, 6), r"width=6 does not divide by 4, as the 2 levels of "
                                     r"channel_multipliers=\(1, 2\) and block_size=2 need"),
        (dict(block_size=2, attention_resolutions=(8,)), (8, 8),
         r"\(8,\) has 8, which never occurs .* 4, 2"),
        (dict(block_size=0), (8, 8), r"block_size=0 must be at least 1.*block_size=1"),
        (dict(num_heads=3), (8, 8), r"num_heads=3 does not divide 16 "),
        (dict(num_heads=0), (8, 8), r"num_heads=0 "),
        (dict(num_groups=3), (8, 8), r"num_groups=3 does not divide 8 .*num_groups=2"),
        (dict(num_groups=0), (8, 8), r"num_groups=0 "),
        (dict(embedding_order="sin"), (8, 8), r"embedding_order='sin' .*sin_cos, cos_sin"),
        (dict(downsample_padding="same"), (8, 8), r"padding='same' .*asymmetric, "),
    ],
)
def test_settings_that_do_not_suit_are_refused(settings, size, message):
    model = dataclasses.replace(TINY, **settings)
    with pytest.raises(ValueError, match=message):
        check(model, *size)
    with pytest.raises(ValueError, match=message):
        unet_shapes(model, *size)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(channels=1), r"channels=1"),
        (dict(channels=1, scale_shift=True), r"channels=1"),
        (dict(num_groups=8), r"num_groups=8"),
    ],
    ids=["one channel", "one channel, scale and shift", "one channel per group"],
)
def test_settings_that_lose_the_time_are_refused(settings, message):
    """One channel has no sinusoid, and a norm of one channel removes the time's bias."""
    model = dataclasses.replace(TINY, **settings)
    with pytest.raises(ValueError, match=message):
        check(model, 8, 8)
        check_new(model)


@pytest.mark.parametrize("settings", [
    dict(num_groups=8), dict(channels=32, channel_multipliers=(1, 2, 2), num_groups=32,
                             attention_resolutions=(2,), num_heads=64),
])
def test_networks_of_others_may_have_groups_of_one_channel_and_many_heads(settings):
    model = dataclasses.replace(TINY, **settings)
    check(model, 8, 8)
    assert unet_shapes(model, 8, 8)
