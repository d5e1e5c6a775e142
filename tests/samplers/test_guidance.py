"""Classifier-free guidance: its formula, and one call of twice the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tracing
from ddpm_jax.samplers import guidance as guidance_lib
from nonzero import SHAPE, TinyNet, nonzero_params


def answers(x, t, *, labels, channels=1):
    """A network whose output depends on its label, its x and its t."""
    mean = x * (labels + 1.0).reshape(-1, 1, 1, 1) + t.reshape(-1, 1, 1, 1)
    return jnp.concatenate([mean, 10 * mean], axis=-1) if channels == 2 else mean


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
def test_guidance_is_the_formula(scale):
    x = np.float32(np.random.default_rng(0).standard_normal((3, 2, 2, 1)))
    t, labels = np.float32([1, 5, 9]), np.int32([0, 2, 1])
    labelled, unlabelled = answers(x, t, labels=labels), answers(x, t, labels=np.int32([7, 7, 7]))
    # Ho and Salimans: (1 + w) labelled - w unlabelled, with scale 1 + w.
    expected = scale * labelled - (scale - 1) * unlabelled
    guided = guidance_lib.guided(answers, {"labels": labels}, null_label=7, scale=scale)
    np.testing.assert_allclose(guided(x, t), expected, rtol=1e-6, atol=1e-5)  # float32
    inside = guidance_lib.guided(
        answers, {"labels": labels}, null_label=7, scale=scale, interval=(2, 5)
    )
    np.testing.assert_allclose(inside(x, t)[1], expected[1], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(inside(x, t)[::2], labelled[::2], rtol=1e-6, atol=1e-5)


def test_guidance_by_vectors():
    def linear(x, t, *, vectors):
        return x * vectors.sum(axis=1).reshape(-1, 1, 1, 1)

    x = np.float32(np.random.default_rng(0).standard_normal((2, 2, 2, 1)))
    guided = guidance_lib.guided(
        linear, {"vectors": np.float32([[1, 2], [1, -3]])}, null_label=0, scale=2.0
    )
    np.testing.assert_allclose(  # Without, it is 0: 2 (3 x) and 2 (-2 x).
        guided(x, jnp.zeros(2)), 2 * x * np.float32([3, -2]).reshape(2, 1, 1, 1), rtol=1e-6
    )


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
def test_a_worse_network_is_led_away_from(scale):
    """Whatever the variances of the two; that of the better stays."""
    x = jnp.float32(np.random.default_rng(0).standard_normal((3, 2, 2, 1)))
    t = jnp.float32([1, 5, 9])
    better = functools.partial(answers, labels=np.int32([1, 1, 1]), channels=2)
    worse = functools.partial(answers, labels=np.int32([0, 2, 4]))
    guided = guidance_lib.autoguided(
        better, worse, scale=scale, interval=(1, 5), variance="learned",
        worse_variance="fixed_large",
    )(x, t)
    expected = worse(x, t) + scale * (better(x, t)[..., :1] - worse(x, t))
    np.testing.assert_allclose(guided[:2, ..., :1], expected[:2], rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(guided[2], better(x, t)[2])  # Outside of the interval.
    np.testing.assert_array_equal(guided[..., 1:], better(x, t)[..., 1:])


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_a_guided_output_gets_its_deviation_back(rescale):
    """Equations 15 and 16 of Lin et al. 2024, for each image."""
    random = np.random.default_rng(0)
    output, start = (jnp.float32(random.standard_normal((3, 4, 4, 2))) for _ in range(2))
    plain = start + 5 * (output - start)
    before, after = (x.std(axis=(1, 2, 3), keepdims=True) for x in (output, plain))
    expected = rescale * plain * before / after + (1 - rescale) * plain
    actual = guidance_lib.moved(output, start, jnp.zeros(3), 5.0, (), rescale, "fixed_large")
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    if rescale == 1:
        np.testing.assert_allclose(np.std(actual, axis=(1, 2, 3)), before.ravel(), rtol=1e-5)


def test_guidance_leaves_a_learned_variance_alone():
    x, t, labels = jnp.ones((2, 2, 2, 1)), jnp.zeros(2), jnp.int32([1, 2])
    apply_fn = functools.partial(answers, channels=2)
    guided = guidance_lib.guided(
        apply_fn, {"labels": labels}, null_label=5, scale=2.0, variance="learned_range"
    )(x, t)
    np.testing.assert_array_equal(guided[..., 1:], apply_fn(x, t, labels=labels)[..., 1:])
    np.testing.assert_array_equal(guided[..., 0].mean(axis=(1, 2)), [2 * 2 - 6, 2 * 3 - 6])


def test_guidance_is_one_call_of_twice_the_batch():
    model = TinyNet(num_classes=3)
    apply_fn = functools.partial(model.apply, {"params": nonzero_params(model)}, train=False)
    plain = functools.partial(apply_fn, labels=jnp.zeros(4, jnp.int32))
    guided = guidance_lib.guided(
        apply_fn, {"labels": jnp.zeros(4, jnp.int32)}, null_label=3, scale=2.0
    )
    counts, batches = [], []
    for f in (plain, guided):
        jaxpr = jax.make_jaxpr(f)(jnp.zeros((4, *SHAPE)), jnp.zeros(4, jnp.int32)).jaxpr
        convolutions = [
            e for e in tracing.equations(jaxpr) if e.primitive.name == "conv_general_dilated"
        ]
        counts.append(len(convolutions))
        batches.append(convolutions[0].invars[0].aval.shape[0])
    assert counts[0] == counts[1] and batches == [4, 8]
