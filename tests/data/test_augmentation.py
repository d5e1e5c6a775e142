"""Transforms of training images against SciPy's, with matrices multiplied by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
from numpy.testing import assert_allclose, assert_array_equal

from ddpm_jax.data import augmentation

RNG = np.random.default_rng(0)
IMAGE = np.float32(RNG.uniform(-1, 1, (12, 9, 3)))
TRANSFORM = jax.jit(augmentation.transform)
DRAW = jax.jit(jax.vmap(lambda key: augmentation.draw(jax.random.split(key, 6), 0.3)))
# Places of the parameters of each transform.
GROUPS = ([0], [1], [2], [3, 4], [5, 6], [7, 8])


def by_scipy(image, told):
    """The forward matrix in float64, inverted, and SciPy's linear interpolation of each channel."""
    mirror_x, mirror_y, scale, cos, sin, across, diagonal, right, down = np.float64(told)
    height, width, _ = image.shape
    matrix = np.diag([1 - 2 * mirror_x, 1 - 2 * mirror_y]) * 2 ** (0.2 * scale)
    matrix = np.array([[cos + 1, -sin], [sin, cos + 1]]) @ matrix
    stretch = scipy.linalg.expm(0.2 * np.log(2) * np.array([
        [across, diagonal], [diagonal, -across]]))
    inverse = np.linalg.inv(stretch @ matrix)[::-1, ::-1]  # Rows before columns.
    centre = (np.array([height, width]) - 1) / 2
    shift = np.array([down * height, right * width]) / 8
    return np.stack([
        scipy.ndimage.affine_transform(
            channel, inverse, centre - inverse @ (centre + shift), order=1, mode="mirror"
        ) for channel in np.moveaxis(np.float64(image), -1, 0)
    ], axis=-1)


@pytest.mark.parametrize("group", [*GROUPS, range(9)], ids=str)
def test_an_image_goes_where_scipy_takes_it(group):
    angle = 2.0
    everything = np.float32([1, 1, -1.3, np.cos(angle) - 1, np.sin(angle), 0.7, -1.1, 1.2, -0.6])
    told = np.zeros(9, np.float32)
    told[list(group)] = everything[list(group)]
    actual = TRANSFORM(IMAGE, told)
    assert actual.dtype == jnp.float32
    # Neighbouring pixels differ by up to 2; a place is known to about 1e-6 of the image.
    assert_allclose(actual, by_scipy(IMAGE, told), rtol=0, atol=5e-5)
    assert np.abs(actual - IMAGE).max() > 0.1


def test_zeros_leave_an_image_as_it_is_and_mirrors_only_move_pixels():
    told = np.zeros(9, np.float32)
    assert_array_equal(TRANSFORM(IMAGE, told), IMAGE)
    told[0] = 1
    assert_array_equal(TRANSFORM(IMAGE, told), IMAGE[:, ::-1])
    told[1] = 1
    assert_array_equal(TRANSFORM(IMAGE, told), IMAGE[::-1, ::-1])


def test_each_transform_is_done_with_its_probability_and_has_its_spread():
    n = 4000
    told = np.float64(DRAW(jax.random.split(jax.random.key(0), n)))
    assert told.shape == (n, len(augmentation.PARAMETERS))
    for group in GROUPS:
        done = np.any(told[:, group] != 0, axis=1)
        probability = 0.3 * (0.5 if group[0] < 2 else 1)  # A mirror is tossed for, too.
        assert abs(done.mean() - probability) < 5 * np.sqrt(probability / n)
        chosen = told[done][:, group]
        if group[0] < 2:
            assert_array_equal(chosen, 1)
        elif group == [3, 4]:
            assert_allclose(np.hypot(chosen[:, 0] + 1, chosen[:, 1]), 1, rtol=1e-6)
            assert np.abs(chosen.mean(axis=0) - [-1, 0]).max() < 5 / np.sqrt(2 * len(chosen))
        else:  # Of N(0, 1), which a stretch shares between two directions.
            spread = 0.5 if group == [5, 6] else 1.0
            bound = 5 * np.sqrt(3 / len(chosen))
            assert np.abs(chosen.mean(axis=0)).max() < bound
            assert np.abs((chosen**2).mean(axis=0) - spread).max() < bound
    together = np.any(told[:, [2]] != 0, axis=1) & np.any(told[:, [7, 8]] != 0, axis=1)
    assert abs(together.mean() - 0.09) < 5 * np.sqrt(0.09 / n)  # Each by its own draw.


def test_what_is_told_tells_two_stretches_apart():
    """Along an axis and across it are opposite; by half a turn, the same."""
    along, across = np.zeros((2, 9), np.float32)
    along[5], across[5] = 1, -1
    assert np.abs(TRANSFORM(IMAGE, along) - TRANSFORM(IMAGE, across)).max() > 0.1
