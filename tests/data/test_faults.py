"""Data with something wrong in them: they work, or one line names the file and the remedy."""

import io
import os
import re
import struct
import zipfile
import zlib

import numpy as np
import pytest
from absl import logging
from PIL import Image

from ddpm_jax import validation
from ddpm_jax.configs import digits, image_folder
from ddpm_jax.data import loading
from ddpm_jax.data import source as source_lib
from ddpm_jax.errors import UserError
from ddpm_jax.training import run as run_lib
from ddpm_jax.workdir import run_folder
from data_sets import everything, folder, numbered, ramp, take, write_pictures, write_tfds


def refused(call, *words):
    """Checks that a call ends in one line, which the command line prints without a trace."""
    with pytest.raises(ValueError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and isinstance(error.value, UserError), text
    for word in words:
        assert re.search(word, text), (word, text)


@pytest.fixture
def logged(monkeypatch):
    """The lines that the log was warned with."""
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    return lines


@pytest.fixture(params=[False, True], ids=["in memory", "streamed"])
def streamed(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 10)
    return request.param


# Pictures.


def png(width, height, pixels=b""):
    """A PNG that says it is so large, whatever is in it."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(
        b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def encoded(suffix, mode="RGB", size=(6, 4), **how):
    file = io.BytesIO()
    image = Image.new("L", size).convert("P") if mode == "P" else Image.new(mode, size)
    image.save(file, suffix, **how)  # Old versions of Pillow write a BMP without a palette.
    return file.getvalue()


def claims(suffix, size):
    """A small file whose header claims size x size pixels."""
    if suffix == "png":
        return png(size, size)
    whole = bytearray(encoded(suffix))
    if suffix == "bmp":
        whole[18:26] = struct.pack("<ii", size, size)
    elif suffix == "gif":
        whole[6:10] = struct.pack("<HH", size, size)
    else:
        at = whole.index(b"\xff\xc0") + 5  # Start of frame: marker, length, precision, then these.
        whole[at:at + 4] = struct.pack(">HH", size, size)
    return bytes(whole)


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "jpeg"])
def test_a_small_file_that_claims_20000x20000_is_named(tmp_path, logged, streamed, suffix):
    write_pictures(tmp_path, 25)
    (tmp_path / f"0000.{suffix}").write_bytes(claims(suffix, 20000))
    everything(folder(tmp_path, image_size=4))
    (line,) = logged
    assert f"0000.{suffix}" in line and "decompression bomb" in line


BROKEN = {
    "zero bytes": b"",
    "zeros": bytes(1000),
    "text": b"<html>404</html>",
    "half a PNG": encoded("png", size=(40, 40))[:60],
    "half a JPEG": encoded("jpeg", size=(40, 40))[:-200],
    "a PNG without pixels": png(6, 4),
    "2^31 wide": png(2**31 - 1, 1),
    "a PNG cut in its header": png(6, 4)[:20],
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n",
}


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


# (format, mode, what Pillow is told): all become RGB.
KINDS = [
    ("png", "1", {}), ("png", "L", {}), ("png", "LA", {}), ("png", "P", {}), ("png", "RGBA", {}),
    ("png", "I;16", {}), ("gif", "P", {}), ("gif", "P", {"transparency": 0}), ("jpeg", "L", {}),
    ("jpeg", "CMYK", {}), ("tiff", "CMYK", {}), ("tiff", "F", {}),
    ("tiff", "I;16", {}), ("tiff", "RGB", {"compression": "tiff_lzw"}), ("ppm", "RGB", {}),
    ("webp", "RGBA", {}), ("bmp", "P", {}),
]


def test_every_mode_at_once_and_images_of_one_pixel(tmp_path, logged, streamed):
    for i, (suffix, mode, how) in enumerate(KINDS):
        for size in ((6, 4), (1, 1), (1, 90)):
            name = f"{i:02}_{mode.replace(';', '')}_{size[1]}.{suffix}"
            (tmp_path / name).write_bytes(encoded(suffix, mode, size, **how))
    images = everything(folder(tmp_path, image_size=4))
    assert images.shape == (3 * len(KINDS), 4, 4, 3) and not logged


def test_a_pixel_as_it_is_is_no_image_for_the_network(tmp_path):
    Image.new("RGB", (1, 1), (9, 9, 9)).save(tmp_path / "a.png")
    assert everything(folder(tmp_path, image_size=3)).tolist() == [[[[9] * 3] * 3] * 3]
    config = image_folder.get_config()
    refused(lambda: validation.check_images(config, folder(tmp_path).image_shape),
            "config.data.image_size=1 ", "--config.data.image_size=16")


def test_links_are_followed_and_loops_are_not(tmp_path, logged):
    inside, outside = tmp_path / "set", tmp_path / "elsewhere"
    for path in (inside / "a", outside):
        path.mkdir(parents=True)
        write_pictures(path, 12)
    (inside / "b").symlink_to(outside)
    (inside / "c.png").symlink_to(inside / "a" / "007.png")
    for loop, target in (("a/up", inside), ("self", inside / "self"), ("a/same", inside / "a"),
                         ("b/there", inside)):
        (inside / loop).symlink_to(target)
    (inside / "dir.png").mkdir()
    os.mkfifo(inside / "pipe.png")
    (inside / "dangling.png").symlink_to("nowhere")
    source = folder(inside, image_size=4)
    # Of a, of b and c, less the link to nothing.
    assert everything(source)[:, 0, 0, 0].tolist() == [*range(12), *range(12), 7]
    assert len(logged) == 1 and "dangling.png" in logged[0]
    (inside / "dangling.png").unlink()
    (inside / "loop.png").symlink_to("loop.png")
    assert len(folder(inside, image_size=4)) == 25
    assert len(logged) == 2 and "loop.png" in logged[1]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write_pictures(tmp_path, 3)
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):  # As for others than root.
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refused(lambda: folder(tmp_path), "closed' cannot be listed .Permission denied")


def test_names_of_any_bytes(tmp_path, logged, streamed):
    write_pictures(tmp_path, 44)
    whole = (tmp_path / "000.png").read_bytes()
    for name, content in ((b"\xff\xfe.png", whole), (b"\xff\xfd.png", b"bad"), (b"\n.png", whole),
                          ("é日.png".encode(), whole), (b"a\nb\x1b[2J.png", b"")):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(content)
    assert everything(folder(tmp_path, image_size=4)).shape[0] == (49 if streamed else 47)
    assert sorted(logged)[1].startswith(r"Skipping a\nb\x1b[2J.png: ")
    assert sorted(logged)[0].startswith(r"Skipping \udcff\udcfd.png: ")
    assert all(line.isprintable() for line in logged)


def test_a_class_may_have_any_name_too(tmp_path):
    for name in ("plain", "new\nline", "\udcff"):
        (tmp_path / name).mkdir()
        write_pictures(tmp_path / name, 2)
    assert folder(tmp_path, labels=True).labels.tolist() == [0, 0, 1, 1, 2, 2]
    (tmp_path / "new\nline.png").write_bytes(b"")
    refused(lambda: folder(tmp_path, labels=True), r"new\\nline.png is in no folder of a class")


def test_a_folder_that_grows_stays_what_it_was(tmp_path, streamed):
    write_pictures(tmp_path, 12)
    source = folder(tmp_path)
    before = take(source, 12)
    for number in range(12, 40):  # The twelve may still be read ahead.
        Image.new("RGB", (6, 4)).save(tmp_path / f"{number:03}.png")
    (tmp_path / "0000.png").write_bytes(b"bad")
    np.testing.assert_array_equal(take(source, 12), before)
    assert len(source) == 12


def test_files_deleted_while_training_are_named(tmp_path, monkeypatch, logged):
    monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 10)
    write_pictures(tmp_path, 40)
    source = folder(tmp_path)
    (tmp_path / "007.png").unlink()
    assert 7 not in everything(source)[:, 0, 0, 0]
    assert len(logged) == 1 and "007.png: [Errno 2] No such file" in logged[0]
    for i in range(10, 13):
        (tmp_path / f"{i:03}.png").unlink()
    refused(lambda: take(source, 40), r"of 40 files .* may be; mend or remove 007.png, 01")


def test_a_picture_of_another_size_that_appears_while_training(tmp_path, monkeypatch):
    monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 10)
    write_pictures(tmp_path, 12)
    source = folder(tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "003.png")
    refused(lambda: take(source, 12), "003.png is 9x9 and others are 4x6", "image_size=64")


def test_more_classes_than_the_config(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        write_pictures(tmp_path / name, 2)
    config = digits.get_config()
    config.data.name, config.data.dir = "image_folder", str(tmp_path)
    config.data.labels, config.data.num_classes = True, 2
    config.train.batch_size = 8
    refused(lambda: run_lib.prepare(config, None, None),
            "num_classes=2, but image_folder has 3; write --config.data.num_classes=3")


def test_settings_of_the_split_that_leave_nothing(tmp_path):
    write_pictures(tmp_path, 3)
    refused(lambda: folder(tmp_path, holdout=3), "holdout=3: must leave some of the 3 images")


# .npz files.


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def load_npz(path, **settings):
    return loading.load("npz", data_dir=str(path), **settings)


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_objects_in_an_npz_are_not_made(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "x.npz"
    attack = np.array([Attack(marker)])
    np.savez(path, train=attack, labels=attack)
    with np.load(path, allow_pickle=True) as arrays:
        arrays["train"][0].close()
    assert marker.exists()  # So the attack works.
    marker.unlink()
    refused(lambda: load_npz(path), "'train' cannot be read .Object arrays", "plain numbers")
    np.savez(path, train=numbered(1), labels=attack)
    refused(lambda: load_npz(path, labels=True), "'labels' cannot be read .Object arrays")
    assert not marker.exists()


@pytest.mark.parametrize("kind, words", [
    ("flipped", "'train' cannot be read .Bad CRC"), ("cut", "not an .npz file"),
    ("huge", "'train' cannot be read .Unable to allocate"),
    ("short", "'train' cannot be read .*EOF|cannot reshape"),
    ("no array", r"'train'=\|S5 \[\]: must be uint8"), ("encrypted", "'train' cannot be read"),
])
def test_a_damaged_npz_is_one_line(tmp_path, kind, words):
    path = npz(tmp_path / "x.npz", train=numbered(30, (8, 8, 3)))
    whole = bytearray(path.read_bytes())
    if kind == "flipped":
        whole[600] ^= 255
    elif kind == "encrypted":
        for start, field in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
            whole[whole.index(start) + field] |= 1
    path.write_bytes(whole[:700] if kind == "cut" else whole)
    if kind in ("huge", "short", "no array"):
        rows = 10**15 if kind == "huge" else 7
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, dict(
            descr="|u1", fortran_order=False, shape=(rows, 8, 8, 3)))
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("train.npy", b"hello" if kind == "no array" else header.getvalue())
    refused(lambda: load_npz(path), re.escape(str(path)), words)


@pytest.mark.parametrize("labels", [
    np.array(["a"] * 6), np.zeros(6), np.int64(3), np.arange(5), np.zeros(0, int),
])
def test_labels_of_an_npz_that_are_none(tmp_path, labels):
    path = npz(tmp_path / "x.npz", train=numbered(6), train_labels=labels)
    refused(lambda: load_npz(path, labels=True), r"has no train_labels, int \[n\], a row")


def test_labels_of_the_test_images_beyond_those_of_training(tmp_path):
    path = npz(tmp_path / "x.npz", train=numbered(6), train_labels=np.arange(6) % 3,
               test=numbered(4), test_labels=np.arange(4))
    assert load_npz(path, labels=True).num_classes == 3
    refused(lambda: load_npz(path, labels=True, split="test"),
            r"x.npz' test_labels=int64 \[4\]: must be whole numbers in 0..2")
    path = npz(tmp_path / "x.npz", train=numbered(6), train_labels=np.full(6, -1))
    refused(lambda: load_npz(path, labels=True), r"x.npz' train_labels=int64 \[6\]: must be")


def test_images_of_two_channels_are_taken_as_they_are(tmp_path):
    path = npz(tmp_path / "x.npz", train=numbered(6, (4, 4, 2)))
    assert load_npz(path).image_shape == load_npz(path, image_size=4).image_shape == (4, 4, 2)
    for settings in ({"image_size": 8}, {"channels": 3}):
        refused(lambda: load_npz(path, **settings), r"\[6, 4, 4, 2\] are neither grey, RGB nor")


# Sets of TFDS.


def with_records(root, entries):
    """Puts other entries into a set of `write_tfds`: files of pictures, or records as bytes."""
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module

    (path,) = root.glob("tiny/*/*.array_record*")
    features = tfds.features.FeaturesDict.from_config(path.parent)
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for entry in entries:
        writer.write(entry if isinstance(entry, bytes) else
                     features.serialize_example({"photo": entry}))
    writer.close()


def whole(n):
    return [io.BytesIO(png(5, 4, (b"\0" + bytes([i]) * 15) * 4)) for i in range(n)]


@pytest.mark.parametrize("kind", [*BROKEN, "20000x20000", "no record", "an empty record"])
def test_a_record_that_cannot_be_read_is_named(tmp_path, streamed, kind):
    root, entries = write_tfds(tmp_path, ramp(6)), whole(6)
    if kind in BROKEN:
        entries[3] = io.BytesIO(BROKEN[kind])
    else:
        entries[3] = {"20000x20000": io.BytesIO(png(20000, 20000)),
                      "no record": b"\xff\xff\xffgarbage", "an empty record": b""}[kind]
    with_records(tmp_path, entries)
    refused(lambda: take(loading.load("tiny", data_dir=root), 2),
            "name='tiny': image 3 of split 'train' in .*tiny/1.0.0 cannot be read", "prepare the")


def test_records_of_other_shapes_and_modes_are_made_to_fit(tmp_path, streamed):
    root, entries = write_tfds(tmp_path, ramp(6)), whole(6)
    entries[1] = io.BytesIO(encoded("png", "L", (5, 4)))
    entries[2] = io.BytesIO(encoded("jpeg", "CMYK", (50, 40)))
    entries[3] = io.BytesIO(encoded("png", "RGBA", (1, 1)))
    with_records(tmp_path, entries)
    images = everything(loading.load("tiny", data_dir=root))
    assert images.shape == (6, 4, 5, 3) and images[:, 0, 0, 0].tolist() == [0, 0, 255, 255, 4, 5]


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("name, old, new, words", [
    ("dataset_info.json", '"6"', '"9"', "image 6 of split 'train'.*cannot be read"),
    ("dataset_info.json", "{", "", "1.0.0 is damaged or foreign"),
    ("features.json", "{", "", "1.0.0 is damaged or foreign"),
    ("features.json", '"4"', '"four"', "1.0.0 is damaged or foreign"),
    ("features.json", "image_feature.Image", "image_feature.None", "damaged or foreign"),
])
def test_descriptions_of_a_set_that_are_damaged(tmp_path, name, old, new, words):
    root = write_tfds(tmp_path, ramp(6))
    change(tmp_path / "tiny" / "1.0.0" / name, old, new)
    refused(lambda: loading.load("tiny", data_dir=root), words, "prepare the set again")


@pytest.mark.parametrize("fault", ["flipped", "cut", "gone", "no features"])
def test_files_of_a_set_that_are_damaged(tmp_path, fault):
    root = write_tfds(tmp_path, ramp(6))
    (path,) = tmp_path.glob("tiny/*/*.array_record*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    if fault in ("flipped", "cut"):
        path.write_bytes(content if fault == "flipped" else content[:-40])
    else:
        (path if fault == "gone" else path.with_name("features.json")).unlink()
    refused(lambda: loading.load("tiny", data_dir=root), "prepare the set again")


def test_a_set_whose_labels_exceed_its_classes(tmp_path):
    root = write_tfds(tmp_path, ramp(6), labels=[0, 1, 2, 3, 4, 4])
    change(tmp_path / "tiny" / "1.0.0" / "features.json", '"5"', '"3"')
    refused(lambda: loading.load("tiny", data_dir=root, image_size=4, labels=True),
            "name='tiny' kind=int32 .6.: must be whole numbers in 0..2")


def test_a_config_keeps_a_path_of_any_bytes():
    config = digits.get_config()
    config.data.dir = os.fsdecode(b"/data/\xff\n")
    assert run_folder.parse(run_folder.dump(config)).data.dir == config.data.dir
