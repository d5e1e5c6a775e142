"""The commands that made what a page shows, from what a workdir says of it.

They begin at the shipped config that is nearest to the run's, and paths in them are last names.
"""

import functools
import os
import pkgutil
import shlex
from collections.abc import Mapping
from typing import Any

from ddpm_jax import config as config_lib
from ddpm_jax import config_file, configs
from ddpm_jax.reporting import redaction

_PROGRAM = "python main.py"
_EVALUATE = ("split", "num_images", "num_samples", "num_draws", "matmul_precision", "seed",
             "ode_steps", "ode_probes", "sweep_metric")
_SAMPLE = ("weights", "sampler", "num_steps", "eta", "grid", "clip", "guidance",
           "guidance_interval", "rederive_eps", "dynamic_threshold", "guidance_rescale", "s_churn",
           "s_min", "s_max", "s_noise")


def train(settings: Mapping[str, Any], name: str) -> str:
    """The command that trains a run from the start.

    Args:
        settings: of the run, by their names as "train.num_steps".
        name: of its workdir.
    """
    settings = dict(settings)
    if settings.get("data.image_width") == settings.get("data.image_size"):
        settings["data.image_width"] = 0  # The run has filled it in.
    differing = {
        base: [key for key in settings if key in theirs and not _same(theirs[key], settings[key])]
        for base, theirs in _shipped().items()
    }
    base = min(differing, key=lambda name: len(differing[name]))
    changes = {key: settings[key] for key in differing[base]}
    return _written([f"--config={base}", f"--workdir={name}"], changes)


def draw(asked: Mapping[str, Any], settings: Mapping[str, Any], name: str) -> str:
    """The command of `--mode=sample` that had this request.

    Args:
        asked: a stored request, see `inference.requests`.
        settings, name: as of `train`.
    """
    return _written([f"--workdir={name}", "--mode=sample"], _changed("sample", asked, settings))


def measure(row: Mapping[str, Any], settings: Mapping[str, Any], name: str) -> str:
    """The command of `--mode=evaluate` that measured this row of `evaluations.jsonl`."""
    protocol = dict(row["protocol"])
    if protocol.get("num_images") == "all":
        protocol["num_images"] = 0
    wanted = {key: protocol[key] for key in _EVALUATE if protocol.get(key) is not None}
    if "rounding" in protocol:
        wanted["rounding"] = protocol["rounding"] == "uint8"
    for key, at in (("sweep_steps", "steps"), ("sweep_samplers", "samplers")):
        if at in protocol:
            wanted[key] = tuple(protocol[at])
    if row.get("reference"):
        wanted["references"] = (row["reference"],)
    drawn = {key: protocol[key] for key in _SAMPLE if protocol.get(key) is not None}
    if drawn.get("num_steps") == settings.get("diffusion.num_timesteps"):
        drawn["num_steps"] = 0
    changes = {"evaluate.metrics": (row["metric"],), "evaluate.checkpoints": str(row["step"])}
    changes |= _changed("evaluate", wanted, settings) | _changed("sample", drawn, settings)
    return _written([f"--workdir={name}", "--mode=evaluate"], changes)


def plain(name: str, mode: str, **changes: Any) -> str:
    """The command of a mode with changes of settings, named as `sample__task`."""
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return _written([f"--workdir={name}", f"--mode={mode}"], changes)


def _changed(group, wanted, settings):
    named = {f"{group}.{key}": value for key, value in wanted.items()}
    return {
        key: redaction.setting(key, value) for key, value in named.items()
        if not _same(redaction.setting(key, value), settings.get(key))
    }


def _same(a, b):
    def frozen(x):
        return tuple(map(frozen, x)) if isinstance(x, (list, tuple)) else x

    return frozen(a) == frozen(b)


def _written(flags, changes):
    flags = [*flags, *(f"--config.{key}={_value(value)}" for key, value in changes.items())]
    return " ".join([_PROGRAM, *map(_quoted, flags)])


def _quoted(flag):
    """As the documentation writes it: --config.evaluate.metrics="('bpd',)"."""
    name, equals, value = flag.partition("=")
    if "'" in value and not set(value) & set('"$`\\!'):
        return f'{name}{equals}"{value}"'
    return shlex.quote(flag)


def _value(value):
    return tuple(map(_value, value)) if isinstance(value, (list, tuple)) else value


@functools.cache
def _shipped() -> dict[str, dict[str, Any]]:
    """The settings of every config of the package, by its name."""
    folder, names = os.path.dirname(configs.__file__), pkgutil.iter_modules(configs.__path__)
    return {
        name: dict(config_lib.leaves(config_file.read(os.path.join(folder, f"{name}.py"))))
        for _, name, _ in names
    }
