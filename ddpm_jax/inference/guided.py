"""The network of a chain, closed over its inputs and guided; and whether that has an effect."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.inference import conditions
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.samplers import guidance
from ddpm_jax.samplers.settings import Settings


def denoise_fn(
    models: Sequence[Any], params: Sequence[Any], model_kwargs: Mapping[str, jax.Array],
    settings: Settings, variances: Sequence[str],
) -> Callable[..., jax.Array]:
    """(x_t, t) -> the output of a network for its inputs, with the guidance of the settings.

    Args:
        models, params: the network and its parameters, and those of a worse one that guides it, if
            one does.
        model_kwargs: of `conditions.checked`, of the images of one device.
        settings: the sampler and what goes with it.
        variances: of the `Parameterization` of each.
    """
    model_kwargs = conditions.as_float(model_kwargs)
    apply_fn, *worse = [
        functools.partial(model.apply, {"params": each}, train=False)
        for model, each in zip(models, params, strict=True)
    ]
    plain = functools.partial(apply_fn, **model_kwargs)
    if settings.guidance == 1:
        return plain
    how = dict(
        scale=settings.guidance, interval=settings.guidance_interval,
        rescale=settings.guidance_rescale, variance=variances[0],
    )
    if worse:
        return guidance.autoguided(
            plain, functools.partial(worse[0], **model_kwargs), worse_variance=variances[1], **how
        )
    return guidance.guided(
        apply_fn, model_kwargs, null_label=getattr(models[0], "num_classes", 0), **how
    )


def check(
    settings: Settings, trained: Trained, model_kwargs: Mapping[str, Any], timesteps: np.ndarray,
    worse: Trained | None = None,
) -> None:
    """Raises UserError where guidance is asked for and has no effect, or by another kind of model.

    Args:
        settings: the sampler and what goes with it.
        trained: the model.
        model_kwargs: of `conditions.checked`.
        timesteps: the steps t that a chain visits.
        worse: the one that guides it.
    """
    if worse is not None:
        _check_worse(trained, worse)
    if settings.guidance == 1:
        if worse is not None:
            raise UserError(
                "is 1, so guide_model has no effect", field="guidance", value=settings.guidance,
                instead={"guidance": 2.0},
            )
        return
    if worse is None:
        _check_hides(settings, trained.model, model_kwargs)
    interval = settings.guidance_interval
    if interval and not np.any((interval[0] <= timesteps) & (timesteps <= interval[1])):
        raise UserError(
            f"has no effect: this chain visits no step t in it, and the nearest is "
            f"{min(timesteps, key=lambda t: abs(t - np.mean(interval))):g}; write a longer "
            "interval, or () to guide at every step.", field="guidance_interval", value=interval,
        )


def _check_worse(trained, worse):
    """Refuses a model whose output means something else, or that takes other inputs."""
    trained_lib.check(worse, "guide_model")
    trained_lib.check_params(worse)
    takes = ("num_classes", "vector_size", "condition_channels", "self_condition")
    same = {
        "image_shape": [tuple(each.image_shape) for each in (trained, worse)],
        "what it predicts": [each.diffusion.mean for each in (trained, worse)],
        "schedule": [np.asarray(each.schedule.beta).tolist() for each in (trained, worse)],
        "vector_scale": [each.vector_scale for each in (trained, worse)],
    } | {name: [getattr(each.model, name, 0) for each in (trained, worse)] for name in takes}
    for name, (ours, theirs) in same.items():
        if ours != theirs:
            raise UserError(
                f"guide_model has another {name} than the model: {theirs!s:.60} and {ours!s:.60}; "
                "give one of the same data and process, for example an earlier step of the run."
            )


def _check_hides(settings, model, model_kwargs):
    """Refuses guidance by labels and vectors where there are none."""
    guided = dict(field="guidance", value=settings.guidance)
    hidden = guidance.hidden(model_kwargs, getattr(model, "num_classes", 0))
    if not hidden:
        raise UserError(
            "follows labels or vectors, and this model takes none; write guidance=1, or train "
            "with --config.data.labels=True.", **guided,
        )
    if all(np.array_equal(model_kwargs[name], hidden[name]) for name in hidden):
        labels = f"labels={getattr(model, 'num_classes', 0)}, which is no class"
        given = {"labels": labels, "vectors": "no vectors"}
        raise UserError(
            f"has no effect with {' and '.join(map(given.get, hidden))}; write guidance=1, or "
            f"other {' or '.join(hidden)}.", **guided,
        )
