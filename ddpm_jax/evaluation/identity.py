"""Digests of what a result is of: weights, images and files.

A row, a kept sample or a cached statistic is used again only for the same digests, so equal names
and steps are not enough. Equal content has equal digests in every process and on every machine.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from ddpm_jax.data import image_folder
from ddpm_jax.data.source import Source
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import files

# Versions of code whose results are kept; those of the metrics are in `catalogue.METRICS`. Raise
# one where the same settings give other values, and nothing of the old version is used again.
SAMPLES = 1  # How samples are drawn.
FEATURES = 1  # How statistics of references are computed.

# Settings that came later: at their defaults they leave the rows of before as they are.
_LATER = ("guidance_rescale", "s_churn", "s_min", "s_max", "s_noise", "sigmoid_bias")

BLOCK = 4096  # Images read at a time.
_MARK = "sha256:"


def of_model(trained: Trained) -> str:
    """The digest of a model: its parameters, and everything that says what they compute."""
    fields = [
        field for field in dataclasses.fields(trained.model)
        if field.name not in ("parent", "name")
    ]
    values = {field.name: (getattr(trained.model, field.name), field.default) for field in fields}
    about = {
        "model": type(trained.model).__name__,
        # Without defaults, so that a new field leaves the digests of existing models alone.
        "fields": {name: value for name, (value, default) in values.items() if value != default},
        "diffusion": dataclasses.asdict(trained.diffusion),
        "image_shape": trained.image_shape,
    } | ({"vector_scale": trained.vector_scale} if trained.vector_scale else {})
    schedule = {  # Rounded, because cosines differ in the last digit from machine to machine.
        "beta": np.asarray(trained.schedule.beta, np.float32),
        "timesteps": np.asarray(trained.schedule.timesteps, np.int64),
    }
    params = {"/".join(path): leaf for path, leaf in trained_lib.leaves(trained.params).items()}
    text = json.dumps(about, sort_keys=True, default=_named).encode()
    arrays = [*_sorted(schedule), *_sorted(params)]
    return _digest([text, *(part for name, array in arrays for part in _parts(name, array))])


def of_settings(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass of settings, JSON; later ones only where they are chosen."""
    return {
        field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)
        if field.name not in _LATER or getattr(settings, field.name) != field.default
    }


def of_images(source: Source, *, inputs: bool = False) -> str:
    """The digest of every image of a source, in order.

    Images are hashed as they are read, so it does not matter in which files or batches they come.

    Args:
        source: of the images, all of which are read.
        inputs: hash their labels, vectors and conditions too.
    """
    def read(places):
        return {"images": source.read(places)} | (source.sample_kwargs(places) if inputs else {})

    hashes, heads = {}, {}
    with concurrent.futures.ThreadPoolExecutor(image_folder.THREADS) as pool:
        for start in range(0, len(source), BLOCK):
            places = np.arange(start, min(start + BLOCK, len(source)))
            shares = np.array_split(places, min(image_folder.THREADS, len(places)))
            for part in pool.map(read, shares):
                for name, array in part.items():
                    heads[name] = f"{name} {array.dtype.str} {array.shape[1:]}"
                    hashes.setdefault(name, hashlib.sha256()).update(array.tobytes())
    sizes = f"{len(source)} images"
    names = sorted(hashes)
    return _digest(
        [sizes.encode(), *(f"{heads[n]} {hashes[n].hexdigest()}".encode() for n in names)]
    )


def of_file(path: Any) -> str:
    """The digest of a file's content."""
    return _MARK + files.sha256(path)[:16]


def is_digest(value: Any) -> bool:
    """Whether a value of a protocol is a digest."""
    return isinstance(value, str) and value.startswith(_MARK)


def _digest(parts: Iterable[bytes]) -> str:
    """The digest of a sequence of bytes, in which it matters where each part ends."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return _MARK + sha.hexdigest()[:16]


def _parts(name: str, array: Any) -> tuple[bytes, bytes]:
    array = np.asarray(array)
    return f"{name} {array.dtype.str} {array.shape}".encode(), array.tobytes()


def _sorted(arrays: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted(arrays.items())


def _named(value: Any) -> str:
    """A type or function by its name, because its `repr` may hold an address."""
    return getattr(value, "__name__", None) or str(value)
