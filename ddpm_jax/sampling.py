"""`sample(params, rng, n)`: devices, padding, batches and progress around one compiled scan."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import diffusion as diffusion_lib
from ddpm_jax import parallel, randomness, rounds, samplers
from ddpm_jax import schedule as schedule_lib
from ddpm_jax.images import to_uint8
from ddpm_jax.state import Trained
from ddpm_jax.unet import UNet

SAMPLERS = ("ancestral",)
_X_T, _Z = range(2)  # Addresses below an image's key: the prior draw, the noise of the steps.


def sample(
    params: Any,
    rng: Any = None,
    n: int | None = None,
    *,
    seeds: Sequence[int] | None = None,
    model: Any = None,
    schedule: schedule_lib.Schedule | None = None,
    diffusion: diffusion_lib.Parameterization | None = None,
    image_shape: tuple[int, int, int] | None = None,
    sampler: str = "ancestral",
    num_steps: int | None = None,
    clip: bool = True,
    batch_size: int | None = None,
    output: str = "float",
    progress: bool = False,
) -> np.ndarray:
    """Draws n images on every local device.

    Image i is a function of (params, rng, i): asking for more images, in other batches, or on
    more devices, leaves the earlier ones as they were.

    Args:
        params: a `Trained` (what `load` and `train` return), or a bare tree of parameters:
            the CIFAR-10 network of the paper, unless `model` says otherwise.
        rng: a typed key, a legacy `PRNGKey` or an int.
        n: how many images, at least 1.
        seeds: instead of `rng` and `n`, one int an image.
        model: the Linen network, (x_t, t, train=False) -> output.
        schedule: the noise schedule; the paper's by default.
        diffusion: what the output means; noise and the larger variance by default.
        image_shape: (h, w, c); (32, 32, 3) by default.
        sampler: "ancestral".
        num_steps: network calls an image; all steps of the schedule by default, fewer visit an
            even choice of them with betas re-derived.
        clip: keep the predicted x_0 in [-1, 1] at every step.
        batch_size: images at a time on all devices together; what fits by default.
        output: "float", float32 in [-1, 1] (where `clip`), or "uint8".
        progress: show a bar.

    Returns:
        NumPy array [n, h, w, c].

    Raises:
        ValueError: an argument is unknown or does not suit the others, or the parameters do
            not fit the model (the first leaf that differs is named).
    """
    trained = _trained(params, model, schedule, diffusion, image_shape)
    if output not in ("float", "uint8"):
        raise ValueError(f"output={output!r} is not known; use 'float' or 'uint8'.")
    rngs = _keys(rng, n, seeds)
    images = np.concatenate(list(stream(
        trained, rngs, sampler=sampler, num_steps=num_steps, clip=clip, batch_size=batch_size,
        progress=progress,
    )))
    return to_uint8(images) if output == "uint8" else images


def stream(
    trained: Trained,
    rngs: jax.Array,
    *,
    sampler: str = "ancestral",
    num_steps: int | None = None,
    clip: bool = True,
    batch_size: int | None = None,
    progress: bool = False,
    done: int = 0,
) -> Iterator[np.ndarray]:
    """The images of `sample`, a round at a time, float32 [<= batch, h, w, c].

    Args:
        trained: parameters and what they need.
        rngs: [n], one key an image.
        sampler, num_steps, clip, batch_size, progress: as of `sample`.
        done: images at the start to leave out.

    Raises:
        ValueError: as `sample` does.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler={sampler!r} is not known; use one of {', '.join(SAMPLERS)}.")
    trained.diffusion.check(trained.schedule)
    check_params(trained)
    schedule, full = trained.schedule, None
    if num_steps:
        steps = schedule_lib.evenly_spaced(schedule.num_timesteps, num_steps)
        schedule, full = schedule_lib.respace(schedule, steps), schedule
    chain = _pmap_chain(trained.model, trained.diffusion, trained.image_shape, clip, progress)
    draw = functools.partial(chain, parallel.replicate(trained.params), schedule, full)
    return rounds.run(
        draw, lambda places: rngs[places], len(rngs),
        rounds.batch_size(trained, len(rngs) - done, batch_size),
        num_steps=schedule.num_timesteps, progress=progress, done=done,
    )


def _trained(params, model, schedule, diffusion, image_shape) -> Trained:
    """Fills what was not given: from `params` if it is a `Trained`, else from the paper."""
    base = params if isinstance(params, Trained) else Trained(
        params.get("params", params), UNet(), schedule_lib.linear(),
        diffusion_lib.Parameterization(), (32, 32, 3),
    )
    given = dict(model=model, schedule=schedule, diffusion=diffusion, image_shape=image_shape)
    return base.replace(**{name: value for name, value in given.items() if value is not None})


def check_params(trained: Trained) -> None:
    """Raises ValueError naming the first leaf that does not fit the model."""
    def init():
        x, t = jnp.zeros((1, *trained.image_shape)), jnp.zeros((1,), jnp.int32)
        return trained.model.init(jax.random.key(0), x, t, train=False).get("params", {})

    def shapes(tree):
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf)
                for path, leaf in leaves}

    wanted, found = shapes(jax.eval_shape(init)), shapes(trained.params)
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"params do not fit the model at {name}: the model has "
                f"{wanted.get(name, 'nothing')}, params {found.get(name, 'nothing')}; pass the "
                "model that they were trained with, such as model=UNet(channels=...)."
            )


def _keys(rng, n, seeds) -> jax.Array:
    if seeds is not None:
        if rng is not None or n is not None or not len(seeds):
            raise ValueError(
                "seeds= takes the place of rng and n; write sample(params, seeds=[7, 8])."
            )
        return jnp.stack([randomness.as_key(int(seed)) for seed in seeds])
    if rng is None or n is None or n < 1:
        raise ValueError(f"n={n!r} must be at least 1, with a key; write sample(params, rng, 16).")
    return randomness.image_keys(randomness.as_key(rng), jnp.arange(n))


@functools.lru_cache(maxsize=64)
def _pmap_chain(model, diffusion, image_shape, clip, progress):
    """(params, schedule, full or None, keys [d, b]) -> x_0 [d, b, h, w, c]; once a shape."""

    def chain(params, schedule, full, rngs):
        rngs_x_T, rngs_z = (randomness.fold_each(rngs, use) for use in (_X_T, _Z))
        predict_fn = diffusion_lib.predict_fn(
            schedule,
            lambda x_t, t: model.apply({"params": params}, x_t, t, train=False),
            mean=diffusion.mean, variance=diffusion.variance, full=full, clip=clip,
        )
        x_T = samplers.standard_normal(rngs_x_T, image_shape)
        return samplers.ancestral(
            schedule, predict_fn, x_T, rngs_z,
            on_step=rounds.on_step(schedule.num_timesteps, progress),
        )

    return jax.pmap(chain, axis_name=parallel.AXIS, in_axes=(None, None, None, 0))
