"""Handwritten digits drawn for numbers: a class as one-hot, and how much ink. Minutes on a CPU.

    python main.py --config=configs/digits_vectors.py --workdir=runs/digits_vectors

In Python, `ddpm_jax.sample(trained, 0, 16, vectors=[*numpy.eye(10)[3], 0.25])` then draws 16 thin
threes: `ink` is the mean of the pixels, about 0.31 for digits, from 0.22 to 0.42.
"""

import ml_collections

from ddpm_jax.configs import digits


def get_config() -> ml_collections.ConfigDict:
    """Digits with vectors of eleven numbers."""
    config = digits.get_config()
    config.data.vectors = ("label", "ink")
    return config
