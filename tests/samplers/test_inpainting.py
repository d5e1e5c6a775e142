"""The rows are those of RePaint, and the chain keeps the known part and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import oracle
import tracing
from ddpm_jax.diffusion import randomness
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import predict_fn
from ddpm_jax.samplers import inpainting
from ddpm_jax.samplers import ddim as ddim_lib

M, S = 0.3, 0.25  # Pixels are N(M, S^2), independent.
SHAPE = (8, 8, 1)
FULL = schedule_lib.from_betas(np.linspace(1e-3, 0.4, 20))
LEFT = np.broadcast_to(np.arange(8) < 4, (8, 8))[..., None]  # known


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def published(t_T, jump_length, jump_n_sample):
    """The states of RePaint's chain (its paper, Appendix B), down to -1, the data."""
    jumps = {j: jump_n_sample - 1 for j in range(0, t_T - jump_length, jump_length)}
    t, states = t_T, []
    while t >= 1:
        t = t - 1
        states.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] = jumps[t] - 1
            for _ in range(jump_length):
                t = t + 1
                states.append(t)
    return states + [-1]


@pytest.mark.parametrize("settings", [
    (250, 10, 10), (20, 10, 2), (20, 5, 3), (20, 1, 2), (20, 7, 4), (20, 20, 9), (20, 3, 1),
    (1, 1, 5),
])
def test_rows_go_the_published_way(settings):
    states = [settings[0] - 1]  # State t is x noised t + 1 times; -1 is the data.
    for t, up in inpainting.visits(*settings):
        assert t == states[-1]
        states += [t - 1, *range(t, t + up)]
    assert states == published(*settings)


def test_repaints_own_number_of_calls():
    rows = inpainting.visits(250, 10, 10)
    assert len(rows) == 2410 and sum(up for _, up in rows) == 2160  # 4,570 in all
    assert inpainting.visits(5, 10, 10) == [(4, 0), (3, 0), (2, 0), (1, 0), (0, 0)]


@pytest.mark.parametrize("settings, says", [
    (dict(jump_length=0), "jump_length=0 must be a whole number of at least 1"),
    (dict(resamplings=0), "resamplings=0 must be a whole number of at least 1"),
    (dict(resamplings=10, jump_length=20), "resamplings=10 has no effect with jump_length=20 on "
     "a chain of 20 steps.*; write jump_length=10 or resamplings=1"),
    (dict(resamplings=2, jump_length=99), "resamplings=2 has no effect with jump_length=99"),
    (dict(jump_length=3), "jump_length=3 has no effect with resamplings=1, .*; write resampling"),
])
def test_numbers_that_mean_nothing_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        inpainting.repaint(FULL, **settings)


def test_every_shorter_jump_changes_the_rows():
    for jump_length in range(1, FULL.num_timesteps):
        rows = inpainting.repaint(FULL, jump_length=jump_length, resamplings=2)
        assert rows.num_calls > FULL.num_timesteps
    with pytest.raises(ValueError, match="a chain of 1 steps.*; write resamplings=1.$"):
        inpainting.repaint(schedule_lib.from_betas([0.5]), resamplings=2)


def test_rows_hold_the_levels():
    rows = inpainting.repaint(FULL, jump_length=4, resamplings=3)
    for row, (t, up) in enumerate(inpainting.visits(20, 4, 3)):
        scale, variance = oracle.compose(FULL.beta, t)
        up_scale, up_variance = oracle.compose(FULL.beta[t:], up)
        assert rows.t[row] == t
        assert_allclose(
            [rows.signal[row], rows.noise[row] ** 2, rows.up_signal[row], rows.up_noise[row] ** 2],
            [scale, variance, up_scale, up_variance], rtol=1e-9, atol=1e-12)
    assert rows.num_calls == len(rows.t)
    assert (rows.signal[-1], rows.noise[-1], rows.up_signal[-1], rows.up_noise[-1]) == (1, 0, 1, 0)


def best(schedule, table=None):
    """(x_t, t) -> E[eps | x_t]: affine in x_t at each step."""
    levels = np.array([oracle.compose(schedule.beta, t + 1) for t in range(len(schedule.beta))])
    signal, variance = levels.T
    slope = jnp.float32(np.sqrt(variance) / (signal**2 * S**2 + variance))
    signal = jnp.float32(signal)

    def denoise(x, t):
        return slope[t][:, None, None, None] * (x - signal[t][:, None, None, None] * M)

    return denoise


def draw(rows, n=256, *, known=0.9, mask=LEFT, predict=None, seed=0):
    predict = predict or predict_fn(FULL, best(FULL), clip=False)
    image = np.full((n, *SHAPE), known, np.float32)
    hold = inpainting.masked(np.broadcast_to(mask, image.shape))
    chain = jax.jit(lambda x_T, rngs: inpainting.inpaint(
        rows, predict, x_T, rngs, image, hold))
    x_T = randomness.standard_normal(keys(n, seed + 1), SHAPE)
    return np.asarray(chain(x_T, keys(n, seed)))


def moments(rows, eta=None):
    """(mean, variance) of a free pixel after the rows, which are affine in it."""
    mean, variance = 0.0, 1.0
    for t, up_signal, up_noise in zip(rows.t, rows.up_signal, rows.up_noise):
        def to(x):
            x_0 = oracle.expected_x_0(FULL.beta, t + 1, x, M, S)
            return oracle.posterior(FULL.beta, t + 1, x_0, x)[0]

        noise = oracle.reverse_variance(FULL.beta, t + 1, "fixed_large") if t else 0.0
        mean, variance = to(mean), (to(1.0) - to(0.0)) ** 2 * variance + noise
        mean, variance = up_signal * mean, up_signal**2 * variance + up_noise**2
    return mean, variance


@pytest.mark.parametrize("jump_length, resamplings", [(10, 1), (5, 3)])
def test_known_pixels_stay_and_free_ones_follow_their_law(jump_length, resamplings):
    rows = inpainting.repaint(FULL, jump_length=jump_length, resamplings=resamplings)
    actual = draw(rows)
    assert_array_equal(actual[:, LEFT[..., 0]], np.float32(0.9))  # exactly
    free = np.float64(actual[:, ~LEFT[..., 0]])
    mean, variance = moments(rows)
    assert_allclose([mean, variance**0.5], [M, S], rtol=0.2)  # The recursion itself is right.
    # Five standard errors of 256 * 32 draws.
    assert abs(free.mean() - mean) < 5 * np.sqrt(variance / free.size)
    assert abs(free.var() - variance) < 5 * variance * np.sqrt(2 / free.size)


@pytest.mark.parametrize("calls", [3, 9, 10])
def test_on_the_way_known_pixels_are_noised_like_the_rest(calls):
    """After the ninth row x has come down to eleven noising steps and gone up again by five."""
    rows = inpainting.repaint(FULL, jump_length=5, resamplings=2)
    t, up = inpainting.visits(20, 5, 2)[calls - 1]
    first = jax.tree.map(lambda x: x[:calls], rows)
    seen = np.float64(draw(first)[:, LEFT[..., 0]])
    scale, variance = oracle.compose(FULL.beta, t + up)
    assert abs(seen.mean() - scale * 0.9) < 5 * np.sqrt(variance / seen.size)
    assert abs(seen.var() - variance) < 5 * variance * np.sqrt(2 / seen.size)
    free = np.float64(draw(first)[:, ~LEFT[..., 0]])
    mean, variance = moments(first)
    assert abs(free.mean() - mean) < 5 * np.sqrt(variance / free.size)
    assert abs(free.var() - variance) < 5 * variance * np.sqrt(2 / free.size)


def test_some_rows_go_up():
    assert {up for _, up in inpainting.visits(20, 5, 2)[8:10]} == {0, 5}


def test_every_noise_is_its_own():
    """The noise of known pixels differs between rows, between images, and from the free noise."""
    rows = inpainting.repaint(FULL, jump_length=1, resamplings=2)
    after = [draw(jax.tree.map(lambda x: x[:calls], rows), n=2) for calls in (4, 5)]
    t = [inpainting.visits(20, 1, 2)[calls - 1] for calls in (4, 5)]
    eps = [
        (x[:, LEFT[..., 0]] - 0.9 * oracle.compose(FULL.beta, sum(row))[0])
        / np.sqrt(oracle.compose(FULL.beta, sum(row))[1]) for x, row in zip(after, t)
    ]
    for a, b in ((eps[0], eps[1]), (eps[0][0], eps[0][1])):
        # 64 or 32 pairs of normal draws: correlations within four standard deviations.
        assert abs(np.mean(a * b)) < 4 / np.sqrt(a.size) and np.abs(a - b).max() > 0.5


def test_an_image_depends_on_its_own_key_alone():
    rows = inpainting.repaint(FULL, jump_length=5, resamplings=2)
    predict = predict_fn(FULL, best(FULL))
    hold = inpainting.masked(np.broadcast_to(LEFT, (3, *SHAPE)))
    x_T, rngs = randomness.standard_normal(keys(3, 1), SHAPE), keys(3)
    known = jnp.float32(np.random.default_rng(0).uniform(-1, 1, (3, *SHAPE)))
    chain = jax.jit(lambda *a: inpainting.inpaint(
        rows, predict, *a, hold))
    turned = chain(x_T[::-1], rngs[::-1], known[::-1])[::-1]
    actual = chain(x_T, rngs, known)
    assert_array_equal(turned, actual)
    assert np.abs(actual[0] - actual[1])[~LEFT].max() > 0.1
    other = chain(x_T, rngs.at[2].set(keys(4)[3]), known)
    assert_array_equal(other[:2], actual[:2])


def test_ddim_steps_are_as_good():
    """Without noise, each free pixel keeps its quantile of x_T, with known pixels or without."""
    predict = ddim_lib.ddim_fn(FULL, predict_fn(FULL, best(FULL), clip=False))
    rows = inpainting.repaint(FULL)
    rngs, x_T = keys(2), randomness.standard_normal(keys(2, 1), SHAPE)
    direct = ddim_lib.ddim(FULL, predict_fn(FULL, best(FULL), clip=False), x_T, rngs)
    actual = draw(rows, 2, predict=predict)
    assert_allclose(actual[:, ~LEFT[..., 0]], direct[:, ~LEFT[..., 0]], rtol=0, atol=1e-5)


def test_one_scan_that_calls_the_network_once():
    rows = inpainting.repaint(FULL, jump_length=5, resamplings=2)
    calls, steps = [], []

    def denoise(x, t):
        calls.append(t)
        return jax.lax.dot(x.reshape(len(x), -1), jnp.ones((64, 64))).reshape(x.shape)

    zeros = jnp.zeros((2, *SHAPE))
    jaxpr = jax.make_jaxpr(lambda x, rngs: inpainting.inpaint(
        rows, predict_fn(FULL, denoise), x, rngs, x, inpainting.grey, on_step=steps.append,
    ))(zeros, keys(2)).jaxpr
    named = [(e.primitive.name, e) for e in tracing.equations(jaxpr)]
    scan, = (equation for name, equation in named if name == "scan")
    names = [name for name, _ in named]
    assert scan.params["length"] == rows.num_calls == 35 and "while" not in names
    assert names.count("dot_general") == len(calls) == len(steps) == 1
    assert calls[0].shape == (2,) and calls[0].dtype == jnp.int32


def test_grey_is_one_axis_of_an_orthonormal_basis():
    random = np.random.default_rng(0)
    basis, _ = np.linalg.qr(np.column_stack([np.ones(3), random.standard_normal((3, 2))]))
    known, x = random.standard_normal((2, 2, 4, 4, 3))
    turned, seen = x @ basis, known @ basis
    turned[..., 0] = seen[..., 0]
    actual = inpainting.grey(jnp.float32(known), jnp.float32(x))
    assert_allclose(actual, turned @ basis.T, rtol=0, atol=1e-6)
