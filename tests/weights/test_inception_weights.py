"""The Inception weights: the entries of the published file, its download and its checksum."""

import hashlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import torch_inception
from ddpm_jax.network.inception import Inception
from ddpm_jax.weights import inception_weights, torch_file
from ddpm_jax.weights.inception_weights import params_from_torch
from torch_inception import SHAPES


@pytest.fixture(scope="module")
def entries():
    """Every entry of the PyTorch file, with the values of the network in PyTorch."""
    return torch_inception.entries()


@pytest.fixture(scope="module")
def params(entries):
    return params_from_torch(entries)


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


@pytest.fixture
def remote(tmp_path, monkeypatch, entries):
    """A file of weights at a URL of this machine, and an empty cache folder."""
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
        assert list(cache.rglob(inception_weights.FILE))  # Half written, beside its final place.
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
