"""scikit-learn's handwritten digits, embedded: 1,497 real 8x8 images, nothing to download.

    python main.py --config=configs/digits.py --workdir=runs/digits

It takes about three minutes on two CPU cores. `samples/` then shows readable digits.
"""

import ml_collections

from ddpm_jax.configs import cifar10


def get_config() -> ml_collections.ConfigDict:
    """A narrow two-level network, trained for 1,500 steps."""
    config = cifar10.get_config()
    config.data.name = "digits"
    config.data.image_size = 8
    config.data.channels = 1
    config.data.random_flip = False
    config.model.channels = 32
    config.model.channel_multipliers = (1, 2)
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (4,)
    config.model.num_groups = 8  # The same in all norms, as diffusers has it.
    config.train.num_steps = 1500
    config.train.batch_size = 64
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 100
    config.train.ema_decay = 0.995
    config.train.ema_warmup = True
    config.train.log_every = 50
    config.train.eval_every = 500
    config.train.eval_images = 300
    config.train.checkpoint_every = 500
    config.train.sample_every = 500
    return config
