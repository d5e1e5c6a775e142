"""The settings of the loop around the training step; those of the step are `step.StepSettings`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """What the training loop does, how long, and how often; named as in `config.train`.

    Periods are in steps; 0 is never. `configs/cifar10.py` explains each setting.

    Attributes:
        num_steps: updates in all.
        batch_size: images per update, over all devices.
        warm_start: the weights to start from; "" for none.
        matmul_precision: as of `jax.default_matmul_precision`.
        max_skipped: skipped updates in a row that end the run.
        debug_nans: name the layer of each skipped update.
        wandb: a project of Weights & Biases; "" for none.
        profile: first and last step to trace; () for none.
        eval_every: period of the held-out loss.
        eval_images: how many images it is over; 0 for no held-out loss.
        checkpoint_every: period of the checkpoints; the last step is saved in any case.
        checkpoint_minutes: age of the last one at which a row brings another; 0 for none.
        keep: how many of the newest stay.
        keep_every: period of those that stay for good.
        ema_snapshot_every: period of the snapshots of averages.
        sample_every: period of the grids of samples.
        sample_images: images per grid.
        sample_num_steps: sampling steps of a grid; 0 for all.
        sample_clip: keep x_0 in [-1, 1] while sampling a grid (`config.sample.clip`).
        on_device: keep the images on each accelerator (`config.data.on_device`).
    """

    num_steps: int
    batch_size: int
    warm_start: str
    matmul_precision: str
    max_skipped: int
    debug_nans: bool
    wandb: str
    profile: tuple[int, ...]
    eval_every: int
    eval_images: int
    checkpoint_every: int
    checkpoint_minutes: float
    keep: int
    keep_every: int
    ema_snapshot_every: int
    sample_every: int
    sample_images: int
    sample_num_steps: int
    sample_clip: bool
    on_device: bool
