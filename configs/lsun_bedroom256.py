r"""LSUN bedroom at 256x256 as in the paper.

    python main.py --config=configs/lsun_bedroom256.py --workdir=runs/lsun_bedroom256 \
        --config.data.name=image_folder --config.data.dir=/pictures

Expect FID 6.36 (paper, 50,000 samples, StyleGAN2's code) after 2,400,000 steps at batch 64,
at about 2.2 steps/s on a TPU v3-8.

There are about 3,033,042 images, under LSUN's own terms. Prepare `lsun/bedroom` with
tensorflow-datasets, where you have to place the files by hand (its page says how), or export the
images and name their folder as above. They are resized to 256 on the shorter side and
centre-cropped.
"""

import ml_collections

from ddpm_jax.configs import celebahq256


def get_config() -> ml_collections.ConfigDict:
    """Differences from CelebA-HQ."""
    config = celebahq256.get_config()
    config.data.name = "lsun/bedroom"
    config.data.random_flip = False  # the paper flips all sets but this one
    config.train.num_steps = 2_400_000
    return config
