"""Files are whole or not there."""

import pathlib

import numpy as np
import pytest

from ddpm_jax.runtime import files, partial_results


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
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-4 has its sum.
    assert files.sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("DDPM_JAX_CACHE", "/somewhere/else")
    assert files.cache_folder() == pathlib.Path("/somewhere/else")
    monkeypatch.delenv("DDPM_JAX_CACHE")
    assert files.cache_folder() == pathlib.Path.home() / ".cache" / "ddpm_jax"


def test_parts_are_taken_up_to_the_first_that_is_missing_or_damaged(tmp_path):
    assert list(partial_results.finished(tmp_path / "none")) == []
    rows, done = np.arange(10), 0
    for stop in (3, 4, 8, 10):
        part = rows[done:stop]
        partial_results.keep(tmp_path, done, {"rows": part, "twice": 2 * part})
        done = stop
    found = list(partial_results.finished(tmp_path))
    np.testing.assert_array_equal(np.concatenate([part["rows"] for part in found]), rows)
    np.testing.assert_array_equal(found[2]["twice"], [8, 10, 12, 14])
    assert [partial_results.num_rows(part) for part in found] == [3, 1, 4, 2]

    third = sorted(tmp_path.iterdir())[2]
    for damage in (third.read_bytes()[:50], b""):
        third.write_bytes(damage)
        assert len(list(partial_results.finished(tmp_path))) == 2
    third.unlink()
    assert len(list(partial_results.finished(tmp_path))) == 2
