"""Super-resolution of handwritten digits, 4x4 to 8x8. Minutes on two CPU cores.

    python main.py --config=configs/digits_superres.py --workdir=runs/digits_superres
    python main.py --config=configs/digits_superres.py --workdir=runs/digits_superres --mode=sample

The network receives the enlarged small image as a channel beside x_t. The same works for other
data sets, for example Fashion-MNIST from 14x14 to 28x28:

    python main.py --config=configs/fashion_mnist.py --workdir=runs/fashion_superres \\
        --config.data.condition=low_resolution --config.data.factor=2
"""

import ml_collections

from ddpm_jax.configs import digits


def get_config() -> ml_collections.ConfigDict:
    """Digits, conditioned on the means of their 2x2 pixels."""
    config = digits.get_config()
    config.data.condition = "low_resolution"
    config.data.factor = 2
    return config
