"""Sets of features, and the scores that torch-fidelity gives them: fixtures/make_metrics.py."""

import pathlib
import runpy

import numpy as np

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
SCRIPT = runpy.run_path(str(FIXTURES / "make_metrics.py"))
SUBSETS = SCRIPT["SUBSETS"]  # Of the kernel distance.


def sets():
    """Features by name."""
    return SCRIPT["sets"]()


def expected():
    """Scores by name."""
    with np.load(FIXTURES / "metrics.npz", allow_pickle=False) as numbers:
        return {name: numbers[name].item() for name in numbers}
