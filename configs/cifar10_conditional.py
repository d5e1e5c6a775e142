"""CIFAR-10 by class, for classifier-free guidance: the paper's network told one of ten labels.

    python main.py --config=configs/cifar10_conditional.py --workdir=runs/cifar10_conditional
    python main.py --workdir=runs/cifar10_conditional --mode=sample \\
        --config=configs/cifar10_conditional.py --config.sample.guidance=1.5

Its label is hidden from one image in ten. Any data set with labels trains so, with
`--config.data.labels=True`; the pictures: as in `cifar10.py`.
"""

import ml_collections

from ddpm_jax.configs import cifar10


def get_config() -> ml_collections.ConfigDict:
    """The base with labels."""
    config = cifar10.get_config()
    config.data.labels = True
    return config
