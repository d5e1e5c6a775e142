"""Pictures in a page: decoded again they are the same, or fewer and smaller, and fit."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.reporting import embedding


def noise(side, seed=0, channels=3):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, channels), np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def decoded(picture):
    head, _, text = picture.uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_that_fit_are_the_same(channels):
    images = [noise(20, seed, channels) for seed in range(3)]
    fitted = embedding.fitted(images, 10**6)
    assert fitted.kept == (0, 1, 2) and fitted.note == ""
    for image, picture in zip(images, fitted.pictures):
        np.testing.assert_array_equal(np.asarray(decoded(picture)), np.asarray(image))
        assert (picture.width, picture.height) == image.size


def test_enlarged_pixels_are_stored_once_and_shown_as_they_were():
    pixels = np.asarray(noise(10)).repeat(4, axis=0).repeat(4, axis=1)
    picture, = embedding.fitted([Image.fromarray(pixels)], 10**6).pictures
    np.testing.assert_array_equal(np.asarray(decoded(picture)), np.asarray(noise(10)))
    assert (picture.width, picture.height) == (40, 40)


def test_too_many_are_chosen_evenly_with_both_ends():
    fitted = embedding.fitted([noise(8, seed) for seed in range(100)], 10**6)
    assert len(fitted.kept) == 24 and fitted.kept[0] == 0 and fitted.kept[-1] == 99
    assert set(np.diff(fitted.kept)) <= {4, 5}
    assert fitted.note.startswith("24 of 100 are shown, evenly chosen")


def test_too_large_ones_are_made_smaller_and_fit():
    fitted = embedding.fitted([noise(600, seed) for seed in range(4)], 1_400_000)
    assert sum(len(picture.uri) for picture in fitted.pictures) < 1.41e6
    assert max(decoded(fitted.pictures[0]).size) == 280 and fitted.pictures[0].width == 600
    assert "280 pixels" in fitted.note


def test_none_is_none():
    assert embedding.fitted([], 10) == embedding.Fitted((), (), "")


def test_damaged_files_are_left_out_and_said(tmp_path):
    noise(8).save(tmp_path / "0.png")
    whole = (tmp_path / "0.png").read_bytes()
    for name, content in enumerate((b"", b"no picture", b"\x89PNG\r\n\x1a\n", whole[:-40]), 1):
        (tmp_path / f"{name}.png").write_bytes(content)
    fitted = embedding.fitted([tmp_path / f"{name}.png" for name in (*range(5), 9)], 10**6)
    assert fitted.kept == (0,) and fitted.note == "5 cannot be read: damaged."


def test_a_file_is_read_whatever_its_mode(tmp_path):
    noise(8).convert("P").save(tmp_path / "a.png")
    picture, = embedding.fitted([tmp_path / "a.png"], 10**6).pictures
    assert decoded(picture).mode == "RGB"
