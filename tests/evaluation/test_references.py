"""Reference statistics in files: those of other tools are read, damaged ones are refused."""

import dataclasses
import json
import pathlib
import pickle
import warnings
import zipfile

import numpy as np
import pytest

from ddpm_jax.evaluation import references, scores

PROVENANCE = {"source": "cifar10", "split": "train", "n": 60, "shape": [32, 32, 3]}


def moments(seed, n, d):
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32) + 1
    return scores.Moments.empty(d).update(x)


@pytest.fixture(scope="module")
def pool():
    return moments(0, 60, references.POOL)


@pytest.fixture(scope="module")
def plain(pool):
    return references.from_moments(pool, provenance=PROVENANCE)


@pytest.fixture(scope="module")
def full(pool):
    return references.from_moments(
        pool,
        moments(1, 60, references.SPATIAL),
        features=np.random.default_rng(2).normal(size=(5, references.POOL)),
        provenance=PROVENANCE,
    )


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).integers(0, 256, (10, 4, 6, 3), np.uint8)


def assert_same(actual, want):
    for field in dataclasses.fields(references.Reference):
        a, b = getattr(actual, field.name), getattr(want, field.name)
        if isinstance(b, np.ndarray):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
        else:
            assert a == b, field.name


# Files


@pytest.mark.parametrize("kind", ["plain", "full"])
def test_what_was_saved_is_loaded(tmp_path, request, kind):
    reference, path = request.getfixturevalue(kind), tmp_path / "made" / "reference.npz"
    references.save(reference, path)
    loaded = references.load(str(path))
    assert_same(loaded.statistics, reference)
    assert loaded.images is None
    assert [p.name for p in path.parent.iterdir()] == ["reference.npz"]
    assert path.stat().st_size < 34e6 if kind == "plain" else 67e6


def test_reference_holds_the_moments_of_all_images(pool, full):
    np.testing.assert_array_equal(full.mu, pool.mean)
    np.testing.assert_array_equal(full.sigma, pool.scatter / 59)
    assert full.count == 60 and full.features.dtype == np.float32
    assert full.mu_s.shape == (2023,) and full.sigma_s.shape == (2023, 2023)


def test_others_read_what_was_saved(tmp_path, full):
    references.save(full, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:  # As pytorch-fid does; no pickles by default.
        np.testing.assert_array_equal(file["mu"][:], full.mu)
        np.testing.assert_array_equal(file["sigma"][:], full.sigma)
        np.testing.assert_array_equal(file["sigma_s"], full.sigma_s)
        assert json.loads(str(file["provenance"])) == PROVENANCE


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_statistics_of_pytorch_fid_are_read(tmp_path, plain, write, dtype):
    path = tmp_path / "fid_stats.npz"
    write(path, mu=plain.mu.astype(dtype), sigma=plain.sigma.astype(dtype))
    statistics, images = references.load(path)
    assert images is None and statistics.sigma.dtype == statistics.mu.dtype == np.float64
    np.testing.assert_array_equal(statistics.mu, plain.mu.astype(dtype))
    np.testing.assert_array_equal(statistics.sigma, plain.sigma.astype(dtype))
    assert statistics.count is statistics.mu_s is statistics.sigma_s is statistics.features is None
    assert statistics.provenance == {"source": "file", "path": str(path)}


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_images_of_adm_are_read_batch_by_batch(tmp_path, images, write):
    path = tmp_path / "samples.npz"
    write(path, images, np.arange(10))  # arr_0 and the labels arr_1
    assert references.load(path) == (None, (10, 4, 6, 3))
    batches = list(references.image_batches(path, 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert all(batch.dtype == np.uint8 for batch in batches)
    np.testing.assert_array_equal(np.concatenate(batches), images)


def test_reference_batch_of_adm_holds_both(tmp_path, images, full):
    path = tmp_path / "VIRTUAL_imagenet64.npz"
    names = ("mu", "sigma", "mu_s", "sigma_s")
    np.savez(path, arr_0=images, **{name: getattr(full, name) for name in names})
    loaded = references.load(path)
    assert loaded.images == images.shape
    want = dataclasses.replace(
        full, features=None, count=None, provenance={"source": "file", "path": str(path)}
    )
    assert_same(loaded.statistics, want)


def test_images_behind_a_long_header_are_read(tmp_path, images):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as member:
        np.lib.format.write_array(member, images, version=(2, 0))
    np.testing.assert_array_equal(next(references.image_batches(path, 99)), images)


MU, SIGMA = np.zeros(2048, np.float32), np.eye(2048, dtype=np.float32)
LOPSIDED = SIGMA + np.eye(2048, k=1, dtype=np.float32)
PIXELS = np.zeros((2, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (dict(mu=MU[:768], sigma=SIGMA[:768, :768]), r"mu \[768\] and sigma \[768, 768\]"),
        (dict(mu=MU, sigma=SIGMA[:, :9]), r"sigma \[2048, 9\]"),
        (dict(mu=MU, sigma=SIGMA + np.nan), "NaN or infinity in mu or sigma"),
        (dict(mu=MU + np.inf, sigma=SIGMA), "NaN or infinity"),
        (dict(mu=MU, sigma=LOPSIDED), "not symmetric"),
        (dict(mu=MU, sigma=-SIGMA), "negative variance"),
        (dict(mu=MU, sigma=SIGMA, mu_s=MU[:2023]), "one of mu_s and sigma_s"),
        (dict(mu=MU, sigma=SIGMA, mu_s=MU, sigma_s=SIGMA), r"mu_s \[2048\]"),
        (dict(mu=MU, sigma=SIGMA, count=1), "count=1"),
        (dict(mu=MU, sigma=SIGMA, count=[3, 4]), "cannot be read"),
        (dict(mu=MU, sigma=SIGMA, provenance="{"), "cannot be read"),
        (dict(mu=MU, sigma=SIGMA, features=MU), r"features float32 \[2048\]"),
        (dict(mu=MU, sigma=SIGMA, features=SIGMA + np.inf), "infinity in features"),
        (dict(mu=MU), "it needs mu and sigma"),
        (dict(), "holds nothing"),
        (dict(arr_0=PIXELS.astype(np.float32)), "arr_0 float32"),
        (dict(arr_0=PIXELS.astype(np.int64) + 256), "values 0..255"),
        (dict(arr_0=PIXELS[..., 0]), r"\[2, 4, 4\], without channels; write images\[..., None\]"),
        (dict(arr_0=PIXELS[0]), r"\[4, 4, 3\]"),
        (dict(arr_0=PIXELS[:0]), "n >= 1"),
        (dict(arr_0=np.asfortranarray(PIXELS)), "Fortran"),
        (dict(arr_0=np.array([None])), "arr_0 object"),
        (dict(mu=np.array([None]), sigma=SIGMA), "cannot be read"),
        (dict(mu=MU, sigma=SIGMA, arr_0=PIXELS[..., :2]), r"\[2, 4, 4, 2\]"),
    ],
)
def test_what_cannot_be_compared_with_is_refused_in_one_line(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=words) as error:
        references.load(tmp_path / "a.npz")
    assert "\n" not in str(error.value) and "a.npz" in str(error.value)


class Payload:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("ran"),)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cannot be read"),
        (b"mu, sigma\n1, 2\n", "cannot be read"),
        (pickle.dumps(Payload()), "cannot be read"),
        (None, "does not exist"),
    ],
)
def test_what_is_no_archive_is_refused_and_not_run(tmp_path, monkeypatch, data, words):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.npz"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=words) as error:
        references.load(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_pickles_inside_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", mu=np.array([Payload()]), sigma=SIGMA)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        references.load("a.npz")
    assert not pathlib.Path("ran").exists()


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_images_damaged_further_on_are_refused_in_one_line(tmp_path, write):
    path, images = tmp_path / "a.npz", np.random.default_rng(0).bytes(64 * 3 * 256)
    images = np.frombuffer(images, np.uint8).reshape(64, 16, 16, 3)
    write(path, images)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    assert references.load(path).images == images.shape
    with pytest.raises(ValueError, match="damaged at or before image") as error:
        list(references.image_batches(path, 4))
    assert "\n" not in str(error.value)


def test_image_batches_refuse(tmp_path, plain, images):
    references.save(plain, tmp_path / "a.npz")
    with pytest.raises(ValueError, match="only statistics"):
        next(references.image_batches(tmp_path / "a.npz", 4))
    with pytest.raises(ValueError, match="batch_size=0"):
        next(references.image_batches(tmp_path / "a.npz", 0))


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch, plain):
    path = tmp_path / "a.npz"
    references.save(plain, path)
    before = path.read_bytes()

    def full_disk(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="disk full"):
        references.save(plain, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(provenance={"n": np.float32(1)}), "not JSON"),
        (dict(provenance={"n": float("nan")}), "not JSON"),
        (dict(sigma=LOPSIDED), "not symmetric"),
        (dict(features=np.zeros((3, 9), np.float32)), "features"),
    ],
)
def test_save_refuses_what_load_would(tmp_path, plain, change, words):
    with pytest.raises(ValueError, match=words) as error:
        references.save(dataclasses.replace(plain, **change), tmp_path / "a.npz")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_from_moments_refuses(pool):
    with pytest.raises(ValueError, match="spatial.count=59"):
        references.from_moments(pool, moments(1, 59, 2023), provenance={})
    with pytest.raises(ValueError, match="count=1"):
        references.from_moments(moments(0, 1, 2048), provenance={})
    with pytest.raises(ValueError, match=r"mu \[768\]"):
        references.from_moments(moments(0, 3, 768), provenance={})


# Cache


class Compute:
    """Counts its calls."""

    def __init__(self, reference):
        self.reference, self.calls = reference, 0

    def __call__(self):
        self.calls += 1
        return self.reference


@pytest.fixture
def compute(plain):
    return Compute(dataclasses.replace(plain, provenance={}))


def test_cache_computes_once(tmp_path, compute, plain):
    for provenance in (PROVENANCE, dict(reversed(PROVENANCE.items()))):
        reference = references.cached(tmp_path / "cache", provenance, compute)
        assert_same(reference, plain)
    assert compute.calls == 1
    (path,) = (tmp_path / "cache").iterdir()
    assert_same(references.load(path).statistics, plain)


def test_cache_takes_tuples_for_lists(tmp_path, compute):
    for shape in ((8, 8, 1), [8, 8, 1]):
        reference = references.cached(tmp_path, {"shape": shape}, compute)
        assert reference.provenance == {"shape": [8, 8, 1]}
    assert compute.calls == 1


def test_cache_keeps_other_provenance_apart(tmp_path, compute):
    references.cached(tmp_path, PROVENANCE, compute)
    reference = references.cached(tmp_path, PROVENANCE | {"split": "test"}, compute)
    assert reference.provenance["split"] == "test"
    assert compute.calls == 2 and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other", "no provenance"])
def test_a_damaged_cache_triggers_a_warning_and_is_computed_again(tmp_path, compute, plain, damage):
    references.cached(tmp_path, PROVENANCE, compute)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other":
        references.save(dataclasses.replace(plain, provenance={"split": "test"}), path)
    else:
        np.savez(path, mu=plain.mu, sigma=plain.sigma)
    with pytest.warns(UserWarning, match="computed again") as caught:
        reference = references.cached(tmp_path, PROVENANCE, compute)
    assert path.name in str(caught[0].message)
    assert_same(reference, plain)
    assert compute.calls == 2
    with warnings.catch_warnings(action="error"):
        references.cached(tmp_path, PROVENANCE, compute)
    assert compute.calls == 2


def test_cache_that_cannot_be_written_does_not_lose_the_work(tmp_path, compute, plain):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be written"):
        reference = references.cached(tmp_path / "file" / "cache", PROVENANCE, compute)
    assert_same(reference, plain)


def test_cache_refuses_provenance_before_computing(tmp_path, compute):
    with pytest.raises(ValueError, match="not JSON"):
        references.cached(tmp_path, {"path": tmp_path}, compute)
    assert compute.calls == 0


# Pairs


def empty(count, d=references.POOL):
    return scores.Moments.empty(d)._replace(count=count)


@pytest.mark.parametrize(
    ("samples", "reference", "want"),
    [
        (2049, 2049, []),
        (2048, 50_000, ["2048 samples leave a singular covariance"]),
        (50_000, 2048, ["2048 reference images leave a singular"]),
        (2, 3, ["2 samples leave", "3 reference images leave"]),
        (50_000, None, ["does not say how many"]),
    ],
)
def test_remarks(plain, samples, reference, want):
    remarks = references.remarks(empty(samples), dataclasses.replace(plain, count=reference))
    assert len(remarks) == len(want)
    assert all(words in line and "\n" not in line for line, words in zip(remarks, want))


def test_remarks_refuse(plain):
    with pytest.raises(ValueError, match="1 samples have no covariance"):
        references.remarks(empty(1), plain)
    with pytest.raises(ValueError, match="768 features and the reference 2048"):
        references.remarks(empty(100, 768), plain)
