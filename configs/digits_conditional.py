"""Handwritten digits by class, with classifier-free guidance. Minutes on two CPU cores.

    python main.py --config=configs/digits_conditional.py --workdir=runs/digits_conditional
    python main.py --config=configs/digits_conditional.py --workdir=runs/digits_conditional \\
        --mode=sample --config.sample.guidance=3
"""

import ml_collections

from ddpm_jax.configs import digits


def get_config() -> ml_collections.ConfigDict:
    """Digits with labels."""
    config = digits.get_config()
    config.data.labels = True
    return config
