"""Plots show the right numbers, and their PNG files open and are not blank."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.diffusion import variational_bound
from ddpm_jax.workdir import plots
from curves import assert_png

VLB = np.float64([1.5, 0.4, 0.1, 0.03, 0.001])
MSE_EPS = np.float64([0.5, 0.3, 0.2, 0.05, 0.01])
CURVE = variational_bound.rate_distortion(VLB, 0.002, MSE_EPS / 10)


def assert_lines(figure, expected):
    assert len(figure.axes) == len(expected)
    for axes, (x, y, *words) in zip(figure.axes, expected):
        line, = axes.lines
        np.testing.assert_array_equal(line.get_xdata(), x)
        np.testing.assert_array_equal(line.get_ydata(), y)
        for label, word in zip((axes.get_xlabel(), axes.get_ylabel()), words):
            assert word in label


def test_the_bound_is_drawn_by_the_papers_steps(tmp_path, figures):
    path = tmp_path / "made" / "bound.png"
    plots.bound(path, VLB, MSE_EPS)
    steps = [1, 2, 3, 4, 5]
    assert_lines(figures[0], [
        (steps, VLB, "step", "bits/dim"), (steps, MSE_EPS, "step", "squared error")])
    assert_png(path, 2)
    assert [p.name for p in path.parent.iterdir()] == ["bound.png"]


def test_rate_and_distortion_are_drawn(tmp_path, figures):
    path = tmp_path / "curve.png"
    plots.rate_distortion(str(path), CURVE)
    assert_lines(figures[0], [
        (CURVE.reverse_steps, CURVE.distortion, "reverse", "distortion"),
        (CURVE.reverse_steps, CURVE.rate, "reverse", "rate"),
        (CURVE.rate, CURVE.distortion, "rate", "distortion"),
    ])
    assert_png(path, 3)


def test_other_numbers_make_another_picture_and_take_the_place(tmp_path):
    path = tmp_path / "bound.png"
    plots.bound(path, VLB, MSE_EPS)
    before = path.read_bytes()
    plots.bound(path, VLB[::-1], MSE_EPS)
    assert path.read_bytes() != before
    assert_png(path, 2)


@pytest.mark.parametrize("vlb", [[0.5], [0.5, 0.0], [1e-3, 1e-9, 1e-12]])
def test_terms_of_any_size_are_drawn(tmp_path, vlb):
    """One step, a term of zero, terms far apart: no warning, on axes of logarithms."""
    vlb = np.float64(vlb)
    plots.bound(tmp_path / "bound.png", vlb, vlb)
    curve = variational_bound.rate_distortion(vlb, 0.0, vlb)
    plots.rate_distortion(tmp_path / "curve.png", curve)
    for name in ("bound.png", "curve.png"):
        with Image.open(tmp_path / name) as image:
            image.load()


def test_matplotlib_is_imported_when_a_plot_is():
    program = (
        "import sys, ddpm_jax.workdir.plots, ddpm_jax.evaluation.metrics\n"
        "sys.exit('matplotlib' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
