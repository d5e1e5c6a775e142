"""One rule converts pixels between uint8 and floats."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import config as config_lib
from ddpm_jax import validation
from ddpm_jax.configs import digits
from ddpm_jax.data import pixels
from ddpm_jax.data.source import from_array
from ddpm_jax.training import run as run_lib
from nonzero import TinyNet

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


@pytest.mark.parametrize("low, high, warned", [
    (0, 15, True), (0, 1, True), (7, 7, True), (200, 225, True), (0, 26, False), (0, 255, False),
])
def test_sets_that_span_under_a_tenth_of_the_range_are_warned_of(low, high, warned):
    images = np.full((1000, 4, 4, 3), low, np.uint8)
    images[1, 0, 0] = images[-1, 0, 0, 0] = high  # The last image is looked at, that one is not.
    lines = pixels.range_warnings(from_array(images))
    assert len(lines) == warned
    if warned:
        assert f"32 images of the data lie in {low}..{high}, under a tenth" in lines[0]
        line = re.search(r"example (np.interp.*)\.$", lines[0])[1]
        scaled = eval(line, {"np": np, "images": images})
        assert (scaled.dtype, scaled.min()) == (np.uint8, 0)
        assert scaled.max() == (255 if high > low else 0)


def test_a_run_begins_with_the_warning(monkeypatch):
    monkeypatch.setattr(validation, "check_images", lambda config, shape: None)
    monkeypatch.setattr(config_lib, "model", lambda config, channels: TinyNet())
    bits = np.tile(np.arange(2, dtype=np.uint8), (64, 8, 4))[..., None]
    run = run_lib.prepare(digits.get_config(), None, bits)
    assert [line for line in run.warnings if "lie in 0..1, under a tenth" in line]
    run = run_lib.prepare(digits.get_config(), None, 255 * bits)
    assert not [line for line in run.warnings if "tenth" in line]
