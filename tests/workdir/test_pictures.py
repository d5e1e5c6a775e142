"""Pictures, checked pixel by pixel."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.workdir import pictures


def random_images(n, h, w, c):
    return np.random.default_rng(0).integers(0, 256, (n, h, w, c), np.uint8)


@pytest.mark.parametrize("c", [1, 3])
def test_grid_pixel_by_pixel(c):
    x = random_images(5, 2, 3, c)
    got = pictures.grid(x, columns=3, border=1, min_tile=4)  # Factor 2: tiles of 4 by 6.
    want = np.full((2 * 5 + 1, 3 * 7 + 1, c), pictures.GREY, np.uint8)
    for i in range(5):
        for row in range(4):
            for column in range(6):
                place = 1 + i // 3 * 5 + row, 1 + i % 3 * 7 + column
                want[place] = x[i, row // 2, column // 2]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("n", "h", "size"),
    [
        (1, 64, (68, 68)),
        (2, 64, (68, 134)),  # 2 columns, 1 row.
        (5, 32, (134, 200)),  # Doubled; 3 columns, 2 rows.
        (16, 8, (266, 266)),  # Enlarged 8 times.
        (4, 100, (206, 206)),  # Never made smaller.
        (1, 28, (88, 88)),  # 3 times: 84 is the first multiple of 28 from 64 on.
    ],
)
def test_grid_size_by_default(n, h, size):
    assert pictures.grid(random_images(n, h, h, 3)).shape == (*size, 3)


def test_shorter_side_decides():
    assert pictures.grid(random_images(1, 2, 4, 3), min_tile=8).shape == (4 + 8, 4 + 16, 3)


def test_other_channels_are_grey_tiles_side_by_side():
    x = random_images(3, 4, 4, 2)
    got = pictures.grid(x, columns=2, border=1, min_tile=1)
    assert got.shape == (11, 21, 1)
    for i in range(3):
        for channel in range(2):
            top, left = 1 + i // 2 * 5, 1 + (i % 2 * 2 + channel) * 5
            tile = got[top : top + 4, left : left + 4, 0]
            np.testing.assert_array_equal(tile, x[i, :, :, channel])
    assert (got[6:, 11:] == pictures.GREY).all()  # The place of a fourth image.


def test_border_with_alpha_is_opaque():
    got = pictures.grid(np.zeros((1, 2, 2, 4), np.uint8), border=1, min_tile=1)
    assert got[0, 0].tolist() == [pictures.GREY] * 3 + [255]
    assert got[1, 1].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("batch", "columns", "words"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), None, "to_uint8"),
        (np.zeros((4, 4, 3), np.uint8), None, r"\[n, h, w, c\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), None, "n >= 1"),
        (np.zeros((1, 4, 4, 3), np.uint8), 0, "columns=0"),
    ],
)
def test_grid_refuses(batch, columns, words):
    with pytest.raises(ValueError, match=words) as error:
        pictures.grid(batch, columns=columns)
    assert "\n" not in str(error.value)


def test_beside_keeps_both_and_fills_below_the_lower():
    left, right = random_images(2, 5, 4, 3)[0], random_images(2, 3, 6, 3)[1]
    got = pictures.beside(left, right, gap=2)
    assert got.shape == (5, 12, 3)
    np.testing.assert_array_equal(got[:, :4], left)
    np.testing.assert_array_equal(got[:3, 6:], right)
    assert (got[:, 4:6] == pictures.GREY).all() and (got[3:, 6:] == pictures.GREY).all()
    grey = pictures.beside(left, right[..., :1], gap=2)
    np.testing.assert_array_equal(grey[:3, 6:], right[..., :1].repeat(3, axis=2))
    with pytest.raises(ValueError, match="3 and 2 channels"):
        pictures.beside(left, right[..., :2])


@pytest.mark.parametrize(("c", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_png_round_trip(tmp_path, c, mode):
    path, image = tmp_path / "samples" / "step_5.png", random_images(1, 5, 7, c)[0]
    pictures.save_png(str(path), np.zeros_like(image))
    pictures.save_png(path, image)
    with Image.open(path) as opened:
        assert opened.mode == mode
        np.testing.assert_array_equal(np.asarray(opened).reshape(5, 7, c), image)
    assert [p.name for p in path.parent.iterdir()] == ["step_5.png"]


def test_gif_shows_every_frame_and_rests_on_the_last(tmp_path):
    frames = [np.full((4, 6, 1), value, np.uint8) for value in (0, 100, 255)]
    pictures.save_gif(tmp_path / "new" / "a.gif", frames, milliseconds=50)
    with Image.open(tmp_path / "new" / "a.gif") as gif:
        assert gif.n_frames == 3 and gif.info["loop"] == 0 and gif.size == (6, 4)
        seen = []
        for i in range(3):
            gif.seek(i)
            seen.append((gif.info["duration"], np.asarray(gif.convert("L")).mean()))
    assert seen == [(50, 0), (50, 100), (1000, 255)]


@pytest.mark.parametrize("shape", [(4, 4, 2), (1, 4, 4, 3), (4, 4)])
def test_png_refuses(tmp_path, shape):
    with pytest.raises(ValueError, match="1, 3 or 4"):
        pictures.save_png(tmp_path / "a.png", np.zeros(shape, np.uint8))


def test_below_is_beside_turned():
    top, bottom = random_images(2, 5, 4, 3)[0], random_images(2, 3, 6, 3)[1]
    got = pictures.below(top, bottom, gap=2)
    assert got.shape == (10, 6, 3)
    np.testing.assert_array_equal(got[:5, :4], top)
    np.testing.assert_array_equal(got[7:], bottom)
    assert (got[5:7] == pictures.GREY).all() and (got[:5, 4:] == pictures.GREY).all()


def decoded(path):
    import av

    with av.open(str(path)) as container:
        stream, = container.streams.video
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return stream.codec_context.name, float(stream.average_rate), frames


def test_mp4_shows_every_frame_and_rests_on_the_last(tmp_path):
    """H.264 has no odd sides: they become even."""
    frames = [np.full((65, 131, 1), value, np.uint8) for value in (20, 120, 230)]
    pictures.save_mp4(tmp_path / "new" / "a.mp4", frames)
    codec, rate, found = decoded(tmp_path / "new" / "a.mp4")
    assert codec == "h264" and rate == 10 and len(found) == 3 + 9  # One second more.
    assert {frame.shape for frame in found} == {(66, 132, 3)}
    for frame, value in zip(found, (20, 120, 230, *[230] * 9)):
        assert np.abs(frame[:60, :120].astype(int) - value).max() <= 3  # Lossy.


def test_mp4_keeps_colours_and_places(tmp_path):
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:32, :48], frame[32:, 48:] = (255, 0, 0), (0, 0, 255)
    pictures.save_mp4(tmp_path / "a.mp4", [frame] * 2, milliseconds=500)
    _, rate, found = decoded(tmp_path / "a.mp4")
    assert rate == 2 and len(found) == 3
    for y, x in ((16, 24), (48, 72), (16, 72)):
        assert np.abs(found[1][y, x].astype(int) - frame[y, x]).max() <= 25  # YUV of 8 bits.


@pytest.mark.parametrize("video", [True, False])
def test_a_process_is_left_in_pictures(tmp_path, monkeypatch, video):
    monkeypatch.setattr(pictures, "HAS_VIDEO", video)
    x_t, x_0 = (random_images(4 * 3, 64, 64, 3).reshape(4, 3, 64, 64, 3) // k for k in (1, 2))
    written = pictures.save_process(tmp_path / "way", x_t, x_0)
    assert written == [str(tmp_path / f"way.{e}") for e in ("png", "gif", "mp4")[: 2 + video]]
    assert sorted(written) == sorted(map(str, tmp_path.iterdir()))
    with Image.open(written[0]) as opened:
        png = np.asarray(opened)
    assert png.shape == (3 * 134 + 2 * 16, 4 * 66 + 2, 3)
    for image in range(3):
        for frame in range(4):
            top, left = image * (134 + 16) + 2, frame * 66 + 2
            np.testing.assert_array_equal(
                png[top:top + 64, left:left + 64], x_t[frame, image])
            np.testing.assert_array_equal(
                png[top + 66:top + 130, left:left + 64], x_0[frame, image])
    with Image.open(written[1]) as gif:
        assert gif.n_frames == 4 and gif.size == (2 * 134 + 16, 134)
        gif.seek(2)
        shown = np.asarray(gif.convert("RGB")).astype(int)
    # A GIF has 256 colours, enough to distinguish an image from its half.
    for left, image in ((2, x_t[2, 0]), (134 + 16 + 2, x_0[2, 0])):
        assert np.abs(shown[2:66, left:left + 64] - image).mean() < 30
