"""The table of metrics: which function measures each, what it needs and what it depends on.

To add a metric, write its function in `metrics.py` and its entry in `METRICS`. Raise its `version`
when a change gives other values: rows of another version are not used again.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import identity, inception_features, metrics
from ddpm_jax.evaluation.job import Job, Settings
from ddpm_jax.network.trained import Trained


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a metric is measured.

    Attributes:
        measure: (job, folder) -> the JSON of a row, or (job, folder, reference) -> the same if
            `needs_references`. A row has `value`, and `standard_error` if there is one.
        depends_on: functions job -> JSON, the settings that the value depends on. `protocol` adds
            those that all metrics depend on, those of Inception, and the reference.
        needs_samples: whether it draws images with the sampler of `config.sample`.
        needs_inception: whether it uses the Inception network.
        needs_references: whether it has a row for each of `config.evaluate.references`.
        needs_condition: whether it measures only image-conditional models.
        needs_bins: True if it measures only whole pixels, False if only floats, None if both.
        has_value: whether its row has a single value, instead of pictures or a table.
        higher_is_better: whether the best checkpoint is the one with the highest value.
        in_sweeps: whether it can be the metric of a sweep.
        version: of its code; a higher one gives other values.
    """

    measure: Callable[..., dict[str, Any]]
    depends_on: tuple[Callable[[Job], dict[str, Any]], ...] = ()
    needs_samples: bool = False
    needs_inception: bool = False
    needs_references: bool = False
    needs_condition: bool = False
    needs_bins: bool | None = None
    has_value: bool = True
    higher_is_better: bool = False
    in_sweeps: bool = False
    version: int = 1


def _images(job):
    split, num_images = job.settings.split, job.settings.num_images
    return {
        "split": split, "num_images": num_images or "all",
        "images": job.digest(split, num_images),
    }


def _training_images(job):
    return {"training_images": job.digest("train", inputs=False)}


def _clip(job):
    return {"clip": job.settings.sampler.clip}


def _objective(job):
    return identity.of_settings(job.settings.objective)


def _ode(job):
    return {"ode_steps": job.settings.ode_steps, "ode_probes": job.settings.ode_probes}


def _samples(job):
    return job.samples_protocol()


def _balls(job):
    return {"k": metrics.BALL_NEIGHBOURS}


def _draws(job):
    values = job.samples_protocol()
    del values["num_samples"], values["rounding"], values["condition_images"]
    return values | {"num_draws": job.settings.num_draws}


def _sweep(job):
    settings = job.settings
    samplers = {}
    for name in settings.sweep_samplers:
        sampler = settings.sampler.with_sampler(name, settings.sweep_steps[0])
        samplers[name] = identity.of_settings(sampler)
        del samplers[name]["sampler"], samplers[name]["num_steps"]
    students = {str(n): identity.of_model(each) for n, each in job.students.items()}
    return job.draw_protocol() | ({"students": students} if students else {}) | {
        "sweep_metric": settings.sweep_metric, "samplers": samplers,
        "sweep_metric_version": METRICS[settings.sweep_metric].version,
        "steps": list(settings.sweep_steps),
    }


def _feature_score(score, *also, **traits) -> Metric:
    """The entry of a score of Inception features, which depends on the samples and `also`."""
    return Metric(
        functools.partial(metrics.feature_score, score=score), depends_on=(_samples, *also),
        needs_samples=True, needs_inception=True, in_sweeps=True, **traits,
    )


METRICS: dict[str, Metric] = {
    "bpd": Metric(metrics.bpd, depends_on=(_images, _clip), needs_bins=True),
    "loss": Metric(metrics.held_out_loss, depends_on=(_images, _objective)),
    "ode_bpd": Metric(metrics.ode_bpd, depends_on=(_images, _ode), needs_bins=True),
    "nats_ode": Metric(
        metrics.nats_ode, depends_on=(_images, _ode), needs_bins=False, higher_is_better=True
    ),
    "progressive": Metric(metrics.progressive_pictures, depends_on=(_clip,), has_value=False),
    "draws": Metric(
        metrics.error_of_mean_draw, depends_on=(_images, _draws), needs_samples=True,
        needs_condition=True,
    ),
    "fid": _feature_score(metrics.fid, needs_references=True),
    "sfid": _feature_score(metrics.sfid, needs_references=True),
    "kid": _feature_score(metrics.kid, needs_references=True),
    "is": _feature_score(metrics.inception_score, higher_is_better=True),
    "precision_recall": _feature_score(
        metrics.precision_recall, needs_references=True, higher_is_better=True,
    ),
    "density_coverage": _feature_score(
        metrics.density_coverage, _balls, needs_references=True, higher_is_better=True,
    ),
    "frechet_pixels": Metric(
        metrics.frechet_pixels, depends_on=(_samples,), needs_samples=True,
        needs_references=True, in_sweeps=True,
    ),
    "sweep": Metric(metrics.sweep, depends_on=(_sweep,), has_value=False),
    "nearest_pixels": Metric(
        functools.partial(metrics.copied_share, features=False),
        depends_on=(_samples, _training_images), needs_samples=True,
    ),
    "nearest_features": Metric(
        functools.partial(metrics.copied_share, features=True),
        depends_on=(_samples, _training_images), needs_samples=True, needs_inception=True,
    ),
}


def metric(name: str, settings: Settings) -> Metric:
    """The entry of a metric; that of a sweep has the needs of the score it measures."""
    entry = METRICS[name]
    if name != "sweep":
        return entry
    score = METRICS[settings.sweep_metric]
    return dataclasses.replace(
        entry, measure=functools.partial(entry.measure, score=score.measure),
        needs_inception=score.needs_inception, needs_references=score.needs_references,
    )


def measurements(settings: Settings) -> list[tuple[str, str | None]]:
    """The rows to measure for a checkpoint: (metric, reference or None)."""
    return [
        (name, reference) for name in settings.metrics for reference in (
            settings.references if metric(name, settings).needs_references else (None,)
        )
    ]


def needs_inception(settings: Settings) -> bool:
    """Whether any metric uses the Inception network."""
    return any(metric(name, settings).needs_inception for name in settings.metrics)


def check_model(settings: Settings, trained: Trained) -> None:
    """Raises ValueError naming the first metric that the model does not suit."""
    for name in settings.metrics:
        needs, whole = METRICS[name].needs_bins, trained.bins > 0
        if needs is not None and needs != whole:
            does, has, other = (
                ("counts the bins of whole numbers", "floats", "nats_ode") if needs else
                ("is a density of floats", "whole numbers, whose density has no bound", "ode_bpd")
            )
            raise UserError(
                f"config.evaluate.metrics has {name!r}, which {does}, and the data of this model "
                f"are {has}; write --config.evaluate.metrics=\"('{other}',)\"."
            )
        if METRICS[name].needs_condition and not getattr(
            trained.model, "condition_channels", 0
        ):
            raise UserError(
                f"config.evaluate.metrics has {name!r}, but this model takes no condition; leave "
                "it out, or train with --config.data.condition."
            )


def protocol(job: Job, name: str, reference: str | None) -> dict[str, Any]:
    """Everything that the value of a metric depends on, JSON."""
    entry = metric(name, job.settings)
    values = {
        "version": entry.version,
        "step": job.step,
        "checkpoint": job.checkpoint,
        "weights": job.settings.weights,
        "dtype": str(jnp.dtype(job.trained.model.dtype)),
        "matmul_precision": job.settings.matmul_precision,
        "seed": job.settings.seed,
    }
    for part in entry.depends_on:
        values |= part(job)
    if entry.needs_inception:
        values |= {
            "resize": inception_features.RESIZE, "inception": job.network.checksum[:16],
            "features_version": identity.FEATURES,
        }
    if reference is not None:
        channels = 3 if entry.needs_inception else job.trained.image_shape[-1]
        compared = job.reference(reference, channels)
        values["reference"] = reference
        values["reference_content"] = (
            compared if isinstance(compared, str) else compared.content.digest
        )
    return json.loads(json.dumps(values))  # As read from a file: tuples become lists.
