"""`sample(params, rng, n)`: devices, padding, batches and progress around one compiled scan."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import process, randomness
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.inference import batched_map, conditions
from ddpm_jax.network.unet import UNet
from ddpm_jax.runtime import parallel
from ddpm_jax.samplers import dpm_solver, reverse_chain, tableau
from ddpm_jax.samplers import steps as steps_lib
from ddpm_jax.training.state import Trained
from ddpm_jax.workdir.pictures import to_uint8

SAMPLERS = ("ancestral", "ddim", *dpm_solver.NAMED)
X_T, Z = range(2)  # Addresses below an image's key: the prior draw, the noise of the steps.


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to sample, hashable.

    Attributes:
        sampler: "ancestral" (Ho et al. 2020, Algorithm 2), "ddim" (Song, Meng and Ermon 2021)
            or one of `dpm_solver.NAMED`.
        num_steps: network calls an image; None is all steps of the schedule, which the
            solvers need to be told.
        eta: noise of "ddim", 0 (none) to 1 (as much as the ancestral chain).
        grid: which steps "ancestral" and "ddim" visit where they are fewer: "uniform",
            "quadratic", "trailing", section counts such as "10,10,20" or "ddim50", or the
            indices themselves; see `steps.named`.
        clip: keep the predicted x_0 in [-1, 1] at every step.
        guidance: scale of classifier-free guidance towards the label; 1 is none.
        guidance_interval: first and last step t at which to guide; () is every step.
        rederive_eps: let eps follow the x_0 that was clipped; False keeps the network's, as
            diffusers does. For "ddim", where x_0 is changed at all.
        dynamic_threshold: percentile of `tableau.dynamic_threshold` as a fraction, such as
            0.995, by which x_0 is divided before clipping; 0 is off.
    """

    sampler: str = "ancestral"
    num_steps: int | None = None
    eta: float = 0.0
    grid: str | tuple[int, ...] = "uniform"
    clip: bool = True
    guidance: float = 1.0
    guidance_interval: tuple[float, ...] = ()
    rederive_eps: bool = True
    dynamic_threshold: float = 0.0

    @property
    def by_grid(self) -> bool:
        """Whether the chain visits whole steps of the schedule."""
        return self.sampler in ("ancestral", "ddim")

    @property
    def denoised_fn(self) -> Callable[[jax.Array], jax.Array] | None:
        """The hook on x_0 that `dynamic_threshold` asks for."""
        if not self.dynamic_threshold:
            return None
        return functools.partial(tableau.dynamic_threshold, percentile=self.dynamic_threshold)

    def check(self, denoised_fn: Callable[[jax.Array], jax.Array] | None = None) -> None:
        """Raises ValueError where a choice, or the hook on x_0, is unknown or has no effect."""
        if self.sampler not in SAMPLERS:
            raise ValueError(
                f"sampler={self.sampler!r} is not known; use one of {', '.join(SAMPLERS)}."
            )
        if not 0 <= self.eta <= 1 or (self.eta and self.sampler != "ddim"):
            raise ValueError(
                f"eta={self.eta} must lie in 0..1, and is for sampler='ddim' alone; write eta=0."
            )
        if not self.by_grid and self.grid != "uniform":
            raise ValueError(
                f"grid={self.grid!r} is for sampler='ancestral' and 'ddim'; {self.sampler!r} has "
                "levels of its own: write grid='uniform'."
            )
        if not self.by_grid and not self.num_steps:
            raise ValueError(
                f"sampler={self.sampler!r} needs num_steps, the network calls an image; write "
                "such as num_steps=21."
            )
        if self.guidance < 0:
            raise ValueError(
                f"guidance={self.guidance} must be at least 0; 1 is no guidance, write such as "
                "guidance=2.0."
            )
        interval = self.guidance_interval
        if interval and (len(interval) != 2 or interval[0] > interval[1] or self.guidance == 1):
            raise ValueError(
                f"guidance_interval={interval} must be the first and the last step to guide at, "
                "with guidance other than 1; write such as guidance_interval=(100, 700)."
            )
        if not 0 <= self.dynamic_threshold <= 1:
            raise ValueError(
                f"dynamic_threshold={self.dynamic_threshold} must lie in 0..1, a fraction; write "
                "such as dynamic_threshold=0.995, or 0 for none."
            )
        if denoised_fn is not None and self.dynamic_threshold:
            raise ValueError(
                f"dynamic_threshold={self.dynamic_threshold} takes the place of denoised_fn; "
                "write one of them."
            )
        if not (denoised_fn is None or callable(denoised_fn) and isinstance(denoised_fn, Hashable)):
            raise ValueError(
                f"denoised_fn={denoised_fn!r} must be a hashable function x_0 -> x_0; write such "
                "as denoised_fn=ddpm_jax.solvers.dynamic_threshold."
            )
        changed = self.clip or self.dynamic_threshold or denoised_fn is not None
        if not self.rederive_eps and not (self.sampler == "ddim" and changed):
            raise ValueError(
                f"rederive_eps=False is for sampler='ddim' whose x_0 is clipped or thresholded; "
                f"with sampler={self.sampler!r} and clip={self.clip} it has no effect: write "
                "rederive_eps=True."
            )

    def num_calls(self, schedule: schedule_lib.Schedule) -> int:
        """Network calls an image, on this schedule."""
        return chain_of(self, schedule)[2]


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
        guidance: classifier-free guidance (see `conditions.guided`): 1 is none, more follows
            the labels more closely and varies less; twice the cost.
        guidance_interval: the first and the last step t of the full schedule to guide at; all
            by default.
        rederive_eps: False keeps the network's eps where x_0 was clipped; for "ddim".
        dynamic_threshold: divide x_0 by this percentile of its pixels, such as 0.995 (see
            `tableau.dynamic_threshold`); 0 is off.
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
        raise ValueError(f"output={output!r} is not known; use 'float' or 'uint8'.")
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
    check_params(trained)
    told = conditions.checked(trained.model, len(rngs), trained.image_shape, **told)
    if settings.guidance != 1 and "labels" not in told:
        raise ValueError(
            f"guidance={settings.guidance} follows labels, and this model is not "
            "class-conditional; write guidance=1, or train with --config.data.labels=True."
        )
    plan, full, num_calls = chain_of(settings, trained.schedule)
    chain = _pmap_chain(
        trained.model, trained.diffusion, trained.image_shape, settings, trajectory, denoised_fn,
        progress,
    )
    return batched_map.run(
        chain, (parallel.replicate(trained.params), plan, full),
        lambda places: (rngs[places], {k: x[places] for k, x in told.items()}), len(rngs),
        batch_size, num_steps=num_calls, progress=progress, done=done,
    )


def _check_room(num_kept, image_shape, n, batch_size):
    """Raises ValueError where x_t and x_0 of a trajectory do not fit into memory."""
    image = 2 * 4 * num_kept * int(np.prod(image_shape))  # Bytes: both are float32.
    share = batch_size // jax.device_count()
    for where, images, room, less in (
        ("on the host", n, batched_map.host_memory(), "fewer images"),
        # Half of a device is for the network.
        ("on each device", share, batched_map.device_memory() // 2, "a smaller batch_size"),
    ):
        if images * image > room:
            raise ValueError(
                f"trajectory has {num_kept} steps of {images} images of x_t and x_0, "
                f"{images * image:,} bytes {where}, where {room:,} are free; write fewer steps "
                f"or {less}."
            )


def chain_of(settings: Settings, schedule: schedule_lib.Schedule) -> tuple[Any, Any, int]:
    """(the chain's schedule or the solver's plan, the full schedule if respaced, calls)."""
    if not settings.by_grid:
        plan = dpm_solver.named(settings.sampler, schedule, settings.num_steps)
        return plan, None, plan.num_calls
    if not settings.num_steps and settings.grid == "uniform":
        return schedule, None, schedule.num_timesteps
    steps = steps_lib.named(settings.grid, schedule.num_timesteps, settings.num_steps or None)
    return schedule_lib.respace(schedule, steps), schedule, len(steps)


def _trained(params, model, schedule, diffusion, image_shape) -> Trained:
    """Fills what was not given: from `params` if it is a `Trained`, else from the paper."""
    base = params if isinstance(params, Trained) else Trained(
        params.get("params", params), UNet(), schedule_lib.linear(),
        process.Parameterization(), (32, 32, 3),
    )
    given = dict(model=model, schedule=schedule, diffusion=diffusion, image_shape=image_shape)
    return base.replace(**{name: value for name, value in given.items() if value is not None})


def check_params(trained: Trained) -> None:
    """Raises ValueError naming the first leaf that does not fit the model."""
    wanted = _shapes_of(trained.model, tuple(trained.image_shape))
    found = _shapes(trained.params)
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"params do not fit the model at {name}: the model has "
                f"{wanted.get(name, 'nothing')}, params {found.get(name, 'nothing')}; pass the "
                "model that they were trained with, such as model=UNet(channels=...)."
            )


@functools.lru_cache(maxsize=8)  # To trace a network takes as long as many a chain of a small one.
def _shapes_of(model, image_shape):
    def init():
        x, t = jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)
        return model.init(jax.random.key(0), x, t, train=False).get("params", {})

    return _shapes(jax.eval_shape(init))


def _shapes(tree):
    """Of each leaf by its path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf)
            for path, leaf in leaves}


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


def reverse(
    settings: Settings, diffusion, schedule, full, denoise_fn, denoised_fn=None
) -> Callable[[jax.Array, jax.Array], process.Prediction]:
    """(x_t, t) -> Prediction, with the step that "ancestral" or "ddim" takes from x_t.

    Args:
        settings: one of these two.
        diffusion: `process.Parameterization`.
        schedule, full: as of `process.predict_fn`.
        denoise_fn: (x_t, t) -> the network's output.
        denoised_fn: as of `process.predict`.
    """
    predict_fn = process.predict_fn(
        schedule, denoise_fn, full=full, mean=diffusion.mean, variance=diffusion.variance,
        clip=settings.clip, denoised_fn=denoised_fn, rederive_eps=settings.rederive_eps,
    )
    if settings.sampler == "ddim":
        return tableau.ddim_fn(schedule, predict_fn, settings.eta)
    return predict_fn


@functools.lru_cache(maxsize=64)
def _pmap_chain(model, diffusion, image_shape, settings, trajectory, denoised_fn, progress):
    """(params, schedule or plan, full or None, keys [d, b], told) -> what `_rounds` gives."""

    denoised_fn = denoised_fn or settings.denoised_fn

    def chain(params, plan, full, rngs, told):
        rngs_x_T, rngs_z = (randomness.fold_each(rngs, use) for use in (X_T, Z))
        x_T = reverse_chain.standard_normal(rngs_x_T, image_shape)
        told = conditions.as_float(told)
        apply_fn = functools.partial(model.apply, {"params": params}, train=False)
        denoise_fn = functools.partial(apply_fn, **told)
        if settings.guidance != 1:
            denoise_fn = conditions.guided(
                apply_fn, told, null_label=model.num_classes, scale=settings.guidance,
                interval=settings.guidance_interval, variance=diffusion.variance,
            )

        if settings.by_grid:
            x_0 = reverse_chain.ancestral(
                plan, reverse(settings, diffusion, plan, full, denoise_fn, denoised_fn),
                x_T, rngs_z, trajectory=trajectory,
                on_step=batched_map.on_step(plan.num_timesteps, progress),
            )
        else:
            x_0 = tableau.solve(
                plan, denoise_fn, x_T, rngs_z, trajectory=trajectory, mean=diffusion.mean,
                variance=diffusion.variance, clip=settings.clip, denoised_fn=denoised_fn,
                on_step=batched_map.on_step(plan.num_calls, progress),
            )
        if not trajectory:
            return x_0, None
        return x_0[0], jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), x_0[1])

    return jax.pmap(chain, axis_name=parallel.AXIS, in_axes=(None, None, None, 0, 0))
