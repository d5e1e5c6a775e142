"""One rule converts pixels between uint8 and floats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.data import pixels

ALL = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)


@pytest.mark.parametrize("convert", [pixels.to_float, jax.jit(pixels.to_float)])
@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
def test_uint8_to_float_and_back_is_the_identity(convert, make):
    floats = convert(make(ALL))
    assert floats.dtype == np.float32 and floats.shape == ALL.shape
    # XLA may multiply by the reciprocal: one unit in the last place of a value up to 2.
    np.testing.assert_allclose(floats, ALL / 127.5 - 1, rtol=0, atol=2.4e-7)
    np.testing.assert_array_equal(pixels.to_uint8(floats), ALL)


def test_to_float_of_the_ends_is_exact():
    assert pixels.to_float(ALL).min() == -1 and pixels.to_float(ALL).max() == 1


def test_to_float_stays_where_its_input_is():
    assert isinstance(pixels.to_float(ALL), np.ndarray)
    assert isinstance(pixels.to_float(jnp.asarray(ALL)), jax.Array)


def test_rounding_rule():
    values = [-1, 1, 0, -1.5, 7, np.inf, -np.inf, 1.6 / 127.5 - 1, 1.4 / 127.5 - 1, 0.99]
    # 127.5 rounds to the even 128; 0.99 is 253.725.
    want = [0, 255, 128, 0, 255, 255, 0, 2, 1, 254]
    got = pixels.to_uint8(np.float32(values).reshape(1, -1, 1))
    assert got.dtype == np.uint8 and got.shape == (1, 10, 1)
    assert got.ravel().tolist() == want


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        pixels.to_uint8(np.float32([[[0.0], [np.nan]]]))
