"""What a training run is made of: the one place of this room that reads a config."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import optax
from etils import epath

from ddpm_jax import validation
from ddpm_jax import config as config_lib
from ddpm_jax.data import kept as kept_lib
from ddpm_jax.data import labels, loading, pixels
from ddpm_jax.data import source as source_lib
from ddpm_jax.data.kept import Kept
from ddpm_jax.data.source import Source
from ddpm_jax.diffusion import randomness
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.errors import UserError
from ddpm_jax.network.unet import UNet
from ddpm_jax.optimizer import LearningRate
from ddpm_jax.runtime import devices, parallel
from ddpm_jax.training import distillation, memory_check, timesteps, warm_start
from ddpm_jax.training import state as state_lib
from ddpm_jax.training.distillation import Teacher
from ddpm_jax.training.settings import LoopSettings
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import StepSettings
from ddpm_jax.workdir import data_record, run_folder, wandb_writer
from ddpm_jax.workdir.checkpoints import Checkpoints, library_versions, newest_metadata


_MOVED_START = "moved_start"  # Of a checkpoint's metadata; see `LearningRate`.
# What a resumed run may change of its optimizer, whose state stays the same.
_OF_THE_OPTIMIZER = ("learning_rate", "warmup_steps", "schedule", "decay_start",
                     "end_learning_rate", "piecewise_steps", "piecewise_scales", "grad_clip",
                     "weight_decay", "adam_b1", "adam_b2", "adam_eps")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a training run is made of, once its settings are known to be sound.

    Attributes:
        seed: every random number of the run follows from it.
        schedule: the noise schedule.
        model: the network.
        optimizer: makes updates of gradients.
        learning_rate: number of updates done -> the rate of the next one.
        step_settings: what `train_step` needs, the objective among it.
        settings: what the loop around the step needs.
        source: images to train on.
        held_out: images kept from training; None where there are none.
        workdir: made and writable; None where nothing is to be kept.
        config_json: the whole config, as `config.json` has it.
        kept: what it keeps of its data.
        resumes: whether the workdir has kept that already; not if it goes on with other data.
        warnings: one line for each setting that is likely not meant.
        changes: one line where a resumed run goes on with another optimizer or learning rate.
        teacher: of a student (`--mode=distill`); None of other runs.
    """

    seed: int
    schedule: Schedule
    model: UNet
    optimizer: optax.GradientTransformation
    learning_rate: LearningRate
    step_settings: StepSettings
    settings: LoopSettings
    source: Source
    held_out: Source | None
    workdir: epath.Path | None
    config_json: str
    kept: Kept
    resumes: bool
    warnings: tuple[str, ...]
    changes: tuple[str, ...] = ()
    teacher: Teacher | None = None

    @property
    def step_schedule(self) -> Schedule:
        """What the training step draws t from: all steps, or those of a student."""
        return self.schedule if self.teacher is None else self.teacher.schedule

    def rng(self, use: int) -> jax.Array:
        """The key of one use of randomness, of those below the seed of a run."""
        return randomness.below(self.seed, use)

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint of this run says of itself."""
        moved = self.learning_rate.moved_start
        return {"config": self.config_json, "versions": library_versions()} | (
            {} if moved is None else {_MOVED_START: moved}
        )


def prepare(config: ml_collections.ConfigDict, workdir: Any, data: Any) -> Run:
    """Checks everything, makes the workdir and opens the data; compiles nothing.

    Args:
        config, data: as of `train`.
        workdir: None writes nothing.

    Raises:
        ValueError: as `train` does.
    """
    config = validation.validate(config, num_devices=1)
    start_devices(config)
    validation.check_batch(config.train.batch_size, config.train.accumulate, jax.device_count())
    wandb_writer.check(config.train.wandb)
    if shape := config_lib.image_shape(config):  # Known before there are data.
        memory_check.check(memory_need(config, shape))
    workdir = workdir if workdir is None else run_folder.create(workdir)
    config = config if workdir is None else run_folder.on_scale_of_run(config, workdir)
    known = None if workdir is None else data_record.to_resume(workdir)
    usable = known if data is not None else kept_for(config, workdir, known)
    source, held_out = open_data(config, data, usable)
    config = config_lib.resolved(config, source)
    validation.check_images(config, source.image_shape)
    validation.check_values(config)
    need = memory_need(config, source.image_shape)
    memory_check.check(need)
    config_json = run_folder.dump(config)
    resumes = known is not None and usable is known
    kept = known if resumes else kept_lib.of(source, held_out, config.data.holdout)
    parallel.check_same(config=config_json, data=(len(source), source.image_shape, kept))
    return Run(
        seed=config.seed,
        schedule=config_lib.schedule(config),
        model=config_lib.model(config, source.image_shape[-1]),
        optimizer=config_lib.optimizer(config),
        learning_rate=config_lib.learning_rate(config),
        step_settings=step_settings(config),
        settings=loop_settings(config),
        source=source,
        held_out=held_out,
        workdir=workdir,
        config_json=config_json,
        kept=kept,
        resumes=resumes,
        warnings=(
            *validation.warnings(config), *memory_check.warnings(need),
            *(pixels.range_warnings(source) if parallel.is_first() else ()),
            *data_warnings(config, source, held_out),
        ),
        teacher=distillation.find_teacher(
            config.distill.teacher, config.distill.num_steps, clip=config.sample.clip,
            schedule=config_lib.schedule(config),
            model=config_lib.model(config, source.image_shape[-1]),
            image_shape=source.image_shape,
        ),
    )


def start_devices(config: ml_collections.ConfigDict) -> None:
    """Starts JAX, on a CPU with a device for each core where that is faster.

    Raises:
        UserError: as `devices.check` does.
    """
    train, shape = config.train, config_lib.image_shape(config)
    held = 0  # Unknown before there are data.
    if shape:
        held = memory_check.of_fresh_state(
            config_lib.model(config, shape[-1]), config_lib.optimizer(config), shape,
            config_lib.extra_averages(config),
        )
    devices.use_cores(train.batch_size // train.accumulate, held)
    devices.check()


def step_settings(config: ml_collections.ConfigDict, platform: str = "") -> StepSettings:
    """The settings of `train_step`.

    Args:
        platform: of the devices that it is for, "cpu", "gpu" or "tpu"; "" is that of this process.
    """
    train = config.train
    return StepSettings(
        parameterization=config_lib.parameterization(config),
        objective=config_lib.objective(config),
        t_sampling=train.t_sampling,
        random_flip=config.data.random_flip,
        augment=config.data.augment,
        label_dropout=train.label_dropout,
        null_label=config.data.num_classes,
        self_condition=config.model.self_condition,
        accumulate=train.accumulate,
        unroll=(platform or jax.default_backend()) == "cpu",
        remat=train.remat,
        ema_decay=train.ema_decay,
        ema_warmup=train.ema_warmup,
        extra_averages=config_lib.extra_averages(config),
        log_every=train.log_every,
        shard_update=train.shard_update,
    )


def loop_settings(config: ml_collections.ConfigDict) -> LoopSettings:
    """The settings of the loop around the step."""
    elsewhere = {"sample_clip": config.sample.clip, "on_device": config.data.on_device}
    names = {field.name for field in dataclasses.fields(LoopSettings)} - set(elsewhere)
    return LoopSettings(**{name: config.train[name] for name in names}, **elsewhere)


def memory_need(
    config: ml_collections.ConfigDict, image_shape: tuple[int, int, int]
) -> memory_check.Need:
    """The memory that a training step needs, estimated for images of this shape."""
    train = config.train
    return memory_check.estimate(
        config_lib.model(config, image_shape[-1]), config_lib.optimizer(config), image_shape,
        batch_size=train.batch_size, accumulate=train.accumulate, remat=train.remat,
        extra_averages=config_lib.extra_averages(config), shard_update=train.shard_update,
    )


def kept_for(
    config: ml_collections.ConfigDict, workdir: epath.Path | None, known: Kept | None
) -> Kept | None:
    """What a run has kept of its data, as far as it holds for those of the config."""
    stored = None if known is None else run_folder.find_config(workdir)
    is_own = stored is None or config_lib.same_data(config, stored)
    return loading.kept_for(known, is_own, **config_lib.data_settings(config))


def open_data(
    config: ml_collections.ConfigDict, data: Any, known: Kept | None = None
) -> tuple[Source, Source | None]:
    """The images to train on and those held out (None where there are none).

    Args:
        config, data: as of `train`.
        known: what the run has kept of its data; None for a new run.
    """
    settings = config_lib.data_settings(config)
    if data is None:
        splits = (loading.load(split=split, kept=known, **settings) for split in ("train", "test"))
        return _on_one_scale(config, *splits)
    source = data if isinstance(data, Source) else source_lib.from_array(
        data, value_range=settings["value_range"]
    )
    _check_shape(config, source.image_shape)
    has = {"labels": source.num_classes, "vectors": source.vector_size,
           "condition": source.condition_channels}
    for name in has:
        if config.data[name] and not has[name]:
            raise UserError(
                f"asks for a {name.removesuffix('s')} per image, but the array given has none; "
                f"pass data=ddpm_jax.data.from_array(images, {name}=...).",
                field=f"config.data.{name}", value=config.data[name],
            )
    return _on_one_scale(config, *(
        loading.part_of(
            source, split, holdout=settings["holdout"], seed=settings["seed"],
            num_classes=settings["num_classes"], kept=known,
        ) for split in ("train", "test")
    ))


def _on_one_scale(config, source, held_out):
    """Both with their vectors on the scale of the config, or of the images to train on."""
    name = f"config.data.vectors={config.data.vectors!r}"
    source = source.with_vector_scale(config_lib.vector_scale(config) or source.own_scale(), name)
    if held_out is not None:
        held_out = held_out.with_vector_scale(source.vector_scale, name)
    return source, held_out


def data_warnings(
    config: ml_collections.ConfigDict, source: Source, held_out: Source | None
) -> list[str]:
    """One line for each setting of the data, or class, that does nothing.

    Args:
        config: of `config_lib.resolved`.
        source, held_out: of `open_data`.
    """
    lines, (_, *others) = [], source.split_folders or ("",)
    own_test = held_out is not None and held_out.fingerprints is dict
    if config.data.holdout and (others or own_test and len(held_out) != config.data.holdout):
        own = f"the folder {others[0]}" if others else f"the test split of {config.data.name}"
        lines.append(
            f"config.data.holdout={config.data.holdout} is not used: {own} is held out instead."
        )
    if others[1:]:
        lines.append(f"the images in {' and '.join(others[1:])} are not used.")
    if equal := source.num_equal_numbers():
        lines.append(
            f"{equal} of the {source.vector_size} numbers of config.data.vectors="
            f"{config.data.vectors!r} are the same for all images: nothing is learned of them."
        )
    num_classes = config.data.num_classes if config.data.labels else 0
    absent = [c for c in range(num_classes) if not sum(source.class_counts[c:c + 1])]
    if absent:
        lines.append(
            f"no image to train on is of class {labels.listed(map(str, absent))} "
            f"({len(absent)} of {num_classes} classes), yet samples of it will be drawn."
        )
    return lines


def _check_shape(config, shape):
    """Refuses images given to `train` that have another shape than the config says."""
    data = config.data
    masks = data.condition == "noisy"  # One channel, whatever the images have.
    wanted = dict(
        image_size=data.image_size, image_width=data.image_width or data.image_size,
        channels=0 if masks else data.channels,
    )
    for (name, value), given in zip(wanted.items(), shape):
        if value not in (0, given):
            fits = tuple(axis + 1 for axis in _order(shape, tuple(wanted.values())))
            mend = f"pass images.transpose{(0, *fits)}, or " if fits else ""
            raise UserError(
                f"contradicts the data given, images of {'x'.join(map(str, shape))} (height, "
                f"width, channels); {mend}write {{instead}}.",
                field=f"config.data.{name}", value=config.data[name],
                instead={f"config.data.{name}": given},
            )


def _order(shape, wanted):
    """The order of the axes of `shape` in which it is `wanted`; () where there is none."""
    orders = itertools.permutations(range(3))
    return next((o for o in orders if tuple(shape[axis] for axis in o) == wanted), ())


def store_config(run: Run) -> None:
    """Writes `config.json` into the workdir, and `data.json` unless the run has one.

    Raises:
        ValueError: the workdir was made with another model.
    """
    if not run.resumes:  # First, because a `config.json` alone is a run of an older version.
        data_record.write(run.kept, run.workdir)
    run_folder.store_config(run_folder.parse(run.config_json), run.workdir)


def fresh_state(run: Run) -> TrainState:
    """The state at step 0."""
    importance_sampled = run.step_settings.t_sampling == "importance"
    return state_lib.create(
        run.model, run.optimizer, run.rng(randomness.INIT), run.source.image_shape,
        extra_averages=run.step_settings.extra_averages,
        loss_history=timesteps.fresh(run.step_schedule.num_timesteps) if importance_sampled else {},
    )


def first_state(run: Run, checkpoints: Checkpoints) -> tuple[Run, TrainState]:
    """The run as it goes on, and the state of the newest checkpoint.

    Where there is no checkpoint, the run as it is, and a fresh state or a warm start.
    """
    state = fresh_state(run)
    restored = checkpoints.restore(state_lib.to_saved(state), added=state_lib.ADDED)
    if not restored:
        return run, warm_start.state(
            state, run.settings.warm_start, run.model, run.source.image_shape
        )
    state = state.replace(**restored[1])
    run = resumed(run, newest_metadata(run.workdir), int(state.step) - int(state.skipped[0]))
    return run, state.replace(tx=run.optimizer)


def resumed(run: Run, metadata: Mapping[str, Any], count: int) -> Run:
    """A run with the learning rate with which it goes on, and a line where that has changed.

    Args:
        run: of `prepare`.
        metadata: of the checkpoint from which it goes on.
        count: updates done, without those skipped.
    """
    config, before = (run_folder.parse(text) for text in (run.config_json, metadata["config"]))
    rate_before = dataclasses.replace(
        config_lib.learning_rate(before), moved_start=metadata.get(_MOVED_START)
    )
    rate = run.learning_rate.resumed(rate_before, count)
    names = (*_OF_THE_OPTIMIZER, *(("num_steps",) if rate.ends else ()))
    changed = ", ".join(
        f"config.train.{name}={config.train[name]!r} (before: {before.train[name]!r})"
        for name in names if config.train[name] != before.train[name]
    )
    line = (
        f"resuming with {changed}: the learning rate goes on at {float(rate(count)):.3g} (before: "
        f"{float(rate_before(count)):.3g})"
    )
    return dataclasses.replace(
        run, learning_rate=rate, optimizer=config_lib.optimizer(config, rate),
        changes=(line,) if changed else (),
    )
