"""Plots as PNG files: the terms of the bound, rate against distortion, sampler sweeps."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm_jax.diffusion.variational_bound import RateDistortion
from ddpm_jax.runtime import files


def bound(path: Any, vlb: np.ndarray, mse_eps: np.ndarray) -> None:
    """Plots each term of the bound, and the error of eps, by the step t.

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
    """Plots distortion and rate by reverse steps, and against each other (the paper's Fig. 5)."""
    figure, (left, middle, right) = _figure(3)
    left.plot(curve.reverse_steps, curve.distortion)
    left.set(xlabel="reverse process steps (T - t)", ylabel="distortion (RMSE)")
    middle.plot(curve.reverse_steps, curve.rate)
    middle.set(xlabel="reverse process steps (T - t)", ylabel="rate (bits/dim)")
    right.plot(curve.rate, curve.distortion)
    right.set(xlabel="rate (bits/dim)", ylabel="distortion (RMSE)")
    _save(figure, path)


def sweep(
    path: Any,
    name: str,
    steps: Sequence[int],
    rows: dict[str, Sequence[float]],
    errors: dict[str, Sequence[float]],
) -> None:
    """Plots a score against the number of network calls, one line per sampler.

    Args:
        path: of the PNG.
        name: of the score, for example "fid/train".
        steps: numbers of network calls.
        rows: by sampler, a value for each of `steps`.
        errors: by sampler, the standard errors of these values; 0 where there is none.
    """
    figure, axes = _figure(1)
    order = np.argsort(steps)
    for sampler, values in rows.items():
        x, y, error = (np.asarray(a)[order] for a in (steps, values, errors[sampler]))
        axes.errorbar(x, y, error if error.any() else None, marker="o", markersize=4, label=sampler)
    if min(map(min, rows.values())) > 0:
        axes.set_yscale("log")
    axes.set(xlabel="network calls per image", ylabel=name, xscale="log")
    axes.set_xticks(steps, [str(calls) for calls in steps])
    axes.minorticks_off()
    axes.legend()
    _save(figure, path)


def _figure(columns):
    from matplotlib.figure import Figure  # Slow to import; no display is touched.

    figure = Figure(figsize=(4.2 * columns, 3.2), layout="constrained", dpi=120)
    return figure, figure.subplots(1, columns)


def _save(figure, path):
    files.write(path, lambda file: figure.savefig(file, format="png"))
