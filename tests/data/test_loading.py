"""Data sets and their batches, against files written here and the real sets."""

import pathlib
import runpy
import sys

from absl import logging
import numpy as np
from PIL import Image
import pytest
from sklearn import datasets

from ddpm_jax.data import batching, image_folder, loading
from ddpm_jax.data import source as source_lib
from data_sets import (
    TFDS, everything, folder, needs, numbered, ramp, take, write_pictures, write_tfds,
)

SPLITS = ("train", "test")


# Batches.


def test_batch_is_a_function_of_seed_and_number():
    source = source_lib.from_array(numbered(10))
    first = take(source, 8)
    np.testing.assert_array_equal(first, take(source, 8))
    assert first.dtype == np.uint8 and first.shape == (8, 4, 2, 3, 1)
    assert not np.array_equal(first, take(source, 8, seed=1))
    for start in (1, 3, 7):
        np.testing.assert_array_equal(take(source, 1, start=start)[0], first[start])
    assert take(source, 1, start=10**12).shape == (1, 4, 2, 3, 1)


def test_start_reads_nothing_before_it():
    asked = []
    images = numbered(50)

    def read(indices):
        asked.extend(indices)
        return images[indices]

    source = source_lib.Source(50, (2, 3, 1), read, in_memory=True)
    order = take(source_lib.from_array(images), 8)[..., 0, 0, 0]
    take(source, 1, start=5)
    assert asked[:4] == list(order[5]) and not set(order[:5].ravel()) & set(asked[:12])


@pytest.mark.parametrize("batch_size", [4, 25])
def test_an_epoch_shows_each_image_once_in_an_order_of_its_own(batch_size):
    images = numbered(10)
    seen = take(source_lib.from_array(images), 50 // batch_size * 2, batch_size=batch_size)
    order = seen.reshape(-1, *images.shape[1:])[..., 0, 0, 0]
    epochs = order[: len(order) // 10 * 10].reshape(-1, 10)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert tuple(epochs[0]) != tuple(range(10))
    np.testing.assert_array_equal(seen.reshape(-1, 2, 3, 1), images[order])


@pytest.mark.parametrize("process_count", [2, 4])
def test_shares_of_the_processes_make_up_the_batch(process_count):
    source = source_lib.from_array(numbered(13))
    settings = {"batch_size": 8, "seed": 3, "start": 2}
    whole = take(source, 5, **settings)
    shares = [
        take(source, 5, process_index=i, process_count=process_count, **settings)
        for i in range(process_count)
    ]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole)


def test_a_single_image_is_repeated():
    assert take(source_lib.from_array(numbered(1)), 3).shape == (3, 4, 2, 3, 1)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"batch_size": 6, "process_count": 4}, r"batch_size=6: .*train\.batch_size=8"),
        ({"batch_size": 0}, "batch_size=0: .*batch_size=1"),
        ({"seed": -1}, "config.seed=-1"),
    ],
)
def test_impossible_batches_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        take(source_lib.from_array(numbered(3)), 1, **settings)


# Digits and arrays.


def test_digits_are_scikit_learns():
    parts = zip(*map(loading.digits, SPLITS))
    images, labels = (np.concatenate(both) for both in parts)
    bunch = datasets.load_digits()
    originals = zip(bunch.images.astype(np.uint8), bunch.target)
    expected = {(v.tobytes(), y) for v, y in originals}
    values = np.array([round(v * 16 / 255) for v in range(256)], np.uint8)[images[..., 0]]
    found = {(v.tobytes(), y) for v, y in zip(values, labels)}
    assert found == expected and len(images) == 1797
    # Half of 255 is the one tie, and goes up.
    assert set(np.unique(images)) == {int(v * 255 / 16 + 0.5) for v in range(17)}


def test_digits_split_is_fixed_and_stratified():
    (train, train_labels), (test, test_labels) = map(loading.digits, SPLITS)
    assert train.shape == (1497, 8, 8, 1) and test.shape == (300, 8, 8, 1)
    counts = np.bincount(train_labels, minlength=10) / 1497
    np.testing.assert_allclose(np.bincount(test_labels) / 300, counts, atol=1 / 300)
    assert not {x.tobytes() for x in train} & {x.tobytes() for x in test}
    np.testing.assert_array_equal(everything(loading.load("digits", split="test")), test)


def test_digits_file_is_what_its_script_makes():
    script = pathlib.Path(__file__).parents[1] / "fixtures" / "make_digits.py"
    made = runpy.run_path(str(script))["arrays"]()
    with np.load(pathlib.Path(loading.__file__).with_name("digits.npz")) as stored:
        assert set(stored.files) == set(made)
        for key in made:
            np.testing.assert_array_equal(stored[key], made[key])


def test_images_are_resized_and_converted():
    source = loading.load("digits", image_size=16, image_width=12, channels=3)
    assert source.image_shape == (16, 12, 3)
    image = source.read(np.array([5]))[0]
    assert (image[..., 0] == image[..., 2]).all() and image.max() > 200


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((3, 8, 8), np.uint8), r"=uint8 \[3, 8, 8\]: .*images\[\.\.\., None\]"),
        (np.zeros((8, 8), np.uint8), r"data=uint8 \[8, 8\]: must be uint8 \[n, h, w, c\]"),
        (np.zeros((3, 8, 8, 1)), r"data=float64 \[3, 8, 8, 1\]: .*127\.5"),
        (np.zeros((0, 8, 8, 1), np.uint8), "not empty"),
    ],
)
def test_arrays_of_another_kind_are_refused(images, message):
    with pytest.raises(ValueError, match=message) as caught:
        source_lib.from_array(images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"split": "dev"}, "split='dev'"),
        ({"image_size": -1}, "config.data.image_size=-1"),
        ({"image_width": 8}, "config.data.image_width=8: .*--config.data.image_size=8"),
        ({"channels": 2}, "config.data.channels=2"),
        ({"holdout": -5}, "config.data.holdout=-5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        loading.load("digits", **settings)


@pytest.mark.parametrize("key", ["train", "images", "arr_0", "mine"])
def test_npz_holds_its_images_under_one_of_four_names(tmp_path, key):
    images = numbered(6)
    np.savez(tmp_path / "x.npz", **{key: images})
    source = loading.load("npz", data_dir=str(tmp_path / "x.npz"))
    np.testing.assert_array_equal(everything(source), images)
    assert source.image_shape == (2, 3, 1)
    assert loading.load("npz", data_dir=str(tmp_path / "x.npz"), split="test") is None


def test_npz_test_array_is_the_test_split(tmp_path):
    path = str(tmp_path / "x.npz")
    np.savez(path, train=numbered(6), test=numbered(6)[::-1])
    test = loading.load("npz", data_dir=path, split="test", holdout=2)
    np.testing.assert_array_equal(everything(test), numbered(6)[::-1])
    assert len(loading.load("npz", data_dir=path, holdout=2)) == 6


def test_npz_of_another_kind_is_refused(tmp_path):
    path = str(tmp_path / "x.npz")
    with pytest.raises(ValueError, match="config.data.dir='': not an .npz file"):
        loading.load("npz")
    np.savez(path, train=numbered(6)[..., 0])
    with pytest.raises(ValueError, match=r"x.npz' 'train'=uint8 \[6, 2, 3\].*None\]"):
        loading.load("npz", data_dir=path)
    np.savez(path, a=numbered(2), b=numbered(2))
    with pytest.raises(ValueError, match=r"\['a', 'b'\], none called 'train'"):
        loading.load("npz", data_dir=path)
    np.savez(path, train=np.array([None]))
    with pytest.raises(ValueError, match="allow_pickle"):
        loading.load("npz", data_dir=path)
    pathlib.Path(path).write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="config.data.dir=.*not an .npz file"):
        loading.load("npz", data_dir=path)


@pytest.mark.parametrize("holdout, seed", [(1, 0), (4, 0), (4, 7)])
def test_holdout_splits_into_two_complete_parts(tmp_path, holdout, seed):
    path = str(tmp_path / "x.npz")
    np.savez(path, numbered(20))
    settings = {"data_dir": path, "holdout": holdout, "seed": seed}
    train = everything(loading.load("npz", **settings))[:, 0, 0, 0]
    test = everything(loading.load("npz", split="test", **settings))[:, 0, 0, 0]
    assert len(test) == holdout
    assert sorted([*train, *test]) == list(range(20))
    if seed == 0:  # From NumPy's frozen generator: no version may move it.
        order = [18, 1, 19, 8, 10, 17, 6, 13, 4, 2, 5, 14, 9, 7, 16, 11, 3, 0, 15, 12]
        assert sorted(test) == sorted(order[:holdout])


def test_holdout_must_leave_something(tmp_path):
    np.savez(tmp_path / "x.npz", numbered(20))
    with pytest.raises(ValueError, match="holdout=20: .*--config.data.holdout=2"):
        loading.load("npz", data_dir=str(tmp_path / "x.npz"), holdout=20)


# Folders.


def only(path, **settings):
    """The image of a folder with one picture."""
    return everything(folder(path, **settings))[0]


def test_folder_is_read_in_order_of_relative_paths(tmp_path):
    for i, name in enumerate(["a/z.PNG", "a0.png", "b/c/d.bmp", "b.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), (i, 0, 9)).save(tmp_path / name)
    for name in [".hidden.png", "notes.txt", ".trash/x.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no picture")
    images = everything(folder(tmp_path))
    assert image_folder.picture_files(tmp_path) == ["a/z.PNG", "a0.png", "b.png", "b/c/d.bmp"]
    assert images.shape == (4, 2, 3, 3) and images[:, 0, 0, 0].tolist() == [0, 1, 3, 2]


# name -> (how to write it, the pixel as RGB, as grey, as RGBA): worked out by hand.
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
    stored[:, :8] = 255  # its left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left: left becomes up
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
    pixels[:, 30:90] = 200  # the central square, which alone should remain
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


def test_pictures_of_varying_size_need_a_size(tmp_path, monkeypatch):
    write_pictures(tmp_path, 3)
    Image.new("RGB", (7, 5)).save(tmp_path / "odd.png")
    message = "image_size=0: .*odd.png is 5x7 and others are 4x6; .*data.image_size="
    for budget in (source_lib.MEMORY_BUDGET, 10):
        monkeypatch.setattr(source_lib, "MEMORY_BUDGET", budget)
        with pytest.raises(ValueError, match=message):
            folder(tmp_path)
        assert folder(tmp_path, image_size=4).image_shape == (4, 4, 3)


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    keep = lambda text, *values: lines.append(text % values)
    monkeypatch.setattr(logging, "warning", keep)
    return lines


def damage(path, kind):
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-30])
    elif kind == "not an image":
        path.write_text("hello")
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        Image.new("1", (20000, 20000)).save(path)  # 400 million pixels, a small file


@pytest.mark.parametrize("kind", ["truncated", "not an image", "empty", "bomb"])
@pytest.mark.parametrize("streamed", [False, True])
def test_damaged_files_are_skipped(tmp_path, monkeypatch, warnings, kind, streamed):
    write_pictures(tmp_path, 20)
    damage(tmp_path / "007.png", kind)
    if streamed:
        monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 10)
    source = folder(tmp_path, image_size=4)
    values = everything(source)[:, 0, 0, 0].tolist()
    whole = list(range(20))
    # The next one stands in, where the number of images is fixed beforehand.
    assert values == ([*whole[:7], 8, *whole[8:]] if streamed else whole[:7] + whole[8:])
    everything(source)
    assert len(warnings) == 1 and "007.png" in warnings[0]


@pytest.mark.parametrize("streamed", [False, True])
def test_too_many_damaged_files_are_refused(tmp_path, monkeypatch, warnings, streamed):
    write_pictures(tmp_path, 20)
    for name in ["000.png", "013.png"]:
        damage(tmp_path / name, "not an image")
    if streamed:
        monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 10)
    message = r"2 of 20 files \(10%\).*000\.png, 013\.png"
    with pytest.raises(ValueError, match=message) as error:
        take(folder(tmp_path), 20)
    assert "\n" not in str(error.value)


def test_only_ten_damaged_files_are_named(tmp_path, warnings, monkeypatch):
    write_pictures(tmp_path, 30)
    for i in range(12):
        damage(tmp_path / f"{i:03}.png", "empty")
    monkeypatch.setattr(image_folder, "MAX_UNREADABLE", 0.5)
    assert len(folder(tmp_path)) == 18
    assert len(warnings) == 11 and "12 files in all" in warnings[-1]


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="config.data.dir='': not a folder"):
        folder("")
    with pytest.raises(ValueError, match="nowhere': not a folder"):
        folder(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match="no pictures there"):
        folder(tmp_path)


def test_streamed_folder_gives_the_batches_of_one_in_memory(tmp_path, monkeypatch):
    write_pictures(tmp_path, 30)
    settings = {"holdout": 5, "image_size": 4}
    here, test = (folder(tmp_path, split=split, **settings) for split in SPLITS)
    monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 10)
    there, test_there = (folder(tmp_path, split=split, **settings) for split in SPLITS)
    assert here.in_memory and not there.in_memory and here.image_shape == there.image_shape
    np.testing.assert_array_equal(everything(test), everything(test_there))
    np.testing.assert_array_equal(take(here, 15), take(there, 15))
    assert folder(tmp_path, split="test") is None


# TFDS.


@needs("cifar10")
def test_cifar10_is_what_tfds_reads(monkeypatch):
    import tensorflow_datasets as tfds

    expected = tfds.data_source("cifar10", split="test", data_dir=TFDS, download=False)
    source = loading.load("cifar10:3.0.2", data_dir=TFDS, split="test", channels=3)
    assert len(source) == 10000 and source.image_shape == (32, 32, 3) and source.in_memory
    for i in (0, 1, 999, 1000, 9999):
        np.testing.assert_array_equal(source.read(np.array([i]))[0], expected[i]["image"])
    monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 10)
    streamed = loading.load("cifar10", split="test")
    assert not streamed.in_memory
    np.testing.assert_array_equal(take(source, 3), take(streamed, 3))


@needs("fashion_mnist")
def test_fashion_mnist_is_streamed_and_resized(monkeypatch):
    monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 10)
    train, test = (loading.load("fashion_mnist", split=split) for split in SPLITS)
    assert len(train) == 60000 and len(test) == 10000 and train.image_shape == (28, 28, 1)
    image = train.read(np.array([0]))[0]
    coloured = loading.load("fashion_mnist", channels=3).read(np.array([0]))[0]
    np.testing.assert_array_equal(coloured, np.repeat(image, 3, axis=-1))
    assert loading.load("fashion_mnist", image_size=32).image_shape == (32, 32, 1)


@pytest.mark.parametrize("budget", [10, source_lib.MEMORY_BUDGET])
def test_tfds_set_without_a_test_split_is_split_here(tmp_path, monkeypatch, budget):
    monkeypatch.setattr(source_lib, "MEMORY_BUDGET", budget)
    root = write_tfds(tmp_path, ramp(12))
    settings = {"data_dir": root, "holdout": 4}
    train, test = (loading.load("tiny", split=split, **settings) for split in SPLITS)
    assert train.in_memory == (budget > 10) and train.image_shape == (4, 5, 3)
    greys = [everything(source)[:, 1, 1, 1].tolist() for source in (train, test)]
    assert len(greys[1]) == 4 and sorted(greys[0] + greys[1]) == list(range(0, 120, 10))
    assert len(loading.load("tiny", data_dir=root)) == 12
    assert loading.load("tiny", data_dir=root, split="test") is None


def test_tfds_images_of_varying_size_need_a_size(tmp_path):
    root = write_tfds(tmp_path, ramp(5, sizes=(4, 6)))
    with pytest.raises(ValueError, match="image_size=0: .*tiny vary in size"):
        loading.load("tiny", data_dir=root)
    source = loading.load("tiny", data_dir=root, image_size=8, channels=1)
    assert source.image_shape == (8, 8, 1)
    assert everything(source)[:, 3, 3, 0].tolist() == [0, 10, 20, 30, 40]


def test_newest_prepared_version_is_read_unless_one_is_named(tmp_path, monkeypatch):
    for i, version in enumerate(["9.0.0", "10.0.0", "1.2.3"]):
        root = write_tfds(tmp_path, ramp(3 + i), version=version)
    monkeypatch.setenv("TFDS_DATA_DIR", root)
    assert len(loading.load("tiny")) == 4 and len(loading.load("tiny:9.0.0")) == 3
    with pytest.raises(ValueError, match=r"tiny:2.0.0'.*has tiny:1.2.3, tiny:10.0.0, "):
        loading.load("tiny:2.0.0")
    (tmp_path / "tiny").rename(tmp_path / "some")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "some").rename(tmp_path / "tiny" / "some")
    assert len(loading.load("tiny/some")) == 4
    with pytest.raises(ValueError, match="name='tiny': .*--config.data.name=tiny/some:"):
        loading.load("tiny")


def test_what_needs_tensorflow_says_so(tmp_path, monkeypatch):
    loading.load("tiny", data_dir=write_tfds(tmp_path, ramp(3)))  # TFDS has looked for it by now.
    root = write_tfds(tmp_path / "tf", ramp(3), file_format="tfrecord")
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"TFRecord .*pip install -e \"\.\[tf\]\""):
        loading.load("tiny", data_dir=root)
    for name in ("lsun/bedroom", "celeb_a_hq/256"):
        with pytest.raises(ValueError, match=r"\[tf\].*name=image_folder") as error:
            loading.load(name, data_dir=root)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="nowhere': does not exist"):
        loading.load("tiny", data_dir=str(tmp_path / "nowhere"))


# Labels and conditions.


@pytest.mark.parametrize("split", SPLITS)
def test_labels_of_digits(split):
    source = loading.load("digits", split=split, labels=True)
    np.testing.assert_array_equal(source.labels, loading.digits(split)[1])
    assert source.num_classes == 10 and source.labels.dtype == np.int32
    assert loading.load("digits", split=split).labels is None


@needs("cifar10")
def test_labels_of_cifar10_are_those_of_tfds():
    import tensorflow_datasets as tfds

    source = loading.load("cifar10", split="test", labels=True)
    chosen = np.array([0, 7, 999, 1000, 9999])
    examples = tfds.data_source("cifar10", split="test", data_dir=TFDS)
    expected = [examples[int(i)] for i in chosen]
    told = source.examples(chosen)
    np.testing.assert_array_equal(told["labels"], [e["label"] for e in expected])
    np.testing.assert_array_equal(told["images"], [e["image"] for e in expected])
    assert source.num_classes == 10 and len(source.labels) == 10_000


@pytest.mark.parametrize("streamed", [False, True])
def test_labels_of_a_tfds_set_that_is_split_here(tmp_path, monkeypatch, streamed):
    write_tfds(tmp_path, list(numbered(9, (2, 5, 3))), labels=np.arange(9) % 4)
    if streamed:
        monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 1)
    for split, size in (("train", 6), ("test", 3)):
        source = loading.load("tiny", data_dir=str(tmp_path), split=split, holdout=3, labels=True)
        told = source.examples(np.arange(size))
        np.testing.assert_array_equal(told["labels"], told["images"][:, 0, 0, 0] % 4)
        assert source.num_classes == 5 and source.in_memory != streamed


def test_a_tfds_set_without_labels_is_refused(tmp_path):
    write_tfds(tmp_path, ramp(3))
    with pytest.raises(ValueError, match="config.data.labels=True: tiny has no label among"):
        loading.load("tiny", data_dir=str(tmp_path), labels=True)


@pytest.mark.parametrize("streamed", [False, True])
def test_folders_are_classes(tmp_path, monkeypatch, streamed):
    for name, value in (("cats", 10), ("ants", 20), ("dogs/small", 30)):
        (tmp_path / name).mkdir(parents=True)
        for i in range(9):
            Image.new("L", (4, 4), value + i).save(tmp_path / name / f"{i}.png")
    (tmp_path / "cats" / "0.png").write_bytes(b"damaged")
    if streamed:
        monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 1)
    for split, size in (("train", 19 + streamed), ("test", 7)):
        source = folder(tmp_path, split=split, holdout=7, labels=True, channels=1)
        told = source.examples(np.arange(len(source)))
        values = told["images"][:, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(told["labels"], np.array([1, 0, 2])[values // 10 - 1])
        assert source.num_classes == 3
    (tmp_path / "bare.png").write_bytes((tmp_path / "cats" / "1.png").read_bytes())
    with pytest.raises(ValueError, match="bare.png is in no folder of a class"):
        folder(tmp_path, labels=True)


def test_a_class_of_damaged_pictures_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 1)
    monkeypatch.setattr(image_folder, "MAX_UNREADABLE", 0.9)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("L", (4, 4), i).save(tmp_path / name / f"{i}.png")
            if name == "b":
                (tmp_path / name / f"{i}.png").write_bytes(b"damaged")
    source = folder(tmp_path, labels=True)
    with pytest.raises(ValueError, match="all pictures of b are unreadable"):
        source.read(np.array([4]))


def test_labels_and_conditions_of_an_npz(tmp_path):
    path = str(tmp_path / "x.npz")
    images, beside = numbered(10), numbered(10, (2, 3, 2))
    np.savez(path, train=images, train_labels=np.arange(10) % 3, train_condition=beside)
    asked = dict(data_dir=path, labels=True, condition="stored", holdout=4)
    for split, size in (("train", 6), ("test", 4)):
        source = loading.load("npz", split=split, **asked)
        told = source.examples(np.arange(size))
        chosen = told["images"][:, 0, 0, 0]
        np.testing.assert_array_equal(told["labels"], chosen % 3)
        np.testing.assert_array_equal(told["condition"], beside[chosen])
        assert source.num_classes == 3 and source.condition_channels == 2
    resized = loading.load("npz", image_size=4, **asked).examples(np.arange(6))
    assert resized["images"].shape == (6, 4, 4, 1) and resized["condition"].shape[1:3] == (4, 4)
    only = loading.load("npz", data_dir=path)
    assert only.labels is None and only.read_condition is None
    np.savez(path, train=images)
    with pytest.raises(ValueError, match=r"has no train_labels, int \[n\], a row"):
        loading.load("npz", data_dir=path, labels=True)
    np.savez(path, train=images, labels=np.arange(9))
    with pytest.raises(ValueError, match=r"has no train_labels, int \[n\], a row"):
        loading.load("npz", data_dir=path, labels=True)
    with pytest.raises(ValueError, match="config.data.condition='stored': must be one of"):
        loading.load("digits", condition="stored")
    with pytest.raises(ValueError, match="config.data.condition='x': must be one of .*noisy, 's"):
        loading.load("npz", data_dir=path, condition="x")


def test_arrays_with_labels_and_conditions():
    images = numbered(6)
    source = source_lib.from_array(images, labels=[0, 1, 2, 0, 1, 2], condition=images[..., [0, 0]])
    some = source.select(np.array([4, 2]))
    assert len(some) == 2 and some.num_classes == 3 and some.condition_channels == 2
    told = some.examples(np.array([1, 0]))
    np.testing.assert_array_equal(told["labels"], [2, 1])
    np.testing.assert_array_equal(told["condition"][..., :1], images[[2, 4]])
    np.testing.assert_array_equal(told["images"], images[[2, 4]])
    for labels in ([0, 1], [0.0] * 6, [-1] * 6):
        with pytest.raises(ValueError, match="must be whole numbers in 0..*each of the 6"):
            source_lib.from_array(images, labels=labels)
    for condition in (images[:5], images[:, :1]):
        with pytest.raises(ValueError, match="must go with images"):
            source_lib.from_array(images, condition=condition)
    batch = next(batching.batches(source, seed=0, batch_size=4))
    rows = batch["images"][:, 0, 0, 0]
    np.testing.assert_array_equal(batch["labels"], rows % 3)
    np.testing.assert_array_equal(batch["condition"][:, 0, 0, 0], rows)
