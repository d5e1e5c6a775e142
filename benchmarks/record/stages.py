"""The stages that measure a checkpoint and draw samples, and the folder that keeps the results.

A stage writes files and then a row in `metrics.json`. A row of the same weights (by their digest),
images and calls is never computed again. Sampling and bits/dim keep finished rounds in
`evaluations/` of the workdir, where `--mode=evaluate` finds them too, so that an interrupted stage
resumes.
"""

import dataclasses
import io
import json
from collections.abc import Callable, Iterable
from typing import Any

import jax
import ml_collections
import ml_dtypes
import numpy as np
import safetensors.numpy
from etils import epath

from ddpm_jax import config as config_lib
from ddpm_jax.data import pixels
from ddpm_jax.diffusion import randomness
from ddpm_jax.evaluation import evaluate as evaluate_lib
from ddpm_jax.evaluation.job import Job, key
from ddpm_jax.inference import progressive
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.runtime import files
from ddpm_jax.training import monitoring
from ddpm_jax.weights import pretrained, state_dicts
from ddpm_jax.workdir import pictures, run_folder

DDIM_STEPS = 50
_SHOWN = 64  # A grid shows the first images.
_PROCESS_IMAGES, _FRAMES = 16, 20  # Images and moments in the pictures of the process.
HEADER = 65536  # Upper bound of the bytes for names and shapes in a file.


class Record:
    """A folder of files of limited size, and `metrics.json`, which describes them.

    Args:
        folder: created if missing.
        file_bytes: maximum size of a file.
    """

    def __init__(self, folder: Any, file_bytes: int):
        self.folder, self.file_bytes = files.path(folder), file_bytes

    @property
    def metrics(self) -> dict[str, Any]:
        """The rows by name; empty if nothing was written yet."""
        path = self.folder / "metrics.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def has(self, name: str, request: dict[str, Any]) -> bool:
        """Whether there is a row for this request, with all of its files."""
        row = self.metrics.get(name, {})
        return bool(row) and request.items() <= row.items() and all(
            (self.folder / file).exists() for file in row.get("files", ())
        )

    def add(self, name: str, row: Any) -> None:
        """Writes a row, and removes files that only the previous row of this name had.

        Raises:
            ValueError: a file is too large.
        """
        metrics = self.metrics
        new = row.get("files", ()) if isinstance(row, dict) else ()
        old = metrics[name].get("files", ()) if new and name in metrics else ()
        for file in new:
            size = (self.folder / file).stat().length
            if size > self.file_bytes:
                raise ValueError(
                    f"--file_mib={self.file_bytes / 2**20:g}: {file} has {size / 2**20:.1f} MiB; "
                    "write a larger one."
                )
        files.write(
            self.folder / "metrics.json", json.dumps(metrics | {name: row}, indent=1).encode()
        )
        for file in set(old) - set(new):
            (self.folder / file).unlink(missing_ok=True)

    def write_parts(self, stem: str, contents: Iterable[bytes], ending: str) -> list[str]:
        """Writes files STEM_1_of_N.ENDING and so on, and returns their names."""
        contents = list(contents)
        names = [f"{stem}_{i + 1}_of_{len(contents)}.{ending}" for i in range(len(contents))]
        for name, content in zip(names, contents):
            files.write(self.folder / name, content)
        return names


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the work after training.

    Attributes:
        name: name of its row.
        run: (config, job, record, stage) -> content of its row.
        num_images: number of images.
        num_calls: network calls per image.
    """

    name: str
    run: Callable[[ml_collections.ConfigDict, Job, Record, "Stage"], dict[str, Any]]
    num_images: int
    num_calls: int

    def seconds(self, images_per_second: float, starting: float) -> float:
        """An estimate of its seconds from the speed of training and the time of its start.

        An image of training costs about three network calls. Compiling a chain takes no longer than
        compiling a training step.
        """
        return starting + self.num_images * self.num_calls / (3 * images_per_second)


def config_for(config: ml_collections.ConfigDict, stage: Stage) -> ml_collections.ConfigDict:
    """A copy of the config that measures the images of a stage on the newest checkpoint."""
    config = config.copy_and_resolve_references()
    config.evaluate.metrics, config.evaluate.checkpoints = ("bpd",), "newest"
    config.evaluate.num_images = config.evaluate.num_samples = stage.num_images
    config.evaluate.rounding = True
    return config


def job_of(config: ml_collections.ConfigDict, workdir: Any) -> Job:
    """The job that measures the newest checkpoint of a run and samples from it."""
    step, trained = run_folder.load_step(workdir, weights=config.sample.weights)
    folder = files.path(workdir) / "evaluations" / f"step_{step:08d}"
    return Job(evaluate_lib.settings_of(config), step, trained, folder, False, None)


def weights(config, job, record, stage) -> dict[str, Any]:
    """Writes the parameters in bfloat16 with the names of diffusers, for `read_weights`."""
    trained = job.trained
    state = state_dicts.from_params(trained.params, trained.model, trained.image_shape[0])
    pieces, size = [{}], 0
    for name, array in state.items():
        array = np.asarray(array).astype(ml_dtypes.bfloat16)
        if size + array.nbytes > record.file_bytes - HEADER and pieces[-1]:
            pieces.append({})
            size = 0
        pieces[-1][name] = array
        size += array.nbytes
    contents = (safetensors.numpy.save(piece, metadata={"format": "pt"}) for piece in pieces)
    return {
        "parameters": trained_lib.num_params(trained.params),
        "files": record.write_parts("weights", contents, "safetensors"),
    }


def read_weights(folder: Any) -> trained_lib.Trained:
    """The model with the weights of a record.

    Raises:
        ValueError: a file is missing or damaged.
    """
    folder = files.path(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    config = run_folder.parse(json.dumps(metrics["train"]["config"]))
    shape = config_lib.image_shape(config)
    return pretrained.from_state_dict(
        [folder / name for name in metrics["weights"]["files"]],
        config_lib.model(config, shape[-1]), image_shape=shape,
        schedule=config_lib.schedule(config), diffusion=config_lib.parameterization(config),
    )


def held_out(config, job, record, stage) -> dict[str, Any]:
    """Measures the training loss of all held-out images, each at its own t with its own noise."""
    source, trained = job.source("test"), job.trained
    loss = monitoring.held_out_loss(
        source, job.rng(randomness.HELD_OUT_LOSS), model=trained.model, schedule=trained.schedule,
        parameterization=trained.diffusion, objective=config_lib.objective(config),
        num_images=len(source), batch_size=config.train.batch_size,
    )
    return {"value": loss(trained.params)}


def bits(config, job, record, stage) -> dict[str, Any]:
    """Measures bits/dim and their terms like `--mode=evaluate`; `each` has the values per image."""
    row, = evaluate_lib.evaluate(config, job.folder.parent.parent)
    folder = job.folder / f"bpd-{key(row['protocol'])}"
    with np.load(folder / "terms.npz") as terms:
        return row | {"each": terms["bits"].round(5).tolist()}


def ddim(config, job, record, stage) -> dict[str, Any]:
    """Draws samples with DDIM."""
    return _samples(job.with_sampler("ddim", stage.num_calls), record, stage)


def chain(config, job, record, stage) -> dict[str, Any]:
    """Draws samples with the full chain (Algorithm 2)."""
    return _samples(job.with_sampler("ancestral", None), record, stage)


def _samples(job, record, stage):
    with jax.default_matmul_precision(job.settings.matmul_precision):
        uint8 = np.concatenate(list(job.samples()))
    most = (record.file_bytes - HEADER) // uint8[0].size
    parts = np.array_split(uint8, -(-len(uint8) // most))
    picture = f"{stage.name}.png"
    pictures.save_png(record.folder / picture, pictures.grid(uint8[:_SHOWN]))
    return {"files": [picture, *record.write_parts(stage.name, map(_npz, parts), "npz")]}


def process(config, job, record, stage) -> dict[str, Any]:
    """Draws images with the full chain and keeps x_t and the x_0 predicted from it."""
    with jax.default_matmul_precision(job.settings.matmul_precision):
        x_t, x_0 = progressive.generate(
            job.trained, job.settings.seed, stage.num_images, num_frames=_FRAMES,
            clip=job.settings.sampler.clip,
        )
    written = pictures.save_process(
        record.folder / stage.name, pixels.to_uint8(x_t), pixels.to_uint8(x_0)
    )
    return {"files": [epath.Path(path).name for path in written]}


def _npz(uint8):
    file = io.BytesIO()
    np.savez_compressed(file, arr_0=uint8)
    return file.getvalue()


def stages(num_timesteps: int, *, bits_images: int, ddim_images: int, chain_images: int):
    """All stages in order, the most informative first, without those that have no images."""
    every_stage = [
        Stage("weights", weights, 1, 0),
        Stage("held_out", held_out, 1, 1),
        Stage("bits", bits, bits_images, num_timesteps),
        Stage("ddim", ddim, ddim_images, min(DDIM_STEPS, num_timesteps)),
        Stage("chain", chain, chain_images, num_timesteps),
        Stage("process", process, _PROCESS_IMAGES, num_timesteps),
    ]
    return [stage for stage in every_stage if stage.num_images]
