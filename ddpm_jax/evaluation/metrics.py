"""What can be measured of a checkpoint: one function per metric of `catalogue.METRICS`.

Each returns the JSON of a row: `value`, `standard_error` if there is one, and further numbers. It
writes its files to `folder`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from ddpm_jax import errors
from ddpm_jax.data import pixels
from ddpm_jax.diffusion import randomness, variational_bound
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import (
    conditional_draws, inception_features, references, sampler_sweep, scores,
)
from ddpm_jax.evaluation import nearest as nearest_lib
from ddpm_jax.evaluation.inception_features import SampleFeatures
from ddpm_jax.evaluation.job import DISTILLED, Job
from ddpm_jax.evaluation.references import Reference
from ddpm_jax.evaluation.scores import Moments
from ddpm_jax.inference import progressive
from ddpm_jax.inference import bits_per_dim as bits_lib
from ddpm_jax.inference import held_out_loss as held_out_loss_lib
from ddpm_jax.inference import sample as sample_lib
from ddpm_jax.runtime import files, partial_results
from ddpm_jax.workdir import pictures, plots

MAX_PIXELS = 4096  # Pixels times channels of an image, whose covariance is 128 MB.
BALL_NEIGHBOURS = 5  # The k of density and coverage.
_SHOWN = 10  # Images in a picture.


def bpd(job: Job, folder: epath.Path) -> dict[str, Any]:
    """The variational bound (Ho et al. 2020, Eq. 5), with its terms, curves and Table 4."""
    terms = bits_lib.terms(
        job.trained, job.rng(randomness.BITS), job.images(), clip=job.settings.sampler.clip,
        batch_size=job.settings.batch_size, progress=job.progress, folder=folder / "parts",
    )
    bits = _finite(variational_bound.total_bits(terms))
    prior, vlb, mse_x_0, mse_eps = (
        np.mean(x, axis=0, dtype=np.float64)
        for x in (terms.prior, terms.vlb, terms.mse_x_0, terms.mse_eps)
    )
    curve = variational_bound.rate_distortion(vlb, prior, mse_x_0)
    files.write_npz(folder / "terms.npz", dict(
        bits=bits, prior=terms.prior, vlb=vlb, mse_x_0=mse_x_0, mse_eps=mse_eps,
        vlb_standard_error=scores.standard_error(terms.vlb),
    ))
    plots.bound(folder / "bound.png", vlb, mse_eps)
    plots.rate_distortion(folder / "rate_distortion.png", curve)
    lines = ["reverse_steps,rate_bits_per_dim,distortion_rmse"] + [
        f"{n},{rate:.6g},{distortion:.6g}" for n, rate, distortion in zip(
            curve.reverse_steps, curve.rate, curve.distortion)
    ]
    files.write(folder / "rate_distortion.csv", ("\n".join(lines) + "\n").encode())
    partial_results.remove(folder / "parts")
    return _mean(bits) | {
        "L_T": float(prior), "L_1_to_T-1": float(vlb[1:].sum()), "L_0": float(vlb[0]),
        "rmse": float(curve.distortion[-1]),
    }


def held_out_loss(job: Job, folder: epath.Path) -> dict[str, Any]:
    """The mean training loss; each image has the same t and noise whatever the weights."""
    return _mean(_finite(held_out_loss_lib.of_source(
        job.trained, job.rng(randomness.HELD_OUT_LOSS), job.images(), job.settings.objective,
        batch_size=job.settings.batch_size, progress=job.progress,
    )))


def ode_bpd(job: Job, folder: epath.Path) -> dict[str, Any]:
    """Bits/dim under the probability-flow ODE, uniformly dequantised (Song et al. 2021)."""
    return _by_ode(job, folder, "bits")


def nats_ode(job: Job, folder: epath.Path) -> dict[str, Any]:
    """The log-density of floats under the probability-flow ODE, in nats/dim (Song et al. 2021)."""
    return _by_ode(job, folder, "nats")


def progressive_pictures(job: Job, folder: epath.Path) -> dict[str, Any]:
    """Pictures of progressive generation and of completions (Ho et al. 2020, Figs. 6 and 7)."""
    num_timesteps, clip = job.trained.schedule.num_timesteps, job.settings.sampler.clip
    x_t, x_0 = progressive.generate(
        job.trained, job.rng(randomness.PICTURES), _SHOWN, num_frames=20, clip=clip
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


def error_of_mean_draw(job: Job, folder: epath.Path) -> dict[str, Any]:
    """Error of the mean of several draws per condition, and the Dice coefficient of masks."""
    source, num_draws = job.images(), job.settings.num_draws
    n = len(source)
    truth = pixels.as_uint8(source.read(np.arange(n)))
    sample_kwargs = source.sample_kwargs(np.arange(n))
    batches = sample_lib.stream(
        job.trained, randomness.image_keys(job.rng(randomness.SAMPLES), jnp.arange(n * num_draws)),
        job.settings.sampler,
        **{name: np.repeat(x, num_draws, axis=0) for name, x in sample_kwargs.items()},
        guide_model=job.worse, batch_size=job.settings.sample_batch_size, progress=job.progress,
    )
    with errors.named_as(batch_size="sample.batch_size"):
        draws = np.concatenate([pixels.to_uint8(batch) for batch in batches])
    draws = draws.reshape(n, num_draws, *draws.shape[1:])
    summary = conditional_draws.summarize(draws, truth)
    shown = np.arange(min(n, _SHOWN))
    pictures.save_png(folder / "draws.png", conditional_draws.picture(
        pixels.as_uint8(source.read_condition(shown)), draws[shown],
        conditional_draws.summarize(draws[shown], truth[shown]), truth[shown],
    ))
    row = _mean(summary.error) | {
        "single_draw": float(summary.single_error.mean()),
        "disagreement": float(summary.disagreement.mean()),
    }
    if summary.dice is not None:
        row |= {"dice": float(summary.dice.mean()),
                "dice_standard_error": scores.standard_error(summary.dice)}
    return row


def copied_share(job: Job, folder: epath.Path, *, features: bool) -> dict[str, Any]:
    """Share of samples that are copies of training images, by `nearest.audit_copies`.

    Args:
        job, folder: as for every metric.
        features: compare Inception features instead of pixels.
    """
    source = pixels.as_pictures(job.source("train"))
    samples = np.concatenate(list(job.samples()))
    queries, embed = nearest_lib.pixels(samples), nearest_lib.pixels
    if features:
        queries = job.sample_features.features
        embed = lambda uint8: job.network.features(uint8).pool
    training = inception_features.batches(source, progress=job.progress)
    audit = nearest_lib.audit_copies(queries, training, embed)
    nearest_lib.save_table(folder / "nearest.csv", audit)
    uint8 = samples if samples.dtype == np.uint8 else np.round(samples).astype(np.uint8)
    pictures.save_png(folder / "nearest.png", nearest_lib.picture(uint8, audit, source))
    return {
        "value": float(audit.is_copy.mean()), "copies": int(audit.is_copy.sum()),
        "median_distance": float(np.median(audit.distances[:, 0])),
        "smallest_ratio": float(audit.ratio.min()),
    }


def feature_score(
    job: Job,
    folder: epath.Path,
    reference: str | None = None,
    *,
    score: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
    """A score of the samples' Inception features.

    Args:
        job, folder: as for every metric.
        reference: what the samples are compared with; None if the score needs none.
        score: (features of the samples[, `Reference`]) -> the JSON of a row.
    """
    if reference is None:
        return score(job.sample_features)
    statistics = inception_features.reference(
        reference, job.network, image_shape=job.trained.image_shape,
        data_settings=job.settings.data, progress=job.progress, sets=job.sets,
    )
    return score(job.sample_features, statistics) | {"reference_n": statistics.count}


def frechet_pixels(job: Job, folder: epath.Path, reference: str) -> dict[str, Any]:
    """Frechet distance of raw pixels (see `pixel_distance`)."""
    shape = job.trained.image_shape
    check_pixels(shape)
    images = job.reference(reference, shape[-1])
    if isinstance(images, str) or tuple(images.content.image_shape) != tuple(shape):
        raise UserError(
            f"frechet_pixels needs images of {list(shape)}, and config.evaluate.references has "
            f"{reference!r}; write --config.evaluate.references=\"('train',)\"."
        )
    batches = inception_features.batches(images.open(), progress=job.progress)
    against = (uint8 for _, uint8 in batches)
    return pixel_distance(job.samples(), against)


def sweep(
    job: Job, folder: epath.Path, *reference: str, score: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """A score for every sampler and number of calls: `sweep.csv`, `sweep.md`, `sweep.png`.

    Args:
        job, folder: as for every metric.
        reference: what the samples are compared with; none if the score needs none.
        score: the function of the metric `settings.sweep_metric`.
    """
    settings = job.settings
    samplers = (*settings.sweep_samplers, *((DISTILLED,) if job.students else ()))
    cells = sampler_sweep.measure(
        folder / "parts", samplers, settings.sweep_steps,
        lambda sampler, calls: score(job.with_sampler(sampler, calls), folder, *reference),
    )
    name = "/".join((settings.sweep_metric, *reference))
    sampler_sweep.save(folder, name, settings.sweep_steps, cells)
    partial_results.remove(folder / "parts")
    table = {s: [float(f"{cell['value']:.6g}") for cell in row] for s, row in cells.items()}
    remarks = {r for row in cells.values() for cell in row for r in cell.get("remarks", ())}
    return {"value": None, "table": table, "remarks": sorted(remarks)}


def fid(samples: SampleFeatures, reference: Reference) -> dict[str, Any]:
    """Frechet Inception distance (Heusel et al. 2017)."""
    return {
        "value": scores.frechet_distance(
            samples.pool.mean, samples.pool.covariance, reference.mu, reference.sigma
        ),
        "remarks": references.remarks(samples.pool, reference),
    }


def sfid(samples: SampleFeatures, reference: Reference) -> dict[str, Any]:
    """FID on spatial features (Nash et al. 2021)."""
    if reference.mu_s is None:
        raise UserError(
            "sfid needs mu_s and sigma_s, which this reference does not have: give images, or "
            "leave 'sfid' out of config.evaluate.metrics."
        )
    return {"value": scores.frechet_distance(
        samples.spatial.mean, samples.spatial.covariance, reference.mu_s, reference.sigma_s
    )}


def kid(samples: SampleFeatures, reference: Reference) -> dict[str, Any]:
    """Kernel Inception distance (Binkowski et al. 2018): 100 subsets of at most 1,000."""
    features = _features(reference, "kid")
    size = min(1000, len(samples.features), len(features))
    distance = scores.kernel_distance(samples.features, features, subset_size=size)
    return {"value": distance.mean, "std": distance.std,
            "standard_error": distance.standard_error, "subset_size": size}


def precision_recall(samples: SampleFeatures, reference: Reference) -> dict[str, Any]:
    """Improved precision and recall, k = 3 (Kynkaanniemi et al. 2019)."""
    features = _features(reference, "precision_recall")
    if min(len(samples.features), len(features)) < 4:
        raise UserError(
            f"precision_recall needs at least 4 samples and 4 images to compare them with, not "
            f"{len(samples.features)} and {len(features)}; raise config.evaluate.num_samples, or "
            "name another reference."
        )
    shares = nearest_lib.precision_recall(samples.features, features)
    return {"value": shares.precision, "recall": shares.recall}


def density_coverage(samples: SampleFeatures, reference: Reference) -> dict[str, Any]:
    """Density and coverage, k = 5 (Naeem et al. 2020)."""
    features = _features(reference, "density_coverage")
    if len(features) <= BALL_NEIGHBOURS:
        raise UserError(
            f"density_coverage needs more than {BALL_NEIGHBOURS} images to compare with, not "
            f"{len(features)}; name another reference."
        )
    scored = nearest_lib.density_coverage(samples.features, features, BALL_NEIGHBOURS)
    return {"value": scored.density, "coverage": scored.coverage,
            "reference_features": len(features)}


def inception_score(samples: SampleFeatures) -> dict[str, Any]:
    """Inception Score (Salimans et al. 2016), of the whole set and of ten parts."""
    row = {"value": scores.inception_score(samples.logits).mean}
    if len(samples.logits) >= 10:
        parts = scores.inception_score(samples.logits, splits=10)
        row |= {"ten_splits": parts.mean, "std": parts.std,
                "standard_error": parts.standard_error}
    return row


def pixel_distance(
    samples: Iterable[np.ndarray], reference: Iterable[np.ndarray]
) -> dict[str, Any]:
    """Frechet distance of raw pixels as features, in squares of [-1, 1].

    This is the formula of FID without its network. It compares the mean image and the covariances
    of pixels with the reference's and sees nothing else: Gaussian noise with these moments scores
    0. It says little about how images look, and its values do not compare with FID. Use it for
    small images and for samplers of one network, if Inception does not suit the images or is not
    at hand.

    Args:
        samples: batches [b, h, w, c], in 0..255.
        reference: batches of the same shape.

    Raises:
        ValueError: the shapes differ, or an image has more than 4,096 pixels times channels.
    """
    ours, theirs = (_pixel_moments(batches) for batches in (samples, reference))
    return {"value": scores.frechet_distance(
        ours.mean, ours.covariance, theirs.mean, theirs.covariance
    ), "reference_n": theirs.count}


def check_pixels(image_shape: tuple[int, int, int]) -> None:
    """Raises ValueError if images are too large for `frechet_pixels`."""
    if np.prod(image_shape) > MAX_PIXELS:
        raise UserError(
            f"frechet_pixels has no room for the covariance of {np.prod(image_shape):,} pixels, "
            f"more than {MAX_PIXELS:,}; use 'fid' instead."
        )


def _by_ode(job, folder, unit):
    """The row of a metric of the ODE, whose value for each image `unit`.npz keeps."""
    settings = job.settings
    values = _finite(bits_lib.by_ode(
        job.trained, job.rng(randomness.ODE), job.images(), unit, num_steps=settings.ode_steps,
        num_probes=settings.ode_probes, batch_size=settings.batch_size, progress=job.progress,
        folder=folder / "parts",
    ))
    files.write_npz(folder / f"{unit}.npz", {unit: values})
    partial_results.remove(folder / "parts")
    return _mean(values)


def _finite(bits):
    """The bits or nats of images, unless the model has diverged."""
    bad = np.count_nonzero(~np.isfinite(bits))
    if bad:
        raise UserError(
            f"the likelihoods of {bad} of {len(bits)} images are NaN or infinite: look for the "
            "step at which the model diverged, and measure an earlier config.evaluate.checkpoints."
        )
    return bits


def _mean(values):
    """The row of a metric that is a mean over images."""
    return {"value": float(np.mean(values, dtype=np.float64)),
            "standard_error": scores.standard_error(values), "n": len(values)}


def _pixel_moments(batches):
    moments = None
    for images in batches:
        check_pixels(images.shape[1:])
        rows = images.reshape(len(images), -1) / 127.5 - 1
        moments = (moments or Moments.empty(rows.shape[1])).update(rows)
    return moments


def _features(reference, metric):
    if reference.features is None:
        raise UserError(
            f"{metric} needs features of the reference, and a file of mu and sigma has none: "
            f"give images, or leave {metric!r} out of config.evaluate.metrics."
        )
    return reference.features
