"""An array of any dtype, layout and labels is read with its pixels, or refused in one short line.

Where the line says what to write, that gives the pixels. `DDPM_JAX_FUZZ=1000` draws 1,000 new ones.
"""

import warnings

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from ddpm_jax.data import loading
from ddpm_jax.data.source import from_array
from advice import follow
from data_sets import everything
from fuzz import assert_one_line, settings


# Images, what they are as another dtype, in another layout, and in another container. Each way
# back is what a message has to find.

DTYPES = {
    "uint8": lambda x: x, "int64": lambda x: x.astype(np.int64), "int16": lambda x: x.astype("i2"),
    "uint16": lambda x: x * np.uint16(257), "big-endian": lambda x: x.astype(">u2") * 257,
    "12 bits": lambda x: np.round(x * (4095 / 255)).astype(np.uint16),
    "int8": lambda x: (x.astype(int) - 128).astype(np.int8), "uint64": lambda x: x.astype("u8"),
    "0..1": lambda x: np.float32(x / 255), "float64": lambda x: x / 255,
    "float16": lambda x: np.float16(x / 255), "-1..1": lambda x: np.float32(x / 127.5 - 1),
    "0..255": lambda x: np.float32(x), "standardised": lambda x: (x - 110.5) / 57,
    "counts": lambda x: x.astype(np.int32) * 1000 - 5, "objects": lambda x: x.astype(object),
}
LAYOUTS = {
    "nhwc": lambda x: x, "nchw": lambda x: x.transpose(0, 3, 1, 2),
    "hwcn": lambda x: x.transpose(1, 2, 3, 0), "chwn": lambda x: x.transpose(3, 1, 2, 0),
    "batches": lambda x: x[None], "batches of nchw": lambda x: x.transpose(0, 3, 1, 2)[:, None],
}
CONTAINERS = {
    "array": lambda x: x, "Fortran": np.asfortranarray, "JAX": lambda x: jnp.asarray(x),
    "list": list, "tuple": tuple, "masked": np.ma.masked_array, "view": lambda x: x[::-1][::-1],
}


@st.composite
def images(draw):
    """uint8 [n, h, w, c] that hold 0 and 255, of a size that no layout can be mistaken for."""
    height, width = draw(st.integers(5, 9)), draw(st.integers(5, 9))
    n, channels = draw(st.integers(10, 14)), draw(st.sampled_from([1, 3, 4]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    array = rng.integers(0, 256, (n, height, width, channels)).astype(np.uint8)
    array[0, 0, 0, 0], array[-1, -1, -1, -1] = 0, 255
    return array


@settings(120)
@hypothesis.given(
    pixels=images(), dtype=st.sampled_from(sorted(DTYPES)), layout=st.sampled_from(sorted(LAYOUTS)),
    container=st.sampled_from(sorted(CONTAINERS)),
)
def test_what_a_message_says_gives_the_pixels(pixels, dtype, layout, container):
    hypothesis.assume((dtype, container) != ("objects", "JAX"))
    there = CONTAINERS[container](LAYOUTS[layout](DTYPES[dtype](pixels)))
    np.testing.assert_array_equal(everything(follow(there, steps=2)), pixels)


# Anything at all.

SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 8]), max_size=6).map(tuple).filter(
    lambda shape: np.prod(shape, dtype=float) < 10**4)
ARRAYS = st.tuples(
    st.one_of(numpy_st.scalar_dtypes(), st.just(np.dtype(object)), st.just(np.dtype(bool)),
              numpy_st.array_dtypes(max_size=2)),
    SHAPES, st.integers(0, 99),
).map(lambda drawn: _filled(*drawn))


def _filled(dtype, shape, seed):
    """An array of random bytes, so of NaN, of huge and of tiny numbers too; or of one object."""
    if dtype.hasobject:
        return np.full(shape, (None, 1, "a", 2.5)[seed % 4], object)
    count = int(np.prod(shape)) * dtype.itemsize
    if not count:
        return np.zeros(shape, dtype)
    content = np.random.default_rng(seed).integers(0, 256, count).astype(np.uint8)
    return content.view(dtype).reshape(shape)


VALUES = st.one_of(
    ARRAYS, st.lists(ARRAYS, max_size=4), st.lists(ARRAYS, max_size=3).map(tuple),
    st.text(max_size=9), st.binary(max_size=9), st.none(), st.integers(), st.floats(),
    st.dictionaries(st.text(max_size=3), ARRAYS, max_size=2), st.builds(iter, st.lists(ARRAYS)),
    st.recursive(st.integers(0, 300), lambda inner: st.lists(inner, max_size=3)),
    ARRAYS.filter(lambda array: not array.dtype.names).map(np.ma.masked_array),
)


@settings(200)
@hypothesis.given(value=VALUES)
def test_anything_is_read_as_it_is_or_refused_in_one_line(value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # From NumPy, about numbers that are too large.
        try:
            source = from_array(value)
        except ValueError as error:
            assert_one_line(error, 1000)
            return
    expected = np.asarray(value)
    assert expected.dtype == np.uint8 and expected.ndim == 4
    np.testing.assert_array_equal(everything(source), expected)


@settings(60)
@hypothesis.given(array=ARRAYS, name=st.sampled_from(["train", "images", "x", "x_labels", "test"]))
def test_any_array_in_a_file_is_read_as_it_is_or_refused_in_one_line(path, array, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.savez(path, **{name: array})
        try:
            source = loading.load("npz", data_dir=str(path))
        except ValueError as error:
            assert_one_line(error, 1000)
            return
    assert array.dtype == np.uint8 and array.ndim == 4
    np.testing.assert_array_equal(everything(source), array)


LABELS = st.one_of(
    st.lists(st.one_of(st.integers(0, 5), st.integers(-2**63, 2**63 - 1)), min_size=4, max_size=6),
    st.lists(st.text(max_size=3), min_size=5, max_size=5),
    st.permutations(range(5)).map(lambda order: np.eye(5)[list(order)]),
    st.lists(st.integers(0, 4), min_size=5, max_size=5).map(lambda labels: np.array([labels]).T),
    st.sampled_from([int, float, bool, str, np.uint8, np.int64]).flatmap(
        lambda kind: st.lists(st.integers(0, 3), min_size=3, max_size=6).map(
            lambda labels: np.array(labels).astype(kind))),
    ARRAYS, st.lists(st.floats(), min_size=5, max_size=5), st.just("01234"), st.integers(),
)


@settings(80)
@hypothesis.given(labels=LABELS)
def test_labels_keep_images_of_a_class_together_or_are_refused(labels):
    pixels = np.zeros((5, 8, 8, 1), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            source = from_array(pixels, labels=labels)
        except ValueError as error:
            assert_one_line(error, 1000)
            return
    found, given = source.labels, np.asarray(labels)
    assert found.shape == (5,) and 0 <= found.min() and found.max() < source.num_classes
    given = given.reshape(5, -1)
    same = (given[:, None] == given[None]).all(axis=-1)
    np.testing.assert_array_equal(found[:, None] == found[None], same)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("arrays") / "x.npz"
