"""The Inception network against torch-fidelity's, with the same weights and real images."""

import hashlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import torch_inception
import tracing
from ddpm_jax.network.inception import Inception, resize
from ddpm_jax.weights import inception_weights, torch_file
from ddpm_jax.weights.inception_weights import params_from_torch
from torch_inception import SHAPES


@pytest.fixture(scope="module")
def entries():
    """Every entry of the PyTorch file, with the values that its own network was given."""
    return torch_inception.entries()


@pytest.fixture(scope="module")
def params(entries):
    return params_from_torch(entries)


@pytest.fixture(scope="module")
def expected():
    return torch_inception.features()


@pytest.fixture(scope="module")
def features(params, expected):
    network = jax.jit(lambda params, images: Inception().apply({"params": params}, images))
    return jax.device_get(network(params, expected["images"]))


def close(actual, expected, tolerance):
    """Differences as a share of the largest value, since many are nearly zero."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(
    "name, width", [("pool", 2048), ("spatial", 2023), ("logits", 1008)]
)
def test_features_are_those_of_torch_fidelity(name, width, features, expected):
    actual = getattr(features, name)
    assert actual.shape == (8, width) and actual.dtype == np.float32
    # Float32 sums of up to 4,032 products, 20 layers deep; measured 3e-6.
    close(actual, expected[name], 2e-5)


def test_images_tell_features_apart(expected):
    """So the test above sees the images, not only the biases."""
    for name in ("pool", "spatial", "logits"):
        assert expected[name].std(0).mean() > 0.05 * expected[name].std()


def test_entries_are_those_of_the_file():
    assert len(SHAPES) == 566
    assert {name: list(shape) for name, shape in inception_weights.entry_shapes().items()} == SHAPES


def test_params_have_the_shapes_of_the_network(params):
    expected = jax.eval_shape(Inception().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected["params"])
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


def test_batch_counts_may_be_absent(entries, params):
    fewer = {name: value for name, value in entries.items() if "num_batches" not in name}
    assert len(fewer) == 472
    jax.tree.map(np.testing.assert_array_equal, params_from_torch(fewer), params)


@pytest.mark.parametrize("change, message", [
    ({"fc.bias": None}, r"entry 'fc\.bias' of Inception is missing"),
    ({"Mixed_6d.branch1x1.bn.bias": None}, r"'Mixed_6d\.branch1x1\.bn\.bias' .* missing"),
    ({"AuxLogits.fc.bias": np.zeros(9)}, r"'AuxLogits\.fc\.bias' is none of Inception's"),
    ({"fc.weight": np.zeros((1000, 2048))},
     r"'fc\.weight' has shape \[1000, 2048\], and Inception's has \[1008, 2048\]"),
    ({"Conv2d_1a_3x3.bn.bias": np.zeros((1, 32))}, r"has shape \[1, 32\]"),
])
def test_refuses_other_entries(change, message, entries):
    wrong = {k: v for k, v in {**entries, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message) as error:
        params_from_torch(wrong)
    assert inception_weights.URL in str(error.value) and "\n" not in str(error.value)


def test_every_product_is_float32(params):
    """TPUs would multiply in bfloat16, recent GPUs in TF32."""
    def network(images):
        return Inception().apply({"params": params}, images)

    jaxpr = jax.make_jaxpr(network)(jnp.zeros((1, 8, 8, 3)))
    products = [
        equation for equation in tracing.equations(jaxpr.jaxpr)
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    assert len(products) == 94 + 1 + 2  # Convolutions, the last layer, the resize.
    highest = jax.lax.Precision.HIGHEST
    for equation in products:
        assert equation.params["precision"] in (highest, (highest, highest))


@pytest.mark.parametrize("shape", [(32, 32), (5, 7), (299, 299), (64, 300), (1, 1)])
@pytest.mark.parametrize("size", [12, 299])
def test_resize_is_tensorflows(shape, size):
    """Pixel by pixel, from the definition; float64."""
    images = np.float32(np.random.default_rng(0).uniform(0, 255, (1, *shape, 2)))
    actual = resize(images, size)
    assert actual.shape == (1, size, size, 2) and actual.dtype == np.float32
    height, width = shape
    for i, j in np.random.default_rng(1).integers(size, size=(200, 2)).tolist() + [[0, 0]]:
        y, x = i * height / size, j * width / size
        top, left = int(y), int(x)
        corners = [
            np.float64(images[0, min(top + a, height - 1), min(left + b, width - 1)])
            * (y - top if a else 1 - y + top) * (x - left if b else 1 - x + left)
            for a in (0, 1) for b in (0, 1)
        ]
        # Float32 knows a place near 300 to 3e-5 pixels, and a pixel apart is up to 255.
        np.testing.assert_allclose(actual[0, i, j], sum(corners), rtol=0, atol=0.01)


def test_resize_matches_torch_fidelity(expected):
    actual = resize(np.float32(expected["images"][:1]), 40)
    # Numbers up to 255 in float32.
    np.testing.assert_allclose(actual, expected["resized"], rtol=0, atol=1e-4)


def test_floats_are_not_rounded(params):
    """Features of a picture between two grey levels differ from those of either."""
    images = np.broadcast_to(np.float32([[[[100]]], [[[100.5]]], [[[101]]]]), (3, 8, 8, 3))
    spatial = jax.jit(Inception().apply)({"params": params}, images).spatial
    for neighbour in (0, 2):
        assert np.abs(spatial[1] - spatial[neighbour]).max() > 1e-3


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (8, 8, 3)])
def test_refuses_other_images(shape, params):
    with pytest.raises(ValueError, match=r"images have shape .* needs \[b, h, w, 3\]"):
        Inception().apply({"params": params}, np.zeros(shape, np.float32))


@pytest.fixture
def remote(tmp_path, monkeypatch, entries):
    """A weight file on a server (of this machine), and an empty cache folder."""
    source, cache = tmp_path / "server" / "weights", tmp_path / "home" / "cache"
    source.parent.mkdir()
    source.write_bytes(b"weights")
    monkeypatch.setattr(inception_weights, "URL", source.as_uri())
    monkeypatch.setenv("DDPM_JAX_CACHE", str(cache))

    def read(path):
        assert pathlib.Path(path).read_bytes() == b"weights"
        return entries

    monkeypatch.setattr(torch_file, "read", read)
    return source, cache


RIGHT = hashlib.sha256(b"weights").hexdigest()


def test_load_downloads_once(remote, params):
    source, cache = remote
    loaded = inception_weights.load(sha256=RIGHT)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert [path.name for path in cache.iterdir()] == [inception_weights.FILE]
    source.unlink()
    inception_weights.load(sha256=RIGHT)


def test_load_takes_a_path(remote, tmp_path, params):
    path = tmp_path / "elsewhere"
    path.write_bytes(b"weights")
    for sha256 in (RIGHT, None):
        loaded = inception_weights.load(str(path), sha256=sha256)
        jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert not remote[1].exists()  # Nothing was downloaded.


def fails(message, *arguments, **settings):
    with pytest.raises(ValueError, match=message) as error:
        inception_weights.load(*arguments, **settings)
    assert "\n" not in str(error.value)
    assert inception_weights.URL in str(error.value)
    assert "--config.evaluate.inception=PATH" in str(error.value)


def test_a_wrong_download_leaves_nothing(remote):
    _, cache = remote
    fails(f"has SHA-256 {RIGHT}, and Inception's weights have {inception_weights.SHA256}")
    assert list(cache.iterdir()) == []


def test_an_interrupted_download_leaves_nothing(remote, monkeypatch):
    _, cache = remote

    def interrupt(source, file):
        file.write(source.read(3))
        file.flush()
        assert list(cache.rglob(inception_weights.FILE))  # Half-written, beside its place.
        assert not (cache / inception_weights.FILE).exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(inception_weights.shutil, "copyfileobj", interrupt)
    with pytest.raises(KeyboardInterrupt):
        inception_weights.load(sha256=RIGHT)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("url", ["file:///no/such/file", "http://localhost:1/weights"])
def test_no_network_says_what_to_do(url, remote, monkeypatch):
    _, cache = remote
    monkeypatch.setattr(inception_weights, "URL", url)
    fails(f"cannot be downloaded to {cache} .*put it there")
    assert list(cache.iterdir()) == []


def test_refuses_a_wrong_or_missing_file(remote, tmp_path):
    wrong = tmp_path / "wrong.pth"
    fails(r"wrong\.pth: cannot be read .No such file", wrong, sha256=None)
    fails(r"cannot be read .Is a directory", tmp_path)
    wrong.write_bytes(b"other")
    fails(r"wrong\.pth: has SHA-256", wrong)
    _, cache = remote
    cache.mkdir(parents=True)
    (cache / inception_weights.FILE).write_bytes(b"other")
    fails(rf"{inception_weights.FILE}: has SHA-256", sha256=RIGHT)


def test_the_file_is_the_published_one():
    file, sha256 = inception_weights.FILE, inception_weights.SHA256
    assert sha256.startswith(file.split("-")[-1].removesuffix(".pth")) and len(sha256) == 64
    assert inception_weights.URL.endswith(f"/{file}")
