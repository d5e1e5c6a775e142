"""Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel 2020) in JAX and Flax.

    trained = ddpm_jax.load("runs/cifar10")
    images = ddpm_jax.sample(trained, jax.random.key(0), 16)

Names are imported when they are first used, so that `import ddpm_jax` is instant and touches
no device.
"""

import importlib
import pkgutil
from importlib import metadata

_HOME = {
    "bits_per_dim": "bits",
    "denoise_fn": "state",
    "evaluate": "evaluation",
    "from_pretrained": "pretrained",
    "from_state_dict": "pretrained",
    "load": "pretrained",
    "read_metrics": "rows",
    "sample": "sampling",
    "save_pretrained": "pretrained",
    "train": "training",
    "Trained": "state",
    "UNet": "unet",
}
_MODULES = tuple(module.name for module in pkgutil.iter_modules(__path__))

__version__ = metadata.version("ddpm_jax")
__all__ = [*_HOME, *_MODULES]


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
