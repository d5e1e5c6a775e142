"""A run's folder: made, found writable, and tied to the config that it was started with."""

import uuid
from typing import Any

import ml_collections
from etils import epath

from ddpm_jax import config as config_lib
from ddpm_jax.runtime import files, parallel


def create(workdir: Any) -> epath.Path:
    """Makes the folder and shows that it can be written to.

    Raises:
        ValueError: it cannot be made or written to.
    """
    workdir = files.path(workdir)
    probe = workdir / f".writable-{uuid.uuid4().hex}"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"workdir={workdir} cannot be written to ({error.strerror or error}); name a folder "
            "that can, such as --workdir=runs/first."
        ) from None
    return workdir


def store_config(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Writes `config.json`, unless the folder was made with another model.

    Raises:
        ValueError: a setting on which the parameters depend differs from the stored one.
    """
    path = workdir / "config.json"
    if path.exists():
        config_lib.check_same_run(config, config_lib.parse(path.read_text()), workdir)
    if parallel.is_first():
        files.write(path, (config_lib.dump(config) + "\n").encode())


def stored_config(workdir: Any) -> ml_collections.ConfigDict:
    """The config in `config.json`.

    Raises:
        ValueError: there is none.
    """
    path = files.path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(
            f"workdir={workdir} holds no config.json: nothing was trained there; train first with "
            f"--mode=train --workdir={workdir}, or name another --workdir."
        )
    return config_lib.parse(path.read_text())


def config_for(
    config: ml_collections.ConfigDict | None, workdir: Any
) -> ml_collections.ConfigDict:
    """`config` for use with the finished or running run in `workdir`; None is the run's own.

    Raises:
        ValueError: there is no run, or `config` describes another model than its.
    """
    stored = stored_config(workdir)
    return stored if config is None else config_lib.as_stored(config, stored, workdir)
