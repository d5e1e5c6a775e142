"""The function of the user's that `train` calls after each logged row."""

from collections.abc import Callable
from typing import Any

import jax

from ddpm_jax.errors import StopTraining, UserError
from ddpm_jax.network.trained import About, Trained
from ddpm_jax.runtime import parallel
from ddpm_jax.training import sharding
from ddpm_jax.training.run import Run
from ddpm_jax.training.sharding import Held
from ddpm_jax.workdir import run_folder

# (step, trained, metrics) -> None: see `train`.
Callback = Callable[[int, Callable[[], Trained], dict[str, float]], None]


def check(callback: Any) -> None:
    """Raises UserError where this is neither a function nor None."""
    if callback is not None and not callable(callback):
        raise UserError(
            "must be a function of (step, trained, metrics), or None.",
            field="callback", value=callback,
        )


def as_trained(run: Run, held: Held) -> Trained:
    """A copy of the EMA that the devices hold, on the host, with what it needs."""
    return Trained(
        jax.device_get(sharding.whole(held, "ema_params").ema_params), run.model, run.schedule,
        run.step_settings.parameterization, run.source.image_shape,
        run.source.value_range, run.source.bins, run.source.vector_scale,
        About(run_folder.parse(run.config_json), int(held[0].step), run.source.class_names),
    )


def asks_to_stop(
    callback: Callback, step: int, trained: Callable[[], Trained], metrics: dict[str, float]
) -> bool:
    """Calls the callback; whether it raised `StopTraining`, in any process."""
    try:
        callback(step, trained, metrics)
    except StopTraining:
        return not parallel.everywhere(False)
    return not parallel.everywhere(True)
