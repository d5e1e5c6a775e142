"""Which files of a folder of diffusers hold its model; folders on disk and of the hub alike."""

import re
from collections.abc import Collection
from typing import NamedTuple

from ddpm_jax.errors import UserError

CONFIG = "config.json"
SCHEDULERS = ("scheduler/scheduler_config.json", "scheduler_config.json")
PIPELINE = "model_index.json"
# Where the network may be. A pipeline says that it is in unet/; without one the folder is a
# checkpoint of a trainer, whose running average is in unet_ema/.
NETWORKS = ("unet_ema/", "unet/", "")
NETWORKS_OF_PIPELINES = ("unet/", "", "unet_ema/")
FOLDERS = ("", "scheduler", "unet", "unet_ema")  # All that matter.
WEIGHTS = "diffusion_pytorch_model.safetensors"
# In order of preference; the first group is the variant.
_WEIGHTS = tuple(map(re.compile, (
    r"diffusion_pytorch_model(?:\.([\w-]+))?\.safetensors",
    r"diffusion_pytorch_model\.safetensors\.index(?:\.([\w-]+))?\.json",
    r"diffusion_pytorch_model(?:\.([\w-]+))?\.bin",
    r"diffusion_pytorch_model\.bin\.index(?:\.([\w-]+))?\.json",
    r"model()\.safetensors",  # Of accelerate.
    r"pytorch_model()\.bin",
)))
_PRECISIONS = ("", "fp32", "fp16", "bf16")  # Of one model, the best first.


class Layout(NamedTuple):
    """The files of a model, by their names below the folder.

    Attributes:
        config: the network's settings.
        scheduler: the process's settings; "" where there are none.
        weights: the weights, or the `.index.json` of their shards.
        note: a line about the choice, where there was one; else "".
    """

    config: str
    scheduler: str
    weights: str
    note: str


def find(names: Collection[str], variant: str | None = None) -> Layout:
    """The files of the model among the names of all files.

    Args:
        names: below the folder, with "/".
        variant: which of the weights, for example "fp16" for
            `diffusion_pytorch_model.fp16.safetensors`; None: those without one, else in the best
            precision.

    Raises:
        UserError: there is no network or no such weights, or several networks are meant.
    """
    folders = NETWORKS_OF_PIPELINES if PIPELINE in names else NETWORKS
    folders = [folder for folder in folders if f"{folder}{CONFIG}" in names]
    if not folders:
        raise UserError(
            f"has no unet/{CONFIG} and no {CONFIG}; write a folder of diffusers, or read a file of "
            "weights alone by from_state_dict."
        )
    folder = folders[0]
    note = (
        "holds a model and its running average: the average, unet_ema, is taken; for the model "
        "itself name its folder unet" if folders[:2] == ["unet_ema/", "unet/"] else ""
    )
    scheduler = next((name for name in SCHEDULERS if name in names), "")
    return Layout(f"{folder}{CONFIG}", scheduler, folder + _weights(names, folder, variant), note)


def _weights(names, folder, variant) -> str:
    """The weights among the names in one folder."""
    found: dict[str, str] = {}
    for pattern in _WEIGHTS:
        for name in sorted(names):
            start, _, last = name.rpartition("/")
            match = pattern.fullmatch(last) if f"{start}/".lstrip("/") == folder else None
            if match and not re.search(r"-\d+-of-\d+", last):
                found.setdefault(match[1] or "", last)
    if variant is not None:
        if variant in found:
            return found[variant]
        raise UserError(
            f"has no weights of that variant; there are: {_listed(found)}.", field="variant",
            value=variant,
        )
    best = [found[precision] for precision in _PRECISIONS if precision in found]
    if not best and len(found) == 1:
        best = list(found.values())
    if not best and found:
        raise UserError(
            f"has weights of several variants, {_listed(found)}; choose one and write {{instead}}.",
            instead={"variant": sorted(found)[0]},
        )
    if not best:
        raise UserError(
            f"has no {folder}{WEIGHTS} and no .bin of that name; write a folder of diffusers."
        )
    return best[0]


def _listed(found) -> str:
    return ", ".join(repr(variant) for variant in sorted(found)[:8]) or "none"
