"""`sample(params, rng, n)`: one compiled chain, run in batches on every device."""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ddpm_jax import errors
from ddpm_jax.data import pixels
from ddpm_jax.diffusion import process, randomness
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.errors import UserError, check_known
from ddpm_jax.inference import batched_map, conditions, guided
from ddpm_jax.network import torso
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.network.unet import UNet
from ddpm_jax.runtime import devices, memory, parallel
from ddpm_jax.samplers import guides
from ddpm_jax.samplers import settings as settings_lib
from ddpm_jax.samplers.guides import Guide
from ddpm_jax.samplers.reverse_chain import Trajectory
from ddpm_jax.samplers.settings import Settings
from ddpm_jax.workdir import pictures, run_folder


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
    settings: Settings | None = None,
    labels: Any = None,
    vectors: Any = None,
    condition: Any = None,
    guide_model: Trained | None = None,
    guide: Guide | Callable[..., jax.Array] | None = None,
    denoised_fn: Callable[[jax.Array], jax.Array] | None = None,
    trajectory: Sequence[int] = (),
    batch_size: int | None = None,
    output: str = "float",
    progress: bool = False,
    **fields: Any,
) -> np.ndarray | list[Image.Image] | tuple[Any, Trajectory]:
    """Draws n images on all devices together.

    Image i is a function of (params, rng, i): asking for more images, in other batches or on
    more devices, leaves the earlier ones as they were. Of several processes each draws its share;
    all have to make the call, and all get all of the images.

    Args:
        params: a `Trained` (what `load` and `train` return); the workdir of a run; or a bare tree
            of parameters: of the paper's CIFAR-10 network, unless `model` says otherwise.
        rng: a typed key, a legacy `PRNGKey` or an int.
        n: number of images, at least 1.
        seeds: one int of 64 bits per image, instead of `rng` and `n`.
        model: the Linen network, (x_t, t, train=False) -> output; one with a true `self_condition`
            takes its last x_0 as a third argument.
        schedule: the noise schedule; the paper's by default.
        diffusion: what the output means; noise and the larger variance by default.
        image_shape: (h, w, c); (32, 32, 3) by default.
        settings: the sampler and what goes with it, a `samplers.Settings`.
        labels: of a class-conditional model, one for all or one per image, in 0..num_classes,
            where num_classes is no class, or the names of classes. By default every class in turn.
        vectors: of a model that is told numbers, [n, k], or [k] for all, as they are in the data;
            those of one number also as [n] or a number. By default none, as where training hides
            them.
        condition: of an image-conditional model, [n, h, w, k], or [h, w, k] for all; uint8, or
            float in [-1, 1].
        guide_model: a worse model of the same data, for example of an earlier step, away from which
            `guidance` leads (Karras et al. 2024, autoguidance).
        guide: of `samplers.classifier_guide` or `samplers.measurement_guide`, or a function of your
            own, (x_t, t, x_0) -> the gradient of log p(y | x_t) by x_t (see `samplers.guides`).
            Define it once, as denoised_fn.
        denoised_fn: a function of your own on x_0 before clipping, [b, h, w, c] -> the same.
            Define it once: each new function recompiles the chain.
        trajectory: network calls at which to keep x_t and the predicted x_0, by the number of
            calls left after them: 0 is the last. For "ancestral" and "ddim" that is the chain's t.
        batch_size: images at a time on all devices together; what fits by default.
        output: "float", float32 in [-1, 1] (where `clip`); "uint8"; "pil", a list of pictures of
            Pillow; or "data", the values of the data: uint8, or low..high of `config.data.range`.
        progress: show a bar, or without a terminal a line a minute.
        **fields: the fields of `samplers.Settings` one by one, instead of `settings`:
            sampler ("ancestral" by default, "ddim", or a solver, which needs 10 to 50 calls:
            "dpm_solver", "dpm_solver_2", "dpm_solver_pp", "dpm_solver_pp_3", "dpm_solver_pp_sde",
            "unipc", "unipc_bh1", "unipc_3", "unipc_3_bh1", "heun"), num_steps (all by default),
            eta, grid, clip, guidance, guidance_interval, guidance_rescale, rederive_eps,
            s_churn, s_min, s_max, s_noise, dynamic_threshold.

    Returns:
        NumPy array [n, h, w, c], or a list; with `trajectory` also a `Trajectory` of float32 arrays
        [k, n, h, w, c].

    Raises:
        ValueError: an argument is unknown or does not suit the others, the parameters do not fit
            the model (the first leaf that differs is named), or the guide leads to NaN.
    """
    devices.check()
    trained = _trained(params, model, schedule, diffusion, image_shape)
    check_known("output", output, ("float", "uint8", "data", "pil"))
    if output == "pil":
        pictures.check_channels(trained.image_shape[-1], "output", output, "uint8")
    rngs = _image_keys(rng, n, seeds)
    trajectory = errors.whole_numbers("trajectory", trajectory)
    batches = _batches(
        trained, rngs, settings_of(settings, fields), (labels, vectors, condition), batch_size,
        progress, trajectory=trajectory, denoised_fn=denoised_fn, worse=guide_model,
        guide=guide,
    )
    images, kept = _collected(batches, (len(rngs), *trained.image_shape), len(trajectory))
    if guide is not None:
        guides.check_finite(images)
    if output in ("uint8", "pil"):
        images = pixels.to_uint8(images)
    if output == "pil":
        images = pictures.as_pil(images)
    elif output == "data":
        images = pixels.to_data(images, trained.value_range, trained.bins)
    return (images, kept) if trajectory else images


def _name_fields(function: Callable[..., Any]) -> None:
    """Names the fields of `Settings` in the signature that help and tab completion show."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    fields = [
        p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(Settings).parameters.values()
    ]
    function.__signature__ = signature.replace(parameters=[*own, *fields])


_name_fields(sample)


def stream(
    trained: Trained,
    rngs: jax.Array,
    settings: Settings = Settings(),
    *,
    labels: Any = None,
    vectors: Any = None,
    condition: Any = None,
    guide_model: Trained | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    done: int = 0,
) -> Iterator[np.ndarray]:
    """Yields the images of `sample` batch by batch, float32 [<= batch, h, w, c].

    Args:
        trained: parameters and what they need.
        rngs: [n], one key per image.
        settings: the sampler and what goes with it.
        labels, vectors, condition, guide_model, batch_size, progress: as of `sample`.
        done: images at the start to leave out.

    Raises:
        ValueError: as `sample` does.
    """
    for images, _ in _batches(
        trained, rngs, settings, (labels, vectors, condition), batch_size, progress, done=done,
        worse=guide_model,
    ):
        yield images


def _batches(
    trained, rngs, settings, given, batch_size, progress, *, done=0, trajectory=(),
    denoised_fn=None, worse=None, guide=None,
):
    """(images [b, h, w, c], Trajectory of [b, k, h, w, c] or None) of each batch.

    `given` are the labels, vectors and condition of `sample`, `worse` its guide_model.
    """
    n, image_shape, progress = len(rngs), trained.image_shape, errors.flag("progress", progress)
    settings.check(denoised_fn)
    guide = None if guide is None else guides.prepared(guide, n, image_shape)
    back = guide is not None and guide.by_x_0
    batch_size = batched_map.batch_size(trained, n - done, batch_size, differentiated=back)
    _check_memory(len(trajectory), image_shape, n, batch_size)
    trained.diffusion.check(trained.schedule)
    trained_lib.check_params(trained)
    model_kwargs = conditions.checked(trained, n, *given)
    reverse = settings.chain(trained.schedule)
    guided.check(settings, trained, model_kwargs, reverse.timesteps, worse)
    models = [trained] if worse is None else [trained, worse]
    chain = pmap_chain(
        tuple(each.model for each in models), tuple(each.diffusion for each in models),
        image_shape, settings, trajectory, denoised_fn, progress,
        guide=guide and dataclasses.replace(guide, y=None),
    )
    fixed = (parallel.replicate(tuple(each.params for each in models)), reverse)
    if guide is not None:
        fixed += (guides.Levels.of(trained.schedule),)

    def of_images(places):
        kwargs = {name: x[places] for name, x in model_kwargs.items()}
        if guide is None:
            return rngs[places], kwargs
        return rngs[places], kwargs, None if guide.y is None else guide.y[places]

    return batched_map.run(
        chain, fixed, of_images, n, batch_size, num_steps=reverse.num_calls, progress=progress,
        done=done,
    )


def _collected(batches, shape, num_kept):
    """All images [n, h, w, c], and the Trajectory of [k, n, h, w, c]."""
    images, done = np.empty(shape, np.float32), 0
    kept = Trajectory(*(np.empty((num_kept, *shape), np.float32) for _ in range(2)))
    for batch, part in batches:  # Filled in place: a trajectory may not fit twice.
        here = slice(done, done + len(batch))
        images[here] = batch
        if num_kept:
            kept.x_t[:, here] = np.moveaxis(part.x_t, 1, 0)
            kept.x_0[:, here] = np.moveaxis(part.x_0, 1, 0)
        done += len(batch)
    return images, kept


def _check_memory(num_kept, image_shape, n, batch_size):
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
    """Fills what was not given: from `params` if it is a model, else from the paper."""
    base = run_folder.load(params) if isinstance(params, (str, os.PathLike)) else params
    if isinstance(params, Mapping):
        base = Trained(
            params.get("params", params), UNet(), schedule_lib.linear(),
            process.Parameterization(), (32, 32, 3),
        )
    trained_lib.check(base, "params")
    _check_kinds(model, schedule, diffusion)
    if image_shape is not None:
        image_shape = errors.whole_numbers("image_shape", image_shape, low=1)
        if len(image_shape) != 3:
            raise UserError(
                "must be (h, w, c)", field="image_shape", value=image_shape,
                instead={"image_shape": (32, 32, 3)},
            )
    given = dict(model=model, schedule=schedule, diffusion=diffusion, image_shape=image_shape)
    return base.replace(**{name: value for name, value in given.items() if value is not None})


def _check_kinds(model, schedule, diffusion):
    """Raises UserError where one of these, given, is something else."""
    for field, value, kind, example in (
        ("model", model, nn.Module, "ddpm_jax.UNet(channels=32)"),
        ("schedule", schedule, schedule_lib.Schedule, "ddpm_jax.schedule.cosine(1000)"),
        ("diffusion", diffusion, process.Parameterization,
         "ddpm_jax.diffusion.Parameterization('v')"),
    ):
        if value is not None and not isinstance(value, kind):
            raise UserError(
                f"is no {kind.__name__}; write for example {field}={example}.", field=field,
                value=value,
            )


def settings_of(
    settings: Settings | None, fields: Mapping[str, Any], caller: str = "sample"
) -> Settings:
    """The settings, given whole or by their fields.

    Args:
        settings: whole, or None.
        fields: by their names.
        caller: the function that got them.

    Raises:
        UserError: both are given, or they are no settings.
        TypeError: there is no such field.
    """
    for name, value in fields.items():
        if name not in Settings.__dataclass_fields__:
            raise TypeError(f"{caller}() got an unexpected keyword argument {name!r}")
        if settings is not None:
            raise UserError(
                "is a field of settings, and settings= is given too; write settings="
                f"dataclasses.replace(settings, {name}={value!r}).", field=name, value=value,
            )
    if settings is None:
        return Settings(**fields)
    settings_lib.check_is_settings(settings)
    return settings


def _image_keys(rng, n, seeds) -> jax.Array:
    """One key per image, [n]."""
    if seeds is not None:
        rngs = randomness.seed_keys(seeds)
        if rng is not None or n is not None or not len(rngs):
            raise UserError(
                "seeds= takes the place of rng and n; write sample(params, seeds=[7, 8])."
            )
        return rngs
    if rng is None or n is None:
        raise UserError(
            "must be at least 1, with a key; write sample(params, rng, 16).", field="n", value=n
        )
    return randomness.image_keys(
        randomness.as_key(rng), jnp.arange(errors.whole_number("n", n, low=1, high=2**31 - 1))
    )


@functools.lru_cache(maxsize=64)
def pmap_chain(
    models, diffusions, image_shape, settings, trajectory=(), denoised_fn=None, progress=False,
    guide=None, devices=None,
):
    """The chain of `sample` on all devices, compiled at its first call.

    Args:
        models, diffusions: of a `Trained`, and of a worse one that guides it, if one does.
        image_shape: of either.
        settings: the sampler and what goes with it.
        trajectory, denoised_fn, progress: as of `sample`.
        guide: of `guides.prepared`, without its y.
        devices: a tuple, as of `parallel.pmap`.

    Returns:
        (params of each model, the chain of the settings, keys [d, b], model_kwargs of [d, b, ...])
        -> images [d, b, h, w, c] and the Trajectory of [d, b, k, h, w, c], or None. With a guide
        its levels come before the keys, and its y [d, b, ...] or None last.
    """
    chain = chain_of(
        models, diffusions, image_shape, settings, trajectory, denoised_fn, progress, guide
    )
    in_axes = (None, None, 0, 0) if guide is None else (None, None, None, 0, 0, 0)
    return parallel.pmap(chain, in_axes=in_axes, devices=devices)


def chain_of(
    models, diffusions, image_shape, settings, trajectory=(), denoised_fn=None, progress=False,
    guide=None,
):
    """What `pmap_chain` does on one device, for arrays without d; arguments as of that."""
    variances = [diffusion.variance for diffusion in diffusions]

    def draw(params, reverse, rngs, model_kwargs, led):
        rngs_z = randomness.fold_each(rngs, randomness.Z)
        x_T = randomness.standard_normal(randomness.fold_each(rngs, randomness.X_T), image_shape)
        cast = [torso.cast(model, each) for model, each in zip(models, params, strict=True)]
        denoise_fn = guided.denoise_fn(models, cast, model_kwargs, settings, variances)
        images = reverse.run(
            led(denoise_fn), diffusions[0], x_T, rngs_z,
            self_condition=trained_lib.is_self_conditioned(models[0]), denoised_fn=denoised_fn,
            trajectory=trajectory, on_step=batched_map.on_step(reverse.num_calls, progress),
        )
        if not trajectory:
            return images, None
        return images[0], jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), images[1])

    def chain(params, reverse, rngs, model_kwargs):
        return draw(params, reverse, rngs, model_kwargs, lambda denoise_fn: denoise_fn)

    def guided_chain(params, reverse, levels, rngs, model_kwargs, y):
        return draw(params, reverse, rngs, model_kwargs, lambda denoise_fn: guides.gradient_guided(
            denoise_fn, dataclasses.replace(guide, y=y), levels, diffusions[0], clip=settings.clip
        ))

    return chain if guide is None else guided_chain
