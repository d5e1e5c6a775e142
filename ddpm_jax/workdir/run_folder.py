"""The folder of a run, tied to the config that the run was started with."""

import json
import uuid
from collections.abc import Sequence
from typing import Any

import ml_collections
from etils import epath

from ddpm_jax import config as config_lib
from ddpm_jax import errors
from ddpm_jax.configs import cifar10
from ddpm_jax.errors import UserError, one_line, whole_number
from ddpm_jax.network import averages, fields
from ddpm_jax.network.trained import About, Trained
from ddpm_jax.runtime import devices, files, parallel
from ddpm_jax.workdir import checkpoints, snapshots


def create(workdir: Any) -> epath.Path:
    """Makes the folder, and tests that it can be written to.

    Raises:
        UserError: it cannot be made or written to, or nothing written there could be found again.
    """
    workdir = files.path(workdir)
    if (run := _run_around(workdir)[0]) != workdir:
        raise UserError(
            f"workdir={workdir} is inside the run in {run}; write --workdir={run} to go on with it."
        )
    if files.in_store(workdir) and set("[\\") & set(str(workdir)):
        raise UserError(
            f"workdir={workdir} is in a store and has '[' or a backslash in its path, which its "
            "checkpoints could not be found by; name a folder without them."
        )
    check_writable(workdir)
    return workdir


def check_writable(folder: epath.Path, instead: str = "--workdir=runs/first") -> None:
    """Makes the folder, and raises UserError if it cannot be made or written to.

    Args:
        folder: local or in a store.
        instead: the setting that names another folder, for the message.
    """
    probe = folder / f".writable-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error.strerror or error}); name a folder that can, "
            f"for example {instead}."
        ) from None


def store_config(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Writes `config.json`, unless the folder was made with another model.

    Raises:
        UserError: a setting on which the parameters depend differs from the stored one.
    """
    stored = find_config(workdir)
    if stored is not None:
        check_same_run(config, stored, workdir)
    if parallel.is_first():
        files.write(workdir / "config.json", (dump(config) + "\n").encode())


def stored_config(workdir: Any) -> ml_collections.ConfigDict:
    """The config in `config.json`, or, where that is gone, the one in the newest checkpoint.

    Raises:
        UserError: there is neither.
    """
    workdir = files.path(workdir)
    stored = find_config(workdir)
    if stored is not None:
        return stored
    run, _ = _run_around(workdir)
    if run != workdir:
        raise UserError(f"workdir={workdir} is inside a run; write --workdir={run}.")
    if any((workdir / name).exists() for name in _DIFFUSERS):
        raise _of_diffusers(workdir)
    raise UserError(
        f"workdir={workdir} holds neither config.json nor a checkpoint: nothing was trained there; "
        f"train first with --mode=train --workdir={workdir}, or name another --workdir."
    )


def find_config(workdir: epath.Path) -> ml_collections.ConfigDict | None:
    """As `stored_config`, but None where there is no run."""
    path = workdir / "config.json"
    if path.exists():
        text = path.read_text()
        if '"_diffusers_version"' in text:
            raise _of_diffusers(workdir)
        return parse(text)
    metadata = checkpoints.newest_metadata(workdir)
    return None if metadata is None else parse(metadata["config"])


_DIFFUSERS = ("model_index.json", "unet/config.json", "unet_ema/config.json")


def _of_diffusers(folder: epath.Path) -> UserError:
    return UserError(
        f"workdir={folder} is a model of diffusers, not a run: ddpm_jax.from_pretrained opens it, "
        f"and --config.train.warm_start={folder} trains from it in another --workdir."
    )


def _run_around(folder: epath.Path) -> tuple[epath.Path, int | None]:
    """(workdir, step) where the folder is a run's `checkpoints/STEP`, or (workdir, None)."""
    if folder.parent.name == "checkpoints" and folder.name.isdigit():
        run, step = folder.parent.parent, int(folder.name)
    else:
        run, step = folder.parent, None
    inside = "checkpoints" in (folder.name, folder.parent.name)
    return (run, step) if inside and find_config(run) is not None else (folder, None)


def config_for(
    config: ml_collections.ConfigDict | None, workdir: Any
) -> ml_collections.ConfigDict:
    """`config` for use with the model of the run in `workdir`; None is the run's own config.

    Raises:
        UserError: there is no run, or `config` describes another model.
    """
    stored = stored_config(workdir)
    return stored if config is None else as_stored(config, stored, workdir)


def dump(config: ml_collections.ConfigDict) -> str:
    """The config as JSON text."""
    return config.to_json(indent=2)


def parse(text: str) -> ml_collections.ConfigDict:
    """The config that `dump` wrote, locked, with lists as tuples again.

    Settings that did not exist when it was written get the value of `configs/cifar10.py`, which
    is what they were before they could be set.

    Raises:
        UserError: it is no JSON, or has other settings than those of `configs/cifar10.py`.
    """
    def frozen(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: frozen(item) for key, item in value.items()}
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    config = cifar10.get_config()
    try:
        config.update(ml_collections.ConfigDict(frozen(json.loads(text))))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise UserError(
            f"the stored config cannot be read ({one_line(error)[:200]}); it is damaged, or "
            "of another version of this package: put back the file, or name another --workdir."
        ) from None
    return config


# The parameters and the optimizer state depend on these; the rest may change on resume.
_FIXED = ("model", "diffusion", "data.image_size", "data.image_width", "data.channels",
          "data.labels", "data.num_classes", "data.vectors", "data.vector_mean",
          "data.vector_std", "data.condition", "data.condition_channels", "data.factor",
          "data.range", "data.range_bins", "distill.num_steps", "train.extra_ema_decays",
          "train.t_sampling")
_STUDENT = "steps_"
_ON_OR_OFF = ("train.ema_snapshot_every", "data.augment")  # Their values may change, but for 0.
_FOLLOWS = ("data.vector_mean", "data.vector_std")  # From data.vectors, which is named first.
_FREE = tuple(f"model.{name}" for name in fields.FREE)


def check_same_run(
    config: ml_collections.ConfigDict, stored: ml_collections.ConfigDict, workdir: Any
) -> None:
    """Raises UserError naming the first setting that makes the model in `workdir` another one."""
    now, before = (dict(config_lib.leaves(c)) for c in (config, stored))
    for name, value in sorted(now.items(), key=lambda item: item[0] in _FOLLOWS):
        fixed = name.startswith(tuple(f"{group}." for group in _FIXED)) or name in _FIXED
        differs = name not in _FREE and value != before.get(name)
        if fixed and differs or name in _ON_OR_OFF and bool(value) != bool(before.get(name)):
            raise UserError(
                f"config.{name}={value!r}, but {workdir} was made with {before.get(name)!r}; "
                f"write --config.{name}={before.get(name)!r}, or name another --workdir."
            )


def as_stored(
    config: ml_collections.ConfigDict, stored: ml_collections.ConfigDict, workdir: Any
) -> ml_collections.ConfigDict:
    """`config` for use with a run: it decides how to sample, the run decides the model.

    Raises:
        UserError: it describes another model.
    """
    config = config.copy_and_resolve_references()
    config.train = stored.train
    return filled(config, stored, workdir)


def filled(
    config: ml_collections.ConfigDict, stored: ml_collections.ConfigDict, workdir: Any
) -> ml_collections.ConfigDict:
    """`config` with what the data of the run have decided where it leaves that open.

    Raises:
        UserError: it describes another model.
    """
    config = config.copy_and_resolve_references()
    for name in ("image_size", "image_width", "channels", "num_classes", "class_names", "vectors",
                 "vector_mean", "vector_std", "condition_channels", "range", "range_bins"):
        config.data[name] = config.data[name] or stored.data[name]
    check_same_run(config, stored, workdir)
    return config


def on_scale_of_run(
    config: ml_collections.ConfigDict, workdir: epath.Path
) -> ml_collections.ConfigDict:
    """The config with the scale of the numbers of the run in `workdir`, unless it has its own.

    More images may have come to the data since, and the network goes on as it began.
    """
    stored = find_config(workdir)
    if stored is None or config.data.vector_mean:
        return config
    config = config.copy_and_resolve_references()
    config.data.vector_mean = stored.data.vector_mean
    config.data.vector_std = stored.data.vector_std
    return config


def student_folder(workdir: Any, num_steps: int) -> str:
    """The workdir of the student of so many steps in one of `--mode=distill`."""
    return str(files.path(workdir) / f"{_STUDENT}{num_steps}")


def load_students(workdir: str, steps: Sequence[int]) -> dict[int, Trained]:
    """The students of these numbers of steps in a workdir of `--mode=distill`; {} for "".

    Raises:
        UserError: one is not there.
    """
    if not (workdir and steps):
        return {}
    there, folder = [], files.path(workdir)
    if folder.is_dir():
        names = (path.name.removeprefix(_STUDENT) for path in folder.iterdir()
                 if path.name.startswith(_STUDENT) and checkpoints.steps(path))
        there = sorted(map(int, filter(str.isdecimal, names)), reverse=True)
    missing = [number for number in steps if number not in there]
    if missing:
        raise UserError(
            f"has no student of {missing[0]} steps, which {{steps}} asks for" if there else
            "has no students; name a workdir of --mode=distill.",
            field="sweep_students", value=workdir, given={"steps": tuple(steps)},
            instead={"steps": tuple(there)} if there else None,
        )
    return {number: load(student_folder(workdir, number)) for number in steps}


def load(workdir: Any, *, step: int | None = None, weights: str = "ema") -> Trained:
    """The model that was trained in `workdir`, from its newest checkpoint.

    Args:
        workdir: as given to `train`; its `checkpoints/STEP` is the same run at that step.
        step: which checkpoint; the newest by default.
        weights: "ema", the running average; "raw", the parameters themselves; one of
            `config.train.extra_ema_decays`, for example "0.999"; or "sigma_rel=0.08", the average
            of this width, rebuilt from the snapshots of `config.train.ema_snapshot_every`.

    Raises:
        UserError: there is no run, no checkpoint or no such weights.
    """
    return load_step(workdir, step=step, weights=weights)[1]


def load_guide(name: str, workdir: Any, weights: str = "ema") -> Trained | None:
    """The worse model that `config.sample.guide_weights` names; None for "".

    Args:
        name: the step of a checkpoint of the run, or another workdir.
        workdir: of the run.
        weights: of either, as of `load`.

    Raises:
        UserError: there is no such model.
    """
    if not name:
        return None
    step = int(name) if name.isdecimal() else None
    with errors.located(f"config.sample.guide_weights={name!r}"):
        return load(name if step is None else workdir, step=step, weights=weights)


def check_weights(weights: Any, stored: ml_collections.ConfigDict, workdir: Any) -> None:
    """Raises UserError unless a run of this config has weights of this name (see `load`)."""
    names = ("ema", "raw", *map(str, stored.train.extra_ema_decays))
    if weights in names:
        return
    width = averages.sigma_rel(weights) if isinstance(weights, str) else None
    ends = f"{averages.PREFIX}0.01 to {averages.PREFIX}{averages.LONGEST}"
    if width is None:
        also = f", or {ends}" if stored.train.ema_snapshot_every else ""
        rule = f"are not in {workdir}; use one of {', '.join(names)}{also}."
    elif not stored.train.ema_snapshot_every:
        rule = (
            f"need the snapshots of --config.train.ema_snapshot_every, which {workdir} was "
            f"trained without; use one of {', '.join(names)}."
        )
    elif not 0 < width <= averages.LONGEST:
        rule = f"have no such width; use {ends}."
    else:
        return
    raise UserError(rule, field="weights", value=weights)


def load_step(
    workdir: Any, *, step: int | None = None, weights: str = "ema"
) -> tuple[int, Trained]:
    """(step, model): as `load`, with the number of updates that the parameters have seen."""
    devices.check()
    workdir, at = _run_around(files.path(workdir))
    step = at if step is None else whole_number("step", step, low=0)
    stored = stored_config(workdir)
    check_weights(weights, stored, workdir)
    if (width := averages.sigma_rel(weights)) is not None:
        step, params, metadata = snapshots.rebuilt(workdir, step, width)
    else:
        part = {"ema": "ema_params", "raw": "params"}.get(weights, "extra_ema_params")
        step, params, metadata = checkpoints.restore_part(workdir, part, step)
        params = params[weights] if part == "extra_ema_params" else params
    config = parse(metadata["config"])
    shape = config_lib.image_shape(config)
    return step, Trained(
        params=params,
        model=config_lib.model(config, shape[-1]),
        schedule=config_lib.schedule(config),
        diffusion=config_lib.parameterization(config),
        image_shape=shape,
        value_range=config.data.range,
        bins=config_lib.bins(config),
        vector_scale=config_lib.vector_scale(config),
        about=About(config, step, config.data.class_names),
    )
