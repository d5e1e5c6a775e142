"""The Inception network as torch-fidelity has it: entries of its file, and its features."""

import json
import pathlib
import runpy

import numpy as np

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
SHAPES = json.loads((FIXTURES / "inception_entries.json").read_text())


def entries():
    """Every entry of the PyTorch file, with the weights from which `features` were computed."""
    weights = runpy.run_path(str(FIXTURES / "make_inception.py"))["weights"]
    return {name: weights(name, shape) for name, shape in SHAPES.items()}


def features():
    """Eight images, and their features by torch-fidelity's network with these weights."""
    with np.load(FIXTURES / "inception_features.npz") as stored:
        return dict(stored)
