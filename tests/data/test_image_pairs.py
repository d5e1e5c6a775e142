"""Pairs made from single images, against the same rules in plain loops."""

import numpy as np
import pytest

from ddpm_jax.data import image_pairs, loading
from ddpm_jax.data import source as source_lib


def everything(source):
    return source.examples(np.arange(len(source)))


def test_low_resolution_is_the_mean_of_blocks():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 12, 3), np.uint8)
    source = image_pairs.low_resolution(source_lib.from_array(images), 4)
    found = everything(source)
    np.testing.assert_array_equal(found["images"], images)
    assert found["condition"].dtype == np.uint8 and source.condition_channels == 3
    for i, y, x in np.ndindex(5, 8, 12):
        block = images[i, y // 4 * 4 : y // 4 * 4 + 4, x // 4 * 4 : x // 4 * 4 + 4]
        mean = block.astype(float).mean(axis=(0, 1))
        assert np.all(np.abs(found["condition"][i, y, x] - mean) <= 0.5)  # Rounded.
    np.testing.assert_array_equal(source.read_condition(np.array([3])), found["condition"][3:4])


@pytest.mark.parametrize("shape, factor, works", [
    ((8, 8), 3, "factor=2"), ((9, 9), 2, "factor=3"), ((8, 8), 1, "factor=2"),
    ((3, 5), 2, "another config.data.image_size"),
])
def test_factors_must_divide(shape, factor, works):
    source = source_lib.from_array(np.zeros((2, *shape, 1), np.uint8))
    with pytest.raises(ValueError, match=f"config.data.factor={factor} .*{works}"):
        image_pairs.low_resolution(source, factor)


def test_masks_and_their_noise():
    images, labels = loading.digits("train")
    source = loading.load("digits", condition="noisy", labels=True)
    n = len(images)
    assert len(source) == 16 * n and source.image_shape == (8, 8, 1)
    found = everything(source)
    np.testing.assert_array_equal(found["images"], np.tile(images >= 128, (16, 1, 1, 1)) * 255)
    np.testing.assert_array_equal(found["labels"], np.tile(labels, 16))
    # Where no value is cut off, the noise is N(0, 24^2), to 5 standard errors.
    clean = np.tile(images, (16, 1, 1, 1)).astype(float)
    noise = (found["condition"] - clean)[(clean > 110) & (clean < 145)]
    assert abs(noise.mean()) < 5 * 24 / len(noise) ** 0.5
    assert abs(noise.std() / 24 - 1) < 5 / (2 * len(noise)) ** 0.5
    assert found["condition"].min() == 0 and found["condition"].max() == 255
    # Each copy has its own noise, the same at every reading.
    assert np.mean(found["condition"][:n] == found["condition"][n : 2 * n]) < 0.5
    some = np.array([5, n + 5, 3])
    np.testing.assert_array_equal(source.read_condition(some), found["condition"][some])
    test = loading.load("digits", condition="noisy", split="test")
    assert len(test) == 300 and test.labels is None
    other = loading.load("digits", condition="noisy", split="test", seed=1)
    assert np.mean(other.read_condition(some % 300) == test.read_condition(some % 300)) < 0.5


def test_masks_of_colour_pictures_have_one_channel():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[0, 0, 0] = (255, 129, 0)  # Its mean is 128.
    images[0, 0, 1] = (255, 126, 0)  # Its mean is 127.
    source = image_pairs.noisy(source_lib.from_array(images), seed=0, training=False)
    found = everything(source)
    assert found["images"].shape == (2, 4, 4, 1) and found["condition"].shape == images.shape
    assert found["images"][0, 0, 0, 0] == 255 and found["images"].sum() == 255
