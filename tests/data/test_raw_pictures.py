"""PNG and TIFF of more than 8 bits, written without Pillow, are read to the last bit."""

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from data_sets import everything, folder, refused
from ddpm_jax.data import decoding, raw_pictures
from ddpm_jax.inference import task_inputs
from pngs import png
from tiffs import tiff

RANDOM = np.random.default_rng(0)
DEEP = (0, 65535)


def deflated(pixels):
    """The bytes of a compressed TIFF of 16 bits, of an array [h, w, 3]."""
    height, width, channels = pixels.shape
    content = zlib.compress(pixels.astype("<u2").tobytes())
    content += b"\0" * (len(content) % 2)
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, 8 + len(content)),
        (259, 3, 1, 8), (262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, channels),
        (278, 4, 1, height), (279, 4, 1, len(content)),
    ]
    bits = struct.pack(f"<{channels}H", *[16] * channels)
    return b"".join([
        b"II*\0", struct.pack("<I", 8 + len(content) + len(bits)), content, bits,
        struct.pack("<H", len(tags)), *(struct.pack("<HHII", *tag) for tag in tags), bytes(4),
    ])


def read(content, shape=(0, 0, 0), bounds=DEEP):
    with decoding.open_picture(io.BytesIO(content)) as image:
        return raw_pictures.first_frame(image, shape, bounds)


def deep(channels, size=(5, 7)):
    return RANDOM.integers(0, 65536, (*size, channels)).astype(np.uint16)


@pytest.mark.parametrize("write, channels", [
    (png, 1), (png, 3), (png, 4), (lambda x: tiff(x[..., 0]), 1), (tiff, 3), (deflated, 3),
])
def test_16_bits(write, channels):
    pixels = deep(channels)
    actual = read(write(pixels))
    assert_array_equal(actual, pixels)
    assert actual.dtype == np.uint16


@pytest.mark.parametrize("dtype, bounds, kept", [
    (np.float32, (-9.5, 40.0), np.float32), (np.int16, (-1000, 1000), np.int16),
    (np.int8, (-128, 127), np.int8), (np.uint8, (0, 255), np.uint8),
    (np.int32, (-(2**30), 2**30), np.float32), (np.uint16, (0, 1000), np.uint16),
])
def test_tiffs_of_one_channel(dtype, bounds, kept):
    pixels = RANDOM.uniform(max(bounds[0], -800), min(bounds[1], 800), (4, 6)).astype(dtype)
    actual = read(tiff(pixels), bounds=bounds)
    assert_array_equal(actual[..., 0], pixels)
    assert actual.dtype == kept


def test_a_picture_is_turned_as_its_exif_says():
    pixels, file = deep(1, (4, 6))[..., 0], io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    assert_array_equal(read(file.getvalue())[..., 0], np.rot90(pixels, -1))


def test_a_ramp_is_halved():
    """Lanczos keeps a line, away from the edges, at the middle of every two of its pixels."""
    pixels = np.uint16(1000 + 200 * np.arange(32)[None, :, None] + np.zeros((16, 1, 3)))
    actual = read(png(pixels), (8, 16, 0))
    assert actual.shape == (8, 16, 3) and actual.dtype == np.uint16
    expected = 1100 + 400 * np.arange(16)
    assert_allclose(actual[4, 3:-3, 1], expected[3:-3], rtol=0, atol=1)


def test_what_cannot_be_taken_as_it_is():
    refused(lambda: read(png(deep(2))), "grey with transparency in 16 bits")
    refused(lambda: read(png(deep(3)), (0, 0, 1)), "it has 3 channels.*config.data.channels=3")
    refused(lambda: read(png(deep(1)), bounds=(0, 9)), r"does not hold its pixels")
    refused(lambda: read(tiff(np.full((2, 2), np.nan, np.float32))), "are NaN or infinite")
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "JPEG")
    refused(lambda: read(file.getvalue()), "it is JPEG, and with config.data.range only PNG and")


def test_a_folder_of_them(tmp_path):
    images = [deep(3, (4, 4)) for _ in range(45)]
    for i, image in enumerate(images):
        (tmp_path / f"{i:02}.png").write_bytes(png(image))
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    source = folder(tmp_path, value_range=DEEP)
    assert source.image_shape == (4, 4, 3) and source.bins == 65536 and source.in_memory
    expected = np.stack(images) / 32767.5 - 1
    assert_allclose(everything(source), expected, rtol=0, atol=1e-7)
    plain = folder(tmp_path)
    assert plain.value_range == () and everything(plain).dtype == np.uint8
    (tmp_path / "b.tif").write_bytes(tiff(np.zeros((4, 4), np.float32)))
    assert len(folder(tmp_path, channels=3, value_range=(0, 65535.0))) == 45


def test_a_folder_of_floats_that_is_streamed(tmp_path, monkeypatch):
    from ddpm_jax.data import source as source_lib

    monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 0)
    images = RANDOM.uniform(-1, 3, (3, 4, 6)).astype(np.float32)
    for i, image in enumerate(images):
        (tmp_path / f"{i}.tiff").write_bytes(tiff(image))
    source = folder(tmp_path, value_range=(-1, 3), holdout=1)
    assert source.bins == 0 and not source.in_memory and len(source) == 2
    read = everything(source)[..., 0]
    assert all(any(np.allclose(one, image / 2 - 0.5) for image in images) for one in read)


def test_inputs_of_a_task_are_of_the_models_values(tmp_path):
    pixels = deep(3, (4, 4))
    (tmp_path / "a.png").write_bytes(png(pixels))
    path = str(tmp_path / "a.png")
    actual = task_inputs.pictures([path], (4, 4, 3), DEEP)
    assert_allclose(actual[0], pixels / 32767.5 - 1, rtol=0, atol=1e-7)
    refused(lambda: task_inputs.pictures([path], (4, 4, 1), DEEP), "config.sample.inputs has")
