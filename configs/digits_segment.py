"""Segmentation of noisy handwritten digits, as MedSegDiff does; minutes on two CPU cores.

    python main.py --config=configs/digits_segment.py --workdir=runs/digits_segment
    python main.py --config=configs/digits_segment.py --workdir=runs/digits_segment \\
        --mode=evaluate --config.evaluate.metrics="('draws',)" --config.sample.num_steps=50

The network draws masks of the digit's bright pixels, and is told the digit in noise. The mean
of several draws is the answer, and where they disagree it is unsure (Wu et al. 2024).
"""

import ml_collections

from ddpm_jax.configs import digits


def get_config() -> ml_collections.ConfigDict:
    """Masks of digits, each told its digit in noise."""
    config = digits.get_config()
    config.data.condition = "noisy"
    return config
