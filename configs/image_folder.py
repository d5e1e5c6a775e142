"""Your own images: a folder of .jpg, .png and the like, resized and centre-cropped.

    python main.py --config=configs/image_folder.py --workdir=runs/mine --config.data.dir=/pictures

The default is 64x64 in colour; `--config.data.image_size=128` and `--config.data.channels=1` change
that. A few thousand images and a day on one modern GPU give good samples. A few hundred images are
memorised. `--config.data.holdout=500` reserves images for a held-out loss, which shows when that
begins.
"""

import ml_collections

from ddpm_jax.configs import cifar10


def get_config() -> ml_collections.ConfigDict:
    """Differences from CIFAR-10."""
    config = cifar10.get_config()
    config.data.name = "image_folder"
    config.data.image_size = 64
    config.model.channel_multipliers = (1, 2, 2, 2, 4)
    config.train.batch_size = 64
    config.train.num_steps = 500_000
    return config
