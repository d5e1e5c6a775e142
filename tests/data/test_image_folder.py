"""Folders of pictures: their order and classes; damaged, linked and moved files."""

import os

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import image_folder, picture_files
from ddpm_jax.data import source as source_lib
from data_sets import everything, folder, refused, take, write_pictures

SPLITS = ("train", "test")


def test_folder_is_read_in_order_of_relative_paths(tmp_path):
    for i, name in enumerate(["a/z.PNG", "a0.png", "b/c/d.bmp", "b.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), (i, 0, 9)).save(tmp_path / name)
    for name in [".hidden.png", "notes.txt", ".trash/x.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no picture")
    images = everything(folder(tmp_path))
    assert picture_files.find(tmp_path).names == ["a/z.PNG", "a0.png", "b.png", "b/c/d.bmp"]
    assert images.shape == (4, 2, 3, 3) and images[:, 0, 0, 0].tolist() == [0, 1, 3, 2]


def test_pictures_of_varying_size_need_a_size(tmp_path, monkeypatch):
    write_pictures(tmp_path, 3)
    Image.new("RGB", (7, 5)).save(tmp_path / "odd.png")
    message = "image_size=0: .*odd.png is 5x7 and others are 4x6; .*data.image_size="
    for budget in (source_lib.MEMORY_BUDGET, 10):
        monkeypatch.setattr(source_lib, "MEMORY_BUDGET", budget)
        with pytest.raises(ValueError, match=message):
            folder(tmp_path)
        assert folder(tmp_path, image_size=4).image_shape == (4, 4, 3)


def damage(path, kind):
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-30])
    elif kind == "not an image":
        path.write_text("hello")
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        Image.new("1", (20000, 20000)).save(path)  # 400 million pixels in a small file.


@pytest.mark.parametrize("kind", ["truncated", "not an image", "empty", "bomb"])
@pytest.mark.parametrize("streamed", [False, True])
def test_damaged_files_are_skipped(tmp_path, monkeypatch, logged, kind, streamed):
    write_pictures(tmp_path, 20)
    damage(tmp_path / "007.png", kind)
    if streamed:
        monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 10)
    source = folder(tmp_path, image_size=4)
    values = everything(source)[:, 0, 0, 0].tolist()
    whole = list(range(20))
    # The next one takes its place if the number of images is fixed beforehand.
    assert values == ([*whole[:7], 8, *whole[8:]] if streamed else whole[:7] + whole[8:])
    everything(source)
    assert len(logged) == 1 and "007.png" in logged[0]


@pytest.mark.parametrize("streamed", [False, True])
def test_too_many_damaged_files_are_refused(tmp_path, monkeypatch, logged, streamed):
    write_pictures(tmp_path, 20)
    for name in ["000.png", "013.png"]:
        damage(tmp_path / name, "not an image")
    if streamed:
        monkeypatch.setattr(source_lib, "MEMORY_BUDGET", 10)
    message = r"2 of 20 files \(10%\).*000\.png, 013\.png"
    with pytest.raises(ValueError, match=message) as error:
        take(folder(tmp_path), 20)
    assert "\n" not in str(error.value)


def test_only_ten_damaged_files_are_named(tmp_path, logged, monkeypatch):
    write_pictures(tmp_path, 30)
    for i in range(12):
        damage(tmp_path / f"{i:03}.png", "empty")
    monkeypatch.setattr(image_folder, "MAX_UNREADABLE", 0.5)
    assert len(folder(tmp_path)) == 18
    assert len(logged) == 11 and "12 files in all" in logged[-1]


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
        examples = source.examples(np.arange(len(source)))
        values = examples["images"][:, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(examples["labels"], np.array([1, 0, 2])[values // 10 - 1])
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
    # Of a, b and c, without the link to nothing.
    assert everything(source)[:, 0, 0, 0].tolist() == [*range(12), *range(12), 7]
    assert "left out are 1 without a known extension" in logged[0]  # The link to itself.
    assert len(logged) == 2 and "dangling.png" in logged[1]
    (inside / "self").unlink()
    (inside / "dangling.png").unlink()
    (inside / "loop.png").symlink_to("loop.png")
    assert len(folder(inside, image_size=4)) == 25
    assert len(logged) == 3 and "loop.png" in logged[2]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write_pictures(tmp_path, 3)
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):  # As it is for users other than root.
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
    for number in range(12, 40):  # The twelve may be read ahead still.
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
