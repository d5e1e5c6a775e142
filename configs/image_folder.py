"""Your own pictures: any folder of .jpg, .png and the like, resized and centre-cropped.

    python main.py --config=configs/image_folder.py --workdir=runs/mine --config.data.dir=/pictures

64x64 in colour unless you say otherwise (`--config.data.image_size=128`,
`--config.data.channels=1`). A few thousand pictures and a day on one modern GPU give good
samples; a few hundred are memorised. `--config.data.holdout=500` sets images aside for a
held-out loss, which tells when that begins.
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
