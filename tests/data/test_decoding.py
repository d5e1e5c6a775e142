"""Pictures of every kind, mode and size become images; broken ones are named."""

import re

import numpy as np
import pytest
from PIL import Image, ImageCms

import ddpm_jax
from ddpm_jax import validation
from ddpm_jax.configs import image_folder
from ddpm_jax.data import decoding
from ddpm_jax.errors import UserError
from broken_pictures import BROKEN, claims, encoded
from data_sets import everything, folder, refused, write_pictures
from tiffs import tiff


def only(path, **settings):
    """The image of a folder with one picture."""
    return everything(folder(path, **settings))[0]


# Name -> (picture, the pixel as RGB, as grey, as RGBA), worked out by hand.
# ITU-R 601: 0.299 R + 0.587 G + 0.114 B; over white: a/255 v + (1 - a/255) 255.
PICTURES = {
    "rgb.png": (lambda: Image.new("RGB", (3, 2), (200, 100, 50)), (200, 100, 50), 124),
    "rgb.webp": (lambda: Image.new("RGB", (3, 2), (80, 80, 80)), (80, 80, 80), 80),
    "rgba.png": (
        lambda: Image.new("RGBA", (3, 2), (200, 100, 50, 51)),
        (244, 224, 214),  # 51 / 255 = 0.2
        229,
    ),
    "clear.png": (lambda: Image.new("RGBA", (3, 2), (9, 9, 9, 0)), (255,) * 3, 255),
    "la.png": (lambda: Image.new("LA", (3, 2), (100, 51)), (224,) * 3, 224),
    "grey.png": (lambda: Image.new("L", (3, 2), 77), (77,) * 3, 77),
    "one.png": (lambda: Image.new("1", (3, 2), 1), (255,) * 3, 255),
    "grey16.png": (
        lambda: Image.fromarray(np.full((2, 3), 257 * 120 + 3, np.uint16)),
        (120,) * 3,
        120,
    ),
    "grey16.tiff": (
        lambda: Image.fromarray(np.full((2, 3), 65535, np.uint16)),
        (255,) * 3,
        255,
    ),
    "cmyk.tiff": (lambda: Image.new("CMYK", (3, 2), (0, 255, 255, 0)), (255, 0, 0), 76),
    "palette.gif": (
        lambda: Image.new("RGB", (3, 2), (0, 0, 255)).quantize(4),
        (0, 0, 255),
        29,
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_kind_of_picture_becomes_rgb_or_grey(tmp_path, name):
    make, rgb, grey = PICTURES[name]
    make().save(tmp_path / name, **({"lossless": True} if "webp" in name else {}))
    assert only(tmp_path).tolist() == [[list(rgb)] * 3] * 2
    assert only(tmp_path, channels=1).tolist() == [[[grey]] * 3] * 2


def test_transparency_is_kept_for_four_channels(tmp_path):
    Image.new("RGBA", (3, 2), (200, 100, 50, 51)).save(tmp_path / "a.png")
    Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "b.png")
    images = everything(folder(tmp_path, channels=4))
    assert images[:, 0, 0].tolist() == [[200, 100, 50, 51], [1, 2, 3, 255]]


def test_transparent_palette_is_laid_over_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / "a.gif", transparency=1)
    assert only(tmp_path).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (3, 2), (v, v, v)) for v in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert only(tmp_path)[0, 0].tolist() == [10, 10, 10]


def test_exif_orientation_is_applied(tmp_path):
    stored = np.zeros((8, 16, 3), np.uint8)
    stored[:, :8] = 255  # Its left half is white.
    exif = Image.Exif()
    exif[0x0112] = 6  # Stored a quarter turn to the left, so left becomes up.
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = only(tmp_path)
    assert image.shape == (16, 8, 3)
    assert image[:7].min() > 250 and image[9:].max() < 5


@pytest.mark.parametrize("suffix", ["jpg", "jpeg"])
def test_jpegs_are_read_also_in_cmyk(tmp_path, suffix):
    Image.new("CMYK", (16, 16), (0, 0, 255, 0)).save(tmp_path / f"a.{suffix}", "JPEG")
    Image.new("RGB", (16, 16), (255, 255, 0)).save(tmp_path / f"b.{suffix}")
    for image in everything(folder(tmp_path)):
        # JPEG is not exact: two levels.
        np.testing.assert_allclose(image, np.full((16, 16, 3), (255, 255, 0)), atol=2)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_other_sizes_are_scaled_and_cropped_around_the_centre(tmp_path, suffix):
    pixels = np.zeros((60, 120, 3), np.uint8)
    pixels[:, 30:90] = 200  # Only this central square should remain.
    pixels[:, 60:90, 0] = 100
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", quality=100)
    image = only(tmp_path, image_size=6).astype(int)
    assert image.shape == (6, 6, 3)
    # Lanczos ripples by up to 9 % of a step, here of 200.
    np.testing.assert_allclose(image[..., 1:], 200, atol=18)
    np.testing.assert_allclose(image[:, 4:, 0], 100, atol=18)
    np.testing.assert_allclose(image[:, :2, 0], 200, atol=18)
    assert only(tmp_path, image_size=30, image_width=60).shape == (30, 60, 3)


def test_shrinking_averages(tmp_path):
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).save(tmp_path / "a.png")
    image = only(tmp_path, image_size=8, channels=1)
    np.testing.assert_allclose(image, np.full((8, 8, 1), 127.5), atol=3)


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "jpeg"])
def test_a_small_file_that_claims_20000x20000_is_named(tmp_path, logged, streamed, suffix):
    write_pictures(tmp_path, 25)
    (tmp_path / f"0000.{suffix}").write_bytes(claims(suffix, 20000))
    everything(folder(tmp_path, image_size=4))
    (line,) = logged
    assert f"0000.{suffix}" in line and "decompression bomb" in line


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_picture_is_named_and_the_rest_is_there(tmp_path, logged, streamed, kind):
    write_pictures(tmp_path, 25)
    (tmp_path / "0000.png").write_bytes(BROKEN[kind])
    images = everything(folder(tmp_path, image_size=4))
    assert len(logged) == 1 and "Skipping 0000.png: " in logged[0]
    assert set(images[:, 0, 0, 0].tolist()) == set(range(25))


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_picture_alone_is_refused(tmp_path, streamed, kind):
    (tmp_path / "only.png").write_bytes(BROKEN[kind])
    refused(lambda: folder(tmp_path, image_size=4), r"1 of 1 files \(100%\)", "only.png", "mend")


# (format, mode, Pillow's options); all become RGB.
KINDS = [
    ("png", "1", {}), ("png", "L", {}), ("png", "LA", {}), ("png", "P", {}), ("png", "RGBA", {}),
    ("png", "I;16", {}), ("gif", "P", {}), ("gif", "P", {"transparency": 0}), ("jpeg", "L", {}),
    ("jpeg", "CMYK", {}), ("tiff", "CMYK", {}),
    ("tiff", "I;16", {}), ("tiff", "RGB", {"compression": "tiff_lzw"}), ("ppm", "RGB", {}),
    ("webp", "RGBA", {}), ("bmp", "P", {}),
]


def test_every_mode_at_once_and_images_of_one_pixel(tmp_path, logged, streamed):
    for i, (suffix, mode, options) in enumerate(KINDS):
        for size in ((6, 4), (1, 1), (1, 90)):
            name = f"{i:02}_{mode.replace(';', '')}_{size[1]}.{suffix}"
            (tmp_path / name).write_bytes(encoded(suffix, mode, size, **options))
    images = everything(folder(tmp_path, image_size=4))
    assert images.shape == (3 * len(KINDS), 4, 4, 3) and not logged


def test_a_pixel_as_it_is_is_no_image_for_the_network(tmp_path):
    Image.new("RGB", (1, 1), (9, 9, 9)).save(tmp_path / "a.png")
    assert everything(folder(tmp_path, image_size=3)).tolist() == [[[[9] * 3] * 3] * 3]
    config = image_folder.get_config()
    refused(lambda: validation.check_images(config, folder(tmp_path).image_shape),
            "config.data.image_size=1 ", "--config.data.image_size=16")


EVERY_VALUE = np.arange(256).reshape(16, 16)


def pixel16(top):
    return np.round(EVERY_VALUE * (top / 255)).astype(np.uint16)


@pytest.mark.parametrize("name, content", [
    ("a.tif", tiff(EVERY_VALUE.astype(np.uint8))), ("a.tif", tiff(pixel16(65535))),
    ("a.tif", tiff(pixel16(4095), bits=12)),  # The file says that there are 12.
    ("a.pgm", b"P5 16 16 4095\n" + pixel16(4095).astype(">u2").tobytes()),
    ("a.pgm", b"P5 16 16 65535\n" + pixel16(65535).astype(">u2").tobytes()),
    ("a.pgm", b"P5 16 16 255\n" + EVERY_VALUE.astype(np.uint8).tobytes()),
])
def test_pixels_of_a_known_range_are_read_exactly(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    np.testing.assert_array_equal(only(tmp_path, channels=1)[..., 0], EVERY_VALUE)


@pytest.mark.parametrize("suffix, mode", [
    ("tif", "LAB"), ("tif", "YCbCr"), ("tif", "CMYK"), ("webp", "RGB"), ("jp2", "RGB"),
    ("tif", "RGBA"), ("png", "P"), ("png", "LA"), ("ppm", "L"), ("jp2", "I;16"),
    ("png", "I;16"), ("tif", "I;16"), ("tif", "I;16B"),
])
def test_every_mode_keeps_a_grey_picture_as_it_is(tmp_path, suffix, mode):
    grey = EVERY_VALUE.astype(np.uint8)
    if mode.startswith("I"):
        image = Image.fromarray(pixel16(65535).astype(">u2" if "B" in mode else "<u2"))
        assert image.mode == mode
    else:
        image = Image.fromarray(grey).convert("RGB" if mode in ("LAB", "YCbCr", "CMYK") else "L")
        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"),
            outputMode="LAB") if mode == "LAB" else image.convert(mode)
    image.save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    off = {"LAB": 3, "YCbCr": 1}.get(mode, 0)  # Those two are rounded on the way.
    for channel in np.moveaxis(only(tmp_path).astype(int), -1, 0):
        np.testing.assert_allclose(channel, grey, rtol=0, atol=off)


UNKNOWN = {  # Pixels whose white no file says, and what they would be in uint8.
    "float of 0..1": (np.float32(EVERY_VALUE / 255), "float32 in 0..1", EVERY_VALUE),
    "float of 0..255": (np.float32(EVERY_VALUE), "float32 in 0..255", EVERY_VALUE),
    "float of -1..1": (np.float32(EVERY_VALUE / 127.5 - 1), "float32 in -1..1", EVERY_VALUE),
    "heights": (np.float32(EVERY_VALUE * 10), "float32 in 0..2550", EVERY_VALUE),
    "int32 of 8 bits": (EVERY_VALUE.astype(np.int32), "int32 in 0..255", EVERY_VALUE),
    "uint32 of 16 bits": (pixel16(65535).astype(np.uint32), "int32 in 0..65535", EVERY_VALUE),
    "int16": ((EVERY_VALUE * 10 - 1000).astype(np.int16), "int32 in -1000..1550", EVERY_VALUE),
    "int8": ((EVERY_VALUE - 128).astype(np.int8), "int8 in -128..127", EVERY_VALUE),
    "NaN": (np.full((16, 16), np.nan, np.float32), "float32, some of them NaN", None),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_pixels_of_an_unknown_range_are_refused_with_their_conversion(tmp_path, kind, streamed):
    pixels, words, wanted = UNKNOWN[kind]
    (tmp_path / "a.tiff").write_bytes(tiff(pixels))
    with pytest.raises(UserError, match=words) as caught:
        folder(tmp_path, channels=1)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    if wanted is not None:
        line = re.search(r"save (Image.fromarray\(.*\))\)\.$", str(caught.value))[1]
        with Image.open(tmp_path / "a.tiff") as image:
            made = eval(line, {"Image": Image, "np": np, "image": image, "ddpm_jax": ddpm_jax})
        made.save(tmp_path / "a.png")
        (tmp_path / "a.tiff").unlink()
        np.testing.assert_array_equal(only(tmp_path, channels=1)[..., 0], wanted)


def test_a_few_pictures_of_an_unknown_range_are_named_and_left_out(tmp_path, logged, streamed):
    write_pictures(tmp_path, 30)
    (tmp_path / "float.tiff").write_bytes(tiff(np.ones((4, 6), np.float32)))
    assert everything(folder(tmp_path)).shape[1:] == (4, 6, 3)
    assert len(logged) == 1 and "Skipping float.tiff: only pixels of 8 or 16 bits" in logged[0]
    assert "float32 in 1..1; save Image.fromarray(np.round(np.asarray(image) * 255)" in logged[0]


@pytest.mark.parametrize("pixels", [
    np.zeros((4, 6)), np.zeros((4, 6, 3), np.float32), np.zeros((4, 6, 3), np.uint32),
    np.zeros((4, 6), np.float16),
])
def test_tiffs_that_pillow_does_not_know_are_called_such(tmp_path, pixels):
    (tmp_path / "a.tif").write_bytes(tiff(pixels))
    refused(lambda: folder(tmp_path), "it is a TIFF that is damaged or of a kind that Pillow")


def test_a_named_picture_of_an_unknown_range_is_refused(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(np.ones((4, 6), np.float32)))
    refused(lambda: decoding.read(str(tmp_path / "a.tif"), (0, 0, 3), setting="config.sample.mask"),
            "config.sample.mask has .*a.tif', which cannot be read .only pixels of 8 or 16 bits")
