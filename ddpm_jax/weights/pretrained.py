"""Trained models from the files of diffusers and of PyTorch, and back."""

import json
import os
import warnings
from collections.abc import Mapping
from typing import Any

import safetensors.numpy

from ddpm_jax.diffusion import process
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.errors import UserError, located, one_line, shown, whole_numbers
from ddpm_jax.network import fields, unet
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import files
from ddpm_jax.weights import (
    diffusers_config, diffusers_export, embedded, hub, layout, single_file, state_dicts,
    state_files,
)


def from_pretrained(
    source: Any,
    *,
    null_label: bool | None = None,
    image_size: int | tuple[int, int] | None = None,
    scheduler: Any = None,
    variant: str | None = None,
) -> Trained:
    """A model of the package, of a file of `save_pretrained`, or of diffusers.

    "digits" and "fashion-mnist" are in the package. The parameters of diffusers give the outputs
    of `UNet2DModel` on the same images, timesteps and labels. The arguments of `sample` decide
    about steps and clipping; a warning says where its defaults differ from those of the
    scheduler. Nothing in the files is executed.

    Args:
        source: the name of one of the package; a file that `save_pretrained` wrote; or of diffusers
            a folder of `DDPMPipeline.save_pretrained`, of `UNet2DModel.save_pretrained`, or a
            `checkpoint-500` of diffusers' trainer, of which the running average is taken; or a
            repository of the Hugging Face hub, for example "google/ddpm-ema-cifar10-32": taken
            from its cache, or fetched into it, which needs `pip install "ddpm_jax[hub]"`.
        null_label: whether the last label of a class-conditional network stands for no class,
            so that classifier-free guidance works; None: as `save_pretrained` has noted, else
            not. If not, the embedding of no class is the mean of the classes' embeddings, which
            was not trained.
        image_size: height and width of the images, or one number for both; None: the network's
            `sample_size`, which some folders lack.
        scheduler: the settings of a scheduler of diffusers, by name, `{}` for those of
            `DDPMScheduler()`; or a folder with `scheduler_config.json`. None: the folder's own.
        variant: which weights, for example "fp16"; None: those without a variant, or the only
            ones.

    Raises:
        UserError: there is no such model, a file is damaged, or the network or the process is
            one that we do not have; the setting is named.
    """
    source = source if isinstance(source, str) else str(files.path(source))
    ours = _of_this_package(source)
    if ours is not None:
        _check_free(source, null_label=null_label, image_size=image_size, scheduler=scheduler,
                    variant=variant)
        return single_file.read(ours)
    folder, found = hub.model(source, variant, scheduler is None)
    process = _process(folder, found, scheduler)
    with located(source):
        params, model, image_shape = _network(folder, found, process, image_size, null_label)
        schedule, diffusion = diffusers_config.process(process)
        diffusion.check(schedule)
    for line in diffusers_config.sampling_hints(process):
        warnings.warn(f"{source}: its scheduler has {line}.", stacklevel=2)
    return Trained(params, model, schedule, diffusion, image_shape)


def _of_this_package(source: str) -> Any:
    """The file of a model that this package wrote; None where `source` is none."""
    path = files.path(source)
    if path.is_file():
        return path
    return None if path.exists() else embedded.find(source)


def _check_free(source, **options):
    for field, value in options.items():
        if value is not None:
            raise UserError(
                f"is for models of diffusers, and {source} is one of this package; leave it out.",
                field=field, value=value,
            )


def to_start_from(
    source: Any, image_shape: tuple[int, int, int], out_channels: int
) -> tuple[dict[str, Any], unet.UNet]:
    """(parameters, network) as of `from_pretrained`, for training: needs no scheduler.

    A file of weights alone holds those of a network that is yet to be named: see `from_state_dict`.

    Args:
        source: as in `from_pretrained`.
        image_shape: (h, w, c) of the images to be trained on.
        out_channels: of the network to be trained; more than c if it has a variance too.

    Raises:
        UserError: as `from_pretrained`.
    """
    if (ours := _of_this_package(source)) is not None:
        trained = single_file.read(ours)
        return trained.params, trained.model
    folder, found = hub.model(source, needs_scheduler=False)
    kind = "learned_range" if out_channels > image_shape[-1] else "fixed_large"
    process = _process(folder, found, None if found.scheduler else {"variance_type": kind})
    with located(source):
        return _network(folder, found, process, image_shape[:2], None)[:2]


def _network(folder, found, process, image_size, null_label):
    """(parameters, network, image_shape) of a folder."""
    settings = _read_json(folder / found.config)
    if image_size is not None:
        settings["sample_size"] = _size(image_size)
    model, image_shape = diffusers_config.network(settings, process, null_label)
    fields.check(model, *image_shape[:2])
    weights, note = state_files.read(folder / found.weights)
    for line in filter(None, (found.note, note)):
        warnings.warn(f"{folder} {line}.", stacklevel=3)
    return state_dicts.to_params(weights, model, image_shape), model, image_shape


def _size(image_size) -> tuple[int, int]:
    size = image_size if isinstance(image_size, (list, tuple)) else (image_size, image_size)
    height, *width = whole_numbers("image_size", size, low=1)
    if len(width) != 1:
        raise UserError(
            "must be one number, or height and width", field="image_size", value=image_size,
            instead={"image_size": height},
        )
    return height, *width


def _process(folder, found, scheduler) -> dict[str, Any]:
    """The settings of the scheduler: those given, or those of the folder."""
    if isinstance(scheduler, Mapping):
        diffusers_config.check_names(scheduler)
        return _tuples(scheduler)
    if scheduler is not None:
        path = files.path(scheduler)
        names = (path, path / layout.SCHEDULERS[1], path / layout.SCHEDULERS[0])
        return _read_json(next((name for name in names if name.is_file()), names[1]))
    if not found.scheduler:
        raise UserError(
            f"{folder} has no {' and no '.join(layout.SCHEDULERS)}, so its noise is not known; "
            "write scheduler={} if it was trained with diffusers' DDPMScheduler() of 1,000 linear "
            "steps, else its settings, for example scheduler={\"beta_schedule\": "
            "\"squaredcos_cap_v2\"}, or its folder."
        )
    return _read_json(folder / found.scheduler)


def from_state_dict(
    path: Any,
    model: unet.UNet = unet.UNet(),
    *,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    schedule: schedule_lib.Schedule | None = None,
    diffusion: process.Parameterization = process.Parameterization(),
    prefix: str | None = None,
) -> Trained:
    """The model whose weights PyTorch saved, in any format of `state_dicts.FORMATS`.

    Such a file holds weights alone, so you give the network, the shape of its images and its
    process; by default they are the paper's for CIFAR-10. Models of improved-diffusion have
    `UNet(embedding_order="cos_sin", embedding_freq_shift=0, downsample_padding="symmetric",
    norm_eps=1e-5, num_groups=32, scale_shift=True, num_heads=4, ...)`. Nothing in the file is
    executed.

    The weights may be wrapped: below keys, beside an optimizer, and under the names of
    torch.compile or DataParallel. Where there is a running average, it is taken.

    Args:
        path: a `.safetensors`, or a file of `torch.save` with a dict of tensors; such a dict
            itself, of tensors or arrays; or a list of these, each with some of the weights.
        model: the network that the weights belong to.
        image_shape: (h, w, c) of its images.
        schedule: the noise schedule; the paper's by default. "linear" of improved-diffusion is
            `schedule.rescaled_linear`.
        diffusion: what the network's output means.
        prefix: the key of the weights to take, where there are several.

    Raises:
        UserError: the file is damaged, or its weights are not those of the network; the first
            name that differs is given.
    """
    fields.check(model, *image_shape[:2])
    schedule = schedule_lib.linear() if schedule is None else schedule
    diffusion.check(schedule)
    where = _where(path)
    if isinstance(path, (str, os.PathLike)) and single_file.is_one(files.path(path)):
        raise UserError(
            f"{where} names its network itself; write ddpm_jax.from_pretrained({str(path)!r})."
        )
    with located(where):
        weights, note = state_files.read(path, prefix)
        params = state_dicts.to_params(weights, model, image_shape)
    if note:
        warnings.warn(f"{where} {note}.", stacklevel=2)
    return Trained(params, model, schedule, diffusion, image_shape)


def _where(source) -> Any:
    """What messages call the source of a state dict."""
    if isinstance(source, Mapping):
        return "the state dict"
    if isinstance(source, (list, tuple)):
        return shown(source)
    return source if isinstance(source, (str, os.PathLike)) else ""


def save_pretrained(
    trained: Trained, folder: Any, *, clip: bool = True, dtype: str = "float32"
) -> None:
    """Writes a folder that `DDPMPipeline.from_pretrained` opens, or one file; whole or not at all.

    A name that ends with `.safetensors` is one file for `from_pretrained` and
    `config.train.warm_start` here, of any of our networks. A folder is for diffusers too, which
    gives the same outputs, and samples with the same process. It knows labels and conditions too,
    but its pipeline passes none: call its `unet`.

    Args:
        trained: the model.
        folder: where to write it; must not exist yet, or be empty. A file is replaced.
        clip: whether the chains of diffusers keep x_0 in [-1, 1].
        dtype: of the parameters in a file, "float32" or "bfloat16".

    Raises:
        UserError: the folder is not empty, or diffusers has no counterpart of a setting.
    """
    trained_lib.check(trained)
    folder = files.path(folder)
    if folder.suffix == single_file.ENDING:
        single_file.write(trained, folder, dtype)
        return
    if dtype != "float32":
        raise UserError(
            "is for one file, folder='NAME.safetensors'; diffusers' folders have float32",
            field="dtype", value=dtype, instead={"dtype": "float32"},
        )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"folder={folder} holds something already; name one that does not exist.")
    index = {
        "_class_name": "DDPMPipeline", "_diffusers_version": diffusers_config.VERSION,
        "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"],
    }
    texts = {
        layout.PIPELINE: index,
        f"unet/{layout.CONFIG}": diffusers_export.network_settings(trained),
        layout.SCHEDULERS[0]: diffusers_export.process_settings(trained, clip),
    }
    weights = state_dicts.from_params(trained.params, trained.model, trained.image_shape[0])
    files.write_folder(folder, {
        **{name: (json.dumps(text, indent=2) + "\n").encode() for name, text in texts.items()},
        f"unet/{layout.WEIGHTS}": safetensors.numpy.save(weights, metadata={"format": "pt"}),
    })


def _read_json(path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({one_line(error)[:200]}); download it again."
        ) from None
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings by name; download it again.")
    return _tuples(settings)


def _tuples(settings) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in settings.items()
    }
