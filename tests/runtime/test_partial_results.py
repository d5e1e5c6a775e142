"""Parts of a result are used up to the first that is missing or damaged."""

import numpy as np

from ddpm_jax.runtime import partial_results


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
