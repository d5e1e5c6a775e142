"""The blocks of the network against plain NumPy and published numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import oracle_unet
from ddpm_jax.network.blocks import (
    AttentionBlock, Dense, Dropout, ResBlock, default_num_groups, fan_avg, timestep_embedding,
)
from filled import fill, shapes

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("t_dtype", [np.int32, np.float32])
@pytest.mark.parametrize(
    "settings, t, expected",
    [
        (dict(), 1, {0: .84147098, 1: .76043874, 63: .0001, 64: .54030231, 65: .64940967,
                     127: 1.0}),
        (dict(), 999, {0: -.02646075, 1: .72670883, 63: .09973392, 64: .99964985,
                       65: -.68694562, 127: .99501414}),
        (dict(order="cos_sin", freq_shift=0), 1,
         {0: .54030231, 1: .64790587, 63: .99999999, 64: .84147098, 65: .76172041,
          127: .00011548}),
    ],
    ids=["paper 1", "paper 999", "improved-diffusion 1"],
)
def test_embedding_has_the_published_values(settings, t, expected, t_dtype):
    actual = timestep_embedding(np.array([0, t], t_dtype), 128, **settings)
    assert actual.shape == (2, 128) and actual.dtype == jnp.float32
    # An angle of 999 has a float32 ulp of 6e-5; eight decimals are written.
    atol = 6e-5 if t == 999 else 1e-7
    assert_allclose(
        actual[1, list(expected)], list(expected.values()), rtol=0, atol=atol
    )


def test_odd_embedding_ends_in_a_zero():
    even, odd = (timestep_embedding(np.array([5]), dim) for dim in (6, 7))
    assert_array_equal(odd, np.pad(even, ((0, 0), (0, 1))))


WIDTHS = (2, 3, 4, 6, 8, 12, 20, 32, 40, 100)


@pytest.mark.parametrize("scale_shift", [False, True])
def test_time_changes_every_block_at_every_width(scale_shift):
    """The same x with two times; a norm that undid the bias would leave 1e-6 of it."""
    def difference(width):
        block = ResBlock(width, 0.0, scale_shift, None, 1e-6, jnp.float32)
        x = jnp.asarray(RNG.standard_normal((1, 4, 4, width)), jnp.float32)
        temb = jnp.asarray(RNG.standard_normal((2, 1, 8)), jnp.float32)
        params = fill(shapes(block, x, temb[0], None, train=False))
        one, other = (
            block.apply({"params": params}, x, row, None, train=False) for row in temb
        )
        return jnp.abs(one - other).max()

    for width, moved in zip(WIDTHS, jax.jit(lambda: [difference(w) for w in WIDTHS])()):
        assert moved > 0.01, width


@pytest.mark.parametrize(
    "channels, groups",
    [(2, 1), (3, 1), (4, 1), (6, 1), (7, 1), (8, 2), (12, 3), (20, 5), (32, 8), (40, 10),
     (100, 25), (128, 32), (192, 32), (256, 32), (1024, 32)],
)
def test_default_groups_leave_four_channels_each(channels, groups):
    assert default_num_groups(channels) == groups


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_rate(rate):
    x = jnp.ones((8, 32, 32, 4))
    y = jax.jit(lambda rng: Dropout(rate).apply(
        {}, x, jnp.arange(8), train=True, rngs={"dropout": rng}
    ))(jax.random.key(0))
    kept = np.asarray(y) != 0
    stays = 1 - round(rate * 2**16) / 2**16
    assert_allclose(y[kept], 1 / stays, rtol=1e-6)  # One division.
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / kept.size)
    assert len(np.unique(kept.reshape(8, -1), axis=0)) == 8


@pytest.mark.parametrize("height", [1, 2, 5, 32])
def test_rows_of_an_image_drop_values_of_their_own(height):
    """The upper and the lower rows take the halves of the same random words."""
    shape = (8, height, 32, 64)
    kept = np.asarray(jax.jit(lambda rng: Dropout(0.5).apply(
        {}, jnp.ones(shape), jnp.arange(8), train=True, rngs={"dropout": rng}
    ))(jax.random.key(1))) != 0
    rows = kept.swapaxes(0, 1).reshape(height, -1)
    n = rows.shape[1]
    assert (np.abs(rows.mean(1) - 0.5) < 5 * np.sqrt(0.25 / n)).all()
    agree = [(a == b).mean() for i, a in enumerate(rows) for b in rows[:i]]
    # Two independent rows agree in half of their values; 496 pairs at 32 rows.
    assert (np.abs(np.array(agree) - 0.5) < 5 * np.sqrt(0.25 / n)).all()


def test_a_dense_layer_is_one_product_of_matrices():
    """Whose gradients are products without a transposed image."""
    x = np.float32(RNG.standard_normal((2, 3, 4, 5)))
    layer = Dense(6, fan_avg, jnp.float32)
    params = fill(shapes(layer, x))
    y = layer.apply({"params": params}, x)
    assert_allclose(y, np.float64(x) @ params["kernel"] + params["bias"], rtol=0, atol=1e-5)

    def gradients(params, x):
        return jax.grad(lambda *given: layer.apply({"params": given[0]}, given[1]).sum(), (0, 1))(
            params, x
        )

    products = [
        eqn.invars for eqn in jax.make_jaxpr(gradients)(params, x).eqns
        if eqn.primitive.name == "dot_general"
    ]
    assert len(products) >= 2 and all(x.aval.ndim == 2 for pair in products for x in pair)


def test_a_dense_layer_in_bfloat16_rounds_once_on_a_gpu(as_on_a_gpu):
    """Not the product, and then its sum with the bias."""
    x, layer = jnp.bfloat16(RNG.standard_normal((2, 3, 5))), Dense(6, fan_avg, jnp.bfloat16)
    params = fill(shapes(layer, x))
    y = layer.apply({"params": params}, x)
    assert y.dtype == jnp.bfloat16
    kernel = np.float64(jnp.bfloat16(params["kernel"]))
    exact = np.float64(x) @ kernel + params["bias"]
    # Half of the last bit, and what float32 adds.
    assert_allclose(np.float64(y), exact, rtol=2.0**-8 + 1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_matches_numpy(heads):
    block = AttentionBlock(heads, None, 1e-6, jnp.float32)
    x = np.float32(RNG.standard_normal((2, 3, 2, 12)))
    params = fill(shapes(block, x))
    for name in "qk":  # So that the softmax is far from flat and shows its scale.
        params[name]["kernel"] = 3 * params[name]["kernel"]
    actual = jax.jit(lambda x: block.apply({"params": params}, x))(x)
    exact = jax.tree.map(np.float64, params)
    expected = [oracle_unet.attention(exact, np.float64(image), 3, heads) for image in x]
    # Float32: scores of up to 30 are known to 2e-6.
    assert_allclose(actual, expected, rtol=0, atol=2e-5)


def test_norms_do_not_cancel():
    """E[x^2] - E[x]^2 of numbers about 1000 is lost in float32; (x - E[x])^2 is not."""
    block = AttentionBlock(1, None, 1e-6, jnp.float32)
    x = np.float32(1000 + RNG.standard_normal((1, 3, 2, 12)))
    params = fill(shapes(block, x))
    actual = jax.jit(lambda x: block.apply({"params": params}, x))(x)
    exact = jax.tree.map(np.float64, params)
    expected = oracle_unet.attention(exact, np.float64(x[0]), 3)
    # Float32 knows the mean to 1e-4, and x^2 only to 0.06, with a variance of 1.
    assert_allclose(actual[0], expected, rtol=0, atol=1e-3)
