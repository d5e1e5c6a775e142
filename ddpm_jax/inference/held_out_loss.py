"""The training loss of images that always get the same t and noise, so that networks compare."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data import pixels
from ddpm_jax.data import source as source_lib
from ddpm_jax.diffusion import losses, randomness
from ddpm_jax.inference import batched_map, conditions
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import parallel


def each(
    denoise_fn: Callable[..., jax.Array], images: jax.Array, places: jax.Array, rngs: jax.Array,
    *, schedule, parameterization, objective, num_images: int, self_condition: bool,
) -> jax.Array:
    """The loss of each image, [b]; the image at place i has t = i * T // num_images.

    Args:
        denoise_fn: (x_t, t) -> the network's raw output, without dropout.
        images: [b, h, w, c], uint8 or float32 in [-1, 1].
        places: int32 [b], of the images among `num_images`; t of later ones is that of the last.
        rngs: [b], the keys of their noise.
        schedule, parameterization, objective: what is trained.
        num_images: over how many the steps of the schedule are spread.
        self_condition: the network is self-conditioned, and told its own guess for every image.
    """
    t = jnp.minimum(places, num_images - 1) * schedule.num_timesteps // num_images
    eps = jax.vmap(lambda rng: jax.random.normal(rng, images.shape[1:]))(rngs)
    return losses.training_loss(
        schedule, denoise_fn, pixels.as_float(images), t, eps,
        parameterization=parameterization, objective=objective,
        tells=jnp.ones(len(places), bool) if self_condition else None,
    )


def of_source(
    trained: Trained, rng: Any, source: source_lib.Source, objective: losses.Objective, *,
    batch_size: int | None = None, progress: bool = False,
) -> np.ndarray:
    """The loss of each image of a source, float32 [n], as in a held-out loss of training.

    Args:
        trained: what `load` returns.
        rng: a typed key, a legacy `PRNGKey` or an int.
        source: images of the values of the model's data, with labels, vectors or conditions if it
            takes them.
        objective: what the model was trained to minimize.
        batch_size: images at a time on all devices together; what fits by default.
        progress: show a bar, or without a terminal a line a minute.

    Raises:
        UserError: the images have another shape or other values than the model's.
    """
    trained_lib.check(trained)
    source = conditions.as_trained(source, trained)
    n, rng = len(source), randomness.as_key(rng)

    def chain(params, images, places, rngs, model_kwargs):
        denoise_fn = functools.partial(
            trained.model.apply, {"params": params}, train=False,
            **conditions.as_float(model_kwargs),
        )
        return {"loss": each(
            denoise_fn, images, places, rngs, schedule=trained.schedule,
            parameterization=trained.diffusion, objective=objective, num_images=n,
            self_condition=trained_lib.is_self_conditioned(trained.model),
        )}

    parts = batched_map.run(
        parallel.pmap(chain, in_axes=(None, 0, 0, 0, 0)), (parallel.replicate(trained.params),),
        lambda places: (
            source.read(places), np.int32(places), randomness.image_keys(rng, places),
            source.model_kwargs(places),
        ),
        n, batched_map.batch_size(trained, n, batch_size), num_steps=1, progress=progress,
    )
    return np.concatenate([part["loss"] for part in parts])
