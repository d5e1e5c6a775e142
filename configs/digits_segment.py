"""Segmentation of noisy handwritten digits, like MedSegDiff. Minutes on two CPU cores.

    python main.py --config=configs/digits_segment.py --workdir=runs/digits_segment
    python main.py --config=configs/digits_segment.py --workdir=runs/digits_segment \\
        --mode=evaluate --config.evaluate.metrics="('draws',)" --config.sample.num_steps=50

The network draws masks of the digit's bright pixels from the noisy digit. The mean of several
draws is the estimate, their spread its uncertainty (Wu et al. 2024).
"""

import ml_collections

from ddpm_jax.configs import digits


def get_config() -> ml_collections.ConfigDict:
    """Masks of digits, conditioned on noisy digits."""
    config = digits.get_config()
    config.data.condition = "noisy"
    return config
