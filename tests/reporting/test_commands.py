"""Commands: read back as the command line reads them, they give the settings of the run again."""

import shlex

import pytest
from absl import flags
from ml_collections import config_flags

from ddpm_jax import config as config_lib
from ddpm_jax.arguments import with_bundled
from ddpm_jax.configs import cifar10, digits
from ddpm_jax.reporting import commands

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # absl's


def leaves(config):
    return dict(config_lib.leaves(config))


def read(command):
    """(flags that are no settings, the settings that a command gives on the run of `digits`)."""
    program, *arguments = shlex.split(command.removeprefix("python "))
    assert program == "main.py"
    others = [a for a in arguments if not a.startswith("--config")]
    if not any(a.startswith("--config=") for a in arguments):
        arguments.insert(0, "--config=digits")
    values = flags.FlagValues()
    argv = with_bundled(["", *(a for a in arguments if a not in others)])
    config_flags.DEFINE_config_file("config", sys_argv=argv, flag_values=values)
    values(argv)
    return others, leaves(values["config"].value)


def test_training_begins_at_the_nearest_config_and_gives_the_run_again():
    config = digits.get_config()
    assert commands.train(leaves(config), "a") == "python main.py --config=digits --workdir=a"
    config.train.num_steps = 7
    config.model.channel_multipliers = (1, 2, 4)
    config.train.extra_ema_decays = (0.9, 0.99)
    command = commands.train(leaves(config), "my run")
    assert command.count("--config.") == 3
    assert read(command) == (["--workdir=my run"], leaves(config))


def test_a_request_of_sampling_gives_its_settings_again():
    stored = leaves(digits.get_config())
    sample = {name: value for name, value in digits.get_config().sample.items()}
    sample |= {"sampler": "ddim", "num_steps": 50, "strength": [0.5], "guidance_interval": [1, 2]}
    others, settings = read(commands.draw(sample, stored, "digits"))
    assert others == ["--workdir=digits", "--mode=sample"]
    assert settings == stored | {"sample.sampler": "ddim", "sample.num_steps": 50,
                                 "sample.guidance_interval": (1, 2)}


def test_a_row_gives_the_settings_of_its_protocol_again():
    stored = leaves(digits.get_config())
    row = {"step": 1500, "metric": "frechet_pixels", "reference": "train", "protocol": {
        "num_samples": 256, "rounding": "none", "sampler": "ddim", "num_steps": 50, "seed": 0,
        "weights": "raw", "checkpoint": "sha256:0", "version": 1, "num_images": "all",
    }}
    _, settings = read(commands.measure(row, stored, "digits"))
    assert settings == stored | {
        "evaluate.metrics": ("frechet_pixels",), "evaluate.checkpoints": "1500",
        "evaluate.num_samples": 256, "evaluate.rounding": False, "evaluate.references": ("train",),
        "sample.sampler": "ddim", "sample.num_steps": 50, "sample.weights": "raw",
    }


def test_a_sweep_gives_its_table_again():
    stored = leaves(cifar10.get_config())
    row = {"step": 5, "metric": "sweep", "protocol": {
        "steps": [5, 10], "samplers": {"ddim": {}, "heun": {}}, "sweep_metric": "frechet_pixels",
    }}
    command = commands.measure(row, stored, "a")
    for part in ("sweep_steps=(5, 10)", "sweep_samplers=('ddim', 'heun')",
                 "sweep_metric=frechet_pixels", "metrics=('sweep',)"):
        assert part in " ".join(shlex.split(command))


def test_paths_are_last_names():
    stored = leaves(digits.get_config())
    command = commands.draw({"inputs": ["/home/ada/a.png"], "task": "img2img"}, stored, "digits")
    assert "a.png" in command and "ada" not in command
    assert commands.plain("a", "sample", sample__task="strip") == (
        "python main.py --workdir=a --mode=sample --config.sample.task=strip")
