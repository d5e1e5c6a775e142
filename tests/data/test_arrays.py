"""Arrays that are no uint8 [n, h, w, c] are refused, with a line of code that makes them so."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax.data.source import from_array
from advice import follow
from data_sets import everything, refused

COLOUR = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3)).astype(np.uint8)
COLOUR[0, 0, 0] = 0, 255, 128  # The whole range.
GREY = COLOUR[..., :1]


class Tensor:
    """As those of other libraries: no array, but one can be made of it."""

    def __init__(self, array, error=None):
        self.array, self.error = array, error

    def __array__(self, dtype=None, copy=None):
        if self.error:
            raise self.error
        return self.array


@pytest.mark.parametrize("make", [
    np.asfortranarray, jnp.asarray, Tensor, list, tuple, lambda x: [jnp.asarray(i) for i in x],
    lambda x: x[::-1, :, ::2],
    lambda x: list(map(Image.fromarray, x)), lambda x: np.ma.masked_array(x),
    lambda x: np.broadcast_to(x[:1], x.shape),
], ids=["Fortran", "JAX", "tensor", "list", "tuple", "JAX list", "view", "PIL", "unmasked",
        "read-only"])
def test_whatever_holds_uint8_images_is_read(make):
    images = make(COLOUR)
    wanted = [np.asarray(image) for image in getattr(images, "array", images)]
    np.testing.assert_array_equal(everything(from_array(images)), wanted)


@pytest.mark.parametrize("layout, looks", [
    (lambda x: x.transpose(0, 3, 1, 2), r"\[n, c, h, w\]"),
    (lambda x: x.transpose(1, 2, 3, 0), r"\[h, w, c, n\]"),
    (lambda x: x.transpose(3, 1, 2, 0), r"\[c, h, w, n\]"),
    (lambda x: x[None], "5 axes"),
    (lambda x: x.reshape(2, 5, 8, 8, -1).transpose(0, 1, 4, 2, 3), "5 axes, .* c, h, w"),
    (lambda x: x.transpose(0, 3, 1, 2).reshape(10, -1), "images of 8x8 in rows"),
], ids=["nchw", "hwcn", "chwn", "batches", "video", "rows"])
@pytest.mark.parametrize("images", [COLOUR, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("kind", ["uint8", "float", "int64"])
def test_another_layout_is_named_and_mended(layout, looks, images, kind):
    there = layout({"uint8": images, "float": images / 255, "int64": images.astype(int)}[kind])
    refused(lambda: from_array(there), looks)
    np.testing.assert_array_equal(everything(follow(there, steps=1)), images)


@pytest.mark.parametrize("there, wanted", [
    (GREY[..., 0], GREY), (list(GREY[..., 0]), GREY), (COLOUR[0], COLOUR[:1]),
    (GREY[0, :, :, 0], GREY[:1]), (GREY.reshape(10, 64), GREY),
    ([COLOUR[:4], COLOUR[4:]], COLOUR), (Image.fromarray(COLOUR[0]), COLOUR[:1]),
    ((COLOUR, np.arange(10)), COLOUR), ([(x, 1) for x in COLOUR], COLOUR),
    (((COLOUR, np.arange(10)), (COLOUR[:5], np.arange(5))), COLOUR),
])
def test_arrays_of_fewer_axes_and_lists_of_them(there, wanted):
    refused(lambda: from_array(there))
    np.testing.assert_array_equal(everything(follow(there, steps=1)), wanted)


KINDS = {  # What becomes of uint8 pixels, and how far the way back may be off.
    "bool": (lambda x: x > 127, "of True and False", None),
    "int8": (lambda x: (x.astype(int) - 128).astype(np.int8), "in -128..127", 0),
    "uint16": (lambda x: x * np.uint16(257), "in 0..65535", 0),
    "12 bits": (lambda x: np.round(x * (4095 / 255)).astype(np.uint16), "in 0..4095", 0),
    "int64": (lambda x: x.astype(np.int64), "in 0..255", 0),
    "counts": (lambda x: x.astype(np.int32) * 10**6, "in 0..2.55e", 0),
    "0..1": (lambda x: np.float32(x) / 255, r"float32 .*in 0..1: ", 0),
    "-1..1": (lambda x: x / 127.5 - 1, r"float64 .*in -1..1: ", 0),
    "0..255": (lambda x: np.float32(x), "in 0..255", 0),
    "standardised": (lambda x: (np.float32(x) - 120) / 60, r"in -2..2.25", 0),
    "float16": (lambda x: np.float16(x / 255), "float16 .*in 0..1: ", 0),
    "bfloat16": (lambda x: jnp.asarray(x / 127.5 - 1, jnp.bfloat16), "bfloat16 .*in -1..1", 1),
    "float16 of 0..255": (lambda x: x.astype(np.float16), "in 0..255", 0),
    "whole objects": (lambda x: x.astype(object), "holds an int for each", 0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", [lambda x: x, lambda x: x[..., 0]], ids=["nhwc", "nhw"])
def test_every_dtype_has_its_own_line(kind, layout):
    change, words, off = KINDS[kind]
    there = layout(change(COLOUR))
    refused(lambda: from_array(there), words)
    wanted = layout(COLOUR if off is not None else np.where(COLOUR > 127, 255, 0))
    images = everything(follow(there)).astype(int)
    np.testing.assert_allclose(images.reshape(wanted.shape), wanted, rtol=0, atol=off or 0)


def test_values_that_are_no_numbers_are_counted_and_left_out():
    images = COLOUR / 255
    images[3, 0, 0, 0], images[7] = np.nan, np.inf
    refused(lambda: from_array(images), "193 of 1,920 values are NaN or infinite")
    np.testing.assert_array_equal(everything(follow(images)), np.delete(COLOUR, [3, 7], axis=0))


def test_masked_pixels_are_not_read_through_the_mask():
    images = np.ma.masked_array(COLOUR, COLOUR > 200)
    refused(lambda: from_array(images), "has masked pixels")
    for masked in (images, list(images)):
        wanted = np.where(COLOUR > 200, 0, COLOUR)
        np.testing.assert_array_equal(everything(follow(masked, steps=1)), wanted)


@pytest.mark.parametrize("images, words", [
    (COLOUR[:0], r"=uint8 \[0, 8, 8, 3\]: has no pixels, .* not empty"),
    ([], "has no pixels"), (np.zeros((3, 0, 8, 1), np.uint8), "has no pixels"),
    (np.uint8(3), r"uint8 \[\]: looks like a list of numbers"),
    (np.arange(9), "looks like a list of numbers"),
    ([COLOUR[0], COLOUR[1, :7]], r"2 arrays of 2 shapes, \[8, 8, 3\] and \[7, 8, 3\].*resize"),
    ([COLOUR[0], GREY[1, ..., 0]], r"\[8, 8, 3\] and \[8, 8\].*convert\('RGB'\)"),
    (np.array([COLOUR[0], None, 3], object), "arrays of 2 shapes"),
    ([[[1, 2], [3]]], "a list among them"), ([None], "holds a NoneType for each"),
    (["a.png", "b.png"], "it holds text, 'a.png'; .*load.'image_folder'"),
    ([{"image": COLOUR[0]}], r"example\['image'\]"), (COLOUR * 1j, "complex128 .*real numbers"),
    ("pictures", r"is a str: write data=ddpm_jax.data.load.'image_folder', data_dir='pictures'"),
    ("mine.npz", "load.'npz', data_dir='mine.npz'"), ("mine.npy", "np.load.'mine.npy'"),
    ({"x": COLOUR}, r"is a dict: its keys are \['x'\]; write data=images\[KEY\]"),
    ((x for x in COLOUR), "is a generator: .* any order; write data=np.stack"),
    (iter(COLOUR), "is an iterator: .* any order"), (5, "is an int: must be uint8"),
    (Tensor(None, RuntimeError("on\n a GPU")), "is a Tensor, which NumPy cannot read .on a GPU"),
    ([Tensor(None, TypeError("gone"))] * 2, "a Tensor among them"),
    (from_array(COLOUR), "is a Source, and no array; pass it as it is"),
    (np.zeros((2, 2), "datetime64[s]"), "real numbers"),
    (np.zeros((2, 8, 8, 1), [("r", "u1"), ("g", "u1")]), "real numbers"),
])
def test_what_is_no_array_of_images_is_named(images, words):
    refused(lambda: from_array(images), words)


def test_channels_of_any_number_beside_images_and_in_them():
    for shape in ((6, 4, 4, 2), (6, 8, 8, 12), (6, 4, 4, 9), (6, 16, 8, 5), (2, 8, 8, 5)):
        images = np.zeros(shape, np.uint8)
        assert from_array(images).image_shape == shape[1:]
    images = np.zeros((6, 4, 8, 1), np.uint8)
    condition = np.zeros((6, 4, 8, 16), np.uint8)  # Alone it would be taken for [n, c, h, w].
    assert from_array(images, condition=condition).condition_channels == 16
    refused(lambda: from_array(images, condition=condition / 255), r"condition=float64 .*write np")
    refused(lambda: from_array(GREY, condition=COLOUR.transpose(0, 3, 1, 2)),
            r"condition=uint8 .*images.transpose\(0, 2, 3, 1\)")


def test_messages_have_a_bound():
    wide = np.zeros((1,) * 40, np.uint8)
    for images in (wide, "x" * 10**5, {f"key_{i}": 1 for i in range(10**4)}, ["y" * 10**6],
                   Tensor(None, ValueError("z" * 10**6)), [COLOUR] * 10**4 + [0],
                   type("T" * 10**5, (), {})(),
                   np.zeros(3, [(f"field_{i}", int) for i in range(1000)])):
        with pytest.raises(ddpm_jax.errors.UserError) as caught:
            from_array(images)
        assert len(str(caught.value)) < 1000
