"""Trained models from files: of our workdirs, of diffusers, of PyTorch."""

import hashlib
import json
import os
import re
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
from etils import epath

from ddpm_jax import config as config_lib
from ddpm_jax.diffusion import process
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.network import unet
from ddpm_jax.runtime import files
from ddpm_jax.training.state import Trained
from ddpm_jax.weights import diffusers_config, state_dicts, torch_file
from ddpm_jax.workdir import run_folder
from ddpm_jax.workdir.checkpoints import restore_part

CONFIGS = ("unet/config.json", "config.json")
_DTYPES = {  # Of safetensors; its own reader for NumPy lacks the first.
    "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64,
}
PROCESSES = ("scheduler/scheduler_config.json", "scheduler_config.json")
WEIGHTS = tuple(
    f"{folder}diffusion_pytorch_model.{kind}"
    for folder in ("unet/", "") for kind in ("safetensors", "bin")
)


def load(workdir: Any, *, step: int | None = None, weights: str = "ema") -> Trained:
    """The model that was trained in `workdir`, from its newest checkpoint.

    Args:
        workdir: as given to `train`.
        step: which checkpoint; the newest by default.
        weights: "ema", the running average; "raw", the parameters themselves; or one of
            `config.train.extra_ema_decays`, such as "0.999".

    Raises:
        ValueError: there is no run, no checkpoint or no such weights.
    """
    return load_step(workdir, step=step, weights=weights)[1]


def load_step(
    workdir: Any, *, step: int | None = None, weights: str = "ema"
) -> tuple[int, Trained]:
    """As `load`, with the number of updates that the parameters have seen before it."""
    stored = run_folder.stored_config(workdir)
    extra = [str(decay) for decay in stored.train.extra_ema_decays]
    if weights not in ("ema", "raw", *extra):
        raise ValueError(
            f"weights={weights!r} are not in {workdir}; use one of "
            f"{', '.join(('ema', 'raw', *extra))}."
        )
    part = {"ema": "ema_params", "raw": "params"}.get(weights, "extra_ema_params")
    step, params, metadata = restore_part(workdir, part, step)
    config = config_lib.parse(metadata["config"])
    shape = config_lib.image_shape(config)
    return step, Trained(
        params=params[weights] if weights in extra else params,
        model=config_lib.model(config, shape[-1]),
        schedule=config_lib.schedule(config),
        diffusion=config_lib.parameterization(config),
        image_shape=shape,
    )


def find(source: Any) -> Trained:
    """The model of a workdir (its running average), a folder of diffusers or the hub.

    Raises:
        ValueError: it is none of them, or cannot be read.
    """
    return load(source) if (files.path(source) / "checkpoints").is_dir() else (
        from_pretrained(source)
    )


def from_pretrained(source: Any, *, null_label: bool | None = None) -> Trained:
    """The model of a folder or a hub repository that diffusers wrote.

    The parameters give the outputs of `UNet2DModel` on the same images, timesteps and labels;
    how its scheduler would sample (steps, clipping) is for `sample` to say, and a line is
    warned where its defaults are others. Nothing in the files is executed.

    Args:
        source: a folder of `DDPMPipeline.save_pretrained`, or of `UNet2DModel` with
            `scheduler_config.json` beside; or a repository of the Hugging Face hub, such as
            "google/ddpm-ema-cifar10-32": taken from its cache, or fetched into it, which needs
            `pip install "ddpm_jax[hub]"`.
        null_label: whether the last label of a class-conditional network stands for no class,
            so that classifier-free guidance works; None: as `save_pretrained` has noted, else
            not. Then no class is the mean of the classes' embeddings, which nobody trained.

    Raises:
        ValueError: there is no such model, a file is damaged, or the network or the process is
            one that we do not have; the setting is named.
    """
    folder = _folder(source)
    settings, process = (_read_json(_first(folder, names)) for names in (CONFIGS, PROCESSES))
    path = _first(folder, WEIGHTS)
    try:
        model, image_shape = diffusers_config.network(settings, process, null_label)
        schedule, diffusion = diffusers_config.process(process)
        diffusion.check(schedule)
        unet.check(model, *image_shape[:2])
        params = state_dicts.to_params(_read_weights(path), model, image_shape)
    except ValueError as error:
        raise ValueError(f"{source}: {str(error).removeprefix(f'{path}: ')}") from None
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
    """The model whose weights PyTorch saved, by the names of any of `state_dicts.FORMATS`.

    Such a file holds weights alone, so that the network, its images and its process are to be
    given; by default they are the paper's for CIFAR-10. Those of improved-diffusion have
    `UNet(embedding_order="cos_sin", embedding_freq_shift=0, downsample_padding="symmetric",
    norm_eps=1e-5, num_groups=32, scale_shift=True, num_heads=4, ...)`. Nothing in the file is
    executed.

    Args:
        path: a `.safetensors`, or a file of `torch.save` with a dict of tensors; or a list of
            them, each with some of the weights.
        model: the network that the weights are of.
        image_shape: (h, w, c) of its images.
        schedule: the noise schedule; the paper's by default.
        diffusion: what the network's output means.

    Raises:
        ValueError: the file is damaged, or its weights are not those of the network: the first
            name that differs is told.
    """
    unet.check(model, *image_shape[:2])
    schedule = schedule_lib.linear() if schedule is None else schedule
    diffusion.check(schedule)
    weights = {}
    try:
        for part in [path] if isinstance(path, (str, os.PathLike)) else path:
            weights |= _read_weights(files.path(part))
        params = state_dicts.to_params(weights, model, image_shape)
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    return Trained(params, model, schedule, diffusion, image_shape)


def save_pretrained(trained: Trained, folder: Any, *, clip: bool = True) -> None:
    """Writes a folder that `DDPMPipeline.from_pretrained` opens, whole or not at all.

    diffusers then gives the same outputs, and samples with the same process. Labels and
    conditions have their places too, but its pipeline passes none: call its `unet`.

    Args:
        trained: the model; see the errors for what diffusers has no word for.
        folder: where to; it must not exist yet, or be empty.
        clip: whether their chains keep x_0 in [-1, 1].

    Raises:
        ValueError: the folder holds something, or a setting has no counterpart there.
    """
    folder = files.path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"folder={folder} holds something already; name one that does not exist.")
    index = {
        "_class_name": "DDPMPipeline", "_diffusers_version": diffusers_config.VERSION,
        "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"],
    }
    texts = {
        "model_index.json": index,
        CONFIGS[0]: diffusers_config.network_settings(trained),
        PROCESSES[0]: diffusers_config.process_settings(trained, clip),
    }
    weights = state_dicts.from_params(trained.params, trained.model, trained.image_shape[0])
    files.write_folder(folder, {
        **{name: (json.dumps(text, indent=2) + "\n").encode() for name, text in texts.items()},
        WEIGHTS[0]: safetensors.numpy.save(weights, metadata={"format": "pt"}),
    })


def _folder(source) -> epath.Path:
    """The folder itself, or that in the hub's cache."""
    folder = files.path(source)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
        raise ValueError(
            f"{source} is no folder, and no repository of the hub; write such as "
            "\"google/ddpm-ema-cifar10-32\"."
        )
    try:
        import huggingface_hub.errors
    except ImportError:
        raise ValueError(
            f"{source} is no folder, and fetching it from the hub needs huggingface_hub; install "
            "it with: pip install \"ddpm_jax[hub]\"."
        ) from None
    try:  # What is there already is not looked for again, so that no network is needed.
        cached = epath.Path(huggingface_hub.snapshot_download(source, local_files_only=True))
        if all(any((cached / name).exists() for name in names)
               for names in (CONFIGS, PROCESSES, WEIGHTS)):
            return cached
    except huggingface_hub.errors.LocalEntryNotFoundError:
        pass
    try:
        info = huggingface_hub.HfApi().model_info(source, files_metadata=True)
        there = {file.rfilename: file.lfs for file in info.siblings}
        wanted = [name for names in (CONFIGS, PROCESSES, WEIGHTS)
                  for name in [n for n in names if n in there][:1]]
        folder = epath.Path(huggingface_hub.snapshot_download(source, allow_patterns=wanted))
        for name in wanted:
            if there[name]:  # The large files, whose SHA-256 the hub tells.
                _check_sum(folder / name, there[name].sha256)
        return folder
    except Exception as error:  # Its client's, its own and the system's have nothing in common.
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{source} is no folder, not in the hub's cache, and could not be fetched "
            f"({type(error).__name__}: {reason}); go online, or write the path of a folder."
        ) from None


def _check_sum(path, sha256):
    """Removes what came over the network as something else, so that it is not used later."""
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        path.resolve().unlink()  # The cache links to it.
        raise OSError(f"{path.name} arrived with another SHA-256 than {sha256}")


def _first(folder, names) -> epath.Path:
    """The first of these files that there is."""
    found = [folder / name for name in names if (folder / name).exists()]
    if not found:
        raise ValueError(f"{folder} has no {' and no '.join(names)}; write a folder of diffusers.")
    return found[0]


def _read_json(path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); download it again.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no settings by name; download it again.")
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in found.items()
    }


def _read_weights(path) -> dict[str, np.ndarray]:
    if path.suffix != ".safetensors":
        return torch_file.read(path)
    try:
        return {
            name: np.frombuffer(found["data"], _DTYPES[found["dtype"]]).reshape(found["shape"])
            for name, found in safetensors.deserialize(path.read_bytes())
        }
    except (safetensors.SafetensorError, OSError, KeyError) as error:  # KeyError: its dtype.
        raise ValueError(
            f"{path.name} is damaged, or its weights are of a type that is no float ({error}); "
            "download it again, or save it in float32."
        ) from None
