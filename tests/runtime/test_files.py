"""Files are whole or not there."""

import pathlib

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


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("DDPM_JAX_CACHE", "/somewhere/else")
    assert files.cache_folder() == pathlib.Path("/somewhere/else")
    monkeypatch.delenv("DDPM_JAX_CACHE")
    assert files.cache_folder() == pathlib.Path.home() / ".cache" / "ddpm_jax"
