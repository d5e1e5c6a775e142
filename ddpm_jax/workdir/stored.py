"""A config file for `--config=FILE:WORKDIR`: the config of the run in this workdir.

The command line starts from it where it is given a workdir and changes, but no `--config`.
"""

import ml_collections

from ddpm_jax.workdir import run_folder


def get_config(workdir: str) -> ml_collections.ConfigDict:
    """The config of a run.

    Raises:
        UserError: there is none.
    """
    return run_folder.stored_config(workdir)
