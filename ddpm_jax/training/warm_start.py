"""Training that starts from other weights: `config.train.warm_start`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.network import blocks, fields, unet
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.runtime import files
from ddpm_jax.training.state import TrainState
from ddpm_jax.weights import pretrained, single_file
from ddpm_jax.workdir import run_folder

# Fields of the network that need not agree by value: the shapes of the parameters show them, or
# (`num_groups`) they are compared by their effect. All others must agree, new ones too.
_SHOWN_BY_SHAPES = (
    "channels", "channel_multipliers", "num_res_blocks", "attention_resolutions", "out_channels",
    "num_classes", "vector_size", "condition_channels", "augment_channels",
)
_NOT_COMPARED = {*_SHOWN_BY_SHAPES, *fields.FREE, "num_groups", "parent", "name"}


def state(
    fresh: TrainState, source: str, model: unet.UNet, image_shape: tuple[int, int, int]
) -> TrainState:
    """`fresh` with the weights that `source` names; unchanged where that is "".

    The averages start from them too; optimizer and step stay fresh.

    Raises:
        ValueError: as `params` does.
    """
    if not source:
        return fresh
    weights = params(source, model, image_shape)

    def copied():
        return jax.tree.map(jnp.array, weights)  # The state is donated: no aliases.

    return fresh.replace(
        params=copied(), ema_params=copied(),
        extra_ema_params={decay: copied() for decay in fresh.extra_ema_params},
    )


def params(source: str, model: unet.UNet, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The parameters that `source` names, for `model`; compiles nothing.

    Args:
        source: `config.train.warm_start`, whatever `find` knows.
        model: to be trained.
        image_shape: (h, w, c).

    Raises:
        ValueError: there are no such weights, or they are of another network.
    """
    weights, other = find(source, model, image_shape)
    check(weights, other, model, image_shape, "config.train.warm_start", source)
    return weights


def check(
    weights: Any, other: unet.UNet, model: unet.UNet, image_shape: tuple[int, int, int],
    setting: str, source: str,
) -> None:
    """Raises UserError where the weights of another network are not for `model`.

    Args:
        weights: the parameters.
        other: their network.
        model: to be trained.
        image_shape: (h, w, c).
        setting: that names the weights, for example "config.train.warm_start".
        source: its value.
    """
    named = f"{setting}={source!r}"
    _check_fields(model, other, named)
    misfit = trained_lib.first_misfit(weights, model, image_shape)
    if misfit:
        name, ours, theirs = misfit
        raise UserError(
            f"does not fit at {name}: the network of config.model has {ours}, it {theirs}; "
            "describe its network, or name other weights.", field=setting, value=source,
        )
    _check_groups(model, other, named, trained_lib.shapes(model, image_shape))


def find(
    source: Any, model: unet.UNet, image_shape: tuple[int, int, int]
) -> tuple[dict[str, Any], unet.UNet]:
    """(parameters, network) of a workdir (its EMA), of a folder of diffusers or of the hub.

    Or of one file, which holds weights alone: these are taken to be of `model`.

    Args:
        source: as in `params`.
        model: to be trained.
        image_shape: (h, w, c).

    Raises:
        ValueError: it is none of them, or cannot be read.
    """
    if (files.path(source) / "checkpoints").is_dir():
        trained = run_folder.load(source)
        return trained.params, trained.model
    if files.path(source).is_file() and not single_file.is_one(files.path(source)):
        trained = pretrained.from_state_dict(source, model, image_shape=image_shape)
        return trained.params, model
    return pretrained.to_start_from(source, image_shape, model.out_channels)


def _check_fields(model, other, named):
    """The same weights, of the same shapes, mean something else where one of these differs."""
    for name in (field.name for field in dataclasses.fields(model)):
        if name not in _NOT_COMPARED and getattr(model, name) != getattr(other, name):
            raise _refused(name, getattr(model, name), named, getattr(other, name))


def _check_groups(model, other, named, shapes):
    for width in {shape[0] for path, shape in shapes.items() if path[-1] == "scale"}:
        ours, theirs = (m.num_groups or blocks.default_num_groups(width) for m in (model, other))
        if ours != theirs:
            raise _refused("num_groups", model.num_groups or 0, named, other.num_groups or 0)


def _refused(name, value, named, theirs):
    field = f"config.model.{name}"
    return UserError(
        f"does not suit {named}, which has {theirs!r}",
        field=field, value=value, instead={field: theirs},
    )
