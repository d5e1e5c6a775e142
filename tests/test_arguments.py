"""Which config the command line starts from, a run's own too (`stored.py`)."""

import pytest

from configs import digits
from ddpm_jax import arguments, config_file
from ddpm_jax.cli import MODES
from ddpm_jax.errors import UserError
from ddpm_jax.workdir import run_folder, stored


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    config = digits.get_config()
    config.train.num_steps = 77
    (folder / "config.json").write_text(run_folder.dump(config))
    return folder


def started(*flags):
    return arguments.with_stored(["main.py", *flags], MODES)


@pytest.mark.parametrize("flags", [
    ["--mode=sample", "--config.sample.seed=1"], ["--mode", "evaluate", "--config.seed", "1"],
    ["--mode=plan", "--config.seed=1"], ["--mode=config", "--config.seed=1"], [],
    ["--mode=train"], ["--config.train.num_steps=100"],
])
def test_a_run_is_changed_from_its_own_config(workdir, flags):
    first, config, *rest = started(f"--workdir={workdir}", *flags)
    assert config == f"--config={stored.__file__}:{workdir}"
    assert [first, *rest] == ["main.py", f"--workdir={workdir}", *flags]
    assert config_file.read(config.partition("=")[2]).train.num_steps == 77


@pytest.mark.parametrize("flags", [
    ["--mode=sample"], ["--mode=plan"], ["--mode=config"], ["--config=mine.py", "--config.seed=1"],
    ["--config", "mine.py"], ["--mode=what", "--config.seed=1"],
])
def test_other_arguments_stay_as_they_are(workdir, flags):
    assert started(f"--workdir={workdir}", *flags) == ["main.py", f"--workdir={workdir}", *flags]


def test_students_are_trained_as_their_teacher_was(workdir, tmp_path):
    flags = (f"--workdir={tmp_path}/new", "--mode=distill", f"--config.distill.teacher={workdir}")
    assert started(*flags)[1] == f"--config={stored.__file__}:{workdir}"


def test_a_new_workdir_has_no_config_to_start_from(tmp_path):
    flags = [f"--workdir={tmp_path}/new", "--config.seed=1"]
    assert started(*flags) == ["main.py", *flags]
    with pytest.raises(UserError, match="nothing was trained there; train first"):
        started(*flags, "--mode=sample")


@pytest.mark.parametrize("mode", ["sample", "evaluate"])
def test_what_the_mode_does_not_read_is_refused(workdir, mode):
    with pytest.raises(UserError, match=f"^--config.train.keep=3 is not read by --mode={mode}"):
        started(f"--workdir={workdir}", f"--mode={mode}", "--config.train.keep=3")
