"""`--mode=sample` with `config.sample.task`: edits of picture files, and pictures of the process.

Every task leaves a PNG for people, inputs at the left and results at the right, and an `.npz` of
the results (arr_0, uint8 [..., h, w, c]) in WORKDIR/samples.
"""

import dataclasses
import functools
import sys
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from ddpm_jax import config as config_lib
from ddpm_jax.data import decoding, pixels
from ddpm_jax.data.source import spread
from ddpm_jax.errors import UserError
from ddpm_jax.inference import conditions, editing
from ddpm_jax.inference import sample as sample_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import files, parallel
from ddpm_jax.samplers import settings as settings_lib
from ddpm_jax.workdir import pictures, run_folder

_FRAMES = 20  # Moments in the pictures of the process, at most.


@dataclasses.dataclass(frozen=True)
class Job:
    """A trained model, and what to do with it.

    Attributes:
        trained: parameters and what they need.
        settings: `config.sample`.
        how: the sampler.
        inputs: the picture files, float32 [n, h, w, c] in [-1, 1].
        mask: bool [h, w], where there is one.
        stem: path of what is left behind, without its ending.
        progress: show bars.
    """

    trained: Trained
    settings: ml_collections.ConfigDict
    how: settings_lib.Settings
    inputs: np.ndarray
    mask: np.ndarray | None
    stem: str
    progress: bool

    @property
    def run(self) -> dict[str, Any]:
        """Keyword arguments of every function of `editing` that runs the model."""
        return dict(
            settings=self.how, batch_size=self.settings.batch_size, progress=self.progress)

    def variants(self, edit, **arguments) -> np.ndarray:
        """`variants` results of each input, [n, variants, h, w, c]."""
        n, shape = self.settings.variants, self.inputs.shape
        found = edit(
            self.trained, self.settings.seed, np.repeat(self.inputs, n, axis=0), **arguments,
            **self.run,
        )
        return found.reshape(shape[0], n, *shape[1:])

    def resampling(self) -> dict[str, int]:
        """RePaint's numbers."""
        return {name: self.settings[name] for name in ("jump_length", "resamplings")}


def run(config: ml_collections.ConfigDict, workdir: Any) -> list[str]:
    """Does `config.sample.task` with a run's newest checkpoint; the paths it wrote, PNG first.

    Of several processes every one has to make the call; the first alone writes, and the others
    return nothing.

    Raises:
        ValueError: a setting is wrong, a picture cannot be read, or there is no run.
    """
    settings, how = config.sample, config_lib.sampling_settings(config)
    check(settings)
    if settings.task in _BY_DDIM and how.sampler == "ancestral":
        how = dataclasses.replace(how, sampler="ddim")
    step, trained = parallel.from_first(
        lambda: run_folder.load_step(workdir, weights=settings.weights)
    )
    name = "_".join([
        settings.task, *(epath.Path(path).stem for path in settings.inputs[:2]),
        f"{settings.weights}_step_{step:08d}", f"{how.sampler}_{how.num_calls(trained.schedule)}",
        f"seed_{settings.seed}",
    ])
    job = Job(
        trained, settings, how, _inputs(settings.inputs, trained.image_shape),
        _mask(settings.mask, trained.image_shape) if settings.mask else None,
        str(files.path(workdir) / "samples" / name), sys.stderr.isatty(),
    )
    arrays, picture, says = TASKS[settings.task](job)
    if not parallel.is_first():
        return []
    if picture is None:
        written = pictures.save_process(job.stem, arrays["x_t"], arrays["x_0"])
    else:
        written = [f"{job.stem}.png"]
        pictures.save_png(written[0], picture)
    written.append(f"{job.stem}.npz")
    files.write_npz(written[-1], arrays)
    print(says, *written, sep="\n  ")
    return written


def check(settings: ml_collections.ConfigDict) -> None:
    """Raises ValueError where `config.sample` asks for no task, or leaves out what it needs."""
    task, n = settings.task, len(settings.inputs)
    if task not in TASKS:
        raise UserError(
            f"config.sample.task={task!r} is not known; use one of {', '.join(TASKS)}, or leave "
            "task and inputs out for new images."
        )
    allowed = _NUM_INPUTS.get(task)
    if n not in allowed if allowed else n == 0:
        needs = " or ".join(map(str, allowed)) if allowed else "1 or more"
        example = {(0,): "()", (2,): "('a.png', 'b.png')"}.get(allowed, "('a.png',)")
        raise UserError(
            f"config.sample.inputs={tuple(settings.inputs)!r} has {n} pictures, and task={task} "
            f'takes {needs}; write --config.sample.inputs="{example}".'
        )
    if bool(settings.mask) != (task == "inpaint"):
        raise UserError(
            "config.sample.mask='', and task=inpaint needs one; write --config.sample.mask="
            "mask.png, a picture of the images' size, white where they are known."
            if task == "inpaint" else
            f"config.sample.mask={settings.mask!r} is for task=inpaint, not {task}; leave it out."
        )


def _inputs(paths, shape):
    found = [decoding.read(path, shape, setting="config.sample.inputs") for path in paths]
    return pixels.to_float(np.stack(found)) if found else np.zeros((0, *shape), np.float32)


def _mask(path, shape):
    found = decoding.read(path, (0, 0, 1), setting="config.sample.mask")[..., 0]
    if found.shape != shape[:2]:
        raise UserError(
            f"config.sample.mask={path!r} is {found.shape[0]}x{found.shape[1]}, and the images "
            f"{shape[0]}x{shape[1]}; draw it in their size, white where they are known."
        )
    return found > 127


def _interpolate(job):
    t = [editing.noising_steps(job.trained, strength) for strength in job.settings.strength]
    a, b = job.inputs[:1], job.inputs[1:]
    found = editing.interpolate(job.trained, job.settings.seed, a, b, t=t, **job.run)[0]
    left, right = (np.repeat(end[None], len(t), axis=0) for end in (a, b))
    return {"arr_0": pixels.to_uint8(found)}, _side_by_side(left, found, right), (
        f"From the first picture to the second, mixed after {_listed(t)} noising steps (a row "
        "each):"
    )


def _slerp(job):
    n = job.settings.variants
    if len(job.inputs):
        x_T = editing.encode(job.trained, job.inputs, **job.run)
    else:
        x_T = editing.prior(job.trained, job.settings.seed, 2 * n)
    found = editing.slerp(job.trained, x_T[::2], x_T[1::2], **job.run)
    ends = (job.inputs[:1, None], job.inputs[1:, None])
    blocks = (ends[0], found, ends[1]) if len(job.inputs) else (found,)
    return {"arr_0": pixels.to_uint8(found)}, _side_by_side(*blocks), (
        "From the first picture to the second, along the arc between their x_T:"
        if len(job.inputs) else f"{n} arcs between two prior draws (a row each):"
    )


def _reconstruct(job):
    found = editing.reconstruct(job.trained, job.inputs, **job.run)
    error = np.mean(np.square(np.float64(found - job.inputs) / 2), axis=(1, 2, 3))
    return {"arr_0": pixels.to_uint8(found), "mean_squared_error": error}, _side_by_side(
        job.inputs[:, None], found[:, None]
    ), f"Each picture and its reconstruction, mean squared error {error.mean():.2g} in [0, 1]:"


def _img2img(job):
    strength = job.settings.strength
    found = np.stack([
        job.variants(editing.img2img, strength=value) for value in strength
    ], axis=1)
    rows = found.reshape(-1, *found.shape[2:])
    return {"arr_0": pixels.to_uint8(found)}, _side_by_side(
        np.repeat(job.inputs[:, None], len(strength), axis=0), rows
    ), f"Each picture, and its redrawings at strength {_listed(strength)} (a row each):"


def _inpaint(job):
    found = job.variants(functools.partial(editing.inpaint, mask=job.mask), **job.resampling())
    shown = np.where(job.mask[..., None], job.inputs, 0)
    return {"arr_0": pixels.to_uint8(found)}, _side_by_side(
        np.stack([job.inputs, shown], axis=1), found
    ), "Each picture, what is known of it, and its completions:"


def _colourise(job):
    found = job.variants(editing.colourise, **job.resampling())
    grey = np.broadcast_to(job.inputs.mean(-1, keepdims=True), job.inputs.shape)
    return {"arr_0": pixels.to_uint8(found)}, _side_by_side(
        np.stack([job.inputs, grey], axis=1), found
    ), "Each picture, its grey, and its colourings:"


def _diffuse(job):
    last = job.trained.schedule.num_timesteps
    t = spread(0, last, 11).tolist()
    found = editing.diffuse(job.trained, job.settings.seed, job.inputs, t)
    return {"arr_0": pixels.to_uint8(found)}, _side_by_side(found), (
        f"Each picture after {_listed(t)} noising steps:"
    )


def _strip(job):
    calls = job.how.num_calls(job.trained.schedule)
    at = spread(calls - 1, 0, _FRAMES).tolist()
    n = job.settings.variants
    found, way = sample_lib.sample(
        job.trained, job.settings.seed, n, **dataclasses.asdict(job.how),
        **conditions.in_turn(None, n, tuple(job.settings.labels)), trajectory=at,
        batch_size=job.settings.batch_size, progress=job.progress,
    )
    says = f"{n} images on their way: x_t above, the x_0 predicted of it below"
    if not pictures.HAS_VIDEO:
        says += ' (for an MP4 as well: pip install -e ".[video]")'
    return {
        "arr_0": pixels.to_uint8(found), "x_t": pixels.to_uint8(way.x_t),
        "x_0": pixels.to_uint8(way.x_0),
    }, None, f"{says}:"


TASKS = {
    "interpolate": _interpolate,
    "slerp": _slerp,
    "reconstruct": _reconstruct,
    "inpaint": _inpaint,
    "img2img": _img2img,
    "colourise": _colourise,
    "diffuse": _diffuse,
    "strip": _strip,
}
_NUM_INPUTS = {"interpolate": (2,), "slerp": (0, 2), "strip": (0,)}  # The others: 1 or more.
_BY_DDIM = ("slerp", "reconstruct")  # Where the default sampler gives way to DDIM.


def _side_by_side(*blocks):
    """One picture of blocks [rows, columns, h, w, c], their rows aligned."""
    return functools.reduce(pictures.beside, (
        pictures.grid(pixels.to_uint8(block.reshape(-1, *block.shape[2:])), columns=block.shape[1])
        for block in blocks
    ))


def _listed(values):
    return ", ".join(f"{value:g}" for value in values)
