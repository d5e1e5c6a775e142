"""The names that outsiders use, by attribute after `import ddpm_jax` and as modules."""

import subprocess
import sys

import pytest

import ddpm_jax

NAMES = ["bits_per_dim", "denoise_fn", "distill", "evaluate", "export", "from_pretrained",
         "from_state_dict", "load", "push_to_hub", "read_metrics", "report", "sample",
         "save_pretrained", "StopTraining", "train", "Trained", "UNet"]
PATHS = [
    "data.from_array", "data.load", "data.to_float", "data.to_uint8",
    "diffusion.eps_from_x_0", "diffusion.predict", "diffusion.q_mean_variance",
    "diffusion.q_posterior", "diffusion.q_sample", "diffusion.q_step", "diffusion.x_0_from_eps",
    "losses.Objective", "losses.training_loss",
    "samplers.Guide", "samplers.Settings", "samplers.Trajectory", "samplers.ancestral",
    "samplers.classifier_guide", "samplers.measurement_guide",
    "schedule.Schedule", "schedule.cosine", "schedule.from_betas", "schedule.linear",
    "schedule.respace", "schedule.shifted", "schedule.zero_terminal_snr", "unet.UNet",
]


def run(program):
    subprocess.run([sys.executable, "-c", program], check=True)


def test_completion_shows_public_names_and_no_modules():
    assert sorted(ddpm_jax.__all__) == sorted(NAMES)
    assert {name for name in dir(ddpm_jax) if not name.startswith("__")} == set(NAMES)


def test_names_are_reached_by_attribute_alone():
    """In a fresh process, where nothing else has imported their modules."""
    run("import ddpm_jax\n" + "".join(f"ddpm_jax.{path}\n" for path in [*NAMES, *PATHS]))


@pytest.mark.parametrize("name", ["data", "diffusion", "losses", "samplers", "schedule", "unet"])
def test_modules_are_imported_by_their_names(name):
    paths = [path for path in PATHS if path.startswith(f"{name}.")]
    run(f"import ddpm_jax.{name}\n" + "".join(f"ddpm_jax.{path}\n" for path in paths))


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="'ddpm_jax' has no attribute 'samples'"):
        ddpm_jax.samples
