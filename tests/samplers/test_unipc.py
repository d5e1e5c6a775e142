"""UniPC: against the recursion of its authors, with a predicted and a corrected x."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.samplers import unipc as unipc_lib
from gaussian import best_eps, level, run

LINEAR = schedule_lib.linear()


def by_recursion(levels, order, kind, predict, x):
    """x before each call, and the end, by UniP and UniC one after the other; x_0 of levels.

    By Eq. 3 of the paper and its form in x_0: differences D over r, weighted by R^-1 b.
    """
    known, seen, corrected = [], [x], x

    def update(before, t, x, own=None):
        s, h = before[-1][0], t - before[-1][0]
        growth = -h if kind == "bh1" else np.exp(-h) - 1
        r = [(lam - s) / h for lam, _ in before[-2::-1]] + ([] if own is None else [1.0])
        D = [(m - before[-1][1]) / ratio for (_, m), ratio in zip(before[-2::-1], r)]
        D += [] if own is None else [own - before[-1][1]]
        n = len(r)
        if n == 1 and (own is None or len(before) == 1):
            rho = [0.5]
        elif n:
            # k! phi_{k+1}(-h), the integral of e^{(1-u)(-h)} u^k over 0..1, by quadrature.
            u, w = np.polynomial.legendre.leggauss(40)
            u, w = (u + 1) / 2, w / 2
            b = [-h / growth * np.sum(w * np.exp(-h * (1 - u)) * u**k) for k in range(1, n + 1)]
            rho = np.linalg.solve([[ratio**k for ratio in r] for k in range(n)], b)
        else:
            rho = []
        sigma_s, (signal_t, sigma_t) = level(s)[1], level(t)
        total = sum(weight * d for weight, d in zip(rho, D))
        return (sigma_t / sigma_s * x - signal_t * (np.exp(-h) - 1) * before[-1][1]
                - signal_t * growth * total)

    behind = None
    for i, lam in enumerate(levels):
        signal, sigma = level(lam)
        x_0 = (seen[-1] - sigma * predict(signal, sigma, seen[-1])) / signal
        if behind is not None:
            corrected = update(behind, lam, corrected, x_0)
        known.append((lam, x_0))
        if i + 1 == len(levels):
            return seen + [x_0]
        behind = known[-min(order, i + 1, len(levels) - i):]
        seen.append(update(behind, levels[i + 1], corrected))


@pytest.mark.parametrize("kind", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
def test_one_row_corrects_and_predicts(order, kind, num_steps):
    plan = unipc_lib.unipc(LINEAR, num_steps, order=order, variant=kind)
    levels = schedule_lib.half_log_snr(LINEAR, plan.t)

    def predict(signal, sigma, x):  # Not linear in x.
        return best_eps(signal, sigma, x) + 0.1 * np.sin(5 * x)

    expected = by_recursion(levels, order, kind, predict, 0.9)
    assert_allclose(run(plan, predict, 0.9), expected[1:], rtol=1e-9, atol=1e-9)
    assert plan.weights.shape[1] <= order + 2


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match="variant='bh3' is not known; use one of bh1, bh2"):
        unipc_lib.unipc(LINEAR, 5, variant="bh3")
    with pytest.raises(ValueError, match="order=4 is not known"):
        unipc_lib.unipc(LINEAR, 5, order=4)
