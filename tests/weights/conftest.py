"""Models of diffusers, from its own files."""

import json
import shutil

import pytest


@pytest.fixture(scope="module")
def plain():
    import ddpm_jax
    from diffusers_models import FOLDER

    return ddpm_jax.from_pretrained(FOLDER / "plain")


@pytest.fixture(scope="module")
def conditional():
    import ddpm_jax
    from diffusers_models import FOLDER, HINT

    with pytest.warns(UserWarning, match=HINT):
        return ddpm_jax.from_pretrained(FOLDER / "conditional")


@pytest.fixture
def copied(tmp_path):
    """A copy of `plain`, and a function that changes settings in its JSON files."""
    from diffusers_models import FOLDER

    folder = tmp_path / "copied"
    shutil.copytree(FOLDER / "plain", folder)

    def change(name, **settings):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return folder

    return change
