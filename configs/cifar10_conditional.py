"""CIFAR-10 by class, with classifier-free guidance: the paper's network with ten labels.

    python main.py --config=configs/cifar10_conditional.py --workdir=runs/cifar10_conditional
    python main.py --workdir=runs/cifar10_conditional --mode=sample \\
        --config=configs/cifar10_conditional.py --config.sample.guidance=1.5

The label of one image in ten is hidden. With `--config.data.labels=True` any data set with labels
trains this way. The images are those of `cifar10.py`.
"""

import ml_collections

from ddpm_jax.configs import cifar10


def get_config() -> ml_collections.ConfigDict:
    """CIFAR-10 with labels."""
    config = cifar10.get_config()
    config.data.labels = True
    return config
