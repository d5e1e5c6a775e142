"""A model in one `.safetensors`: parameters by our own names, what they need as metadata."""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from flax.traverse_util import unflatten_dict

from ddpm_jax.diffusion import process
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.errors import UserError, check_known, one_line
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network import unet
from ddpm_jax.network.trained import About, Trained
from ddpm_jax.runtime import files
from ddpm_jax.weights import state_files

ENDING = ".safetensors"
_KEY, _VERSION = "ddpm_jax", 1
_DTYPES = ("float32", "bfloat16")
_PLAIN = ("image_shape", "value_range", "bins", "vector_scale")  # Fields that are JSON as they are.


def write(trained: Trained, path: Any, dtype: str = "float32") -> None:
    """Writes the file, whole or not at all.

    Args:
        trained: a model whose network is a `UNet`.
        path: ends with `ENDING`.
        dtype: of the stored parameters, "float32" or "bfloat16" (half the size, 3 digits).

    Raises:
        UserError: it is no such model, or the dtype is another.
    """
    check_known("dtype", dtype, _DTYPES)
    if not isinstance(trained.model, unet.UNet):
        raise UserError(
            f"model is a {type(trained.model).__name__}, and such a file is for a UNet; save its "
            "parameters with Orbax or safetensors."
        )
    schedule = trained.schedule
    about = {
        "version": _VERSION, "network": _fields(trained.model),
        "beta": np.asarray(schedule.beta, np.float64).tolist(),
        "diffusion": dataclasses.asdict(trained.diffusion),
        "class_names": trained.class_names, "step": trained.step,
    } | {name: getattr(trained, name) for name in _PLAIN}
    arrays = {
        "/".join(path): np.asarray(leaf).astype(jnp.dtype(dtype))
        for path, leaf in trained_lib.leaves(trained.params).items()
    }
    metadata = {"format": "flax", _KEY: json.dumps(about)}
    files.write(path, safetensors.numpy.save(arrays, metadata=metadata))


def is_one(path: Any) -> bool:
    """Whether this is a file that `write` wrote."""
    return _about(path) is not None


def read(path: Any) -> Trained:
    """The model in a file of `write`, its parameters float32.

    Raises:
        UserError: it is no such file, or one of a later version.
    """
    about = _about(path)
    if about is None:
        raise UserError(
            f"{path} has weights and does not say of which network; write ddpm_jax.from_state_dict("
            f"{str(path)!r}, UNet(...), image_shape=...)."
        )
    if about["version"] > _VERSION:
        raise UserError(f"{path} was written by a later version of this package; update it.")
    found = state_files.read(path).weights
    params = unflatten_dict({
        tuple(name.split("/")): np.asarray(x, np.float32) for name, x in found.items()})
    return Trained(
        params, unet.UNet(**_tuples(about["network"])), schedule_lib.from_betas(about["beta"]),
        process.Parameterization(**about["diffusion"]),
        about=About(None, about["step"], tuple(about["class_names"])),
        **_tuples({name: about[name] for name in _PLAIN}),
    )


def _fields(model) -> dict[str, Any]:
    """The network's fields that differ from the defaults, JSON."""
    values = {
        field.name: (getattr(model, field.name), field.default)
        for field in dataclasses.fields(model) if field.name not in ("parent", "name", "dtype")
    }
    return {name: value for name, (value, default) in values.items() if value != default}


def _about(path) -> dict[str, Any] | None:
    """What the file says of its model; None where it says nothing."""
    path = epath.Path(path)
    if path.suffix != ENDING or not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size < 2**27 else {}
        return json.loads(header["__metadata__"][_KEY])
    except (KeyError, TypeError, RecursionError):
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({one_line(error)[:100]}).") from None


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
