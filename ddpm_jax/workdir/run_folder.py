"""The folder of a run, tied to the config that the run was started with."""

import json
import uuid
from typing import Any

import ml_collections
from etils import epath

from ddpm_jax import config as config_lib
from ddpm_jax.configs import cifar10
from ddpm_jax.errors import UserError, one_line
from ddpm_jax.network import unet
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import files, parallel
from ddpm_jax.workdir.checkpoints import restore_part


def create(workdir: Any) -> epath.Path:
    """Makes the folder, and tests that it can be written to.

    Raises:
        UserError: it cannot be made or written to.
    """
    workdir = files.path(workdir)
    probe = workdir / f".writable-{uuid.uuid4().hex}"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"workdir={workdir} cannot be written to ({error.strerror or error}); name a folder "
            "that can, for example --workdir=runs/first."
        ) from None
    return workdir


def store_config(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Writes `config.json`, unless the folder was made with another model.

    Raises:
        UserError: a setting on which the parameters depend differs from the stored one.
    """
    path = workdir / "config.json"
    if path.exists():
        check_same_run(config, parse(path.read_text()), workdir)
    if parallel.is_first():
        files.write(path, (dump(config) + "\n").encode())


def stored_config(workdir: Any) -> ml_collections.ConfigDict:
    """The config in `config.json`.

    Raises:
        UserError: there is none.
    """
    path = files.path(workdir) / "config.json"
    if not path.exists():
        raise UserError(
            f"workdir={workdir} holds no config.json: nothing was trained there; train first with "
            f"--mode=train --workdir={workdir}, or name another --workdir."
        )
    return parse(path.read_text())


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
        return tuple(value) if isinstance(value, list) else value

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
          "data.labels", "data.num_classes", "data.condition", "data.condition_channels",
          "data.factor", "train.extra_ema_decays", "train.t_sampling")
_FREE = tuple(f"model.{name}" for name in unet.FREE)


def check_same_run(
    config: ml_collections.ConfigDict, stored: ml_collections.ConfigDict, workdir: Any
) -> None:
    """Raises UserError naming the first setting that makes the model in `workdir` another one."""
    now, before = (dict(config_lib.leaves(c)) for c in (config, stored))
    for name, value in now.items():
        fixed = name.startswith(tuple(f"{group}." for group in _FIXED)) or name in _FIXED
        if fixed and name not in _FREE and value != before.get(name):
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
    for name in ("image_size", "image_width", "channels", "num_classes", "condition_channels"):
        config.data[name] = config.data[name] or stored.data[name]
    config.train = stored.train
    check_same_run(config, stored, workdir)
    return config


def load(workdir: Any, *, step: int | None = None, weights: str = "ema") -> Trained:
    """The model that was trained in `workdir`, from its newest checkpoint.

    Args:
        workdir: as given to `train`.
        step: which checkpoint; the newest by default.
        weights: "ema", the running average; "raw", the parameters themselves; or one of
            `config.train.extra_ema_decays`, for example "0.999".

    Raises:
        UserError: there is no run, no checkpoint or no such weights.
    """
    return load_step(workdir, step=step, weights=weights)[1]


def load_step(
    workdir: Any, *, step: int | None = None, weights: str = "ema"
) -> tuple[int, Trained]:
    """(step, model): as `load`, with the number of updates that the parameters have seen."""
    stored = stored_config(workdir)
    extra = [str(decay) for decay in stored.train.extra_ema_decays]
    if weights not in ("ema", "raw", *extra):
        raise UserError(
            f"weights={weights!r} are not in {workdir}; use one of "
            f"{', '.join(('ema', 'raw', *extra))}."
        )
    part = {"ema": "ema_params", "raw": "params"}.get(weights, "extra_ema_params")
    step, params, metadata = restore_part(workdir, part, step)
    config = parse(metadata["config"])
    shape = config_lib.image_shape(config)
    return step, Trained(
        params=params[weights] if weights in extra else params,
        model=config_lib.model(config, shape[-1]),
        schedule=config_lib.schedule(config),
        diffusion=config_lib.parameterization(config),
        image_shape=shape,
    )
