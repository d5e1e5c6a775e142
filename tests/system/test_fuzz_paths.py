"""A run works in a folder of any name: training, resuming, sampling, and pictures beside it."""

import os

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from ddpm_jax.data import loading
from ddpm_jax.inference import sample_command
from ddpm_jax.training import loop
from ddpm_jax.workdir import checkpoints, pictures, run_folder
from ddpm_jax.workdir.checkpoints import Checkpoints, restore_part
from fuzz import settings
from saved_state import METADATA, tree_of
from tiny_run import tiny_config

CHARACTERS = st.one_of(
    st.sampled_from("[]*?\\{}!^-$~ .'\"\n|#%&;:aé"), st.characters(exclude_characters="/\0"))


def _fits(name):
    try:
        return len(os.fsencode(name)) <= 60
    except UnicodeEncodeError:  # Half a surrogate pair: no file system has it.
        return False


NAMES = st.text(CHARACTERS, min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..") and _fits(name))


@settings(12)
@hypothesis.given(name=NAMES)
@hypothesis.example(name="exp[1]")
@hypothesis.example(name="**")
@hypothesis.example(name="[!a]\\")
def test_a_checkpoint_is_found_again_whatever_its_path(tmp_path_factory, name):
    workdir = run_folder.create(tmp_path_factory.mktemp("runs") / name / "run")
    for step in (1, 2):
        with Checkpoints(workdir, keep=1) as saved:
            restored = saved.restore(tree_of(0))
            assert (restored and restored[0]) == (step - 1 or None)
            saved.save(step, tree_of(step), METADATA)
    assert checkpoints.steps(workdir) == [2]
    step, params, _ = restore_part(workdir, "params")
    np.testing.assert_array_equal(params["conv"]["kernel"], tree_of(2)["params"]["conv"]["kernel"])


@pytest.mark.parametrize("name", ["Drive [2024]", "back\\slash", "a*b?{c}", "\udcff"])
def test_a_run_works_in_a_folder_of_any_name(tiny, tmp_path, name):
    folder, config = tmp_path / name, tiny_config(**{"train.num_steps": 2})
    loop.train(config, folder / "run")
    config.train.num_steps = 3
    trained = loop.train(config, folder / "run")
    assert checkpoints.steps(folder / "run") == [2, 3]
    loaded = run_folder.load(folder / "run")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, trained.params)
    pictures.save_png(folder / "set" / "a[1].png", np.full((8, 8, 1), 9, np.uint8))
    assert len(loading.load("image_folder", data_dir=str(folder / "set"), image_size=8)) == 1
    config.sample.update({"task": "img2img", "inputs": (str(folder / "set" / "a[1].png"),)})
    written = sample_command.run(run_folder.config_for(config, folder / "run"), folder / "run")
    assert all(os.path.exists(path) for path in written)
