"""The config of a run folder."""

import os

from ddpm_jax.configs import digits
from ddpm_jax.workdir import run_folder


def test_a_config_keeps_a_path_of_any_bytes():
    config = digits.get_config()
    config.data.dir = os.fsdecode(b"/data/\xff\n")
    assert run_folder.parse(run_folder.dump(config)).data.dir == config.data.dir
