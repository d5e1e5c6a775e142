"""Reads the state dict of one network from files, in one part or several, or from a mapping."""

import json
import os
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from etils import epath

from ddpm_jax.errors import UserError, one_line, shown
from ddpm_jax.runtime import files
from ddpm_jax.weights import torch_file, wrappings
from ddpm_jax.weights.wrappings import Found

_DTYPES = {  # By their names in safetensors, whose own reader for NumPy lacks some.
    "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "I16": np.int16, "I32": np.int32,
    "I64": np.int64,
}


def read(source: Any, prefix: str | None = None) -> Found:
    """The weights of one network, as NumPy arrays by its own names.

    Args:
        source: a file of PyTorch, a `.safetensors`, the `.index.json` of shards, a mapping of
            arrays or of tensors, or a list of these, each with some of the weights.
        prefix: as in `wrappings.find`.

    Raises:
        UserError: a file is missing or damaged, or it is not clear which weights are meant.
    """
    parts = _parts(source)
    if len(parts) == 1 and not isinstance(parts[0], Mapping) and _is_torch(parts[0]):
        choices = []  # Only what is chosen is read, so an optimizer's state costs no memory.

        def select(values):
            choices.append(wrappings.find(values, prefix))
            return choices[0].weights

        weights = torch_file.read(parts[0], select)
        return Found(weights, choices[0].note)
    values: dict[str, Any] = {}
    for part in parts:
        values |= _values(part)
    found = wrappings.find(values, prefix)
    return found._replace(weights={name: _array(name, x) for name, x in found.weights.items()})


def shards(index: epath.Path) -> list[str]:
    """The names of the files, beside it, that a `.index.json` lists.

    Raises:
        UserError: it is damaged, or lists files elsewhere.
    """
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index} is no index of shards ({one_line(error)[:200]}); download it again."
        ) from None
    for name in names:
        if not isinstance(name, str) or name != os.path.basename(name) or name in ("", ".", ".."):
            raise UserError(f"{index} lists {shown(name)}, which is no file beside it.")
    return names


def _parts(source) -> list[Any]:
    """What is to be read, the shards of an index one by one."""
    if isinstance(source, (str, os.PathLike, Mapping)):
        source = [source]
    if not isinstance(source, (list, tuple)) or not all(
        isinstance(part, (str, os.PathLike, Mapping)) for part in source
    ):
        raise UserError(
            "is neither a path nor a dict of weights; write the path of a file, or "
            "model.state_dict().", field="path", value=source,
        )
    return [whole for part in source for whole in _whole(part)]


def _whole(part) -> list[Any]:
    """A part that is no index of shards, or these."""
    if isinstance(part, Mapping):
        return [part]
    path = files.path(part)
    if path.is_dir():
        raise UserError(
            "is a folder; write a file in it, or read it by from_pretrained.", where=path)
    return [path.parent / name for name in shards(path)] if path.suffix == ".json" else [path]


def _is_torch(path) -> bool:
    return path.suffix != ".safetensors"


def _values(part) -> dict[str, Any]:
    """Everything in a file or a mapping, by name."""
    if isinstance(part, Mapping):
        try:
            return wrappings.named(part)
        except (ValueError, RecursionError) as error:
            raise UserError(f"is no dict of weights ({one_line(error)}).") from None
    return torch_file.read(part, _readable) if _is_torch(part) else _read_safetensors(part)


def _readable(values) -> dict[str, Any]:
    return {name: x for name, x in values.items() if hasattr(x, "shape") or hasattr(x, "named")}


def _read_safetensors(path) -> dict[str, np.ndarray]:
    try:
        return {
            name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in safetensors.deserialize(path.read_bytes())
        }
    except (safetensors.SafetensorError, OSError, KeyError) as error:  # KeyError: its dtype.
        raise UserError(
            f"{path.name} is damaged, missing, or of a type that is no float "
            f"({one_line(error)[:200]}); download it again, or save it in float32."
        ) from None


def _array(name, x) -> np.ndarray:
    """A tensor of PyTorch, of JAX or of NumPy as an array."""
    try:
        return x.detach().cpu().float().numpy() if hasattr(x, "detach") else np.asarray(x)
    except Exception as error:  # Of any library, for example of a tensor without data.
        raise UserError(
            f"{shown(name)} cannot be read ({one_line(error)[:200]}); pass arrays or tensors."
        ) from None
