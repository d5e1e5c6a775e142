"""One checkpoint to measure, how, and the protocol by which a result is known again."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from ddpm_jax import config as config_lib
from ddpm_jax.data import loading, pixels
from ddpm_jax.data import source as source_lib
from ddpm_jax.diffusion import randomness
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import catalogue, inception_features
from ddpm_jax.inference import conditions
from ddpm_jax.inference import sample as sample_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import partial_results


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
        """The key of one use of randomness, of those below the seed of an evaluation."""
        return randomness.below(self.config.evaluate.seed, use)

    def source(self, split: str, num_images: int = 0) -> source_lib.Source:
        """A split of the run's data: `num_images` of it spread evenly, 0 for all."""
        source = loading.load(split=split, **config_lib.data_settings(self.config))
        if source is None:
            raise UserError(
                f"config.evaluate.split={split!r}, but config.data.name="
                f"{self.config.data.name!r} has no such split; write "
                "--config.evaluate.split=train, or set config.data.holdout when training."
            )
        if not num_images or num_images >= len(source):
            return source
        return source.select(source_lib.spread(0, len(source) - 1, num_images))

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
        rngs = randomness.image_keys(self.rng(randomness.SAMPLES), jnp.arange(n))
        for batch in sample_lib.stream(
            self.trained, rngs, config_lib.sampling_settings(self.config), **self.told(n),
            batch_size=self.config.sample.batch_size, progress=self.progress, done=done,
        ):
            uint8 = pixels.to_uint8(batch)  # Which refuses NaN.
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
    return bool({*settings.metrics, *swept} & set(catalogue.NEEDS_INCEPTION))


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
    if metric in catalogue.OF_SAMPLES:
        found |= sampling_protocol(job)
    if metric == "draws":
        sampled = sampling_protocol(job)
        found |= {k: v for k, v in sampled.items() if k not in ("num_samples", "rounding")}
        found["num_draws"] = settings.num_draws
    if metric == "sweep":
        found |= sweep_protocol(job)
        metric = settings.sweep_metric
    if metric in catalogue.NEEDS_INCEPTION:
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
