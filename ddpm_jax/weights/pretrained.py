"""Trained models from the files of diffusers and of PyTorch, and back."""

import json
import os
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from ddpm_jax.diffusion import process
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.errors import UserError, located, one_line
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network import unet
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import files
from ddpm_jax.weights import diffusers_config, hub, state_dicts, torch_file

_DTYPES = {  # By their names in safetensors, whose own reader for NumPy lacks the first.
    "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64,
}


def from_pretrained(source: Any, *, null_label: bool | None = None) -> Trained:
    """The model of a folder or a hub repository that diffusers wrote.

    The parameters give the outputs of `UNet2DModel` on the same images, timesteps and labels.
    The arguments of `sample` decide about steps and clipping; a warning says where its defaults
    differ from those of the scheduler. Nothing in the files is executed.

    Args:
        source: a folder of `DDPMPipeline.save_pretrained`, or of `UNet2DModel` with
            `scheduler_config.json` beside it; or a repository of the Hugging Face hub, for
            example "google/ddpm-ema-cifar10-32": taken from its cache, or fetched into it, which
            needs `pip install "ddpm_jax[hub]"`.
        null_label: whether the last label of a class-conditional network stands for no class,
            so that classifier-free guidance works; None: as `save_pretrained` has noted, else
            not. If not, the embedding of no class is the mean of the classes' embeddings, which
            was not trained.

    Raises:
        UserError: there is no such model, a file is damaged, or the network or the process is
            one that we do not have; the setting is named.
    """
    source = source if isinstance(source, str) else str(files.path(source))
    folder = hub.model_folder(source)
    settings, process = (
        _read_json(hub.existing_file(folder, names)) for names in (hub.CONFIGS, hub.PROCESSES)
    )
    path = hub.existing_file(folder, hub.WEIGHTS)
    with located(source):
        model, image_shape = diffusers_config.network(settings, process, null_label)
        schedule, diffusion = diffusers_config.process(process)
        diffusion.check(schedule)
        unet.check(model, *image_shape[:2])
        params = state_dicts.to_params(_read_weights(path), model, image_shape)
    for line in diffusers_config.sampling_hints(process):
        warnings.warn(f"{source}: its scheduler has {line}.", stacklevel=2)
    return Trained(params, model, schedule, diffusion, image_shape)


def from_state_dict(
    path: Any,
    model: unet.UNet = unet.UNet(),
    *,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    schedule: schedule_lib.Schedule | None = None,
    diffusion: process.Parameterization = process.Parameterization(),
) -> Trained:
    """The model whose weights PyTorch saved, in any format of `state_dicts.FORMATS`.

    Such a file holds weights alone, so you give the network, the shape of its images and its
    process; by default they are the paper's for CIFAR-10. Models of improved-diffusion have
    `UNet(embedding_order="cos_sin", embedding_freq_shift=0, downsample_padding="symmetric",
    norm_eps=1e-5, num_groups=32, scale_shift=True, num_heads=4, ...)`. Nothing in the file is
    executed.

    Args:
        path: a `.safetensors`, or a file of `torch.save` with a dict of tensors; or a list of
            them, each with some of the weights.
        model: the network that the weights belong to.
        image_shape: (h, w, c) of its images.
        schedule: the noise schedule; the paper's by default. "linear" of improved-diffusion is
            `schedule.rescaled_linear`.
        diffusion: what the network's output means.

    Raises:
        UserError: the file is damaged, or its weights are not those of the network; the first
            name that differs is given.
    """
    unet.check(model, *image_shape[:2])
    schedule = schedule_lib.linear() if schedule is None else schedule
    diffusion.check(schedule)
    weights = {}
    with located(path):
        for part in [path] if isinstance(path, (str, os.PathLike)) else path:
            weights |= _read_weights(files.path(part))
        params = state_dicts.to_params(weights, model, image_shape)
    return Trained(params, model, schedule, diffusion, image_shape)


def save_pretrained(trained: Trained, folder: Any, *, clip: bool = True) -> None:
    """Writes a folder that `DDPMPipeline.from_pretrained` opens, whole or not at all.

    diffusers then gives the same outputs, and samples with the same process. It knows labels and
    conditions too, but its pipeline passes none: call its `unet`.

    Args:
        trained: the model.
        folder: where to write it; must not exist yet, or be empty.
        clip: whether their chains keep x_0 in [-1, 1].

    Raises:
        UserError: the folder is not empty, or diffusers has no counterpart of a setting.
    """
    trained_lib.check(trained)
    folder = files.path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"folder={folder} holds something already; name one that does not exist.")
    index = {
        "_class_name": "DDPMPipeline", "_diffusers_version": diffusers_config.VERSION,
        "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"],
    }
    texts = {
        "model_index.json": index,
        hub.CONFIGS[0]: diffusers_config.network_settings(trained),
        hub.PROCESSES[0]: diffusers_config.process_settings(trained, clip),
    }
    weights = state_dicts.from_params(trained.params, trained.model, trained.image_shape[0])
    files.write_folder(folder, {
        **{name: (json.dumps(text, indent=2) + "\n").encode() for name, text in texts.items()},
        hub.WEIGHTS[0]: safetensors.numpy.save(weights, metadata={"format": "pt"}),
    })


def _read_json(path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({one_line(error)}); download it again."
        ) from None
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings by name; download it again.")
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in settings.items()
    }


def _read_weights(path) -> dict[str, np.ndarray]:
    if path.suffix != ".safetensors":
        return torch_file.read(path)
    try:
        return {
            name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in safetensors.deserialize(path.read_bytes())
        }
    except (safetensors.SafetensorError, OSError, KeyError) as error:  # KeyError: its dtype.
        raise UserError(
            f"{path.name} is damaged, or its weights are of a type that is no float "
            f"({one_line(error)}); download it again, or save it in float32."
        ) from None
