"""Weights & Biases, replaced by a module that records its calls."""

import sys
import types

import numpy as np
import pytest

from ddpm_jax import validation
from ddpm_jax import config as config_lib
from ddpm_jax.configs import digits
from ddpm_jax.training import loop
from ddpm_jax.training import run as run_lib
from ddpm_jax.workdir import logs, wandb_writer
from nonzero import TinyNet
from records import events, lasting, rows

GRID = np.arange(6 * 9 * 4, dtype=np.uint8).reshape(6, 9, 4)


class Run:
    def __init__(self, **settings):
        self.settings, self.rows, self.finished = settings, [], 0

    def log(self, row, *, step):
        assert not self.finished
        self.rows.append((step, row))

    def finish(self):
        self.finished += 1


@pytest.fixture
def runs(monkeypatch):
    """The runs that were started."""
    begun = []

    def init(**settings):
        begun.append(Run(**settings))
        return begun[-1]

    module = types.SimpleNamespace(init=init, Image=np.asarray)  # Of a picture: its pixels.
    monkeypatch.setitem(sys.modules, "wandb", module)
    return begun


def test_a_second_start_continues_the_run_of_its_workdir(runs, tmp_path):
    for name in ("one", "one", "other"):
        wandb_writer.WandbWriter("ddpm", tmp_path / name, {"seed": 3})
    first, second, other = (run.settings for run in runs)
    assert first == second and first["id"] != other["id"]
    assert first == {
        "project": "ddpm", "id": (tmp_path / "one" / "wandb_id.txt").read_text(),
        "resume": "allow", "name": "one", "dir": str(tmp_path / "one"), "config": {"seed": 3},
    }


def test_it_gets_what_tensorboard_gets(runs, tmp_path):
    writer = wandb_writer.WandbWriter("ddpm", tmp_path, {})
    with logs.Logs(tmp_path, start_step=0, num_steps=9, progress=False, also=writer) as both:
        both.write(np.int32(5), {"loss": np.float32(0.1), "grad_norm": 2})
        for c in (1, 3, 4):
            both.images(f"c{c}", GRID[..., :c], 5)
    [run] = runs
    assert run.finished == 1
    assert run.rows[0] == (5, {"loss/loss": float(np.float32(0.1)), "train/grad_norm": 2.0})
    assert [type(step) for step, _ in run.rows] == [int] * 4
    for c, (step, row) in zip((1, 3, 4), run.rows[1:], strict=True):
        assert step == 5 and row[f"c{c}"].dtype == np.uint8
        np.testing.assert_array_equal(row[f"c{c}"].reshape(6, 9, c), GRID[..., :c])


def tiny_config(**settings):
    config = digits.get_config()
    config.diffusion.num_timesteps = 20
    config.diffusion.beta_end = 0.4
    config.update_from_flattened_dict({
        "train.batch_size": 16, "train.num_steps": 4, "train.log_every": 2,
        "train.eval_images": 16, "train.checkpoint_every": 2, "train.sample_images": 8,
        "train.wandb": "ddpm",
    } | settings)
    return config


def test_training_writes_there_and_resumes_the_same_run(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(config_lib, "model", lambda config, channels: TinyNet())
    monkeypatch.setattr(validation, "check_images", lambda config, shape: None)
    loop.train(tiny_config(**{"train.num_steps": 2}), tmp_path)
    loop.train(tiny_config(), tmp_path)
    assert runs[0].settings["id"] == runs[1].settings["id"]
    assert runs[1].settings["config"]["train"]["num_steps"] == 4
    for run, step, row in zip(runs, (2, 4), rows(tmp_path), strict=True):
        scalars, picture = run.rows
        times = ("step", "time", "seconds", "goodput")  # W&B has its own.
        assert scalars == (step, {logs.tag(k): v for k, v in row.items() if k not in times})
        assert picture[0] == step and picture[1]["samples"].std() > 10
        assert run.finished == 1
    assert [s.step for s in events(tmp_path).Scalars("loss/loss")] == [2, 4]
    assert lasting(rows(tmp_path)[1])["heldout_loss"] > 0


def test_without_a_project_it_is_not_even_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # Importing it would fail.
    run_lib.prepare(tiny_config(**{"train.wandb": ""}), None, None)


def test_a_project_needs_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"config.train.wandb='ddpm' needs .*\[wandb\]"):
        run_lib.prepare(tiny_config(), tmp_path / "run", None)
    assert not (tmp_path / "run").exists()
