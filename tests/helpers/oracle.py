"""The diffusion process once more, from other equations: float64, 1-based t, plain loops.

Steps are t = 1..T as in the paper and `beta[t - 1]` is step t; every formula is for one
pixel. Nothing here comes from the package, and nothing may.
"""

import numpy as np


def compose(beta, t):
    """(scale of x_0, variance) of q(x_t | x_0), one noising step after another."""
    scale, variance = 1.0, 0.0
    for b in beta[:t]:
        scale, variance = scale * np.sqrt(1.0 - b), variance * (1.0 - b) + b
    return scale, variance


def posterior(beta, t, x_0, x_t):
    """(mean, variance) of q(x_{t-1} | x_t, x_0) by Bayes' rule: the precisions add up."""
    scale_prev, variance_prev = compose(beta, t - 1)
    if variance_prev == 0.0:
        return scale_prev * x_0, 0.0
    b = beta[t - 1]
    precision = 1.0 / variance_prev + (1.0 - b) / b
    evidence = scale_prev * x_0 / variance_prev + np.sqrt(1.0 - b) * x_t / b
    return evidence / precision, 1.0 / precision


def reverse_variance(beta, t, kind):
    """Variance of the reverse step: beta or the posterior's; step 1 borrows step 2's."""
    if t == 1 and len(beta) == 1:
        return beta[0]
    if t == 1 or kind == "fixed_small":
        return posterior(beta, max(t, 2), 0.0, 0.0)[1]
    return beta[t - 1]


def expected_x_0(beta, t, x_t, m, s):
    """E[x_0 | x_t] where x_0 ~ N(m, s^2): the precisions of data and noise add up."""
    scale, variance = compose(beta, t)
    precision = 1.0 / s**2 + scale**2 / variance
    return (m / s**2 + scale * x_t / variance) / precision


def chain_moments(beta, m, s, kind):
    """(mean, variance) of the samples of the ancestral chain that knows x_0 ~ N(m, s^2).

    Every step is affine in x_t, so that a Gaussian stays one.
    """
    mean, variance = 0.0, 1.0
    for t in range(len(beta), 0, -1):
        def step(x_t):
            return posterior(beta, t, expected_x_0(beta, t, x_t, m, s), x_t)[0]

        slope = step(1.0) - step(0.0)
        noise = reverse_variance(beta, t, kind) if t > 1 else 0.0
        mean, variance = step(mean), slope**2 * variance + noise
    return mean, variance


def visit(beta, steps):
    """The betas of the chain that visits only these 1-based `steps`, by composing runs."""
    betas, previous = [], 0
    for step in steps:
        betas.append(compose(beta[previous:step], step - previous)[1])
        previous = step
    return betas


def gaussian_kl(mean_1, variance_1, mean_2, variance_2):
    """KL(N(mean_1, variance_1) || N(mean_2, variance_2)) in nats."""
    ratio = variance_1 / variance_2
    return 0.5 * (ratio - 1.0 - np.log(ratio) + (mean_1 - mean_2) ** 2 / variance_2)


def decoder_log_probability(value, mean, deviation, bins=256):
    """log-probability in nats of the pixel 0..bins-1 in its bin; outer bins are open."""
    def cdf(x):
        z = (x - mean) / deviation
        return 0.5 * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (z + 0.044715 * z**3)))

    half = 1.0 / (bins - 1)  # Of a bin's width.
    centre = 2 * value * half - 1.0
    below = 0.0 if value == 0 else cdf(centre - half)
    above = 1.0 if value == bins - 1 else cdf(centre + half)
    return np.log(max(above - below, 1e-12))


def implied_x_0(beta, t, x_t, output, mean):
    """The x_0 that an output of this kind implies, by solving for it."""
    scale, variance = compose(beta, t)
    if mean == "x_0":
        return output
    if mean == "eps":
        return (x_t - np.sqrt(variance) * output) / scale
    if mean == "v":  # x_t and v are x_0 and eps turned by one angle.
        angle = np.arctan2(np.sqrt(variance), scale)
        return np.cos(angle) * x_t - np.sin(angle) * output
    at_0, at_1 = (posterior(beta, t, x_0, x_t)[0] for x_0 in (0.0, 1.0))
    return (output - at_0) / (at_1 - at_0)


def learned_variance(beta, t, output, kind):
    """The variance that a network's second set of channels means."""
    if kind == "learned":
        return np.exp(output)
    small, large = reverse_variance(beta, t, "fixed_small"), beta[t - 1]
    return small * (large / small) ** ((output + 1.0) / 2.0)
