"""What `--mode=sample` reads, and what it refuses to ignore."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.configs import cifar10
from ddpm_jax.errors import UserError
from ddpm_jax.inference import sample_command, task_inputs

OTHER = {  # Another value than the default of every setting that some task ignores.
    "sampler": "ddim", "num_steps": 5, "eta": 0.5, "grid": "trailing", "clip": False,
    "rederive_eps": False, "dynamic_threshold": 0.9, "guidance": 2.0, "guidance_interval": (1, 2),
    "num_images": 3, "labels": (1,), "vectors": ((1.0,),), "mask": "mask.png", "strength": (0.2,),
    "variants": 2, "resamplings": 5, "jump_length": 5, "s_churn": 3.0, "s_min": 0.1, "s_max": 9.0,
    "s_noise": 1.1, "guidance_rescale": 0.5, "guide_weights": "1000", "operator": "grey",
    "operator_noise": 0.1, "operator_scale": 2.0, "pngs": True,
}
INPUTS = {"interpolate": ("a.png", "b.png"), "slerp": (), "strip": (), "": ()}


def asked(task, **settings):
    config = cifar10.get_config().sample
    config.update({"task": task, "inputs": INPUTS.get(task, ("a.png",))} | settings)
    if task == "inpaint":
        config.mask = "mask.png"
    if task == "restore" and not config.operator:
        config.operator = "downsample:2"
    return config.to_dict()


def test_every_task_is_listed():
    assert tuple(sample_command.TASKS) == task_inputs.TASKS
    settings = set(cifar10.get_config().sample)
    assert set(OTHER) == settings - {"task", "inputs", "weights", "folder", "seed", "batch_size"}


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("task", task_inputs.READS)
def test_a_setting_without_effect_is_refused(task, name):
    task_inputs.check(asked(task))
    if name in task_inputs.READS[task]:
        task_inputs.check(asked(task, **{name: OTHER[name]}))
        return
    task_inputs.check(asked(task, **{name: OTHER[name]}), {name: OTHER[name]})  # The run's own.
    with pytest.raises(UserError) as error:
        task_inputs.check(asked(task, **{name: OTHER[name]}), asked(task))
    line = str(error.value)
    assert line.startswith(f"config.sample.{name}=") and f"; write --config.sample.{name}=" in line
    assert f"has no effect with {f'task={task}' if task else 'no task'}" in line


def test_the_line_names_what_the_setting_is_for():
    with pytest.raises(UserError, match="=7 is for new images, and .* with task=strip; .*=64."):
        task_inputs.check(asked("strip", num_images=7))
    with pytest.raises(UserError, match="=5 is for task=inpaint, colourise, and .* with no task"):
        task_inputs.check(asked("", resamplings=5))
    with pytest.raises(UserError, match="has no effect with task=slerp of pictures"):
        task_inputs.check(asked("slerp", inputs=("a.png", "b.png"), variants=2))


def painted(path, known, *, transparent=None, mode="L"):
    """A mask file, 6x4; transparent where that says."""
    grey = np.where(known, 255, 0).astype(np.uint8)
    image = Image.fromarray(grey).convert("RGBA" if transparent is not None else mode)
    if transparent is not None:
        image.putalpha(Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8)))
    image.save(path)
    return str(path)


LEFT = np.broadcast_to(np.arange(4) < 2, (6, 4))
ALL = np.ones((6, 4), bool)


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "P"])
def test_white_is_known(tmp_path, mode):
    path = painted(tmp_path / "mask.png", LEFT, mode=mode)
    np.testing.assert_array_equal(task_inputs.mask(path, (6, 4, 3)), LEFT)


def test_what_is_transparent_is_the_hole(tmp_path):
    """Of white pictures, and whatever colour transparent pixels have."""
    for known in (ALL, LEFT):
        path = painted(tmp_path / "mask.png", known, transparent=~LEFT)
        np.testing.assert_array_equal(task_inputs.mask(path, (6, 4, 3)), LEFT)
    opaque = painted(tmp_path / "opaque.png", LEFT, transparent=~ALL)
    np.testing.assert_array_equal(task_inputs.mask(opaque, (6, 4, 3)), LEFT)


@pytest.mark.parametrize("known, transparent, says", [
    (ALL, None, "is white everywhere, which leaves nothing to draw"),
    (ALL, ~ALL, "is white everywhere"),
    (~ALL, None, "is black or transparent everywhere, which leaves nothing of the images"),
    (ALL, ALL, "is black or transparent everywhere"),
    (~ALL, LEFT, "has transparent and dark pixels, and either could be the hole"),
    (np.eye(6, 4, dtype=bool), LEFT, "has transparent and dark pixels"),
    (LEFT.T, None, "is 4x6, and the images 6x4"),
])
def test_masks_that_leave_nothing_or_are_unclear_are_refused(tmp_path, known, transparent, says):
    path = painted(tmp_path / "mask.png", known, transparent=transparent)
    with pytest.raises(UserError, match=f"config.sample.mask='.*mask.png' {says}") as error:
        task_inputs.mask(path, (6, 4, 3))
    assert "\n" not in str(error.value)
