"""Training that starts from other weights: `config.train.warm_start`."""

from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.network import blocks, unet
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import files
from ddpm_jax.training.state import TrainState
from ddpm_jax.weights import pretrained
from ddpm_jax.workdir import run_folder

# Settings of the network by which the same weights, of the same shapes, mean something else.
_SAME_NETWORK = (
    "num_heads", "scale_shift", "embedding_order", "embedding_freq_shift", "downsample_padding",
    "timestep_scale", "norm_eps",
)


def state(
    fresh: TrainState, source: str, model: unet.UNet, image_shape: tuple[int, int, int]
) -> TrainState:
    """`fresh` with the weights that `source` names; as it is where that is "".

    The averages start from them too; optimizer and step are fresh.

    Raises:
        ValueError: as `params` does.
    """
    if not source:
        return fresh
    found = params(source, model, image_shape)

    def copied():
        return jax.tree.map(jnp.array, found)  # The state is donated: no aliases.

    return fresh.replace(
        params=copied(), ema_params=copied(),
        extra_ema_params={decay: copied() for decay in fresh.extra_ema_params},
    )


def params(source: str, model: unet.UNet, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The parameters that `source` names, for `model`; compiles nothing.

    Args:
        source: `config.train.warm_start`, anything that `warm_start.find` knows.
        model: to be trained.
        image_shape: (h, w, c).

    Raises:
        ValueError: there are no such weights, or they are of another network.
    """
    found = find(source)
    for setting in _SAME_NETWORK:
        ours, theirs = (getattr(m, setting) for m in (model, found.model))
        if ours != theirs:
            raise UserError(
                f"config.model.{setting}={ours!r}, but config.train.warm_start={source!r} has "
                f"{theirs!r}; write --config.model.{setting}={theirs}."
            )
    misfit = trained_lib.first_misfit(found.params, model, image_shape)
    if misfit:
        name, ours, theirs = misfit
        raise UserError(
            f"config.train.warm_start={source!r} does not fit at {name}: the network of "
            f"config.model has {ours}, it {theirs}; describe its network, or name other weights."
        )
    shapes = trained_lib.shapes(model, image_shape)
    norms = {shape[0] for path, shape in shapes.items() if path[-1] == "scale"}
    groups, wanted = (
        {width: m.num_groups or blocks.default_num_groups(width) for width in norms}
        for m in (model, found.model)
    )
    if groups != wanted:
        raise UserError(
            f"config.model.num_groups={model.num_groups or 0}, but config.train.warm_start="
            f"{source!r} has other groups; write --config.model.num_groups="
            f"{found.model.num_groups or 0}."
        )
    return found.params


def find(source: Any) -> Trained:
    """The model of a workdir (its running average), a folder of diffusers or the hub.

    Raises:
        ValueError: it is none of them, or cannot be read.
    """
    return run_folder.load(source) if (files.path(source) / "checkpoints").is_dir() else (
        pretrained.from_pretrained(source)
    )
