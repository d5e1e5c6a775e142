"""The Inception network against torch-fidelity's, with the same weights and images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import torch_inception
import tracing
from ddpm_jax.network.inception import Inception, resize
from ddpm_jax.weights.inception_weights import params_from_torch


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
