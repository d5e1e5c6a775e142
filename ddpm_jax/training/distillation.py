"""`--mode=distill`: a model that draws in 8, 4, 2 or 1 network calls, taught by a trained one.

Progressive distillation (Salimans and Ho 2022, Algorithm 2) halves the steps of DDIM again and
again. Each phase is a run of its own in WORKDIR/steps_N, taught by the one before: it resumes, logs
and is sampled as every run is, by default with its N steps.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ddpm_jax.diffusion import process
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.errors import UserError
from ddpm_jax.network.trained import Trained
from ddpm_jax.network.unet import UNet
from ddpm_jax.samplers import halving
from ddpm_jax.samplers.settings import Settings
from ddpm_jax.training import warm_start
from ddpm_jax.workdir import run_folder


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """What teaches a student of n steps.

    Attributes:
        trained: the teacher.
        settings: of the student's chain.
        schedule: of the student's steps.
    """

    trained: Trained
    settings: Settings
    schedule: Schedule

    def predict_fn(
        self, params: Any, model_kwargs: Mapping[str, jax.Array]
    ) -> Callable[..., process.Prediction]:
        """(x_t, t) -> Prediction of the teacher's chain of 2 n steps.

        Args:
            params: the teacher's.
            model_kwargs: what the images of a batch are told of.
        """
        def denoise_fn(x_t, t):
            return self.trained.model.apply({"params": params}, x_t, t, train=False, **model_kwargs)

        twice = dataclasses.replace(self.settings, num_steps=2 * self.settings.num_steps)
        return twice.chain(self.trained.schedule).predict_fn(denoise_fn, self.trained.diffusion)


def find_teacher(
    source: str, num_steps: int, *, clip: bool, schedule: Schedule, model: UNet,
    image_shape: tuple[int, int, int],
) -> Teacher | None:
    """The teacher of a phase; None in a run that has none.

    Args:
        source: `config.distill.teacher`.
        num_steps: of the student.
        clip: keep x_0 in [-1, 1] in the steps of both.
        schedule: of the student, in full.
        model: the student's.
        image_shape: (h, w, c).

    Raises:
        UserError: there is no such run, it cannot teach, or its network, process or data differ.
    """
    if not source:
        return None
    if not num_steps:
        raise UserError(
            "is for --mode=distill; add that, or leave the teacher out.",
            field="config.distill.teacher", value=source,
        )
    trained = run_folder.load(source)
    warm_start.check(
        trained.params, trained.model, model, image_shape, "config.distill.teacher", source
    )
    for what, ours, theirs in (
        ("images", tuple(image_shape), tuple(trained.image_shape)),
        ("noise schedule", *(np.asarray(s.beta).tolist() for s in (schedule, trained.schedule))),
    ):
        if ours != theirs:
            raise _refused(source, f"has another {what} than this config; leave its settings as "
                                   "they are there.")
    if trained.model.self_condition or trained.diffusion.variance in process.LEARNED:
        which = "self-conditioning" if trained.model.self_condition else "a learned variance"
        raise _refused(source, f"has {which}, which steps of DDIM do not pass on; name a model "
                               "without.")
    how = halving.settings(num_steps, clip)
    return Teacher(trained, how, halving.schedule(schedule, num_steps))


def _refused(source, rule):
    return UserError(rule, field="config.distill.teacher", value=source)
