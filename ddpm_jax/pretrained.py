"""Trained models from files: `load` reads what `train` left in a workdir."""

from typing import Any

from ddpm_jax import config as config_lib
from ddpm_jax import workdir as workdir_lib
from ddpm_jax.checkpoints import restore_part
from ddpm_jax.state import Trained


def load(workdir: Any, *, step: int | None = None, weights: str = "ema") -> Trained:
    """The model that was trained in `workdir`, from its newest checkpoint.

    Args:
        workdir: as given to `train`.
        step: which checkpoint; the newest by default.
        weights: "ema", the running average; "raw", the parameters themselves; or one of
            `config.train.extra_ema_decays`, such as "0.999".

    Raises:
        ValueError: there is no run, no checkpoint or no such weights.
    """
    return load_step(workdir, step=step, weights=weights)[1]


def load_step(
    workdir: Any, *, step: int | None = None, weights: str = "ema"
) -> tuple[int, Trained]:
    """As `load`, with the number of updates that the parameters have seen before it."""
    stored = workdir_lib.stored_config(workdir)
    extra = [str(decay) for decay in stored.train.extra_ema_decays]
    if weights not in ("ema", "raw", *extra):
        raise ValueError(
            f"weights={weights!r} are not in {workdir}; use one of "
            f"{', '.join(('ema', 'raw', *extra))}."
        )
    part = {"ema": "ema_params", "raw": "params"}.get(weights, "extra_ema_params")
    step, params, metadata = restore_part(workdir, part, step)
    config = config_lib.parse(metadata["config"])
    shape = config_lib.image_shape(config)
    return step, Trained(
        params=params[weights] if weights in extra else params,
        model=config_lib.model(config, shape[-1]),
        schedule=config_lib.schedule(config),
        diffusion=config_lib.parameterization(config),
        image_shape=shape,
    )
