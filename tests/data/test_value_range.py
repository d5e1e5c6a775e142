"""Pixels that are not uint8, against the line through their range, and what is refused."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from data_sets import everything, refused
from ddpm_jax import data
from ddpm_jax.data import batching, image_pairs, loading, pixels, value_range
from ddpm_jax.data import source as source_lib

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("bounds, dtype, bins", [
    ((0, 65535), np.uint16, 65536), ((0, 4095), np.uint16, 4096), ((-1000, 3000), np.int16, 4001),
    ((0, 16), np.uint8, 17), ((0, 1), bool, 2), ((0, 2**20), np.int32, 0), ((-2.5, 7), float, 0),
    ((0, 1), np.float16, 0), ((0.5, 9), np.uint8, 0),
])
def test_a_range_and_back(bounds, dtype, bins):
    low, high = bounds
    images = RANDOM.uniform(low, high + (dtype is not float), (4, 3, 5, 2)).clip(*bounds)
    images = images.astype(dtype).clip(np.ceil(low) if dtype is not float else low, high)
    images = images.astype(dtype)
    images.flat[:2] = np.ceil(low), high
    source = data.from_array(images, value_range=bounds)
    read = everything(source)
    assert source.bins == bins and source.value_range == bounds and read.dtype == np.float32
    half = (high - low) / 2
    assert_allclose(read, (images.astype(np.float64) - low - half) / half, rtol=0, atol=1e-7)
    assert read.max() == 1
    back = pixels.to_data(read, bounds, bins)
    if bins:
        assert_array_equal(back, images)
        assert back.dtype.kind in "ui" and back.dtype.itemsize <= max(1, images.itemsize)
    else:
        assert_allclose(back, images.astype(np.float64), rtol=0, atol=2e-7 * max(abs(high), half))
        assert back.dtype == np.float32


def test_values_that_a_chain_leaves_the_range_by_are_clipped():
    x = np.float32([[-1.4, 1.4]])
    assert_array_equal(pixels.to_data(x, (0, 65535), 65536), [[0, 65535]])
    assert_array_equal(pixels.to_data(x, (-3.0, 5.0), 0), [[-3, 5]])
    assert_array_equal(pixels.to_data(x, (), 256), [[0, 255]])
    refused(lambda: pixels.to_data(x * np.nan, (0, 1), 0), "hold NaN")


def test_pictures_of_them_have_8_bits():
    source = data.from_array(np.uint16([[[[0]]], [[[257 * 200]]]]), value_range=(0, 65535))
    assert_array_equal(everything(pixels.as_pictures(source)).ravel(), [0, 200])
    plain = data.from_array(np.zeros((1, 2, 2, 1), np.uint8))
    assert pixels.as_pictures(plain) is plain


@pytest.mark.parametrize(
    "bounds", [
        5, (1,), (2, 1), (1, 1), (0, np.inf), (0, "1"), (True, 2), None, (0, 10**400), (0, 1e-40),
    ]
)
def test_what_is_no_range_is_refused(bounds):
    refused(
        lambda: data.from_array(np.zeros((1, 2, 2, 1)), value_range=bounds),
        r"config\.data\.range=.* must be the lowest and the highest value"
    )


def test_values_out_of_the_range_are_refused_with_their_own():
    images = np.float32([[[[0.5]]], [[[7.25]]]])
    refused(lambda: data.from_array(images, value_range=(0, 1)),
            r"config.data.range=\(0, 1\) does not hold data, which lie in 0.5..7.25; write "
            r"--config.data.range=\"\(0.5, 7.25\)\"")
    images[0] = np.nan
    refused(lambda: data.from_array(images, value_range=(0, 8)), "1 values are NaN or infinite")
    for other in (np.zeros((3, 4, 4)), np.zeros((0, 4, 4, 1)), np.array([["a"]])):
        refused(lambda other=other: data.from_array(other, value_range=(0, 8)),
                r"must be numbers \[n, h, w, c\]")


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_an_npz_of_any_dtype_and_channels(tmp_path, dtype):
    images = RANDOM.integers(0, 4096, (6, 8, 8, 5)).astype(dtype)
    path = tmp_path / "a.npz"
    np.savez(path, train=images, test=images[:2])
    settings = dict(data_dir=str(path), value_range=(0, 4095))
    source = loading.load("npz", **settings)
    assert source.image_shape == (8, 8, 5) and source.bins == (4096 if dtype == np.uint16 else 0)
    assert_allclose(everything(source), images / 2047.5 - 1, rtol=0, atol=1e-6)
    assert len(loading.load("npz", split="test", **settings)) == 2
    half = loading.load("npz", image_size=4, channels=5, **settings)
    assert half.image_shape == (4, 4, 5) and half.bins == source.bins
    # Lanczos keeps the mean, but for clipping at the ends.
    assert_allclose(everything(half).mean(), everything(source).mean(), rtol=0, atol=0.02)
    if half.bins:
        values = (everything(half) + 1) * 2047.5
        assert_allclose(values, values.round(), rtol=0, atol=1e-3)
    refused(lambda: loading.load("npz", channels=3, **settings),
            "config.data.channels=3 is not the 5 of .* write --config.data.channels=5")


def test_a_flat_image_stays_what_it_is_where_it_is_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 0)
    images = np.full((2, 6, 6, 2), 12345, np.uint16) + np.arange(2, dtype=np.uint16)
    np.savez(tmp_path / "a.npz", train=images)
    source = loading.load(
        "npz", data_dir=str(tmp_path / "a.npz"), image_size=3, value_range=(0, 65535)
    )
    assert not source.in_memory
    expected = images[:, :3, :3] / 32767.5 - 1
    assert_allclose(everything(source), expected, rtol=0, atol=1e-6)


def test_the_other_kinds_of_data_have_8_bits():
    refused(lambda: loading.load("digits", value_range=(0, 16)),
            "config.data.range=.* is for npz, image_folder, hf, and.*write --config.data.range=")


def test_any_number_of_channels_of_uint8_as_a_run_stores_it(tmp_path):
    np.savez(tmp_path / "a.npz", train=np.zeros((2, 4, 4, 5), np.uint8))
    settings = dict(data_dir=str(tmp_path / "a.npz"), image_size=4, image_width=4)
    assert loading.load("npz", channels=5, **settings).image_shape == (4, 4, 5)
    refused(lambda: loading.load("npz", channels=7, **settings), "neither grey")
    refused(lambda: loading.load("digits", channels=5), "must be 1 .grey., 3")


def test_pairs_of_floats():
    images = RANDOM.uniform(size=(2, 4, 4, 1))
    source = data.from_array(images, value_range=(0, 1))
    paired = image_pairs.low_resolution(source, 2)
    blocks = images.reshape(2, 2, 2, 2, 2).mean(axis=(2, 4)).repeat(2, axis=1).repeat(2, axis=2)
    condition = paired.model_kwargs(np.arange(2))["condition"][..., 0]
    assert_allclose(condition, 2 * blocks - 1, rtol=0, atol=1e-6)
    refused(lambda: image_pairs.noisy(source, seed=0, training=True), "'noisy' cannot go with")


def test_a_range_much_wider_than_the_data_is_said():
    source = data.from_array(np.uint16([[[[100]]], [[[900]]]]), value_range=(0, 65535))
    line, = pixels.range_warnings(source)
    assert "lie in 100..900, under a tenth of config.data.range=(0, 65535)" in line
    wide = data.from_array(np.float32([[[[0.1]]], [[[0.4]]]]), value_range=(0, 1))
    assert not pixels.range_warnings(wide)


def test_batches_and_splits_keep_the_range():
    images = RANDOM.uniform(-2, 2, (8, 2, 2, 3))
    source = data.from_array(images, value_range=(-2, 2), labels=np.arange(8) % 2)
    part = source.select(np.array([3, 1]))
    assert part.value_range == (-2, 2) and part.bins == 0
    assert_allclose(everything(part), images[[3, 1]] / 2, rtol=0, atol=1e-6)
    shares = batching.batches(source, seed=0, batch_size=8)
    batch = next(shares)["images"]
    shares.close()
    assert_allclose(np.sort(batch.ravel()), np.sort(images.ravel()) / 2, rtol=0, atol=1e-6)


def test_whole_numbers_of_floats_are_floats():
    assert value_range.num_bins(np.float64, (0, 255)) == 0
    assert value_range.num_bins(np.uint16, ()) == 256
