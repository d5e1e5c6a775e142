"""Files are whole or not there."""

import os
import pathlib
import tempfile

import pytest

from ddpm_jax.runtime import files


def test_a_file_is_made_with_its_folder_and_replaced(tmp_path):
    path = tmp_path / "a" / "b.txt"
    files.write(path, b"first")
    files.write(str(path), lambda file: file.write(b"second"))
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    files.write(path, b"first")

    def full(file):
        file.write(b"sec")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write(path, full)
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_a_sum_is_that_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")  # The example of FIPS 180-4.
    assert files.sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")
    assert files.short_hash(b"abc", 8) == "ba7816bf"


def test_a_long_name_is_short_and_its_own():
    assert files.short_name("a" * 80) == "a" * 80
    long = [files.short_name(name) for name in ("a" * 200, "a" * 201, "é" * 150, "\udcff" * 99)]
    assert len({*long}) == 4 and all(len(os.fsencode(name)) <= 80 for name in long)
    assert long[0].startswith("a" * 60 + "-") and long[2].startswith("é" * 30 + "-")


@pytest.mark.parametrize("name", ["[1]", "back\\slash", "a*b", "a\nb", "\udcff"])
def test_a_plain_path_is_the_same_folder_and_leaves_nothing(tmp_path, monkeypatch, name):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "links"))
    (tmp_path / "links").mkdir()
    (tmp_path / name).mkdir()
    with files.plain_path(tmp_path / name) as plain:
        (plain / "a").write_text("written")
        assert plain.parent.parent == tmp_path / "links"
    assert (tmp_path / name / "a").read_text() == "written"
    assert not list((tmp_path / "links").iterdir())


def test_most_paths_are_plain_already(tmp_path):
    for path in (tmp_path / "runs, old" / "été=1 (2) #3", "gs://bucket/a[1]"):
        with files.plain_path(path) as plain:
            assert os.fspath(plain) == os.fspath(path)


def test_folders_are_found_whatever_the_name(tmp_path):
    assert files.folders(tmp_path / "none") == []
    (tmp_path / "d[1]" / "inner*").mkdir(parents=True)
    (tmp_path / "d[1]" / "file").write_text("")
    assert [path.name for path in files.folders(tmp_path / "d[1]")] == ["inner*"]


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("DDPM_JAX_CACHE", "/somewhere/else")
    assert files.cache_folder() == pathlib.Path("/somewhere/else")
    monkeypatch.delenv("DDPM_JAX_CACHE")
    assert files.cache_folder() == pathlib.Path.home() / ".cache" / "ddpm_jax"
