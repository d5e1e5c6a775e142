"""`distill(config, workdir)`: the phases of progressive distillation, one run after another."""

import os
from typing import Any

import jax
import ml_collections

from ddpm_jax import validation
from ddpm_jax.errors import UserError
from ddpm_jax.runtime import files, parallel
from ddpm_jax.samplers import halving
from ddpm_jax.training import loop
from ddpm_jax.training import run as run_lib
from ddpm_jax.workdir import checkpoints, run_folder


def distill(config: ml_collections.ConfigDict, workdir: Any, data: Any = None) -> list[str]:
    """Distils a trained model to fewer and fewer steps (see `halving`), or goes on with that.

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
    run_lib.start_devices(config)
    teacher = config.distill.teacher
    if not teacher:
        raise UserError(
            "is missing: a workdir with a trained model", field="config.distill.teacher",
            value=teacher, instead={"config.distill.teacher": "runs/digits"},
        )
    if _same(teacher, workdir):
        raise UserError(
            "is the workdir too; name another --workdir for its students.",
            field="config.distill.teacher", value=teacher,
        )
    run_folder.stored_config(teacher)
    failures = []
    for num_steps in phases(config):
        folder = run_folder.student_folder(workdir, num_steps)
        if parallel.from_first(lambda: _done(folder, teacher)) < config.train.num_steps:
            phase = config_of_phase(config, num_steps, teacher)
            failures += loop.complete(run_lib.prepare(phase, folder, data))[1]
            jax.clear_caches()  # The next phase has programs of its own.
        teacher = folder
    return failures


def _done(folder, teacher):
    """The updates that a phase has made; refuses one that another teacher began."""
    folder = files.path(folder)
    stored = run_folder.find_config(folder)
    if stored is not None and not _same(stored.distill.teacher, teacher):
        raise UserError(
            f"is not the teacher that {folder} began with; write {{instead}}, or name another "
            "--workdir.", field="config.distill.teacher", value=teacher,
            instead={"config.distill.teacher": stored.distill.teacher},
        )
    return max(checkpoints.steps(folder), default=0)


def _same(one, other):
    """Whether both paths name one folder."""
    one, other = str(one), str(other)
    if "://" in one + other:
        return one == other
    return os.path.realpath(one) == os.path.realpath(other)


def phases(config: ml_collections.ConfigDict) -> list[int]:
    """The numbers of steps of the students, each half of the one before.

    Raises:
        UserError: they cannot be halved from start_steps to end_steps, or exceed the schedule.
    """
    start, end = config.distill.start_steps, config.distill.end_steps
    most = config.diffusion.num_timesteps
    halvings = (start // end).bit_length() - 1
    if start > most:
        raise UserError(
            f"is more than the {most} steps of the schedule", field="config.distill.start_steps",
            value=start, instead={"config.distill.start_steps": 2 ** (most.bit_length() - 1)},
        )
    if halvings < 1 or end * 2**halvings != start:
        raise UserError(
            f"cannot be halved down to config.distill.end_steps={end}",
            field="config.distill.start_steps", value=start,
            instead={"config.distill.start_steps": end * 2 ** max(halvings, 1)},
        )
    return [start >> k for k in range(1, halvings + 1)]


def config_of_phase(
    config: ml_collections.ConfigDict, num_steps: int, teacher: Any
) -> ml_collections.ConfigDict:
    """The config of the run that makes a student of so many steps.

    Args:
        config: of `--mode=distill`.
        num_steps: of the student.
        teacher: its workdir.
    """
    config = config.copy_and_resolve_references()
    config.distill.num_steps, config.distill.teacher = num_steps, str(teacher)
    config.train.warm_start, config.train.eval_images = str(teacher), 0
    if config.diffusion.mean not in halving.MEANS:
        config.diffusion.mean = halving.MEANS[0]
    how = halving.settings(num_steps, config.sample.clip)
    for name in ("sampler", "num_steps", "grid"):
        config.sample[name] = getattr(how, name)
    return config
