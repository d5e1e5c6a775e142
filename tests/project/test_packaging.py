"""The wheel works outside of the repository, with its configs."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds the unpacked wheel and nothing else."""
    source, folder = (tmp_path_factory.mktemp(name) for name in ("source", "installed"))
    for name in ("ddpm_jax", "configs"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    built = subprocess.run([*build, folder, source], capture_output=True, text=True)
    if built.returncode and "setuptools" in built.stderr:
        pytest.skip("no setuptools to be had: building a wheel needs the package index")
    assert built.returncode == 0, built.stderr
    wheel, = folder.glob("ddpm_jax-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed, folder, *arguments):
    """(exit status, output) of the command line that the unpacked wheel has."""
    program = (
        "import ddpm_jax, sys; from ddpm_jax import cli; "
        f"assert ddpm_jax.__file__.startswith({str(installed)!r}), ddpm_jax.__file__; "
        "sys.argv[0] = 'ddpm-jax'; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(installed)},
    )
    return done.returncode, done.stdout + done.stderr


def test_the_wheel_has_what_is_needed_and_no_more(installed):
    with zipfile.ZipFile(next(installed.glob("*.whl"))) as archive:
        names = archive.namelist()
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ddpm_jax").rglob("*.py")}
    page = {f"ddpm_jax/reporting/page.{ending}" for ending in ("css", "js")}
    assert {"ddpm_jax/py.typed", "ddpm_jax/data/digits.npz", *page, *sources} <= set(names)
    configs = {path.name for path in (ROOT / "configs").glob("*.py")}
    assert {name.rpartition("/")[2] for name in names if "/configs/" in name} == configs
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"ddpm_jax"}


def test_configs_are_found_by_name_anywhere(installed, tmp_path):
    bad = "--config.train.num_steps=0"
    (tmp_path / "digits").mkdir()  # A folder of that name is not taken for the config.
    for name in ("digits", "configs/digits.py", "digits_conditional"):
        status, output = run(installed, tmp_path, f"--config={name}", "--workdir=x", bad)
        assert status == 2, output
        assert "error: config.train.num_steps=0 must be at least 1" in output
    status, output = run(installed, tmp_path, "--config", "digits", "--workdir=x", "--config.x.y=1")
    assert status == 2 and "--config.x.y=1 is no setting; did you mean" in output
    status, output = run(installed, tmp_path, "--config=digit", "--workdir=x")
    assert status == 2 and "--config=digit does not exist; name a file, for example" in output
    own = tmp_path / "mine.py"
    own.write_text(
        "from ddpm_jax.configs import digits\n\n\ndef get_config():\n"
        "    config = digits.get_config()\n    config.train.batch_size = 0\n    return config\n"
    )
    status, output = run(installed, tmp_path, "--config=mine.py", "--workdir=x")
    assert status == 2 and "error: config.train.batch_size=0 must be at least 1" in output
