"""What `--mode=sample` is asked for: settings that each task reads, its pictures and its mask."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.configs import cifar10
from ddpm_jax.data import decoding, pixels, raw_pictures
from ddpm_jax.errors import UserError
from ddpm_jax.samplers.settings import Settings

_SAMPLER = tuple(field.name for field in dataclasses.fields(Settings))
_CHAIN = (*_SAMPLER, "labels", "vectors")
# The settings of `config.sample` that each task reads, besides those that all do; "" draws new
# images. Where a task has no use for a setting, a value that was chosen for it is refused.
READS = {
    "": (*_CHAIN, "num_images", "guide_weights", "pngs"),
    "interpolate": (*_CHAIN, "strength"),
    "slerp": (*_CHAIN, "variants"),
    "reconstruct": tuple(  # It neither clips nor thresholds x_0.
        name for name in _CHAIN if name not in ("dynamic_threshold", "rederive_eps")
    ),
    "inpaint": (*_CHAIN, "mask", "variants", "resamplings", "jump_length"),
    "img2img": (*_CHAIN, "strength", "variants"),
    "colourise": (*_CHAIN, "variants", "resamplings", "jump_length"),
    "restore": (*_CHAIN, "operator", "operator_noise", "operator_scale", "mask", "variants",
                "guide_weights"),
    "diffuse": (),
    "strip": (*_CHAIN, "variants", "guide_weights"),
}
TASKS = tuple(filter(None, READS))
_BY_ALL = ("task", "inputs", "weights", "folder", "seed", "batch_size")
_NUM_INPUTS = {"interpolate": (2,), "slerp": (0, 2), "strip": (0,)}  # The others: 1 or more.


def check(asked: Mapping[str, Any], of_run: Mapping[str, Any] | None = None) -> None:
    """Raises UserError where a task lacks what it needs, or a setting has no effect.

    Args:
        asked: the settings of `config.sample` by their names.
        of_run: those that the run was trained with. Like the defaults they were not chosen for
            this task, so they may have no effect.
    """
    task = asked["task"]
    if task or asked["inputs"]:
        if task not in TASKS:
            raise UserError(
                f"is not known; use one of {', '.join(TASKS)}, or leave task and inputs out for "
                "new images.", field="config.sample.task", value=task,
            )
        _check_needs(asked)
    _check_read(asked, of_run or {})


def _check_needs(asked):
    """That the task has as many pictures as it takes, a mask, and strengths."""
    task, n = asked["task"], len(asked["inputs"])
    allowed = _NUM_INPUTS.get(task)
    fits = n in allowed if allowed else n > 0
    if not fits:
        needs = " or ".join(map(str, allowed)) if allowed else "1 or more"
        example = {(0,): (), (2,): ("a.png", "b.png")}.get(allowed, ("a.png",))
        raise UserError(
            f"has {n} pictures, and task={task} takes {needs}", field="config.sample.inputs",
            value=tuple(asked["inputs"]), instead={"config.sample.inputs": example},
        )
    if task == "inpaint" and not asked["mask"]:
        raise UserError(
            "is missing, and task=inpaint needs one: a picture of the images' size, white where "
            "they are known", field="config.sample.mask", value=asked["mask"],
            instead={"config.sample.mask": "mask.png"},
        )
    if task == "restore" and not asked["operator"]:
        raise UserError(
            "is missing, and task=restore undoes one: blur:S, downsample:K, grey or mask, or "
            "several with commas between", field="config.sample.operator", value=asked["operator"],
            instead={"config.sample.operator": "downsample:2"},
        )
    if "strength" in READS[task] and not asked["strength"]:
        raise UserError(
            f"is empty, and task={task} needs at least one", field="config.sample.strength",
            value=tuple(asked["strength"]), instead={"config.sample.strength": (0.5,)},
        )


def _check_read(asked, of_run):
    """That no setting which the request does not read was chosen for it."""
    task, defaults = asked["task"], cifar10.get_config().sample
    read = {*READS[task], *_BY_ALL}
    where = f"task={task}" if task else "no task"
    if task == "slerp" and asked["inputs"]:
        read, where = read - {"variants"}, "task=slerp of pictures"
    for name in sorted(set(defaults) - read):
        if asked[name] not in (defaults[name], of_run.get(name, defaults[name])):
            readers = ", ".join(other for other in TASKS if other != task and name in READS[other])
            of_new = "new images" if name in READS[""] else ""
            for_what = " and ".join(filter(None, [of_new, f"task={readers}" if readers else ""]))
            raise UserError(
                f"is for {for_what}, and has no effect with {where}", field=f"config.sample.{name}",
                value=asked[name], instead={f"config.sample.{name}": defaults[name]},
            )


def pictures(
    paths: Sequence[str], shape: tuple[int, int, int], value_range: tuple[float, ...] = (),
    operator: str = "",
) -> np.ndarray:
    """The picture files of `config.sample.inputs`, float32 [n, h, w, c] in [-1, 1].

    Args:
        paths: of the files.
        shape: (h, w, c).
        value_range: of the model's data.
        operator: what made them, if one did: then they must be of this size, and are not resized.

    Raises:
        UserError: one cannot be read, or is of another size than what an operator makes.
    """
    if not paths:
        return np.zeros((0, *shape), np.float32)
    decoder = decoding.decode
    if value_range:
        decoder = functools.partial(raw_pictures.decode, bounds=value_range)
    read = functools.partial(
        decoding.read, shape=(0, 0, shape[-1]) if operator else shape,
        setting="config.sample.inputs", decoder=decoder,
    )
    images = [read(path) for path in paths]
    for path, image in zip(paths, images):
        if image.shape != shape:
            raise UserError(
                f"config.sample.inputs has {str(path)!r} of {image.shape[0]}x{image.shape[1]} "
                f"pixels, and config.sample.operator={operator!r} makes {shape[0]}x{shape[1]} of "
                "the model's images; give a picture of that size."
            )
    return pixels.as_float(np.stack(images))


def mask(path: str, shape: tuple[int, int, int]) -> np.ndarray:
    """The picture file of `config.sample.mask` as bool [h, w], True where images are known.

    White is known. In a picture with transparent pixels, these are the hole.

    Raises:
        UserError: it cannot be read, has another size, or leaves nothing or everything to draw.
    """
    def refused(rule):
        return UserError(rule, field="config.sample.mask", value=path)

    grey, alpha = (
        decoding.read(path, (0, 0, channels), setting="config.sample.mask")[..., -1]
        for channels in (1, 4)
    )
    if grey.shape != shape[:2]:
        raise refused(
            f"is {grey.shape[0]}x{grey.shape[1]}, and the images {shape[0]}x{shape[1]}; draw it "
            "in their size, white where they are known."
        )
    white, opaque = grey > 127, alpha > 127
    if not opaque.all() and not white[opaque].all():
        raise refused(
            "has transparent and dark pixels, and either could be the hole; draw it white where "
            "the images are known and black elsewhere, without transparency."
        )
    known = white & opaque
    if known.all():
        raise refused(
            "is white everywhere, which leaves nothing to draw; make it black where the images "
            "are to be drawn."
        )
    if not known.any():
        raise refused(
            "is black or transparent everywhere, which leaves nothing of the images; make it "
            "white where they are known, or leave task and inputs out for new images."
        )
    return known
