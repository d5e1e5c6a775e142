"""`--mode=sample`: new images, edits of picture files, and pictures of the process.

Everything goes to WORKDIR/samples or `config.sample.folder`, as a PNG for people and an `.npz` of
the results (arr_0 [..., h, w, c], with the values of the data, as a rule uint8; arr_1, the labels
of new images). The PNG of a task has its inputs at the left and its results at the right. The files
get their names in `requests`.
"""

import dataclasses
import functools
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from ddpm_jax import config as config_lib
from ddpm_jax import errors, validation
from ddpm_jax.data import labels as labels_lib
from ddpm_jax.data import loading, pixels
from ddpm_jax.data.source import Source, spread
from ddpm_jax.errors import UserError
from ddpm_jax.inference import conditions, editing, operators, requests, task_inputs
from ddpm_jax.inference import sample as sample_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import files, parallel
from ddpm_jax.samplers.guides import measurement_guide
from ddpm_jax.samplers.settings import Settings
from ddpm_jax.workdir import data_record, pictures, run_folder

_FRAMES = 20  # Moments in the pictures of the process, at most.
_SHOWN = 100  # New images in the grid, at most.


@dataclasses.dataclass(frozen=True)
class Job:
    """A trained model, and what to do with it.

    Attributes:
        trained: parameters and what they need.
        worse: of `config.guide_weights`; None without.
        step: updates that the parameters have seen.
        config: the group `config.sample`.
        settings: the sampler and what goes with it.
        folder: where the results go.
        inputs: the picture files, float32 [n, h, w, c] in [-1, 1].
        mask: bool [h, w], or None.
    """

    trained: Trained
    worse: Trained | None
    step: int
    config: ml_collections.ConfigDict
    settings: Settings
    folder: epath.Path
    inputs: np.ndarray | None = None
    mask: np.ndarray | None = None

    @property
    def run(self) -> dict[str, Any]:
        """Keyword arguments of every function of `editing` that runs the model."""
        return dict(
            settings=self.settings, batch_size=self.config.batch_size, progress=True)

    def stem(self, *, first: tuple[str, ...] = (), sampler: tuple[str, ...] = ()) -> str:
        """Path of the results, without its ending, where no other request has taken it.

        Args:
            first: what their name starts with.
            sampler: what it says of the sampler besides its name and its calls.
        """
        calls = self.settings.num_calls(self.trained.schedule)
        name = "_".join([
            *map(files.short_name, first), f"{self.config.weights}_step_{self.step:08d}",
            f"{self.settings.sampler}_{calls}", *sampler, f"seed_{self.config.seed}",
        ])
        return str(self.folder / name)

    def variants(self, edit, **arguments) -> np.ndarray:
        """`variants` results of each input, [n, variants, h, w, c]."""
        n, shape = self.config.variants, self.inputs.shape
        results = edit(
            self.trained, self.config.seed, np.repeat(self.inputs, n, axis=0), **arguments,
            **self.told(len(self.inputs), n), **self.run,
        )
        return results.reshape(shape[0], n, *shape[1:])

    def told(self, n: int, repeat: int = 1) -> dict[str, np.ndarray]:
        """Labels and vectors of n pictures in turn, each so many times."""
        in_turn = conditions.in_turn(
            None, n, tuple(self.config.labels), tuple(self.config.vectors)
        )
        return {name: np.repeat(x, repeat, axis=0) for name, x in in_turn.items()}

    def data(self, images) -> np.ndarray:
        """Images in [-1, 1] with the values of the model's data."""
        return pixels.to_data(images, self.trained.value_range, self.trained.bins)

    def resampling(self) -> dict[str, int]:
        """RePaint's numbers."""
        return {name: self.config[name] for name in ("jump_length", "resamplings")}


def run(config: ml_collections.ConfigDict, workdir: Any) -> list[str]:
    """Draws images, or does `config.sample.task`, with a run's newest checkpoint.

    Of several processes every one has to make the call; the first alone writes.

    Args:
        config: of the run, as `run_folder.config_for` gives it.
        workdir: of the run.

    Returns:
        The paths written, the PNG first; none in processes other than the first.

    Raises:
        ValueError: a setting is wrong, a picture cannot be read, there is no run, or the results
            could not be written.
    """
    config = validation.checked(config)
    parallel.check_same(config=run_folder.dump(config))
    settings = config_lib.sampling_settings(config)
    task_inputs.check(config.sample.to_dict(), _of_run(workdir))
    kept = data_record.read(workdir)
    classes = config.data.class_names or (() if kept is None else kept.classes)
    if not labels_lib.are_plain(classes) and kept is not None and parallel.is_first():
        print(labels_lib.line(kept.classes, kept.class_counts, config.data.class_names))
    with errors.renamed(lambda name: f"config.sample.{name}" if name in config.sample else name):
        if config.sample.task:
            return _do_task(config.sample, settings, workdir)
        return _draw(config, settings, workdir, kept)


def _of_run(workdir):
    """`config.sample` of the run, or {} where there is none; `_job` says that."""
    try:
        return run_folder.stored_config(workdir).sample.to_dict()
    except UserError:
        return {}


def _job(config, settings, workdir):
    with errors.named_as(weights="sample.weights"):
        step, trained = parallel.from_first(
            lambda: run_folder.load_step(workdir, weights=config.weights)
        )
        worse = parallel.from_first(
            lambda: run_folder.load_guide(config.guide_weights, workdir, config.weights)
        )
    folder = files.path(config.folder or files.path(workdir) / "samples")
    parallel.from_first(lambda: run_folder.check_writable(
        folder, instead="--config.sample.folder=pictures"
    ))
    return Job(trained, worse, step, config, settings, folder)


def _draw(config, settings, workdir, kept):
    """New images."""
    job = _job(config.sample, settings, workdir)
    if config.sample.pngs:
        pictures.check_channels(job.trained.image_shape[-1], "pngs", True, False)
    labels, vectors = tuple(config.sample.labels), tuple(config.sample.vectors)
    by_images = conditions.go_by_images(job.trained.model, vectors)
    source = _conditions(config, workdir, kept) if by_images else None
    n = config.sample.num_images
    labels = tuple(labels_lib.numbered(labels, job.trained.class_names))
    sample_kwargs = conditions.in_turn(source, n, labels, vectors)
    if getattr(job.trained.model, "num_classes", 0):
        sample_kwargs.setdefault("labels", conditions.every_class(job.trained.model, n))
    images = sample_lib.sample(
        job.trained, config.sample.seed, n, guide_model=job.worse, **sample_kwargs, **job.run)
    columns = conditions.columns(job.trained.model)
    picture = pictures.grid(pixels.to_uint8(images[:_SHOWN]), columns=columns)
    if "condition" in sample_kwargs:
        shown = pixels.as_uint8(sample_kwargs["condition"][:_SHOWN])
        shown = pictures.grid(shown, columns=columns)
        picture = pictures.beside(shown, picture)
    guidance = (f"guidance_{settings.guidance:g}",) if settings.guidance != 1 else ()
    names = {"labels": "arr_1"}  # As the authors of guided diffusion have it.
    arrays = {"arr_0": job.data(images)} | {
        names.get(name, name): x for name, x in sample_kwargs.items()}
    data = {name: config.data[name] for name in ("name", "dir")} if by_images else None
    pngs = pixels.to_uint8(images) if config.sample.pngs else None
    written = _write(job, job.stem(sampler=guidance), arrays, picture, data, pngs)
    if written:
        print(f"{n} images in {written[-1]}, a grid of them in {written[0]}")
    return written


def _conditions(config, workdir, kept) -> Source:
    """The images whose conditions and vectors are drawn for: of the test split if there is one."""
    settings = config_lib.data_settings(config)
    stored = run_folder.find_config(files.path(workdir)) or config
    kept = loading.kept_for(kept, config_lib.same_data(config, stored), **settings)
    splits = (loading.load(split=split, kept=kept, **settings) for split in ("test", "train"))
    return next(filter(None, splits))


def _do_task(config, settings, workdir):
    if config.task in _BY_DDIM and settings.sampler == "ancestral":
        settings = dataclasses.replace(settings, sampler="ddim")
    job = _job(config, settings, workdir)
    shape = job.trained.image_shape
    operator = config.operator if config.task == "restore" else ""  # The run's may have one.
    if operator:
        shape = operators.shape(operator, shape)
    job = dataclasses.replace(
        job, inputs=task_inputs.pictures(config.inputs, shape, job.trained.value_range, operator),
        mask=task_inputs.mask(config.mask, shape) if config.mask else None,
    )
    stem = job.stem(
        first=(config.task, *(epath.Path(path).stem for path in config.inputs[:2])))
    arrays, picture, says = TASKS[config.task](job)
    written = _write(job, stem, arrays, picture)
    if written:
        print(says, *written, sep="\n  ")
    return written


def _write(job, stem, arrays, picture, data=None, pngs=None):
    """The paths written, PNG first, `.npz` last; without a picture those of the process.

    `data` is that of `requests.request`; `pngs` are images uint8 that get a PNG each.
    """
    if not parallel.is_first():
        return []
    asked = requests.request(job.config.to_dict(), job.step, data)
    stem = requests.stem_for(stem, asked)
    written = _write_results(stem, arrays, picture)
    if pngs is not None:
        pictures.save_each(stem, pngs)
        written.insert(-1, stem)
    latest = str(job.folder / requests.LATEST)
    _write_results(latest, arrays, picture)
    requests.write(latest, asked)
    return written


def _write_results(stem, arrays, picture):
    if picture is None:
        written = pictures.save_process(stem, arrays["x_t"], arrays["x_0"])
    else:
        written = [f"{stem}.png"]
        pictures.save_png(written[0], picture)
    written.append(f"{stem}.npz")
    files.write_npz(written[-1], arrays)
    return written


# Each task returns the arrays of the `.npz`, the picture of the PNG (None: that of the process),
# and a line that says what they are.


def _interpolate(job):
    t = [editing.noising_steps(job.trained, strength) for strength in job.config.strength]
    a, b = job.inputs[:1], job.inputs[1:]
    between = editing.interpolate(
        job.trained, job.config.seed, a, b, t=t, **job.told(1), **job.run
    )[0]
    left, right = (np.repeat(end[None], len(t), axis=0) for end in (a, b))
    return {"arr_0": job.data(between)}, _side_by_side(left, between, right), (
        f"From the first picture to the second, mixed after {_listed(t)} noising steps (a row "
        "each):"
    )


def _slerp(job):
    n = job.config.variants
    if len(job.inputs):
        x_T = editing.encode(job.trained, job.inputs, **job.told(len(job.inputs)), **job.run)
    else:
        x_T = editing.prior(job.trained, job.config.seed, 2 * n)
    arcs = editing.slerp(
        job.trained, x_T[::2], x_T[1::2], **job.told(len(x_T) // 2), **job.run
    )
    arrays = {"arr_0": job.data(arcs)}
    if not len(job.inputs):
        return arrays, _side_by_side(arcs), f"{n} arcs between two prior draws (a row each):"
    picture = _side_by_side(job.inputs[:1, None], arcs, job.inputs[1:, None])
    return arrays, picture, "From the first picture to the second, along the arc between their x_T:"


def _reconstruct(job):
    rebuilt = editing.reconstruct(
        job.trained, job.inputs, **job.told(len(job.inputs)), **job.run
    )
    error = np.mean(np.square(np.float64(rebuilt - job.inputs) / 2), axis=(1, 2, 3))
    return {"arr_0": job.data(rebuilt), "mean_squared_error": error}, _side_by_side(
        job.inputs[:, None], rebuilt[:, None]
    ), f"Each picture and its reconstruction, mean squared error {error.mean():.2g} in [0, 1]:"


def _img2img(job):
    strength = job.config.strength
    redrawn = np.stack([
        job.variants(editing.img2img, strength=value) for value in strength
    ], axis=1)
    rows = redrawn.reshape(-1, *redrawn.shape[2:])
    return {"arr_0": job.data(redrawn)}, _side_by_side(
        np.repeat(job.inputs[:, None], len(strength), axis=0), rows
    ), f"Each picture, and its redrawings at strength {_listed(strength)} (a row each):"


def _inpaint(job):
    filled = job.variants(functools.partial(editing.inpaint, mask=job.mask), **job.resampling())
    shown = np.where(job.mask[..., None], job.inputs, 0)
    return {"arr_0": job.data(filled)}, _side_by_side(
        np.stack([job.inputs, shown], axis=1), filled
    ), "Each picture, what is known of it, and its completions:"


def _colourise(job):
    coloured = job.variants(editing.colourise, **job.resampling())
    grey = np.broadcast_to(job.inputs.mean(-1, keepdims=True), job.inputs.shape)
    return {"arr_0": job.data(coloured)}, _side_by_side(
        np.stack([job.inputs, grey], axis=1), coloured
    ), "Each picture, its grey, and its colourings:"


def _restore(job):
    config, shape = job.config, job.trained.image_shape
    operator = operators.named(config.operator, shape, job.mask)
    known = job.inputs if job.mask is None else np.where(job.mask[..., None], job.inputs, 0)
    y = np.repeat(known, config.variants, axis=0)
    guide = measurement_guide(
        operator, y, config.operator_scale, noise=config.operator_noise
    )
    restored = sample_lib.sample(
        job.trained, config.seed, len(y), guide=guide, guide_model=job.worse,
        **job.told(len(known), config.variants), **job.run,
    )
    misfit = np.sqrt(np.mean(np.square(operator(restored) - y), axis=(1, 2, 3)))
    height, width = (-(-x // y) for x, y in zip(shape, known.shape[1:3]))
    shown = known.repeat(height, axis=1).repeat(width, axis=2)[:, None]
    shown = np.broadcast_to(shown, (*shown.shape[:-1], shape[-1]))
    restored = restored.reshape(len(known), config.variants, *shape)
    arrays = {"arr_0": job.data(restored), "misfit": misfit.reshape(restored.shape[:2])}
    return arrays, _side_by_side(shown, restored), (
        f"Each picture, and what {config.operator} may have made it of; measured again, they are "
        f"off by {127.5 * misfit.mean():.2g} of 255 (RMS):"
    )


def _diffuse(job):
    last = job.trained.schedule.num_timesteps
    t = spread(0, last, 11).tolist()
    noised = editing.diffuse(job.trained, job.config.seed, job.inputs, t)
    return {"arr_0": job.data(noised)}, _side_by_side(noised), (
        f"Each picture after {_listed(t)} noising steps:"
    )


def _strip(job):
    calls = job.settings.num_calls(job.trained.schedule)
    at = spread(calls - 1, 0, _FRAMES).tolist()
    n = job.config.variants
    images, way = sample_lib.sample(
        job.trained, job.config.seed, n, guide_model=job.worse, **job.told(n), **job.run,
        trajectory=at,
    )
    says = f"{n} images on their way: x_t above, the x_0 predicted of it below"
    if not pictures.HAS_VIDEO:
        says += ' (for an MP4 as well: pip install -e ".[video]")'
    return {
        "arr_0": job.data(images), "x_t": pixels.to_uint8(way.x_t),
        "x_0": pixels.to_uint8(way.x_0), "calls_left": np.int32(at) + 1,
    }, None, f"{says}:"


TASKS = {
    "interpolate": _interpolate,
    "slerp": _slerp,
    "reconstruct": _reconstruct,
    "inpaint": _inpaint,
    "img2img": _img2img,
    "colourise": _colourise,
    "restore": _restore,
    "diffuse": _diffuse,
    "strip": _strip,
}
_BY_DDIM = ("slerp", "reconstruct")  # Here the default sampler gives way to DDIM.


def _side_by_side(*blocks):
    """One picture of blocks [rows, columns, h, w, c], their rows aligned."""
    return functools.reduce(pictures.beside, (
        pictures.grid(pixels.to_uint8(block.reshape(-1, *block.shape[2:])), columns=block.shape[1])
        for block in blocks
    ))


def _listed(values):
    return ", ".join(f"{value:g}" for value in values)
