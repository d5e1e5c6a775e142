"""What editing takes, beyond what tests/inference/test_editing.py refuses by its functions."""

import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.diffusion import process
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.errors import UserError
from ddpm_jax.inference import edit_checks
from ddpm_jax.network.unet import UNet

SHAPE = (2, 2, 1)
TRAINED = ddpm_jax.Trained(
    {}, UNet(), schedule_lib.linear(12), process.Parameterization(), SHAPE)


def test_pictures_of_every_container_and_float_are_taken():
    whole = np.linspace(-1, 1, 8).reshape(2, *SHAPE)
    for images in (whole, list(whole), jnp.float32(whole), np.float16(whole), whole.tolist()):
        actual = edit_checks.pictures(TRAINED, images)
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, whole, atol=1e-3)  # float16


def test_pictures_end_at_one_but_noise_does_not():
    edit_checks.pictures(TRAINED, np.full((1, *SHAPE), 1.0005))  # A rounding of float16.
    for value in (1.01, -1.01, 255.0):
        images = np.full((1, *SHAPE), value)
        with pytest.raises(UserError, match=r"must lie in \[-1, 1\]"):
            edit_checks.pictures(TRAINED, images)
        np.testing.assert_array_equal(edit_checks.arrays(TRAINED, images), np.float32(images))


def test_one_mask_is_for_all_pictures():
    mask = np.array([[True, False], [False, False]])
    known = edit_checks.known_pixels(TRAINED, mask, 3)
    assert known.shape == (3, 2, 2, 1)
    np.testing.assert_array_equal(known, edit_checks.known_pixels(TRAINED, np.stack([mask] * 3), 3))


def test_whole_floats_are_noising_steps():
    assert edit_checks.noisings([0, 3.0, np.int64(12)], 12) == (0, 3, 12)
