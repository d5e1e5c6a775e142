"""Bits/dim of many images on every device, by the bound or the ODE; resumable."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_jax import errors
from ddpm_jax.data import pixels
from ddpm_jax.data import source as source_lib
from ddpm_jax.diffusion import (
    ode_likelihood, process, randomness, self_conditioning, variational_bound,
)
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.variational_bound import Terms
from ddpm_jax.errors import UserError
from ddpm_jax.inference import batched_map, conditions
from ddpm_jax.network import torso
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import parallel, partial_results

MOST_PER_DEVICE = 64  # Images per batch: an interrupted run repeats at most one batch.


def bits_per_dim(
    trained: Trained,
    rng: Any,
    images: np.ndarray,
    *,
    labels: Any = None,
    vectors: Any = None,
    condition: Any = None,
    clip: bool = True,
    batch_size: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """The variational bound of each image in bits/dim (Eq. 5 of Ho et al. 2020).

    It makes T network calls per image, twice as many of a self-conditioned network, which is told
    its own guess at each t. The draws for image i depend on (rng, i) alone.

    Args:
        trained: what `load` and `train` return.
        rng: a typed key, a legacy `PRNGKey` or an int.
        images: uint8 [n, h, w, c], or whole numbers in the range of the model's data.
        labels: of a class-conditional model, [n] or one for all; None means no class.
        vectors: of a model that is told numbers, as of `sample`; None means none.
        condition: of an image-conditional model, [n, h, w, k]; uint8, or float in [-1, 1].
        clip: keep the predicted x_0 in [-1, 1], as the paper's evaluation does.
        batch_size: images at a time on all devices together; what fits by default.
        progress: show a bar, or without a terminal a line a minute.

    Returns:
        float64 [n].

    Raises:
        ValueError: the images are not uint8 or have another shape than the model's, the model
            does not take these labels, vectors or this condition, or its data are floats.
    """
    trained_lib.check(trained)
    source = conditions.as_trained(
        source_lib.in_memory(images, "images", value_range=trained.value_range), trained
    )
    model_kwargs = conditions.for_pictures(trained, len(source), labels, vectors, condition)
    return variational_bound.total_bits(_terms(
        trained, rng, source,
        lambda places: {name: x[places] for name, x in model_kwargs.items()},
        clip=clip, batch_size=batch_size, progress=progress, folder=None,
    ))


def terms(
    trained: Trained,
    rng: Any,
    source: source_lib.Source,
    *,
    clip: bool = True,
    batch_size: int | None = None,
    progress: bool = False,
    folder: Any = None,
) -> Terms:
    """Every term of the bound for every image of `source`, NumPy arrays [n, ...].

    Args:
        source: images of the values of the model's data, with labels, vectors or conditions if it
            takes them.
        folder: keeps the finished batches, one file each, so that a second call with the same
            arguments continues; None keeps nothing.

    The other arguments, and the errors, are those of `bits_per_dim`.
    """
    trained_lib.check(trained)
    source = conditions.as_trained(source, trained)
    return _terms(
        trained, rng, source, source.model_kwargs, clip=clip, batch_size=batch_size,
        progress=progress, folder=folder,
    )


def _terms(trained, rng, source, read_kwargs, *, clip, batch_size, progress, folder):
    clip, progress = errors.flag("clip", clip), errors.flag("progress", progress)
    trained_lib.check(trained)
    check_bins(trained)
    chain = pmap_terms(trained, clip=clip, progress=progress)
    return _each_image(
        trained, rng, source, read_kwargs, chain, Terms, num_steps=trained.schedule.num_timesteps,
        batch_size=batch_size, progress=progress, folder=folder,
    )


def by_ode(
    trained: Trained,
    rng: Any,
    source: source_lib.Source,
    unit: str = "bits",
    *,
    num_steps: int = 200,
    num_probes: int = 1,
    batch_size: int | None = None,
    progress: bool = False,
    folder: Any = None,
) -> np.ndarray:
    """The likelihood of each image under the probability-flow ODE, per dimension.

    Args:
        unit: "bits", those of whole numbers with uniform noise on them, lower ones better
            (`ode_likelihood.ode_bits_per_dim`); or "nats", the log-density of floats, higher ones
            better. That is of the values low..high of the data, `ode_likelihood.ode_log_density`
            less log((high - low) / 2): another range is another unit.
        num_steps: Heun steps, two network calls each.
        num_probes: probes of the divergence per image.

    The other arguments, and the errors, are those of `terms`.

    Returns:
        float32 [n] of bits, float64 [n] of nats.
    """
    trained_lib.check(trained)
    source = conditions.as_trained(source, trained)
    errors.check_known("unit", unit, ("bits", "nats"))
    if unit == "bits":
        check_bins(trained)
    bins = trained.bins if unit == "bits" and trained.value_range else 0
    num_steps = errors.whole_number("num_steps", num_steps, low=1)
    num_probes = errors.whole_number("num_probes", num_probes, low=1)
    progress = errors.flag("progress", progress)
    chain = _pmap_ode(*_static(trained), unit, bins, num_steps, num_probes, progress)
    values = _each_image(
        trained, rng, source, source.model_kwargs, chain, dict, num_steps=num_steps,
        batch_size=batch_size, progress=progress, folder=folder,
    )[unit]
    if unit == "bits":
        return values
    low, high = trained.value_range or (0, 255)
    return values - math.log((high - low) / 2)


def check_bins(trained: Trained) -> None:
    """Raises UserError where bits/dim do not exist, because the data are floats."""
    if not trained.bins:
        raise UserError(
            f"the data of this model are floats in {trained.value_range}, and bits/dim count the "
            "bins of whole numbers; measure its log-density, "
            "--config.evaluate.metrics=\"('nats_ode',)\"."
        )


def _static(trained):
    """(model, diffusion, schedule as bytes): hashable, and equal for all checkpoints of a run."""
    trained_lib.check(trained)
    beta, timesteps = trained.schedule.beta, trained.schedule.timesteps
    return trained.model, trained.diffusion, (
        np.asarray(beta, np.float64).tobytes(), np.asarray(timesteps, np.int32).tobytes()
    )


def _schedule(packed):
    beta, timesteps = packed
    schedule = schedule_lib.from_betas(np.frombuffer(beta, np.float64))
    return schedule.replace(timesteps=np.frombuffer(timesteps, np.int32))


def pmap_terms(
    trained: Trained, *, clip: bool = True, progress: bool = False, devices: tuple | None = None
) -> Callable[..., Any]:
    """The terms of the bound on all devices, compiled at its first call.

    Args:
        trained: its parameters are not used.
        clip, progress: as of `bits_per_dim`.
        devices: as of `parallel.pmap`.

    Returns:
        (params, images [d, b, h, w, c], keys [d, b], model_kwargs of [d, b, ...]) -> the fields of
        `Terms`, [d, b, ...] each.
    """
    return _pmap_terms(*_static(trained), trained.bins, clip, progress, devices)


@functools.lru_cache(maxsize=16)
def _pmap_terms(model, diffusion, packed, bins, clip, progress, devices):
    schedule = _schedule(packed)

    def chain(params, images, rngs, model_kwargs):
        predict_fn = process.predict_fn(
            schedule, _denoise_fn(model, params, model_kwargs),
            mean=diffusion.mean, variance=diffusion.variance, clip=clip,
        )
        if trained_lib.is_self_conditioned(model):
            predict_fn = self_conditioning.guessing(predict_fn)
        report = batched_map.on_step(schedule.num_timesteps, progress)
        return vars(variational_bound.vlb_terms(
            schedule, predict_fn, pixels.as_float(images), rngs, bins=bins, on_step=report
        ))

    return parallel.pmap(chain, in_axes=(None, 0, 0, 0), devices=devices)


@functools.lru_cache(maxsize=16)
def _pmap_ode(model, diffusion, packed, kind, bins, num_steps, num_probes, progress):
    schedule = _schedule(packed)

    def chain(params, images, rngs, model_kwargs):
        flow = schedule, _denoise_fn(model, params, model_kwargs)
        settings = dict(
            mean=diffusion.mean, variance=diffusion.variance,
            self_condition=trained_lib.is_self_conditioned(model), num_steps=num_steps,
            num_probes=num_probes, on_step=batched_map.on_step(num_steps, progress),
        )
        if kind == "bits":
            bits = ode_likelihood.ode_bits_per_dim(*flow, images, rngs, bins=bins, **settings)
            return {kind: bits}
        rngs = randomness.fold_each(rngs, randomness.PROBES)
        x = pixels.as_float(images)
        return {kind: ode_likelihood.ode_log_density(*flow, x, rngs, **settings)}

    return parallel.pmap(chain, in_axes=(None, 0, 0, 0))


def _denoise_fn(model, params, model_kwargs):
    params = torso.cast(model, params)
    return functools.partial(
        model.apply, {"params": params}, train=False, **conditions.as_float(model_kwargs)
    )


def _each_image(
    trained, rng, source, read_kwargs, chain, container, *, num_steps, batch_size, progress, folder
):
    """`container` of what `chain` returns for each image; continues what `folder` holds."""
    n, rng = len(source), randomness.as_key(rng)
    parts = list(partial_results.finished(folder)) if folder else []
    done = sum(map(partial_results.num_rows, parts))
    if done < n:
        batch = batched_map.batch_size(trained, n - done, batch_size, most=MOST_PER_DEVICE)
        for part in batched_map.run(
            chain, (parallel.replicate(trained.params),), lambda places: (
                source.read(places), randomness.image_keys(rng, places), read_kwargs(places)
            ),
            n, batch, num_steps=num_steps, progress=progress, done=done,
        ):
            if folder:
                partial_results.keep(folder, done, part)
            done += partial_results.num_rows(part)
            parts.append(part)
    return container(**{
        name: np.concatenate([part[name] for part in parts]) for name in parts[0]
    })
