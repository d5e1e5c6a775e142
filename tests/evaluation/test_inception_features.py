"""Features on every device, moments of samples, and references and their cache."""

import shutil
import tempfile
from typing import NamedTuple

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

import torch_inception
from ddpm_jax.data import loading
from ddpm_jax.data import source as source_lib
from ddpm_jax.evaluation import inception_features, references
from ddpm_jax.evaluation import metrics as metrics_lib
from ddpm_jax.network import inception
from ddpm_jax.weights import inception_weights

CHECKSUM = "c" * 64


class Fake:
    """A network in place of Inception: projections that depend on the number of pixels alone."""

    def __init__(self, checksum=CHECKSUM):
        self.checksum = checksum
        self.seen = []  # Images per call.

    def features(self, images):
        assert isinstance(images, np.ndarray)
        self.seen.append(len(images))
        rows = np.float64(images).reshape(len(images), -1) / 255
        random = np.random.default_rng(rows.shape[1])
        return inception.Features(*(
            np.float32(rows @ random.normal(size=(rows.shape[1], d)))
            for d in (2048, 2023, 1008)
        ))

    def stream(self, read, n):
        for start in range(0, n, 64):
            yield self.features(read(np.arange(start, min(start + 64, n))))


def pixels(n, seed=0, shape=(4, 4, 3)):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


@pytest.fixture
def cache(monkeypatch):
    """An empty cache folder, removed after the test: a file in it takes 68 MB."""
    folder = tempfile.mkdtemp(prefix="ddpm_jax_cache_")
    monkeypatch.setenv("DDPM_JAX_CACHE", folder)
    yield folder
    shutil.rmtree(folder)


def fails(message, function, *arguments, **settings):
    with pytest.raises(ValueError, match=message) as error:
        function(*arguments, **settings)
    assert "\n" not in str(error.value)


# The network.


@pytest.fixture(scope="module")
def network():
    """Inception with the weights of torch_inception.py."""
    params = inception_weights.params_from_torch(torch_inception.entries())
    asked = []

    def load(path, *, sha256):
        asked.append((path, sha256))
        return params

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception_weights, "load", load)
        made = inception_features.Network("weights.pth", sha256=None)
        assert made.checksum == "unchecked"
        assert inception_features.Network().checksum == inception_weights.SHA256
        assert inception_features.Network(sha256=CHECKSUM).checksum == CHECKSUM
    assert asked == [("weights.pth", None), (None, inception_weights.SHA256), (None, CHECKSUM)]
    return made


NAMES = ("pool", "spatial", "logits")


def test_features_on_every_device_are_inceptions(network):
    """Three images on eight devices, against torch-fidelity's features of them."""
    expected = torch_inception.features()
    features = network.features(expected["images"][:3])
    floats = network.features(np.float32(expected["images"][:3]))
    for name in NAMES:
        array, scale = getattr(features, name), np.abs(expected[name]).max()
        assert isinstance(array, np.ndarray) and array.dtype == np.float32
        # Float32 sums of up to 4,032 products, 20 layers deep, as in test_inception.py.
        assert_allclose(array, expected[name][:3], rtol=0, atol=2e-5 * scale)
        # Another program, which XLA may sum in another order.
        assert_allclose(getattr(floats, name), array, rtol=0, atol=2e-6 * scale)


def test_grey_is_repeated_three_times(network):
    grey = pixels(2, shape=(32, 32, 1))
    features, expected = network.features(grey), network.features(grey.repeat(3, axis=3))
    for name in NAMES:
        assert_array_equal(getattr(features, name), getattr(expected, name))


@pytest.fixture
def sums(monkeypatch):
    """A `Network` whose features are sums of the pixels of a channel."""
    class Sums:
        def apply(self, variables, images):
            channels = np.float32(1) * images.sum((1, 2))
            factor = variables["params"]["factor"][None]
            return inception.Features(*(factor * channels[:, i : i + 1] for i in range(3)))

    monkeypatch.setattr(inception, "Inception", Sums)
    monkeypatch.setattr(
        inception_weights, "load", lambda path, sha256: {"factor": np.float32([1, 2])})
    return inception_features.Network()


@pytest.mark.parametrize("n", [1, 8, 9, 16, 37])
def test_any_number_of_images_goes_through_in_order(sums, monkeypatch, n):
    monkeypatch.setattr(inception_features, "BATCH", 2)  # 16 per round.
    images = pixels(n)
    for given in (images, np.float32(images)):
        features = sums.features(given)
        for channel, name in enumerate(NAMES):
            total = np.float64(images)[..., channel].sum((1, 2))
            assert_array_equal(getattr(features, name), total[:, None] * [1, 2])


@pytest.mark.parametrize("images, message", [
    (np.zeros((2, 4, 4, 2), np.uint8), r"2 channels .*config\.data\.channels=3"),
    (np.zeros((2, 4, 4, 4), np.uint8), r"4 channels .*config\.data\.channels=3"),
    (np.full((2, 4, 4, 3), np.nan, np.float32), "NaN or infinity"),
    (np.full((2, 4, 4, 1), np.inf, np.float32), "NaN or infinity"),
    (np.linspace(-1, 1, 48, dtype=np.float32).reshape(1, 4, 4, 3), r"lie in -1\.\.1 "),
    (np.full((2, 4, 4, 3), 255.5, np.float32), r"lie in 255\.5\.\.255\.5 "),
])
def test_images_that_inception_cannot_take_are_refused(sums, images, message):
    fails(message, sums.features, images)


# Samples.


class Given(NamedTuple):
    count: int
    mean: np.ndarray
    covariance: np.ndarray


def assert_moments(moments, rows):
    rows = np.float64(rows)
    assert moments.count == len(rows)
    for actual, expected in (
        (moments.mean, rows.mean(axis=0)), (moments.covariance, np.cov(rows.T)),
    ):  # float64, of batches and at once; a batch changes features by a float32 rounding.
        assert_allclose(actual, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_samples_have_the_moments_of_all_their_features():
    images, fake = pixels(30), Fake()
    batches = (images[a:b] for a, b in ((0, 13), (13, 14), (14, 30)))
    features = inception_features.SampleFeatures.from_batches(batches, fake)
    assert fake.seen == [13, 1, 16]
    whole = Fake().features(images)
    assert_moments(features.pool, whole.pool)
    assert_moments(features.spatial, whole.spatial)
    # A product of float64 matrices may depend on their size; float32 then.
    assert_allclose(features.features, whole.pool, rtol=1e-6)
    assert_allclose(features.logits, whole.logits, rtol=1e-6)
    assert features.features.dtype == features.logits.dtype == np.float32


def test_samples_of_nan_are_refused(sums):
    images = np.float32(pixels(4))
    images[2, 0, 0, 0] = np.nan
    fails("NaN", inception_features.SampleFeatures.from_batches, [images], sums)
    features = Fake().features(pixels(4))
    features.spatial[1] = np.nan
    broken = type("Broken", (), {"features": lambda self, images: features})()
    fails("NaN", inception_features.SampleFeatures.from_batches, [images], broken)


# References.


def assert_reference(reference, images, fake):
    features = Fake().features(images)
    n = len(images)
    assert_moments(Given(n, reference.mu, reference.sigma), features.pool)
    assert_moments(Given(n, reference.mu_s, reference.sigma_s), features.spatial)
    assert reference.count == len(images)
    assert reference.provenance["n"] == len(images)
    assert reference.provenance["inception"] == fake.checksum
    assert reference.provenance["resize"] == inception_features.RESIZE


def npz(folder, **arrays):
    np.savez(folder / "images.npz", **arrays)
    return {"name": "npz", "data_dir": str(folder / "images.npz")}


def test_splits_of_the_data_are_references(cache):
    settings = dict(image_shape=(8, 8, 1), data_settings={"name": "digits"})
    for split, n in (("train", 1497), ("test", 300)):
        fake, images = Fake(), loading.digits(split)[0]
        reference = inception_features.reference(split, fake, **settings)
        assert len(images) == n and sum(fake.seen) == n
        assert_reference(reference, images, fake)
        assert reference.provenance["data"] == "digits" and reference.provenance["split"] == split
        assert_allclose(reference.features, Fake().features(images).pool, rtol=1e-5, atol=1e-5)


def test_a_large_set_goes_through_in_batches(cache, tmp_path):
    images, fake = pixels(150), Fake()
    reference = inception_features.reference(
        "train", fake, image_shape=(4, 4, 3), data_settings=npz(tmp_path, train=images))
    assert fake.seen == [64, 64, 22]
    assert_reference(reference, images, fake)


def test_progress_is_shown_where_asked_for(capsys, terminal):
    source = source_lib.from_array(pixels(9))
    for progress in (True, False):
        (places, images), = inception_features.batches(source, progress=progress)
        assert_array_equal(places, np.arange(9))
        assert_array_equal(images, pixels(9))
        assert ("9/9" in capsys.readouterr().err) is progress


def test_a_file_of_images_is_a_reference(cache, tmp_path):
    images, fake = pixels(10), Fake()
    np.savez(tmp_path / "batch.npz", images, np.arange(10))  # arr_0 and labels, as ADM's
    name = str(tmp_path / "batch.npz")
    reference = inception_features.reference(name, fake, image_shape=(4, 4, 1), data_settings={})
    assert_reference(reference, images, fake)
    assert reference.provenance["file"] == "batch.npz"
    assert_allclose(reference.features, Fake().features(images).pool, rtol=1e-5, atol=1e-5)
    fails("batch.npz', which has images of 4x4, and the samples are 8x8",
          inception_features.reference, name, fake, image_shape=(8, 8, 3), data_settings={})


def test_a_file_of_statistics_is_a_reference_as_it_is(cache, tmp_path):
    mu, sigma, fake = np.arange(2048.0), np.eye(2048), Fake()
    np.savez(tmp_path / "stats.npz", mu=mu, sigma=sigma)
    name = str(tmp_path / "stats.npz")
    reference = inception_features.reference(name, fake, image_shape=(32, 32, 3), data_settings={})
    assert_array_equal(reference.mu, mu)
    assert_array_equal(reference.sigma, sigma)
    assert fake.seen == [] and reference.features is reference.mu_s is reference.count is None
    samples = inception_features.SampleFeatures.from_batches([pixels(6)], Fake())
    for score in (metrics_lib.sfid, metrics_lib.kid, metrics_lib.precision_recall,
                  metrics_lib.density_coverage):
        fails(rf"^{score.__name__} needs .*config\.evaluate\.metrics", score, samples, reference)


def test_of_a_file_of_both_the_images_count(cache, tmp_path):
    """KID needs features, and one network should have seen both sides."""
    images, fake = pixels(3), Fake()
    np.savez(tmp_path / "both.npz", arr_0=images, mu=np.zeros(2048), sigma=np.eye(2048))
    name = str(tmp_path / "both.npz")
    reference = inception_features.reference(name, fake, image_shape=(4, 4, 3), data_settings={})
    assert_reference(reference, images, fake)
    fails("both.npz', which has images of 4x4, and the samples are 4x8",
          inception_features.reference, name, fake, image_shape=(4, 8, 3), data_settings={})


def test_a_folder_of_pictures_is_a_reference(cache, tmp_path):
    images, fake, folder = pixels(5), Fake(), tmp_path / "faces"
    (folder / "below").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / "below" / f"{i}.png")
    reference = inception_features.reference(
        str(folder), fake, image_shape=(4, 4, 3), data_settings={})
    assert_reference(reference, images, fake)
    assert reference.provenance["folder"] == "faces"


def test_a_missing_test_split_is_refused(cache, tmp_path):
    settings = npz(tmp_path, train=pixels(4))
    fails("'npz' has no test split; .*config.evaluate.references", inception_features.reference,
          "test", Fake(), image_shape=(4, 4, 3), data_settings=settings)


def test_a_split_of_another_size_is_refused(cache):
    fails("train', which has images of 8x8, and the samples are 8x16", inception_features.reference,
          "train", Fake(), image_shape=(8, 16, 1), data_settings={"name": "digits"})


@pytest.fixture
def small(monkeypatch):
    """Networks with few features, whose files take a few kilobytes."""
    monkeypatch.setattr(references, "POOL", 5)
    monkeypatch.setattr(references, "SPATIAL", 3)
    monkeypatch.setattr(inception_features, "POOL", 5)
    monkeypatch.setattr(inception_features, "SPATIAL", 3)

    class Small(Fake):
        def features(self, images):
            pool, spatial, logits = super().features(images)
            return inception.Features(pool[:, :5], spatial[:, :3], logits)

    return Small


def test_what_is_known_is_not_computed_again(cache, tmp_path, small):
    def computed(train, fake, **more):
        settings = npz(tmp_path, train=train) | more
        reference = inception_features.reference(
            "train", fake, image_shape=(4, 4, 3), data_settings=settings)
        seen, fake.seen = sum(fake.seen), []
        return reference, seen

    images, fake = pixels(70), small()
    first, seen = computed(images, fake)
    assert seen == 70
    again, seen = computed(images, fake)
    assert seen == 0 and again.provenance == first.provenance
    for name in ("mu", "sigma", "mu_s", "sigma_s", "features"):
        assert_array_equal(getattr(again, name), getattr(first, name))
    assert computed(images, small())[1] == 0  # Another run, the same weights.
    assert computed(images, small("d" * 64))[1] == 70
    assert computed(pixels(70, seed=1), fake)[1] == 70
    assert computed(images[:69], fake)[1] == 69
    changed = images.copy()
    changed[-1, 3, 3, 2] ^= 1
    assert computed(changed, fake)[1] == 70
    for i in (1, 2, 35, 68):  # Each of them counts.
        changed = images.copy()
        changed[i, 1, 2, 0] ^= 128
        assert computed(changed, fake)[1] == 70
    assert computed(images.reshape(70, 2, 8, 3), fake, image_size=4)[1] == 70
    assert computed(images, fake)[1] == 0  # Nothing was overwritten.


def test_kept_features_are_spread_over_the_set(cache, tmp_path, small, monkeypatch):
    images = pixels(200)
    pool = small().features(images).pool
    for kept, batch in ((7, 1), (198, 1), (200, 64), (1000, 64)):
        monkeypatch.setattr(inception_features, "KEPT", kept)
        monkeypatch.setattr(inception_features, "BATCH", batch)
        fake = small()
        reference = inception_features.reference(
            "train", fake, image_shape=(4, 4, 3), data_settings=npz(tmp_path, train=images))
        # 1,000 of 200 are the same as 200, which are in the cache by then.
        assert sum(fake.seen) == (0 if kept == 1000 else 200)
        count = min(kept, 200)
        places = [round(i * 199 / (count - 1)) for i in range(count)]
        assert_allclose(reference.features, pool[places], rtol=1e-5, atol=1e-5)
        assert reference.provenance["kept"] == count and reference.count == 200
