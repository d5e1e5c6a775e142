"""Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel 2020) in JAX and Flax.

    trained = ddpm_jax.load("runs/cifar10")
    images = ddpm_jax.sample(trained, jax.random.key(0), 16)

Names are imported at first use, so that `import ddpm_jax` is instant and touches no device.
Rooms such as `ddpm_jax.diffusion` and `ddpm_jax.samplers` are imported at first use too.
"""

import importlib
import pkgutil
from importlib import metadata

_HOME = {
    "bits_per_dim": "inference.bits_per_dim",
    "denoise_fn": "network.trained",
    "distill": "training.phases",
    "evaluate": "evaluation.evaluate",
    "export": "inference.export",
    "from_pretrained": "weights.pretrained",
    "from_state_dict": "weights.pretrained",
    "load": "workdir.run_folder",
    "push_to_hub": "sharing.push",
    "read_metrics": "workdir.metrics_file",
    "report": "reporting.report",
    "sample": "inference.sample",
    "save_pretrained": "weights.pretrained",
    "StopTraining": "errors",
    "train": "training.loop",
    "Trained": "network.trained",
    "UNet": "network.unet",
}
_MODULES = tuple(module.name for module in pkgutil.iter_modules(__path__))

__version__ = metadata.version("ddpm_jax")
__all__ = list(_HOME)


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*__all__, "__version__", "__doc__", "__path__"])
