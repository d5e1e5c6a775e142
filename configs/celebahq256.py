r"""CelebA-HQ at 256x256 as in the paper. The three LSUN configs start from this one.

    python main.py --config=configs/celebahq256.py --workdir=runs/celebahq256 \
        --config.data.name=image_folder --config.data.dir=/pictures

113,673,219 parameters, 500,000 steps at batch 64, 2.2 steps/s on a TPU v3-8 (63 hours). The paper
shows samples and reports no FID. Others report 8.9 with the same recipe, at a loss of about 0.0098.

On one device the backward pass of a batch holds 65 to 235 GiB, depending on how much the compiler
recomputes. To save memory use `--config.train.accumulate=4` (a quarter),
`--config.train.remat=True` (25 to 100 GiB), or both. `--config.model.dtype=bfloat16` saves a tenth.

The 30,000 images may not be redistributed. Prepare `celeb_a_hq/256` with tensorflow-datasets, where
you have to place the files by hand (its page says how), or name a folder of the images as above.
"""

import ml_collections

from ddpm_jax.configs import cifar10


def get_config() -> ml_collections.ConfigDict:
    """Differences from CIFAR-10."""
    config = cifar10.get_config()
    config.data.name = "celeb_a_hq/256"
    config.data.image_size = 256
    config.model.channel_multipliers = (1, 1, 2, 2, 4, 4)
    config.model.dropout = 0.0
    config.diffusion.variance = "fixed_small"
    config.train.num_steps = 500_000
    config.train.batch_size = 64
    config.train.learning_rate = 2e-5
    config.train.sample_images = 16
    config.train.eval_images = 256
    return config
