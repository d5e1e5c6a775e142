"""The weights of Inception, from the PyTorch file that pytorch-fid and torch-fidelity share.

They are downloaded and checked, and the norms are folded into the convolutions.
"""

import http.client
import pathlib
import shutil
import tempfile
import urllib.request
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax.traverse_util import flatten_dict, unflatten_dict

from ddpm_jax.errors import UserError
from ddpm_jax.network import inception
from ddpm_jax.network.inception import Inception
from ddpm_jax.runtime import files
from ddpm_jax.weights import torch_file

NORM = ("weight", "bias", "running_mean", "running_var")
NORM_EPS = 1e-3
FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
TIMEOUT = 60  # Seconds without a byte.


def entry_shapes() -> dict[str, tuple[int, ...]]:
    """The names and shapes of the 566 entries of the PyTorch file; computes nothing.

    Convolutions are [out, in, h, w], the last layer [out, in], norms [out].
    """
    image = jnp.zeros((1, inception.SIZE, inception.SIZE, 3))
    params = jax.eval_shape(lambda: Inception().init(jax.random.key(0), image)["params"])
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, leaf in flatten_dict(params, sep=".").items():
        if leaf.ndim < 4:
            continue
        layer = name.removesuffix(".kernel")
        *kernel, inputs, outputs = leaf.shape
        shapes[f"{layer}.conv.weight"] = (outputs, inputs, *kernel)
        shapes |= {f"{layer}.bn.{part}": (outputs,) for part in NORM}
        shapes[f"{layer}.bn.num_batches_tracked"] = ()
    return shapes


def params_from_torch(entries: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameters of `Inception`, float32 NumPy, from the entries of the PyTorch file.

    Each norm is folded into the convolution before it, in float64: with s = weight /
    sqrt(running_var + 0.001) the kernel is multiplied by s, and bias - running_mean * s is
    added. The bias of the last layer is left out; see `Features.logits`.

    Args:
        entries: arrays named and shaped as in `entry_shapes`; the counters of training batches
            ("num_batches_tracked") may be absent.

    Raises:
        UserError: an entry is missing, unknown or of another shape; the first is named.
    """
    _check_entries(entries)
    params = {"fc.kernel": np.float32(entries["fc.weight"]).T}
    for name in entries:
        if name.endswith(".conv.weight"):
            layer = name.removesuffix(".conv.weight")
            weight, bias, mean, var = (
                np.float64(entries[f"{layer}.bn.{part}"]) for part in NORM
            )
            scale = weight / np.sqrt(var + NORM_EPS)
            kernel = np.float64(entries[name]).transpose(2, 3, 1, 0)  # [h, w, in, out]
            params[f"{layer}.kernel"] = np.float32(kernel * scale)
            params[f"{layer}.bias"] = np.float32(bias - mean * scale)
    return unflatten_dict(params, sep=".")


def _check_entries(entries):
    shapes = entry_shapes()
    advice = f"it needs the entries of {FILE}, from {URL}."
    for name, shape in shapes.items():
        if name in entries and np.shape(entries[name]) != shape:
            raise UserError(
                f"entry {name!r} has shape {list(np.shape(entries[name]))}, and "
                f"Inception's has {list(shape)}; {advice}"
            )
        if name not in entries and not name.endswith("num_batches_tracked"):
            raise UserError(f"entry {name!r} of Inception is missing; {advice}")
    for name in entries:
        if name not in shapes:
            raise UserError(f"entry {name!r} is none of Inception's; {advice}")


def load(path: Any = None, *, sha256: str | None = SHA256) -> dict[str, Any]:
    """The trained parameters, as in `Inception().apply({"params": load()}, images)`.

    Args:
        path: the PyTorch file; None is the one in the folder $DDPM_JAX_CACHE (by default
            ~/.cache/ddpm_jax), which is downloaded there (95.6 MB) if it is absent.
        sha256: of the file, 64 hexadecimal digits; None takes any file with the same entries.

    Raises:
        UserError: the file is missing and cannot be downloaded, is another one, or cannot
            be read. A download is kept only if it is whole and right.
    """
    path = _cached(sha256) if path is None else files.path(path)
    _check_sum(path, sha256, path)
    return params_from_torch(torch_file.read(path))


def _cached(sha256) -> pathlib.Path:
    """The file in the cache folder, downloaded if it is absent."""
    folder = files.cache_folder()
    path = folder / FILE
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            part = pathlib.Path(scratch) / FILE
            _download(part)
            _check_sum(part, sha256, URL)
            part.replace(path)  # Whole or not at all, even if others download it too.
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"{URL}: cannot be downloaded to {folder} ({error}); download it elsewhere and "
            "put it there, or write --config.evaluate.inception=PATH."
        ) from error
    return path


def _download(path):
    with urllib.request.urlopen(URL, timeout=TIMEOUT) as response, path.open("wb") as file:
        total = int(response.headers.get("Content-Length") or 0)
        bar = dict(total=total, desc=FILE, unit="B", unit_scale=True, leave=False)
        with tqdm.tqdm.wrapattr(response, "read", **bar) as source:
            shutil.copyfileobj(source, file)


def _check_sum(path, sha256, source):
    try:
        found = files.sha256(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); download {URL} and write "
            "--config.evaluate.inception=PATH."
        ) from error
    if sha256 is not None and found != sha256:
        raise UserError(
            f"{source}: has SHA-256 {found}, and Inception's weights have {sha256}; get "
            f"them from {URL} and write --config.evaluate.inception=PATH."
        )
