"""Curves as PNG files: what the bound is made of, and rate against distortion."""

from typing import Any

import numpy as np

from ddpm_jax import files
from ddpm_jax.likelihood import RateDistortion


def bound(path: Any, vlb: np.ndarray, mse_eps: np.ndarray) -> None:
    """Each term of the bound, and the error of eps, by the step t.

    Args:
        path: of the PNG.
        vlb: [T] bits/dim.
        mse_eps: [T].
    """
    figure, (left, right) = _figure(2)
    steps = np.arange(1, len(vlb) + 1)
    left.plot(steps, vlb)
    left.set(xlabel="step t of the paper (1: the decoder)", ylabel="bits/dim",
             xscale="log", yscale="log", title="terms of the bound")
    right.plot(steps, mse_eps)
    right.set(xlabel="step t of the paper", ylabel="mean squared error", yscale="log",
              title="error of eps")
    _save(figure, path)


def rate_distortion(path: Any, curve: RateDistortion) -> None:
    """Distortion and rate by reverse steps, and one against the other (the paper's Fig. 5)."""
    figure, (left, middle, right) = _figure(3)
    left.plot(curve.reverse_steps, curve.distortion)
    left.set(xlabel="reverse process steps (T - t)", ylabel="distortion (RMSE)")
    middle.plot(curve.reverse_steps, curve.rate)
    middle.set(xlabel="reverse process steps (T - t)", ylabel="rate (bits/dim)")
    right.plot(curve.rate, curve.distortion)
    right.set(xlabel="rate (bits/dim)", ylabel="distortion (RMSE)")
    _save(figure, path)


def _figure(columns):
    from matplotlib.figure import Figure  # Slow to import; no display is touched.

    figure = Figure(figsize=(4.2 * columns, 3.2), layout="constrained", dpi=120)
    return figure, figure.subplots(1, columns)


def _save(figure, path):
    files.write(path, lambda file: figure.savefig(file, format="png"))
