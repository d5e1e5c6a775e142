"""A world whose best denoiser is known: pixels are N(M, S^2), independent of each other.

The best prediction is then affine in x at each level, every sampler an affine recursion, and
the probability-flow ODE keeps every quantile: a line, in closed form.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

import oracle
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.samplers import dpm_solver

M, S = 0.3, 0.25
SHAPE = (8, 8, 1)


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def grid_pixels(n, shape=SHAPE, seed=0):
    """Pixels of this world rounded to the 256 values, as whole numbers [n, *shape]."""
    x = np.random.default_rng(seed).normal(M, S, (n, *shape))
    return np.clip(np.round((x + 1) * 127.5), 0, 255)


def normal_cdf(z):
    return 0.5 * (1 + np.vectorize(math.erf)(z / np.sqrt(2)))


def levels_of(schedule):
    """(signal, sigma) at every step, one noising after another."""
    each, scale, variance = [], 1.0, 0.0
    for beta in schedule.beta:
        step, noise = oracle.compose([beta], 1)
        scale, variance = scale * step, step**2 * variance + noise
        each.append((scale, np.sqrt(variance)))
    return np.array(each).T


def best_eps(signal, sigma, x):
    """E[eps | x] where x = signal x_0 + sigma eps and x_0 ~ N(M, S^2)."""
    return sigma * (x - signal * M) / (signal**2 * S**2 + sigma**2)


def log_ratio_at(schedule):
    """t -> log(sigma / signal); linear between two steps."""
    signal, sigma = levels_of(schedule)
    steps = jnp.arange(len(signal), dtype=jnp.float32)
    table = jnp.asarray(np.log(sigma / signal), jnp.float32)
    return lambda t: jnp.interp(t.astype(jnp.float32), steps, table)


def optimal(schedule, mean="eps"):
    """(x_t, t) -> the best output of a network; t may lie between two steps."""
    log_ratio = log_ratio_at(schedule)

    def denoise(x_t, t):
        signal, sigma = (
            jnp.sqrt(jax.nn.sigmoid(sign * 2 * log_ratio(t))).reshape(-1, 1, 1, 1)
            for sign in (-1, 1)
        )
        eps = best_eps(signal, sigma, x_t)
        x_0 = (x_t - sigma * eps) / signal
        return {"eps": eps, "x_0": x_0, "v": signal * eps - sigma * x_0}[mean]

    return denoise


def level(half_log_snr):
    """(signal, sigma) at lambda."""
    angle = np.arctan(np.exp(-half_log_snr))
    return np.cos(angle), np.sin(angle)


def ode_end(schedule, x):
    """Where the ODE takes x from the level of most noise to the level of least."""
    ends = schedule_lib.half_log_snr(schedule, dpm_solver.log_snr(schedule, 2))
    (signal, sigma), (signal_T, sigma_T) = (level(end) for end in ends)
    stretch = np.hypot(signal * S, sigma) / np.hypot(signal_T * S, sigma_T)
    return signal * M + stretch * (x - signal_T * M)


def ddim_step(here, before, x, eps, eta, z=0.0):
    """DDIM's Eqs. 12 and 16 between levels (signal, sigma), one pixel, in float64."""
    (signal, sigma), (signal_before, sigma_before) = here, before
    x_0 = (x - sigma * eps) / signal
    variance = eta**2 * sigma_before**2 / sigma**2 * (1 - signal**2 / signal_before**2)
    along = np.sqrt(max(sigma_before**2 - variance, 0.0))
    return signal_before * x_0 + along * eps + np.sqrt(variance) * z


def ddim_moments(levels, eta):
    """(mean, variance) of DDIM's samples, by levels (signal, sigma) from the data outwards."""
    mean, variance = 0.0, 1.0
    for here, before in zip(levels[::-1], [*levels[-2::-1], (1.0, 0.0)], strict=True):
        def step(x, z):
            return ddim_step(here, before, x, best_eps(*here, x), eta, z)

        slope, noise = step(1.0, 0.0) - step(0.0, 0.0), step(0.0, 1.0) - step(0.0, 0.0)
        mean, variance = step(mean, 0.0), slope**2 * variance + noise**2
    return mean, variance


def assert_moments(samples, mean, variance):
    """Within 5 standard errors."""
    samples = np.float64(samples)
    n = samples.size
    assert abs(samples.mean() - mean) < 5 * np.sqrt(variance / n)
    assert abs(samples.var() - variance) < 5 * variance * np.sqrt(2 / n)


def run(plan, predict, x, rng=None):
    """x after each call of a plan, by a plain loop; predict(signal, sigma, x) -> eps."""
    states, start, outputs = [], x, [0.0] * plan.weights.shape[1]
    for i in range(plan.num_calls):
        signal, sigma = plan.signal[i], plan.sigma[i]
        eps = predict(signal, sigma, x)
        outputs = [(x - sigma * eps) / signal if plan.uses_x_0[i] else eps] + outputs[:-1]
        x = plan.keep[i] * start + sum(w * s for w, s in zip(plan.weights[i], outputs))
        if plan.spread is not None:
            x = x + plan.spread[i] * rng.standard_normal(np.shape(x))
        start = x if plan.commit[i] else start
        states.append(x)
    return states
