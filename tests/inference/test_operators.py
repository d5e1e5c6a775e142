"""Operators by name, against SciPy and plain loops."""

import numpy as np
import pytest
from scipy import ndimage

from ddpm_jax.errors import UserError
from ddpm_jax.inference import operators

IMAGES = np.float32(np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)))
SHAPE = IMAGES.shape[1:]


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_a_blur_is_that_of_scipy(sigma):
    """With edges that go on; float32 sums of some 20 products."""
    blurred = operators.named(f"blur:{sigma}", SHAPE)(IMAGES)
    expected = ndimage.gaussian_filter(
        np.float64(IMAGES), (0, sigma, sigma, 0), mode="nearest",
        radius=(0, *(int(np.ceil(4 * sigma)),) * 2, 0),
    )
    np.testing.assert_allclose(blurred, expected, atol=1e-6)


def test_steps_come_in_their_order():
    known = np.arange(12).reshape(2, 6) % 5 < 2
    operator = operators.named("grey, downsample:4", SHAPE)
    assert operators.shape("grey, downsample:4", SHAPE) == (2, 3, 1)
    expected = IMAGES.mean(-1).reshape(2, 2, 4, 3, 4).mean((2, 4))[..., None]
    np.testing.assert_allclose(operator(IMAGES), expected, atol=1e-6)
    masked = operators.named("downsample:2,mask", (4, 12, 3), known)
    halves = IMAGES[:, :4].reshape(2, 2, 2, 6, 2, 3).mean((2, 4))
    np.testing.assert_allclose(masked(IMAGES[:, :4]), halves * known[..., None], atol=1e-6)


def test_equal_operators_are_equal():
    """So that they share a compiled chain."""
    known = np.eye(8, 12) > 0
    one, other = (operators.named("blur:1,mask", SHAPE, known) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert one != operators.named("blur:1,mask", SHAPE, ~known)


@pytest.mark.parametrize("text, mask, says", [
    ("sharpen", None, "'sharpen' is not known; its steps are blur:1, downsample:2, grey, mask"),
    ("", None, "'' is not known"),
    ("blur", None, "'blur' must have a number above 0 behind the colon, as blur:1"),
    ("blur:-1", None, "must have a number above 0"),
    ("blur:nan", None, "must have a number above 0"),
    ("downsample:1.5", None, "must have a whole number of at least 2 behind"),
    ("downsample:8", None, "8x12 pixels have no blocks of 8x8"),
    ("downsample:2,downsample:4", None, "4x6 pixels have no blocks of 4x4"),
    ("grey:2", None, "grey takes no number"),
    ("grey,grey", None, "the images are grey already"),
    ("mask", None, "mask=, the known pixels, is missing"),
    ("mask,grey", np.ones((8, 12), bool), "mask must be the last step"),
    ("grey", np.ones((8, 12), bool), "a mask is given, and no step reads it"),
    ("mask", np.ones((8, 8), bool), r"must be bool \[8, 12\], and is bool \[8, 8\]"),
    ("mask", np.ones((8, 12)), r"must be bool \[8, 12\], and is float64"),
])
def test_a_wrong_operator_is_one_line(text, mask, says):
    with pytest.raises(UserError, match=says) as error:
        operators.named(text, SHAPE, mask)
    assert str(error.value).startswith(f"operator={text!r} cannot be read") and (
        "\n" not in str(error.value)
    )
