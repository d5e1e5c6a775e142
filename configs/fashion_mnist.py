"""Fashion-MNIST: 28x28 grey, three levels (28, 14, 7), attention at 14.

    python main.py --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist

Other settings are those of `cifar10.py`, without flips, because all shoes point left. Expect
recognisable clothes after about 20,000 steps, under an hour on one modern GPU. The images are
`fashion_mnist` of tensorflow-datasets, found as in `cifar10.py`.
"""

import ml_collections

from ddpm_jax.configs import cifar10


def get_config() -> ml_collections.ConfigDict:
    """Differences from CIFAR-10."""
    config = cifar10.get_config()
    config.data.name = "fashion_mnist"
    config.data.image_size = 28
    config.data.channels = 1
    config.data.random_flip = False
    config.model.channel_multipliers = (1, 2, 2)
    config.model.attention_resolutions = (14,)
    config.train.num_steps = 100_000
    return config
