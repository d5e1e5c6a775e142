"""`sample(params, rng, n)`: devices, padding, batches and progress around one compiled scan."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data.pixels import to_uint8
from ddpm_jax.diffusion import process, randomness
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.errors import UserError
from ddpm_jax.inference import batched_map, conditions
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.network.unet import UNet
from ddpm_jax.runtime import memory, parallel
from ddpm_jax.samplers import guidance as guidance_lib
from ddpm_jax.samplers import reverse_chain
from ddpm_jax.samplers.settings import Settings


def sample(
    params: Any,
    rng: Any = None,
    n: int | None = None,
    *,
    seeds: Sequence[int] | None = None,
    model: Any = None,
    schedule: schedule_lib.Schedule | None = None,
    diffusion: process.Parameterization | None = None,
    image_shape: tuple[int, int, int] | None = None,
    sampler: str = "ancestral",
    num_steps: int | None = None,
    eta: float = 0.0,
    grid: str | Sequence[int] = "uniform",
    clip: bool = True,
    labels: Any = None,
    condition: Any = None,
    guidance: float = 1.0,
    guidance_interval: Sequence[float] = (),
    rederive_eps: bool = True,
    dynamic_threshold: float = 0.0,
    denoised_fn: Callable[[jax.Array], jax.Array] | None = None,
    trajectory: Sequence[int] = (),
    batch_size: int | None = None,
    output: str = "float",
    progress: bool = False,
) -> np.ndarray | tuple[np.ndarray, reverse_chain.Trajectory]:
    """Draws n images on all devices together; under several processes each draws its share.

    Image i is a function of (params, rng, i): asking for more images, in other batches, or on
    more devices, leaves the earlier ones as they were. Every process of a job has to make the
    call, and has all of the images then.

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
        sampler: "ancestral", "ddim", or a solver, which needs 10 to 50 calls: "dpm_solver",
            "dpm_solver_2", "dpm_solver_pp", "dpm_solver_pp_3", "dpm_solver_pp_sde", "heun".
        num_steps: network calls an image; all steps of the schedule by default. Fewer visit
            those of `grid`, with betas re-derived.
        eta: noise of "ddim", 0 to 1.
        grid: "uniform", "quadratic", "trailing", section counts such as "10,10,20" or "ddim50",
            or a list of indices; for "ancestral" and "ddim".
        clip: keep the predicted x_0 in [-1, 1] at every step.
        labels: of a class-conditional model, one for all or one an image, in 0..num_classes;
            num_classes is no class. Every class in turn by default.
        condition: of an image-conditional model, [n, h, w, k], or [h, w, k] for all; uint8, or
            float in [-1, 1].
        guidance: classifier-free guidance (see `guidance.guided`): 1 is none, more follows
            the labels more closely and varies less; twice the cost.
        guidance_interval: the first and the last step t of the full schedule to guide at; all
            by default.
        rederive_eps: False keeps the network's eps where x_0 was clipped; for "ddim".
        dynamic_threshold: divide x_0 by this percentile of its pixels, such as 0.995 (see
            `process.dynamic_threshold`); 0 is off.
        denoised_fn: a hook of your own on x_0 before clipping, [b, h, w, c] -> the same; a
            function defined once, for each new one compiles anew.
        trajectory: network calls at which to keep x_t and the predicted x_0, by how many are
            left after them: 0 is the last. For "ancestral" and "ddim" that is the chain's t.
        batch_size: images at a time on all devices together; what fits by default.
        output: "float", float32 in [-1, 1] (where `clip`), or "uint8".
        progress: show a bar.

    Returns:
        NumPy array [n, h, w, c]; with `trajectory` also a `reverse_chain.Trajectory` of float32
        arrays [k, n, h, w, c].

    Raises:
        ValueError: an argument is unknown or does not suit the others, or the parameters do
            not fit the model (the first leaf that differs is named).
    """
    trained = _trained(params, model, schedule, diffusion, image_shape)
    if output not in ("float", "uint8"):
        raise UserError(f"output={output!r} is not known; use 'float' or 'uint8'.")
    settings = Settings(
        sampler, num_steps, eta, grid if isinstance(grid, str) else tuple(grid), clip,
        guidance, tuple(guidance_interval), rederive_eps, dynamic_threshold,
    )
    rngs, trajectory = _keys(rng, n, seeds), tuple(trajectory)
    found = _rounds(
        trained, rngs, settings, dict(labels=labels, condition=condition), batch_size, progress, 0,
        trajectory=trajectory, denoised_fn=denoised_fn,
    )
    shape, done = (len(rngs), *trained.image_shape), 0
    images = np.empty(shape, np.float32)
    kept = reverse_chain.Trajectory(*(
        np.empty((len(trajectory), *shape), np.float32) for _ in range(2)
    ))
    for batch, part in found:  # Filled in place: a trajectory may not fit twice.
        here = slice(done, done + len(batch))
        images[here] = batch
        if trajectory:
            kept.x_t[:, here] = np.moveaxis(part.x_t, 1, 0)
            kept.x_0[:, here] = np.moveaxis(part.x_0, 1, 0)
        done += len(batch)
    images = to_uint8(images) if output == "uint8" else images
    return (images, kept) if trajectory else images


def stream(
    trained: Trained,
    rngs: jax.Array,
    settings: Settings = Settings(),
    *,
    labels: Any = None,
    condition: Any = None,
    batch_size: int | None = None,
    progress: bool = False,
    done: int = 0,
) -> Iterator[np.ndarray]:
    """The images of `sample`, a round at a time, float32 [<= batch, h, w, c].

    Args:
        trained: parameters and what they need.
        rngs: [n], one key an image.
        settings: how to sample.
        labels, condition, batch_size, progress: as of `sample`.
        done: images at the start to leave out.

    Raises:
        ValueError: as `sample` does.
    """
    told = dict(labels=labels, condition=condition)
    for images, _ in _rounds(trained, rngs, settings, told, batch_size, progress, done):
        yield images


def _rounds(
    trained, rngs, settings, told, batch_size, progress, done, *, trajectory=(), denoised_fn=None
):
    """(images [b, h, w, c], Trajectory of [b, k, h, w, c] or None) of each round."""
    settings.check(denoised_fn)
    batch_size = batched_map.batch_size(trained, len(rngs) - done, batch_size)
    _check_room(len(trajectory), trained.image_shape, len(rngs), batch_size)
    trained.diffusion.check(trained.schedule)
    trained_lib.check_params(trained)
    told = conditions.checked(trained.model, len(rngs), trained.image_shape, **told)
    if settings.guidance != 1 and "labels" not in told:
        raise UserError(
            f"guidance={settings.guidance} follows labels, and this model is not "
            "class-conditional; write guidance=1, or train with --config.data.labels=True."
        )
    reverse = settings.chain(trained.schedule)
    chain = _pmap_chain(
        trained.model, trained.diffusion, trained.image_shape, settings, trajectory, denoised_fn,
        progress,
    )
    return batched_map.run(
        chain, (parallel.replicate(trained.params), reverse),
        lambda places: (rngs[places], {k: x[places] for k, x in told.items()}), len(rngs),
        batch_size, num_steps=reverse.num_calls, progress=progress, done=done,
    )


def _check_room(num_kept, image_shape, n, batch_size):
    """Raises ValueError where x_t and x_0 of a trajectory do not fit into memory."""
    image = 2 * 4 * num_kept * int(np.prod(image_shape))  # Bytes: both are float32.
    share = batch_size // jax.device_count()
    for where, images, room, less in (
        ("on the host", n, memory.host_free(), "fewer images"),
        ("on each device", share, memory.device_budget(), "a smaller batch_size"),
    ):
        if images * image > room:
            raise UserError(
                f"trajectory has {num_kept} steps of {images} images of x_t and x_0, "
                f"{images * image:,} bytes {where}, where {room:,} are free; write fewer steps "
                f"or {less}."
            )


def _trained(params, model, schedule, diffusion, image_shape) -> Trained:
    """Fills what was not given: from `params` if it is a `Trained`, else from the paper."""
    base = params if isinstance(params, Trained) else Trained(
        params.get("params", params), UNet(), schedule_lib.linear(),
        process.Parameterization(), (32, 32, 3),
    )
    given = dict(model=model, schedule=schedule, diffusion=diffusion, image_shape=image_shape)
    return base.replace(**{name: value for name, value in given.items() if value is not None})


def _keys(rng, n, seeds) -> jax.Array:
    if seeds is not None:
        if rng is not None or n is not None or not len(seeds):
            raise UserError(
                "seeds= takes the place of rng and n; write sample(params, seeds=[7, 8])."
            )
        return jnp.stack([randomness.as_key(int(seed)) for seed in seeds])
    if rng is None or n is None or n < 1:
        raise UserError(f"n={n!r} must be at least 1, with a key; write sample(params, rng, 16).")
    return randomness.image_keys(randomness.as_key(rng), jnp.arange(n))


@functools.lru_cache(maxsize=64)
def _pmap_chain(model, diffusion, image_shape, settings, trajectory, denoised_fn, progress):
    """(params, StepChain or PlanChain, keys [d, b], told) -> what `_rounds` gives."""

    def chain(params, reverse, rngs, told):
        rngs_z = randomness.fold_each(rngs, randomness.Z)
        x_T = randomness.standard_normal(randomness.fold_each(rngs, randomness.X_T), image_shape)
        told = conditions.as_float(told)
        apply_fn = functools.partial(model.apply, {"params": params}, train=False)
        denoise_fn = functools.partial(apply_fn, **told)
        if settings.guidance != 1:
            denoise_fn = guidance_lib.guided(
                apply_fn, told, null_label=model.num_classes, scale=settings.guidance,
                interval=settings.guidance_interval, variance=diffusion.variance,
            )
        images = reverse.run(
            denoise_fn, diffusion, x_T, rngs_z, denoised_fn=denoised_fn, trajectory=trajectory,
            on_step=batched_map.on_step(reverse.num_calls, progress),
        )
        if not trajectory:
            return images, None
        return images[0], jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), images[1])

    return parallel.pmap(chain, in_axes=(None, None, 0, 0))
