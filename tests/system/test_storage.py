"""Storage that fails: an error of one line, and the run resumes from the last whole checkpoint."""

import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.training import loop
from ddpm_jax.training import run as run_lib
from ddpm_jax.training import state as state_lib
from ddpm_jax.workdir import checkpoints, run_folder
from ddpm_jax.workdir.checkpoints import Checkpoints
from program import ROOT, command, on, run
from records import lasting, rows
from saved_state import METADATA, TX
from tiny_run import tiny_config

FIRST = {"train.num_steps": 20, "train.t_sampling": "uniform", "train.eval_images": 0,
         "train.sample_images": 1}
BIG = {"noise": np.random.default_rng(0).normal(size=60_000)}  # 480 kB, incompressible


@pytest.fixture
def mounted(tmp_path):
    """mounted(options) -> a folder with a small file system mounted on it."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder],
                              capture_output=True)
        if done.returncode:
            pytest.skip("mounting a small file system needs root")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_costs_one_save(mounted, capfd):
    folder = mounted("size=700k")
    with pytest.raises(OSError, match=r"\(No space left.*that of step 1 is whole") as error:
        with Checkpoints(folder) as saved:
            saved.save(1, BIG, METADATA)
            saved.save(2, BIG, METADATA)
    assert "\n" not in str(error.value)
    assert "Traceback" not in capfd.readouterr().err
    subprocess.run(["mount", "-o", "remount,size=4m", folder], check=True)
    with Checkpoints(folder) as saved:
        step, restored = saved.restore(BIG)
        np.testing.assert_array_equal(restored["noise"], BIG["noise"])
        assert step == 1 and checkpoints.steps(folder) == [1]
        saved.save(2, BIG, METADATA)
    assert checkpoints.steps(folder) == [1, 2]


def test_a_read_only_workdir_is_refused_before_anything_starts(mounted):
    folder = mounted("size=1m")
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    with pytest.raises(ValueError, match="cannot be written to .Read-only file system.") as error:
        run_folder.create(folder / "run")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_program_ends_in_one_line_and_resumes_from_there(tmp_path):
    folder, longer = tmp_path / "run", FIRST | {"train.num_steps": 40}
    run(command(folder, **FIRST), devices=1)
    small_files = ["sh", "-c", 'ulimit -S -f 20; exec "$@"', "sh"]  # Blocks of 512 or 1024 bytes.
    done = subprocess.run([*small_files, *command(folder, **longer)], env=on(1), cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"error: a checkpoint could not be written to {folder}/checkpoints (")
    assert "File too large" in line and "that of step 20 is whole." in line
    assert "resuming at step 20" in run(command(folder, **longer), devices=1)
    assert [row["step"] for row in rows(folder)] == list(range(5, 41, 5))


def test_a_run_resumes_where_the_newest_checkpoint_is_gone(tiny, tmp_path, capsys):
    config = tiny_config(**{"train.checkpoint_every": 2, "train.num_steps": 6})
    loop.train(config, tmp_path)
    before = list(map(lasting, rows(tmp_path)))
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    loop.train(config, tmp_path)
    assert "resuming at step 4 of 6" in capsys.readouterr().out
    assert list(map(lasting, rows(tmp_path))) == before


def test_an_older_version_with_another_state_is_named(tmp_path):
    def tree(width):
        params = {"kernel": jnp.ones((3, width))}
        return {"params": params, "opt_state": TX.init(params)}

    with Checkpoints(tmp_path) as saved:
        saved.save(1, tree(4), {"versions": {"ddpm_jax": "0.0.1"}})
    here = checkpoints.library_versions()["ddpm_jax"]
    with Checkpoints(tmp_path) as saved:
        with pytest.raises(ValueError) as error:
            saved.restore(tree(5))
        assert saved.restore(tree(4))[0] == 1  # another version alone is no reason
        assert saved.restore(tree(4) | {"skipped": 0}, added=("skipped",))[0] == 1
        with pytest.raises(ValueError, match="no other, which is"):
            saved.restore(tree(4) | {"other": 0}, added=("skipped",))
    message = str(error.value)
    assert f"or by version 0.0.1 of this program (this is {here})" in message
    assert "\n" not in message
    with Checkpoints(tmp_path) as saved:
        saved.save(2, tree(4), METADATA | {"versions": checkpoints.library_versions()})
        with pytest.raises(ValueError, match="another model or optimizer: ") as error:
            saved.restore(tree(5))
    assert "by version" not in str(error.value)


def test_what_was_added_to_a_state_is_part_of_it(monkeypatch):
    monkeypatch.setattr(state_lib, "create", state_lib.fresh)
    config = tiny_config()
    made = run_lib.prepare(config, None, None)
    saved = state_lib.to_saved(jax.eval_shape(lambda: run_lib.fresh_state(made)))
    assert set(state_lib.ADDED) < set(saved) and "params" not in state_lib.ADDED


def test_a_grid_that_cannot_be_written_shows_in_the_exit_status(tmp_path):
    (tmp_path / "samples").write_text("a file where the folder would be")
    said = run(command(tmp_path, **FIRST), devices=1, fails=True)
    assert "the grid of step 20 failed (" in said and "Traceback" not in said
    assert "done: 20 steps" in said and "1 failed beside it: the grid of step 20" in said
    assert checkpoints.steps(tmp_path) == [20]
    (tmp_path / "samples").unlink()
    run(command(tmp_path, **FIRST | {"train.num_steps": 25}), devices=1)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step_00000025.png"]
