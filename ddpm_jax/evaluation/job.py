"""`Job`: one checkpoint to measure, with the settings, the data and the samples of it."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from ddpm_jax import errors
from ddpm_jax.data import pixels
from ddpm_jax.data import source as source_lib
from ddpm_jax.diffusion import losses, randomness
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import identity, image_sets, inception_features
from ddpm_jax.inference import conditions
from ddpm_jax.inference import sample as sample_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import files, partial_results
from ddpm_jax.samplers import halving
from ddpm_jax.samplers import settings as sampler_settings

DISTILLED = "distilled"  # The row of students in a sweep.


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure and with which settings; most fields are those of `config.evaluate`.

    Attributes:
        metrics: names of entries of `catalogue.METRICS`.
        split: of the run's data, for metrics of real images; "train" or "test".
        num_images: how many of the split, evenly spaced; 0 is all of them.
        num_samples: how many samples, for metrics of samples.
        num_draws: samples per condition, for the metric "draws".
        rounding: whether samples are rounded to uint8.
        references: what samples are compared with (see `inception_features.reference`).
        sweep_metric: the score of a sweep, the name of a metric.
        sweep_samplers: its samplers.
        sweep_steps: its network calls per image.
        sweep_students: a workdir of students for a row of it; "" is none.
        ode_steps: Heun steps of the probability-flow ODE.
        ode_probes: probes of its divergence per image.
        batch_size: images at a time on all devices, for metrics of real images; 0 is what fits.
        matmul_precision: as of `jax.default_matmul_precision`.
        seed: of every draw.
        weights: which weights are measured, as of `run_folder.load`.
        sampler: how to sample.
        sample_labels: labels of the samples, repeated in turn; () is every class in turn.
        sample_vectors: vectors of the samples, likewise; () is those of the split.
        sample_batch_size: samples at a time on all devices; 0 is what fits.
        objective: what training minimizes.
        data: arguments of `loading.load` for the run's data, but for the split.
    """

    metrics: tuple[str, ...]
    split: str
    num_images: int
    num_samples: int
    num_draws: int
    rounding: bool
    references: tuple[str, ...]
    sweep_metric: str
    sweep_samplers: tuple[str, ...]
    sweep_steps: tuple[int, ...]
    sweep_students: str
    ode_steps: int
    ode_probes: int
    batch_size: int
    matmul_precision: str
    seed: int
    weights: str
    sampler: sampler_settings.Settings
    sample_labels: tuple[int, ...]
    sample_vectors: tuple[Any, ...]
    sample_batch_size: int
    objective: losses.Objective
    data: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Job:
    """One checkpoint to measure.

    Attributes:
        settings: what to measure, and how.
        step: number of updates that made the parameters.
        trained: the parameters, with their model and schedule.
        folder: for the files of this checkpoint. Under several processes each has a folder of
            its own, and only that of the first is kept.
        progress: show bars, or without a terminal a line a minute.
        network: the Inception network; None if no metric needs it.
        sets: the image sets that were opened.
        worse: of `config.sample.guide_weights`; None without.
        students: of `sweep_students`, by their steps.
    """

    settings: Settings
    step: int
    trained: Trained
    folder: epath.Path
    progress: bool
    network: inception_features.Network | None
    sets: image_sets.Sets = dataclasses.field(default_factory=image_sets.Sets)
    worse: Trained | None = None
    students: Mapping[int, Trained] = dataclasses.field(default_factory=dict)

    def rng(self, use: int) -> jax.Array:
        """The key of one use of randomness, an address below the seed of an evaluation."""
        return randomness.below(self.settings.seed, use)

    def with_sampler(self, sampler: str, num_steps: int) -> "Job":
        """The same job with another sampler and number of network calls per image.

        "distilled" is the student of so many steps, by its own chain.
        """
        settings = self.settings
        if sampler == DISTILLED:
            chain = halving.settings(num_steps, settings.sampler.clip)
            return dataclasses.replace(
                self, trained=self.students[num_steps], worse=None,
                settings=dataclasses.replace(settings, sampler=chain),
            )
        return dataclasses.replace(self, settings=dataclasses.replace(
            settings, sampler=settings.sampler.with_sampler(sampler, num_steps)
        ))

    def source(self, split: str, num_images: int = 0) -> source_lib.Source:
        """The images of a split of the run's data: `num_images`, evenly spaced; 0 is all of them.

        Raises:
            ValueError: the data have no such split.
        """
        request = self.settings.data | {"split": split}
        return self._present(self.sets.open(num_images, **request), split)

    def digest(self, split: str, num_images: int = 0, *, inputs: bool = True) -> str:
        """The digest of what `source` gives.

        Args:
            split, num_images: as of `source`.
            inputs: whether labels and conditions are part of it.

        Raises:
            ValueError: the data have no such split.
        """
        request = self.settings.data | {"split": split}
        content = self.sets.content(num_images, inputs, **request)
        return self._present(content, split).digest

    def _present(self, images, split):
        if images is None:
            raise UserError(
                f"config.evaluate.split={split!r}, but config.data.name="
                f"{self.settings.data['name']!r} has no such split; write "
                "--config.evaluate.split=train, or set config.data.holdout when training."
            )
        return images

    def reference(self, name: str, channels: int = 3) -> image_sets.Images | str:
        """The images of a reference, or the digest of a file of statistics.

        Args:
            name: one of `settings.references`.
            channels: convert a folder's pictures and a batch to so many.
        """
        return self.sets.reference(
            name, image_shape=self.trained.image_shape, data_settings=self.settings.data,
            channels=channels,
        )

    @functools.cached_property
    def checkpoint(self) -> str:
        """The digest of the parameters and of their model."""
        return identity.of_model(self.trained)

    def images(self) -> source_lib.Source:
        """The real images to measure: `settings.num_images` of `settings.split`."""
        return self.source(self.settings.split, self.settings.num_images)

    def sample_kwargs(self, n: int) -> dict[str, Any]:
        """What `sample` takes for n images; conditions and vectors are those of the split."""
        settings = self.settings
        by_images = conditions.go_by_images(self.trained.model, settings.sample_vectors)
        source = self.source(settings.split) if by_images else None
        return conditions.in_turn(source, n, tuple(settings.sample_labels), settings.sample_vectors)

    def samples(self) -> Iterator[np.ndarray]:
        """`settings.num_samples` images in batches: uint8, or float32 in 0..255 unrounded.

        Finished batches are kept in the folder, and a second call reads them from there.
        """
        settings = self.settings
        folder = self.folder / f"samples-{key(self.samples_protocol())}"
        done = 0
        for part in partial_results.finished(folder):
            done += partial_results.num_rows(part)
            yield part["arr_0"]
        if done >= settings.num_samples:
            return
        rngs = randomness.image_keys(self.rng(randomness.SAMPLES), jnp.arange(settings.num_samples))
        with errors.named_as(batch_size="sample.batch_size"):
            for batch in sample_lib.stream(
                self.trained, rngs, settings.sampler, **self.sample_kwargs(settings.num_samples),
                guide_model=self.worse, batch_size=settings.sample_batch_size,
                progress=self.progress, done=done,
            ):
                uint8 = pixels.to_uint8(batch)  # It refuses NaN.
                unrounded = np.clip((batch + 1) * 127.5, 0, 255)
                batch = uint8 if settings.rounding else unrounded
                partial_results.keep(folder, done, {"arr_0": batch})
                done += len(batch)
                yield batch

    @functools.cached_property
    def sample_features(self) -> inception_features.SampleFeatures:
        """Inception features of the samples; one pass serves every score."""
        return inception_features.SampleFeatures.from_batches(self.samples(), self.network)

    def draw_protocol(self) -> dict[str, Any]:
        """Everything but the sampler that the samples depend on, JSON."""
        settings, model = self.settings, self.trained.model
        protocol = {
            "checkpoint": self.checkpoint, "samples_version": identity.SAMPLES,
            "num_samples": settings.num_samples, "weights": settings.weights,
        }
        if self.worse is not None:
            protocol["guide_model"] = identity.of_model(self.worse)
        if getattr(model, "num_classes", 0):
            protocol["labels"] = list(settings.sample_labels) or "in turn"
        if conditions.takes_vectors(model) and settings.sample_vectors:
            protocol["vectors"] = settings.sample_vectors
        if conditions.go_by_images(model, settings.sample_vectors):
            protocol["conditions"] = settings.split
            protocol["condition_images"] = self.digest(settings.split)
        return protocol | {
            "rounding": "uint8" if settings.rounding else "none",
            "matmul_precision": settings.matmul_precision, "seed": settings.seed,
        }

    def samples_protocol(self) -> dict[str, Any]:
        """Everything that the samples depend on, JSON."""
        sampler = self.settings.sampler
        return self.draw_protocol() | identity.of_settings(sampler) | {
            "num_steps": sampler.num_calls(self.trained.schedule)
        }


def key(protocol: dict[str, Any]) -> str:
    """A short name for a protocol: 16 digits of its SHA-256."""
    return files.short_hash(json.dumps(protocol, sort_keys=True).encode(), 16)
