"""`sample(params, rng, n)`: devices, padding, batches and progress around one compiled scan."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import diffusion as diffusion_lib
from ddpm_jax import conditioning, grids, parallel, randomness, rounds, samplers, solvers
from ddpm_jax import schedule as schedule_lib
from ddpm_jax.images import to_uint8
from ddpm_jax.state import Trained
from ddpm_jax.unet import UNet

SAMPLERS = ("ancestral", "ddim", *solvers.NAMED)
X_T, Z = range(2)  # Addresses below an image's key: the prior draw, the noise of the steps.


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to sample, hashable.

    Attributes:
        sampler: "ancestral" (Ho et al. 2020, Algorithm 2), "ddim" (Song, Meng and Ermon 2021)
            or one of `solvers.NAMED`.
        num_steps: network calls an image; None is all steps of the schedule, which the
            solvers need to be told.
        eta: noise of "ddim", 0 (none) to 1 (as much as the ancestral chain).
        grid: which steps "ancestral" and "ddim" visit where they are fewer: "uniform",
            "quadratic", "trailing", section counts such as "10,10,20" or "ddim50", or the
            indices themselves; see `grids.named`.
        clip: keep the predicted x_0 in [-1, 1] at every step.
        guidance: scale of classifier-free guidance towards the label; 1 is none.
        guidance_interval: first and last step t at which to guide; () is every step.
    """

    sampler: str = "ancestral"
    num_steps: int | None = None
    eta: float = 0.0
    grid: str | tuple[int, ...] = "uniform"
    clip: bool = True
    guidance: float = 1.0
    guidance_interval: tuple[float, ...] = ()

    @property
    def by_grid(self) -> bool:
        """Whether the chain visits whole steps of the schedule."""
        return self.sampler in ("ancestral", "ddim")

    def check(self) -> None:
        """Raises ValueError where a choice is unknown or has no effect."""
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
    diffusion: diffusion_lib.Parameterization | None = None,
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
    trajectory: Sequence[int] = (),
    batch_size: int | None = None,
    output: str = "float",
    progress: bool = False,
) -> np.ndarray | tuple[np.ndarray, samplers.Trajectory]:
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
        guidance: classifier-free guidance (see `conditioning.guided`): 1 is none, more follows
            the labels more closely and varies less; twice the cost.
        guidance_interval: the first and the last step t of the full schedule to guide at; all
            by default.
        trajectory: for "ancestral" and "ddim", steps of the chain, 0 (the last) and up, at
            which to keep x_t and the predicted x_0.
        batch_size: images at a time on all devices together; what fits by default.
        output: "float", float32 in [-1, 1] (where `clip`), or "uint8".
        progress: show a bar.

    Returns:
        NumPy array [n, h, w, c]; with `trajectory` also a `samplers.Trajectory` of float32
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
        guidance, tuple(guidance_interval),
    )
    rngs = _keys(rng, n, seeds)
    found = list(_rounds(
        trained, rngs, settings, dict(labels=labels, condition=condition), tuple(trajectory),
        batch_size, progress, 0,
    ))
    images = np.concatenate([images for images, _ in found])
    images = to_uint8(images) if output == "uint8" else images
    if not trajectory:
        return images
    return images, jax.tree.map(
        lambda *parts: np.moveaxis(np.concatenate(parts), 0, 1), *(kept for _, kept in found)
    )


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
    for images, _ in _rounds(trained, rngs, settings, told, (), batch_size, progress, done):
        yield images


def _rounds(trained, rngs, settings, told, trajectory, batch_size, progress, done):
    """(images [b, h, w, c], Trajectory of [b, k, h, w, c] or None) of each round."""
    settings.check()
    if trajectory and not settings.by_grid:
        raise ValueError(
            f"trajectory={list(trajectory)} is for sampler='ancestral' and 'ddim', not "
            f"{settings.sampler!r}; write trajectory=()."
        )
    trained.diffusion.check(trained.schedule)
    check_params(trained)
    told = conditioning.checked(trained.model, len(rngs), trained.image_shape, **told)
    if settings.guidance != 1 and "labels" not in told:
        raise ValueError(
            f"guidance={settings.guidance} follows labels, and this model is not "
            "class-conditional; write guidance=1, or train with --config.data.labels=True."
        )
    plan, full, num_calls = chain_of(settings, trained.schedule)
    chain = _pmap_chain(
        trained.model, trained.diffusion, trained.image_shape, settings, trajectory, progress
    )
    params = parallel.replicate(trained.params)

    def draw(inputs):
        return chain(params, plan, full, *inputs)

    return rounds.run(
        draw, lambda places: (rngs[places], {k: x[places] for k, x in told.items()}), len(rngs),
        rounds.batch_size(trained, len(rngs) - done, batch_size),
        num_steps=num_calls, progress=progress, done=done,
    )


def chain_of(settings: Settings, schedule: schedule_lib.Schedule) -> tuple[Any, Any, int]:
    """(the chain's schedule or the solver's plan, the full schedule if respaced, calls)."""
    if not settings.by_grid:
        plan = solvers.named(settings.sampler, schedule, settings.num_steps)
        return plan, None, plan.num_calls
    if not settings.num_steps and settings.grid == "uniform":
        return schedule, None, schedule.num_timesteps
    steps = grids.named(settings.grid, schedule.num_timesteps, settings.num_steps or None)
    return schedule_lib.respace(schedule, steps), schedule, len(steps)


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
def _pmap_chain(model, diffusion, image_shape, settings, trajectory, progress):
    """(params, schedule or plan, full or None, keys [d, b], told) -> what `_rounds` gives."""

    def chain(params, plan, full, rngs, told):
        rngs_x_T, rngs_z = (randomness.fold_each(rngs, use) for use in (X_T, Z))
        x_T = samplers.standard_normal(rngs_x_T, image_shape)
        kinds = dict(mean=diffusion.mean, variance=diffusion.variance, clip=settings.clip)

        told = conditioning.as_float(told)
        apply_fn = functools.partial(model.apply, {"params": params}, train=False)
        denoise_fn = functools.partial(apply_fn, **told)
        if settings.guidance != 1:
            denoise_fn = conditioning.guided(
                apply_fn, told, null_label=model.num_classes, scale=settings.guidance,
                interval=settings.guidance_interval, variance=diffusion.variance,
            )

        if not settings.by_grid:
            report = rounds.on_step(plan.num_calls, progress)
            return solvers.solve(plan, denoise_fn, x_T, rngs_z, on_step=report, **kinds), None
        predict_fn = diffusion_lib.predict_fn(plan, denoise_fn, full=full, **kinds)
        run = samplers.ancestral
        if settings.sampler == "ddim":
            run = functools.partial(solvers.ddim, eta=settings.eta)
        x_0 = run(
            plan, predict_fn, x_T, rngs_z, trajectory=trajectory,
            on_step=rounds.on_step(plan.num_timesteps, progress),
        )
        if not trajectory:
            return x_0, None
        return x_0[0], jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), x_0[1])

    return jax.pmap(chain, axis_name=parallel.AXIS, in_axes=(None, None, None, 0, 0))
