"""What can be measured of a checkpoint: one function a metric, each from a `Job`.

Every function returns the JSON of a row: `value`, what belongs to it, and a standard error
where there is one. Files go into the folder it is given.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from ddpm_jax import config as config_lib
from ddpm_jax.data import loading
from ddpm_jax.data import source as source_lib
from ddpm_jax.diffusion import randomness, variational_bound
from ddpm_jax.evaluation import audit as audit_lib
from ddpm_jax.evaluation import conditional_draws, inception_features, sampler_sweep
from ddpm_jax.inference import bits_per_dim as bits_lib
from ddpm_jax.inference import conditions, progressive
from ddpm_jax.inference import sample as sample_lib
from ddpm_jax.runtime import files, partial_results
from ddpm_jax.training.state import Trained
from ddpm_jax.workdir import pictures, plots

_BITS, _ODE, _SAMPLES, _PICTURES = range(4)  # Addresses below the seed of an evaluation.
_DRAWN = 10  # Images in the pictures of progressive coding.


@dataclasses.dataclass(frozen=True)
class Job:
    """One checkpoint and how to measure it.

    Attributes:
        config: its groups `evaluate`, `sample` and `data` are read.
        step: updates that the parameters have seen.
        trained: the parameters and what they need.
        folder: of this checkpoint's evaluations; of several processes each has its own, and the
            first one's stays.
        progress: show bars, in the first process.
        network: Inception, where a metric of samples is asked for.
    """

    config: ml_collections.ConfigDict
    step: int
    trained: Trained
    folder: epath.Path
    progress: bool
    network: inception_features.Network | None

    def rng(self, use: int) -> jax.Array:
        """The key of one use."""
        return jax.random.fold_in(randomness.as_key(self.config.evaluate.seed), use)

    def source(self, split: str, num_images: int = 0) -> source_lib.Source:
        """A split of the run's data: `num_images` of it spread evenly, 0 for all."""
        source = loading.load(split=split, **config_lib.data_settings(self.config))
        if source is None:
            raise ValueError(
                f"config.evaluate.split={split!r}, but config.data.name="
                f"{self.config.data.name!r} has no such split; write "
                "--config.evaluate.split=train, or set config.data.holdout when training."
            )
        if not num_images or num_images >= len(source):
            return source
        chosen = np.linspace(0, len(source) - 1, num_images).round().astype(np.int64)
        return source.select(chosen)

    def told(self, n: int) -> dict[str, Any]:
        """What n samples are told, by `conditions.in_turn`; conditions are of `split`."""
        conditional = getattr(self.trained.model, "condition_channels", 0)
        source = self.source(self.config.evaluate.split) if conditional else None
        return conditions.in_turn(source, n, tuple(self.config.sample.labels))

    def samples(self) -> Iterator[np.ndarray]:
        """`evaluate.num_samples` images in batches: uint8, or float32 in 0..255 unrounded.

        Finished batches stay in the folder, from which a second call reads them.
        """
        n = self.config.evaluate.num_samples
        folder = self.folder / f"samples-{key(sampling_protocol(self))}"
        done = 0
        for part in partial_results.finished(folder):
            done += partial_results.num_rows(part)
            yield part["arr_0"]
        if done >= n:
            return
        rngs = randomness.image_keys(self.rng(_SAMPLES), jnp.arange(n))
        for batch in sample_lib.stream(
            self.trained, rngs, config_lib.sampling_settings(self.config), **self.told(n),
            batch_size=self.config.sample.batch_size, progress=self.progress, done=done,
        ):
            uint8 = pictures.to_uint8(batch)  # Which refuses NaN.
            unrounded = np.clip((batch + 1) * 127.5, 0, 255)
            batch = uint8 if self.config.evaluate.rounding else unrounded
            partial_results.keep(folder, done, {"arr_0": batch})
            done += len(batch)
            yield batch

    @functools.cached_property
    def scored(self) -> inception_features.Samples:
        """Features of the samples; one pass through Inception serves every score."""
        return inception_features.Samples.of(self.samples(), self.network)


def needs_inception(config: ml_collections.ConfigDict) -> bool:
    """Whether anything that `config.evaluate` asks for goes through Inception."""
    settings = config.evaluate
    swept = {settings.sweep_metric} if "sweep" in settings.metrics else set()
    return bool({*settings.metrics, *swept} & set(NEEDS_INCEPTION))


def key(protocol: dict[str, Any]) -> str:
    """A short name for a protocol."""
    text = json.dumps(protocol, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def protocol(job: Job, metric: str, reference: str | None) -> dict[str, Any]:
    """Everything that the value of a metric depends on, JSON."""
    settings = job.config.evaluate
    found = {
        "step": job.step,
        "weights": job.config.sample.weights,
        "dtype": str(jnp.dtype(job.trained.model.dtype)),
        "matmul_precision": settings.matmul_precision,
        "seed": settings.seed,
    }
    if metric in ("bpd", "ode_bpd", "draws"):
        found |= {"split": settings.split, "num_images": settings.num_images or "all"}
    if metric in ("bpd", "progressive"):
        found["clip"] = job.config.sample.clip
    if metric == "ode_bpd":
        found |= {"ode_steps": settings.ode_steps, "ode_probes": settings.ode_probes}
    if metric in OF_SAMPLES:
        found |= sampling_protocol(job)
    if metric == "draws":
        sampled = sampling_protocol(job)
        found |= {k: v for k, v in sampled.items() if k not in ("num_samples", "rounding")}
        found["num_draws"] = settings.num_draws
    if metric == "sweep":
        found |= sweep_protocol(job)
        metric = settings.sweep_metric
    if metric in NEEDS_INCEPTION:
        found |= {"resize": inception_features.RESIZE, "inception": job.network.checksum[:16]}
    if reference is not None:
        found["reference"] = reference
    return json.loads(json.dumps(found))  # As it is read again: tuples are lists.


def sampling_protocol(job: Job) -> dict[str, Any]:
    """Everything that the samples of a checkpoint depend on, JSON."""
    how = config_lib.sampling_settings(job.config)
    return _drawing(job) | dataclasses.asdict(how) | {
        "num_steps": how.num_calls(job.trained.schedule)
    }


def sweep_protocol(job: Job) -> dict[str, Any]:
    """Everything that the table of a sweep depends on, JSON."""
    settings = job.config.evaluate
    rows = {}
    for sampler in settings.sweep_samplers:
        how = dataclasses.asdict(config_lib.sampling_settings(
            config_lib.with_sampler(job.config, sampler, settings.sweep_steps[0])
        ))
        rows[sampler] = {k: v for k, v in how.items() if k not in ("sampler", "num_steps")}
    return _drawing(job) | {
        "sweep_metric": settings.sweep_metric, "samplers": rows,
        "steps": list(settings.sweep_steps),
    }


def _drawing(job):
    settings = job.config.evaluate
    return {
        "num_samples": settings.num_samples, "weights": job.config.sample.weights,
        **_told_protocol(job), "rounding": "uint8" if settings.rounding else "none",
        "matmul_precision": settings.matmul_precision, "seed": settings.seed,
    }


def _told_protocol(job) -> dict[str, Any]:
    """What conditional samples were told."""
    model, found = job.trained.model, {}
    if getattr(model, "num_classes", 0):
        found["labels"] = list(job.config.sample.labels) or "in turn"
    if getattr(model, "condition_channels", 0):
        found["conditions"] = job.config.evaluate.split
    return found


def bpd(job: Job, folder: epath.Path) -> dict[str, Any]:
    """The variational bound (Ho et al. 2020, Eq. 5), with its terms, curves and Table 4."""
    settings = job.config.evaluate
    source = job.source(settings.split, settings.num_images)
    terms = bits_lib.terms(
        job.trained, job.rng(_BITS), source, clip=job.config.sample.clip,
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
        job.trained, job.rng(_ODE), job.source(settings.split, settings.num_images),
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
        job.trained, job.rng(_PICTURES), _DRAWN, num_frames=20, clip=clip
    )
    pictures.save_process(folder / "generation", pictures.to_uint8(x_t), pictures.to_uint8(x_0))
    shared = sorted({max(1, num_timesteps * k // 4) for k in (1, 2, 3, 4)}, reverse=True)
    x_t, completions = progressive.complete(
        job.trained, job.rng(_PICTURES), 8, shared=shared, clip=clip
    )
    rows = pictures.to_uint8(np.concatenate([x_t[:, None], completions], axis=1))
    pictures.save_png(folder / "completions.png", pictures.grid(
        rows.reshape(-1, *rows.shape[2:]), columns=rows.shape[1]
    ))
    return {"value": None, "shared": shared}


def answer(job: Job, folder: epath.Path) -> dict[str, Any]:
    """Several draws for each condition of a split: how close their mean is to the truth."""
    settings = job.config.evaluate
    if not getattr(job.trained.model, "condition_channels", 0):
        raise ValueError(
            "config.evaluate.metrics has 'draws', but this model takes no condition; leave it out, "
            "or train with --config.data.condition."
        )
    source = job.source(settings.split, settings.num_images)
    n, each = len(source), settings.num_draws
    told = {
        name: np.repeat(x, each, axis=0) for name, x in source.model_kwargs(np.arange(n)).items()
    }
    found = np.concatenate([pictures.to_uint8(batch) for batch in sample_lib.stream(
        job.trained, randomness.image_keys(job.rng(_SAMPLES), jnp.arange(n * each)),
        config_lib.sampling_settings(job.config), **told,
        batch_size=job.config.sample.batch_size, progress=job.progress,
    )])
    found, truth = found.reshape(n, each, *found.shape[1:]), source.read(np.arange(n))
    together = conditional_draws.summary(found, truth)
    shown = np.arange(min(n, _DRAWN))
    pictures.save_png(folder / "draws.png", conditional_draws.picture(
        source.read_condition(shown), found[shown], conditional_draws.summary(found[shown], truth[shown]),
        truth[shown],
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
        of, queries = audit_lib.pixels, audit_lib.pixels(samples)
    found = audit_lib.audit(queries, inception_features.batches(source, progress=job.progress), of)
    audit_lib.save_table(folder / "nearest.csv", found)
    uint8 = samples if samples.dtype == np.uint8 else np.round(samples).astype(np.uint8)
    pictures.save_png(folder / "nearest.png", audit_lib.picture(uint8, found, source))
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
        return inception_features.SCORES[metric](job.scored)
    against = inception_features.reference(
        reference, job.network, image_shape=job.trained.image_shape,
        data_settings=config_lib.data_settings(job.config), progress=job.progress,
    )
    return inception_features.SCORES[metric](job.scored, against) | {"reference_n": against.count}


def frechet_pixels(job: Job, folder: epath.Path, reference: str) -> dict[str, Any]:
    """Frechet distance of raw pixels (see `inception_features.frechet_pixels`)."""
    shape = job.trained.image_shape
    inception_features.check_pixels(shape)
    source, _ = inception_features.images_of(
        reference, image_shape=shape, channels=shape[-1],
        data_settings=config_lib.data_settings(job.config),
    )
    if source is None or tuple(source.image_shape) != tuple(shape):
        raise ValueError(
            f"frechet_pixels needs images of {list(shape)}, and config.evaluate.references has "
            f"{reference!r}; write --config.evaluate.references=\"('train',)\"."
        )
    against = (images for _, images in inception_features.batches(source, progress=job.progress))
    return inception_features.frechet_pixels(job.samples(), against)


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


METRICS: dict[str, Callable[..., dict[str, Any]]] = {
    "bpd": bpd,
    "ode_bpd": ode_bpd,
    "progressive": draw_progressive,
    "draws": answer,
    "sweep": draw_sweep,
    "frechet_pixels": frechet_pixels,
    "nearest_pixels": functools.partial(nearest, features=False),
    "nearest_features": functools.partial(nearest, features=True),
    **{name: functools.partial(score, metric=name) for name in inception_features.SCORES},
}
NEEDS_INCEPTION = (*inception_features.SCORES, "nearest_features")
OF_SAMPLES = (*NEEDS_INCEPTION, "frechet_pixels", "nearest_pixels")
HIGHER_IS_BETTER = ("is", "precision_recall")
