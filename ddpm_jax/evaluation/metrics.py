"""What can be measured of a checkpoint: one function a metric, each from a `Job`.

Every function returns the JSON of a row: `value`, what belongs to it, and a standard error
where there is one. Files go into the folder it is given.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from ddpm_jax import config as config_lib
from ddpm_jax.data import pixels
from ddpm_jax.diffusion import randomness, variational_bound
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import (
    conditional_draws, inception_features, references, sampler_sweep, scores,
)
from ddpm_jax.evaluation import nearest as nearest_lib
from ddpm_jax.evaluation.inception_features import Samples
from ddpm_jax.evaluation.job import Job
from ddpm_jax.evaluation.references import Reference
from ddpm_jax.evaluation.scores import Moments
from ddpm_jax.inference import progressive
from ddpm_jax.inference import bits_per_dim as bits_lib
from ddpm_jax.inference import sample as sample_lib
from ddpm_jax.runtime import files, partial_results
from ddpm_jax.workdir import pictures, plots

_DRAWN = 10  # Images in the pictures of progressive coding.


def bpd(job: Job, folder: epath.Path) -> dict[str, Any]:
    """The variational bound (Ho et al. 2020, Eq. 5), with its terms, curves and Table 4."""
    settings = job.config.evaluate
    source = job.source(settings.split, settings.num_images)
    terms = bits_lib.terms(
        job.trained, job.rng(randomness.BITS), source, clip=job.config.sample.clip,
        batch_size=settings.batch_size, progress=job.progress, folder=folder / "parts",
    )
    total = variational_bound.total_bits(terms)
    prior, vlb, mse_x_0, mse_eps = (
        np.mean(x, axis=0, dtype=np.float64)
        for x in (terms.prior, terms.vlb, terms.mse_x_0, terms.mse_eps)
    )
    curve = variational_bound.rate_distortion(vlb, prior, mse_x_0)
    files.write_npz(folder / "terms.npz", dict(
        bits=total, prior=terms.prior, vlb=vlb, mse_x_0=mse_x_0, mse_eps=mse_eps,
        vlb_standard_error=standard_error(terms.vlb),
    ))
    plots.bound(folder / "bound.png", vlb, mse_eps)
    plots.rate_distortion(folder / "rate_distortion.png", curve)
    lines = ["reverse_steps,rate_bits_per_dim,distortion_rmse"] + [
        f"{n},{rate:.6g},{distortion:.6g}" for n, rate, distortion in zip(
            curve.reverse_steps, curve.rate, curve.distortion)
    ]
    files.write(folder / "rate_distortion.csv", ("\n".join(lines) + "\n").encode())
    partial_results.remove(folder / "parts")
    return {
        "value": float(total.mean()), "standard_error": standard_error(total), "n": len(total),
        "L_T": float(prior), "L_1_to_T-1": float(vlb[1:].sum()), "L_0": float(vlb[0]),
        "rmse": float(curve.distortion[-1]),
    }


def ode_bpd(job: Job, folder: epath.Path) -> dict[str, Any]:
    """Bits/dim under the probability-flow ODE, uniformly dequantised (Song et al. 2021)."""
    settings = job.config.evaluate
    found = bits_lib.ode_bits_per_dim(
        job.trained, job.rng(randomness.ODE), job.source(settings.split, settings.num_images),
        num_steps=settings.ode_steps, num_probes=settings.ode_probes,
        batch_size=settings.batch_size, progress=job.progress, folder=folder / "parts",
    )
    files.write_npz(folder / "bits.npz", {"bits": found})
    partial_results.remove(folder / "parts")
    return {"value": float(np.mean(found, dtype=np.float64)),
            "standard_error": standard_error(found), "n": len(found)}


def standard_error(x: np.ndarray) -> Any:
    """Of the mean over the first axis; None for one row."""
    if len(x) < 2:
        return None
    error = np.std(x, axis=0, ddof=1, dtype=np.float64) / len(x) ** 0.5
    return float(error) if np.ndim(error) == 0 else error


def draw_progressive(job: Job, folder: epath.Path) -> dict[str, Any]:
    """Pictures of progressive generation and of completions (Ho et al. 2020, Figs. 6 and 7)."""
    num_timesteps, clip = job.trained.schedule.num_timesteps, job.config.sample.clip
    x_t, x_0 = progressive.generate(
        job.trained, job.rng(randomness.PICTURES), _DRAWN, num_frames=20, clip=clip
    )
    pictures.save_process(folder / "generation", pixels.to_uint8(x_t), pixels.to_uint8(x_0))
    shared = sorted({max(1, num_timesteps * k // 4) for k in (1, 2, 3, 4)}, reverse=True)
    x_t, completions = progressive.complete(
        job.trained, job.rng(randomness.PICTURES), 8, shared=shared, clip=clip
    )
    rows = pixels.to_uint8(np.concatenate([x_t[:, None], completions], axis=1))
    pictures.save_png(folder / "completions.png", pictures.grid(
        rows.reshape(-1, *rows.shape[2:]), columns=rows.shape[1]
    ))
    return {"value": None, "shared": shared}


def answer(job: Job, folder: epath.Path) -> dict[str, Any]:
    """Several draws for each condition of a split: how close their mean is to the truth."""
    settings = job.config.evaluate
    if not getattr(job.trained.model, "condition_channels", 0):
        raise UserError(
            "config.evaluate.metrics has 'draws', but this model takes no condition; leave it out, "
            "or train with --config.data.condition."
        )
    source = job.source(settings.split, settings.num_images)
    n, each = len(source), settings.num_draws
    told = {
        name: np.repeat(x, each, axis=0) for name, x in source.model_kwargs(np.arange(n)).items()
    }
    found = np.concatenate([pixels.to_uint8(batch) for batch in sample_lib.stream(
        job.trained, randomness.image_keys(job.rng(randomness.SAMPLES), jnp.arange(n * each)),
        config_lib.sampling_settings(job.config), **told,
        batch_size=job.config.sample.batch_size, progress=job.progress,
    )])
    found, truth = found.reshape(n, each, *found.shape[1:]), source.read(np.arange(n))
    together = conditional_draws.summary(found, truth)
    shown = np.arange(min(n, _DRAWN))
    pictures.save_png(folder / "draws.png", conditional_draws.picture(
        source.read_condition(shown), found[shown],
        conditional_draws.summary(found[shown], truth[shown]), truth[shown],
    ))
    row = {
        "value": float(together.error.mean()), "standard_error": standard_error(together.error),
        "n": n, "single_draw": float(together.single_error.mean()),
        "disagreement": float(together.disagreement.mean()),
    }
    if together.dice is not None:
        row |= {"dice": float(together.dice.mean()),
                "dice_standard_error": standard_error(together.dice)}
    return row


def nearest(job: Job, folder: epath.Path, *, features: bool) -> dict[str, Any]:
    """Share of samples that the audit takes for copies of training images."""
    source = job.source("train")
    samples = np.concatenate(list(job.samples()))
    if features:
        of = lambda uint8: job.network.features(uint8).pool  # noqa: E731
        queries = job.scored.features
    else:
        of, queries = nearest_lib.pixels, nearest_lib.pixels(samples)
    training = inception_features.batches(source, progress=job.progress)
    found = nearest_lib.audit(queries, training, of)
    nearest_lib.save_table(folder / "nearest.csv", found)
    uint8 = samples if samples.dtype == np.uint8 else np.round(samples).astype(np.uint8)
    pictures.save_png(folder / "nearest.png", nearest_lib.picture(uint8, found, source))
    return {
        "value": float(found.is_copy.mean()), "copies": int(found.is_copy.sum()),
        "median_distance": float(np.median(found.distances[:, 0])),
        "smallest_ratio": float(found.ratio.min()),
    }


def score(
    job: Job, folder: epath.Path, reference: str | None = None, *, metric: str
) -> dict[str, Any]:
    """A score of the samples, against a reference where it needs one."""
    if reference is None:
        return SAMPLE_SCORES[metric](job.scored)
    against = inception_features.reference(
        reference, job.network, image_shape=job.trained.image_shape,
        data_settings=config_lib.data_settings(job.config), progress=job.progress,
    )
    return SAMPLE_SCORES[metric](job.scored, against) | {"reference_n": against.count}


def frechet_pixels(job: Job, folder: epath.Path, reference: str) -> dict[str, Any]:
    """Frechet distance of raw pixels (see `metrics.pixel_distance`)."""
    shape = job.trained.image_shape
    check_pixels(shape)
    source, _ = inception_features.images_of(
        reference, image_shape=shape, channels=shape[-1],
        data_settings=config_lib.data_settings(job.config),
    )
    if source is None or tuple(source.image_shape) != tuple(shape):
        raise UserError(
            f"frechet_pixels needs images of {list(shape)}, and config.evaluate.references has "
            f"{reference!r}; write --config.evaluate.references=\"('train',)\"."
        )
    against = (images for _, images in inception_features.batches(source, progress=job.progress))
    return pixel_distance(job.samples(), against)


def draw_sweep(job: Job, folder: epath.Path, *reference: str) -> dict[str, Any]:
    """A score for every sampler and number of calls: `sweep.csv`, `sweep.md`, `sweep.png`."""
    settings = job.config.evaluate

    def score_of(sampler, calls):
        config = config_lib.with_sampler(job.config, sampler, calls)
        cell = dataclasses.replace(job, config=config)
        return METRICS[settings.sweep_metric](cell, folder, *reference)

    cells = sampler_sweep.measure(
        folder / "parts", settings.sweep_samplers, settings.sweep_steps, score_of
    )
    name = "/".join((settings.sweep_metric, *reference))
    sampler_sweep.save(folder, name, settings.sweep_steps, cells)
    partial_results.remove(folder / "parts")
    table = {s: [float(f"{cell['value']:.6g}") for cell in row] for s, row in cells.items()}
    remarks = {r for row in cells.values() for cell in row for r in cell.get("remarks", ())}
    return {"value": None, "table": table, "remarks": sorted(remarks)}


MOST_PIXELS = 4096  # Of an image, channels counted, whose covariance is 128 MB.


def fid(samples: Samples, against: Reference) -> dict[str, Any]:
    """Frechet Inception distance (Heusel et al. 2017)."""
    return {
        "value": scores.frechet_distance(
            samples.pool.mean, samples.pool.covariance, against.mu, against.sigma
        ),
        "remarks": references.remarks(samples.pool, against),
    }


def sfid(samples: Samples, against: Reference) -> dict[str, Any]:
    """FID on spatial features (Nash et al. 2021)."""
    if against.mu_s is None:
        raise UserError(
            "sfid needs mu_s and sigma_s, which this reference has not: give images, or leave "
            "'sfid' out of config.evaluate.metrics."
        )
    return {"value": scores.frechet_distance(
        samples.spatial.mean, samples.spatial.covariance, against.mu_s, against.sigma_s
    )}


def kid(samples: Samples, against: Reference) -> dict[str, Any]:
    """Kernel Inception distance (Binkowski et al. 2018): 100 subsets of at most 1,000."""
    features = _features(against, "kid")
    size = min(1000, len(samples.features), len(features))
    found = scores.kernel_distance(samples.features, features, subset_size=size)
    return {"value": found.mean, "std": found.std, "standard_error": found.standard_error,
            "subset_size": size}


def precision_recall(samples: Samples, against: Reference) -> dict[str, Any]:
    """Improved precision and recall, k = 3 (Kynkaanniemi et al. 2019)."""
    found = nearest_lib.precision_recall(samples.features, _features(against, "precision_recall"))
    return {"value": found.precision, "recall": found.recall}


def inception_score(samples: Samples, against: None = None) -> dict[str, Any]:
    """Inception Score (Salimans et al. 2016), of the whole set and of ten parts."""
    whole = scores.inception_score(samples.logits)
    values = {"value": whole.mean}
    if len(samples.logits) >= 10:
        parts = scores.inception_score(samples.logits, splits=10)
        values |= {"ten_splits": parts.mean, "std": parts.std,
                   "standard_error": parts.standard_error}
    return values


def pixel_distance(
    samples: Iterable[np.ndarray], against: Iterable[np.ndarray]
) -> dict[str, Any]:
    """Frechet distance of raw pixels as features, in squares of [-1, 1].

    The formula of FID without its network: it sees whether the mean image and the covariances
    of pixels are the reference's, and nothing else, so that Gaussian noise with these moments
    scores 0. It says little of how images look, and does not compare with FID. It is for small
    images and samplers of one network, where Inception is out of place or not at hand.

    Args:
        samples: batches [b, h, w, c], in 0..255.
        against: batches of the same shape.

    Raises:
        ValueError: the shapes differ, or an image has more than 4,096 pixels times channels.
    """
    ours, theirs = (_pixel_moments(batches) for batches in (samples, against))
    return {"value": scores.frechet_distance(
        ours.mean, ours.covariance, theirs.mean, theirs.covariance
    ), "reference_n": theirs.count}


def check_pixels(image_shape: tuple[int, int, int]) -> None:
    """Raises ValueError where images are too large for `frechet_pixels`."""
    if np.prod(image_shape) > MOST_PIXELS:
        raise UserError(
            f"frechet_pixels has no room for the covariance of {np.prod(image_shape):,} pixels, "
            f"more than {MOST_PIXELS:,}; use 'fid' instead."
        )


def _pixel_moments(batches):
    found = None
    for images in batches:
        check_pixels(images.shape[1:])
        rows = images.reshape(len(images), -1) / 127.5 - 1
        found = (found or Moments.empty(rows.shape[1])).update(rows)
    return found


def _features(against, metric):
    if against.features is None:
        raise UserError(
            f"{metric} needs features of the reference, and a file of mu and sigma has none: "
            f"give images, or leave {metric!r} out of config.evaluate.metrics."
        )
    return against.features


SAMPLE_SCORES: dict[str, Callable[..., dict[str, Any]]] = {
    "fid": fid, "sfid": sfid, "kid": kid, "is": inception_score,
    "precision_recall": precision_recall,
}
METRICS: dict[str, Callable[..., dict[str, Any]]] = {
    "bpd": bpd,
    "ode_bpd": ode_bpd,
    "progressive": draw_progressive,
    "draws": answer,
    "sweep": draw_sweep,
    "frechet_pixels": frechet_pixels,
    "nearest_pixels": functools.partial(nearest, features=False),
    "nearest_features": functools.partial(nearest, features=True),
    **{name: functools.partial(score, metric=name) for name in SAMPLE_SCORES},
}
