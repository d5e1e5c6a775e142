"""The candidates at equal time: the paper's settings, and others that may learn more in it.

    python -m benchmarks.record.run --config=benchmarks/record/settings.py:fast --workdir=...

Network, objective and data are those of `configs/cifar10.py`, with the torso in bfloat16. The
candidates have not been compared on an accelerator yet.
"""

import ml_collections

from ddpm_jax.configs import cifar10

CANDIDATES = {
    # Ho et al. 2020, App. B, for 800,000 steps. Half an hour is about 50,000 steps: the warm-up
    # takes a tenth of them, and the horizon of the EMA, 10,000 steps, is a fifth.
    "paper": {},
    # Twice the images at 2.5 times the learning rate, and an EMA over a tenth of about 25,000
    # steps. Small batches leave a large accelerator idle, and the paper's rate is low for a short
    # run (Karras et al. 2022 train on CIFAR-10 with 512 images at 1e-3).
    "fast": dict(
        batch_size=256, learning_rate=5e-4, warmup_steps=1000, ema_decay=0.9996, ema_warmup=True,
    ),
    # The paper's batch at twice its learning rate, to see the effect of the rate alone.
    "rate": dict(learning_rate=4e-4, warmup_steps=1000, ema_decay=0.9998, ema_warmup=True),
    # The batch and learning rate of Karras et al. 2022: fewer updates with less noise.
    "large": dict(
        batch_size=512, learning_rate=1e-3, warmup_steps=1000, ema_decay=0.9992, ema_warmup=True,
    ),
}


def get_config(name: str = "fast") -> ml_collections.ConfigDict:
    """The config of one of `CANDIDATES`.

    Raises:
        ValueError: no candidate has this name.
    """
    if name not in CANDIDATES:
        raise ValueError(f"settings.py:{name} is not known; use one of {', '.join(CANDIDATES)}.")
    config = cifar10.get_config()
    config.model.dtype = "bfloat16"
    config.train.update(CANDIDATES[name])
    # An interruption repeats a few minutes. Grids would take time from training.
    config.train.checkpoint_every = config.train.eval_every = 2000 * 128 // config.train.batch_size
    config.train.sample_every = config.train.num_steps
    config.evaluate.batch_size = 250
    return config
