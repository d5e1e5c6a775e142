"""Images, labels and conditions in an .npz file; damage is reported in one line."""

import io
import pathlib
import pickle
import re
import zipfile

import numpy as np
import pytest

from ddpm_jax.data import loading
from data_sets import everything, numbered, refused


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
    with pytest.raises(ValueError, match="config.data.dir='': not given; write .*an .npz file"):
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


def test_names_of_classes_in_an_npz(tmp_path):
    path = str(tmp_path / "x.npz")
    labels = np.arange(10) % 3 + 1  # 0 does not occur.
    names = np.array(["none", "cat", "dog", "owl"])
    np.savez(path, numbered(10), labels=labels, class_names=names)
    source = loading.load("npz", data_dir=path, labels=True)
    assert source.classes == (1, 2, 3) and source.class_names == ("cat", "dog", "owl")
    assert loading.load("npz", data_dir=path, labels=True, num_classes=4).class_names == (*names,)
    np.savez(path, numbered(10), labels=labels)
    assert loading.load("npz", data_dir=path, labels=True).class_names == ("1", "2", "3")
    np.savez(path, numbered(10), labels=labels - 1)
    assert loading.load("npz", data_dir=path, labels=True).class_names == ()
    for wrong in (names[:3], np.arange(4), names[None]):
        np.savez(path, numbered(10), labels=labels, class_names=wrong)
        with pytest.raises(ValueError, match="class_names is .*; give a string for each of the la"):
            loading.load("npz", data_dir=path, labels=True)


def test_labels_and_conditions_of_an_npz(tmp_path):
    path = str(tmp_path / "x.npz")
    images, beside = numbered(10), numbered(10, (2, 3, 2))
    np.savez(path, train=images, train_labels=np.arange(10) % 3, train_condition=beside)
    asked = dict(data_dir=path, labels=True, condition="stored", holdout=4)
    for split, size in (("train", 6), ("test", 4)):
        source = loading.load("npz", split=split, **asked)
        examples = source.examples(np.arange(size))
        chosen = examples["images"][:, 0, 0, 0]
        np.testing.assert_array_equal(examples["labels"], chosen % 3)
        np.testing.assert_array_equal(examples["condition"], beside[chosen])
        assert source.num_classes == 3 and source.condition_channels == 2
    resized = loading.load("npz", image_size=4, **asked).examples(np.arange(6))
    assert resized["images"].shape == (6, 4, 4, 1) and resized["condition"].shape[1:3] == (4, 4)
    only = loading.load("npz", data_dir=path)
    assert only.labels is None and only.read_condition is None
    np.savez(path, train=images)
    with pytest.raises(ValueError, match=r"has no train_labels, a number or a string each, a row"):
        loading.load("npz", data_dir=path, labels=True)
    np.savez(path, train=images, labels=np.arange(9))
    with pytest.raises(ValueError, match=r"has 9 labels for 10 images"):
        loading.load("npz", data_dir=path, labels=True)
    with pytest.raises(ValueError, match="config.data.condition='stored': must be one of"):
        loading.load("digits", condition="stored")
    with pytest.raises(ValueError, match="config.data.condition='x': must be one of .*noisy, 's"):
        loading.load("npz", data_dir=path, condition="x")


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
    assert marker.exists()  # The attack would work.
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


@pytest.mark.parametrize("rows, words", [
    (np.int64(3), "has 1 train_labels for 6 images"), (np.arange(5), "has 5 train_labels for 6"),
    (np.arange(7), "has 7 train_labels for 6"), (np.zeros(0, int), "has no train_labels, a number"),
    (np.array([None] * 6), "Object arrays cannot .* of plain numbers or strings"),
    (np.linspace(0, 1, 6), r"x.npz' train_labels: image 1 has the label 0.2, which is no whole"),
])
def test_labels_of_an_npz_that_are_not_one_for_each_image(tmp_path, rows, words):
    path = npz(tmp_path / "x.npz", train=numbered(6), train_labels=rows)
    refused(lambda: load_npz(path, labels=True), words)


def test_conditions_of_an_npz_that_are_not_one_for_each_image(tmp_path):
    path = npz(tmp_path / "x.npz", train=numbered(6), condition=numbered(5))
    refused(lambda: load_npz(path, condition="stored"), "has 5 condition for 6 images")


def test_labels_of_the_test_images_beyond_those_of_training(tmp_path):
    path = npz(tmp_path / "x.npz", train=numbered(6), train_labels=np.arange(6) % 3,
               test=numbered(4), test_labels=np.arange(4))
    assert load_npz(path, labels=True).num_classes == 3
    refused(lambda: load_npz(path, labels=True, split="test"),
            r"x.npz' test_labels: image 3 has the label 3, which is none of the 3 classes")


def test_images_of_two_channels_are_taken_as_they_are(tmp_path):
    path = npz(tmp_path / "x.npz", train=numbered(6, (4, 4, 2)))
    assert load_npz(path).image_shape == load_npz(path, image_size=4).image_shape == (4, 4, 2)
    for settings in ({"image_size": 8}, {"channels": 3}):
        refused(lambda: load_npz(path, **settings), r"\[6, 4, 4, 2\] are neither grey, RGB nor")


@pytest.mark.parametrize("make, words", [
    (lambda path: None, r"x.npz': no such file; write --config.data.dir=PATH"),
    (lambda path: path.mkdir(), "not an .npz file but a folder; .*name=image_folder"),
    (lambda path: path.write_bytes(b""), r"not an .npz file; make one with np.savez"),
    (lambda path: path.write_bytes(np.lib.format.magic(1, 0) + b"..."),
     r"not an .npz file but an .npy file; make one with .*train=np.load\(PATH\)"),
    (lambda path: path.write_bytes(b"MATLAB 5.0 MAT-file, Platform: GLNXA64"),
     r"a MATLAB file; .*loadmat\(PATH\)\['X'\].transpose\(3, 0, 1, 2\)"),
    (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n..."), "an HDF5 file; .*h5py.File"),
    (lambda path: path.write_bytes(pickle.dumps({"data": 1})), "but a pickle; make one"),
    (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"),
     "a pointer of Git LFS, whose file is not there"),
    (lambda path: path.write_bytes(b"PK\3\4" + b"0" * 99), "or one that is cut short; make"),
])
def test_what_is_no_npz_is_named(tmp_path, make, words):
    make(tmp_path / "x.npz")
    refused(lambda: load_npz(tmp_path / "x.npz"), words)


def test_an_npz_of_many_arrays_has_a_message_of_one_short_line(tmp_path):
    path = npz(tmp_path / "x.npz", **{f"image_{i:04}": numbered(1)[0] for i in range(3000)})
    with pytest.raises(ValueError, match=r"holds \['image_0000', .*train=np.load.PATH..KEY.") as e:
        load_npz(path)
    assert len(str(e.value)) < 600


@pytest.mark.parametrize("array, line", [
    (numbered(9, (3, 8, 8)), r"'train'=uint8 \[9, 3, 8, 8\]: .*images.transpose\(0, 2, 3, 1\)"),
    (np.zeros((8, 8, 3, 20), np.uint8), r"\[h, w, c, n\].*images.transpose\(3, 0, 1, 2\)"),
    (np.zeros((2, 8, 8, 3), np.float32), r"float32 .*np.round\(images \* 255\)"),
    (np.zeros((2, 8, 8, 3), bool), r"of True and False.*images.astype\(np.uint8\) \* 255"),
    (np.asfortranarray(numbered(9)).astype(np.uint16) * 257, r"write np.round\(images / 257\)"),
])
def test_arrays_of_another_kind_in_an_npz_are_mended_as_others_are(tmp_path, array, line):
    refused(lambda: load_npz(npz(tmp_path / "x.npz", train=array)), r"x.npz' 'train'=", line)


def test_a_condition_of_many_channels_goes_by_the_size_of_its_images(tmp_path):
    images, beside = numbered(9, (4, 8, 1)), numbered(9, (4, 8, 16))
    path = npz(tmp_path / "x.npz", train=images, train_condition=beside)
    source = load_npz(path, condition="stored")
    np.testing.assert_array_equal(source.read_condition(np.arange(9)), beside)
    path = npz(tmp_path / "x.npz", train=images, train_condition=beside.transpose(0, 3, 1, 2) / 255)
    refused(lambda: load_npz(path, condition="stored"), "train_condition=float64 .* in 0..1")
