"""`distill(config, workdir)`: the phases of progressive distillation, one run after another."""

from typing import Any

import ml_collections

from ddpm_jax import validation
from ddpm_jax.errors import UserError
from ddpm_jax.runtime import files
from ddpm_jax.training import distillation, loop
from ddpm_jax.training import run as run_lib
from ddpm_jax.workdir import checkpoints, run_folder


def distill(config: ml_collections.ConfigDict, workdir: Any, data: Any = None) -> list[str]:
    """Distils a trained model to fewer and fewer steps (see `distillation`), or goes on with that.

    Each phase makes `config.train.num_steps` updates. Where there is a learning-rate schedule, each
    phase runs through it.

    Args:
        config: that of the teacher, with `config.distill`; a teacher that predicts eps gets
            students that predict v.
        workdir: each student gets the folder steps_N in it, to be loaded and sampled as any run.
        data: as of `train`.

    Returns:
        What failed beside the steps, as of `complete`.

    Raises:
        ValueError, FloatingPointError, Interrupted: as `train` does.
    """
    config = validation.checked(config)
    teacher = config.distill.teacher
    if not teacher:
        raise UserError(
            "is missing: a workdir with a trained model", field="config.distill.teacher",
            value=teacher, instead={"config.distill.teacher": "runs/digits"},
        )
    if files.path(teacher) == files.path(workdir):
        raise UserError(
            "is the workdir too; name another --workdir for its students.",
            field="config.distill.teacher", value=teacher,
        )
    run_folder.stored_config(teacher)
    failures = []
    for num_steps in distillation.phases(config):
        folder = distillation.folder_of(workdir, num_steps)
        if max(checkpoints.steps(files.path(folder)), default=0) < config.train.num_steps:
            phase = distillation.config_of_phase(config, num_steps, teacher)
            failures += loop.complete(run_lib.prepare(phase, folder, data))[1]
        teacher = folder
    return failures
