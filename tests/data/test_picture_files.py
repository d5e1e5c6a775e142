"""Files and pages that are not read are counted; HEIC is read where pillow-heif is installed."""

import sys
import types

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import decoding, picture_files
from data_sets import everything, folder, refused, write_pictures
from tiffs import tiff


@pytest.fixture
def no_heif(monkeypatch):
    """As where pillow-heif is not installed, or was not asked for yet."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    extensions = {e: kind for e, kind in Image.registered_extensions().items() if kind != "HEIF"}
    monkeypatch.setattr(Image, "EXTENSION", extensions)
    monkeypatch.setattr(Image, "OPEN", {k: v for k, v in Image.OPEN.items() if k != "HEIF"})


@pytest.fixture
def fake_heif(no_heif, monkeypatch):
    """A package that takes every HEIC for a PNG, and counts how often it is asked to."""
    calls = []

    def register_heif_opener():
        calls.append(1)
        Image.register_open("HEIF", Image.OPEN["PNG"][0], Image.OPEN["PNG"][1])
        Image.register_extensions("HEIF", [".heic", ".heif", ".hif"])

    package = types.SimpleNamespace(register_heif_opener=register_heif_opener)
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    return calls


def touch(path, *names):
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"anything")


def test_what_is_left_out_is_counted_by_extension(tmp_path, logged, no_heif):
    write_pictures(tmp_path, 20)
    touch(tmp_path, *(f"phone/{i}.HEIC" for i in range(30)), "a.heif", "b.eps", "c.eps", "notes",
          ".hidden.eps", ".hidden/d.eps")
    assert len(folder(tmp_path)) == 20
    (line,) = logged
    assert "20 pictures are read; left out are 30 .heic, 2 .eps, 1 .heif, 1 without a" in line
    assert line.endswith('(for HEIC, pip install "ddpm_jax[heif]").')
    assert folder(tmp_path, split="test", holdout=5) is not None
    assert len(logged) == 1  # Once for a set, not for each of its splits.


def test_a_folder_of_pictures_alone_is_read_without_a_word(tmp_path, logged):
    write_pictures(tmp_path, 3)
    touch(tmp_path, ".DS_Store")
    folder(tmp_path)
    assert not logged and picture_files.find(tmp_path).left_out == ""


@pytest.mark.parametrize("names, words", [
    (["a.heic", "b.HEIC"], r"there or below, only 2 .heic .for HEIC, pip install .ddpm_jax.heif.."),
    (["a.psd", "b.cr2", "c.cr2"], r"only 2 .cr2, 1 .psd; write .*PNG, PPM, TIFF, WEBP"),
    (["a." + "x" * 200, "b.\x1b[2J", "c.é"], "only 3 without a known extension;"),
    ([f"{i}.{i}" for i in range(40)], r"only 1 \.0, 1 \.1, .*, 34 more; write"),
    ([], "no pictures there or below; write .*AVIF, BMP, GIF"),
])
def test_a_folder_without_pictures_says_what_is_there_and_what_is_read(
    tmp_path, no_heif, names, words
):
    touch(tmp_path, *names)
    refused(lambda: folder(tmp_path), words)


def test_heic_is_read_once_its_package_is_there(tmp_path, logged, fake_heif):
    write_pictures(tmp_path, 3)
    assert len(folder(tmp_path)) == 3 and not fake_heif  # No HEIC, so nothing is imported.
    (tmp_path / "001.png").rename(tmp_path / "001.HEIC")
    np.testing.assert_array_equal(everything(folder(tmp_path))[:, 0, 0, 0], [0, 1, 2])
    assert fake_heif and not logged
    image = decoding.read(str(tmp_path / "001.HEIC"), (0, 0, 3), setting="config.sample.inputs")
    assert image.max() == 1


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"0" * 99  # How such a file begins.


@pytest.mark.parametrize("name", ["a.heic", "a.jpg", "a"])
def test_a_named_heic_needs_its_package_whatever_its_name(tmp_path, no_heif, name):
    (tmp_path / name).write_bytes(HEIC)
    path = str(tmp_path / name)
    refused(lambda: decoding.read(path, (0, 0, 3), setting="config.sample.inputs"),
            r"cannot be read .it is HEIC, .* pip install .ddpm_jax.heif..")


def test_heic_under_the_name_of_a_jpeg_says_what_it_needs(tmp_path, no_heif, logged, streamed):
    write_pictures(tmp_path, 30)
    (tmp_path / "IMG_0001.JPG").write_bytes(HEIC)
    everything(folder(tmp_path))
    assert len(logged) == 1 and "Skipping IMG_0001.JPG: it is HEIC, which needs" in logged[0]


def test_a_real_heic_is_read_and_turned(tmp_path):
    pytest.importorskip("pillow_heif").register_heif_opener()
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :48] = 240, 120, 40  # Its left half.
    exif = Image.Exif()
    exif[0x0112] = 6  # Stored a quarter turn to the left, so left becomes up.
    Image.fromarray(pixels).save(tmp_path / "a.heic", quality=95, exif=exif.tobytes())
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.heic").read_bytes())
    for image in everything(folder(tmp_path)):
        assert image.shape == (96, 64, 3)
        np.testing.assert_allclose(image[8:40].mean((0, 1)), (240, 120, 40), atol=4)
        assert image[56:].max() < 16


def animation(path, n, **settings):
    """n frames, the first of them black and then ever brighter."""
    frames = [Image.new("RGB", (6, 4), (40 * i,) * 3) for i in range(n)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **settings)


def test_later_pages_and_frames_are_counted(tmp_path, logged, streamed):
    write_pictures(tmp_path, 4)
    for name in ("a.gif", "b.gif", "c.webp", "d.png", "e.tiff"):
        animation(tmp_path / name, 3, **({"lossless": True} if name == "c.webp" else {}))
    for name in ("f.gif", "g.webp", "h.tiff"):
        animation(tmp_path / name, 1)
    page = np.zeros((4, 6, 3), np.uint8)
    (tmp_path / "i.tif").write_bytes(tiff(page, page + 90))
    source = folder(tmp_path)
    (line,) = logged
    assert "first page or frame is read of 2 .gif, 1 .webp, 1 .png, 1 .tiff, 1 .tif" in line, line
    assert ("of 13 files looked at" in line) == streamed
    wanted = [0, 1, 2, 3] + [0] * 9
    assert everything(source)[:, 0, 0, 0].tolist() == wanted and len(logged) == 1


def test_the_first_frame_is_the_same_whether_or_not_others_are_looked_for(tmp_path, streamed):
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], disposal=2)
    with Image.open(tmp_path / "a.gif") as image:
        wanted = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(everything(folder(tmp_path))[0], wanted)


def test_damage_behind_the_first_frame_does_no_harm(tmp_path, logged, streamed):
    animation(tmp_path / "a.gif", 2)
    whole = (tmp_path / "a.gif").read_bytes()
    for end in range(len(whole) - 25, len(whole)):
        (tmp_path / "a.gif").write_bytes(whole[:end])
        assert everything(folder(tmp_path)).shape == (1, 4, 6, 3)


def test_the_second_picture_of_a_camera_is_no_page(tmp_path, logged):
    frames = [Image.new("RGB", (8, 8), (v,) * 3) for v in (0, 200)]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.n_frames == 2
    assert everything(folder(tmp_path)).max() == 0 and not logged
