"""A function that `train` calls after each logged row."""

import jax
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.errors import UserError
from ddpm_jax.training import loop
from ddpm_jax.workdir import checkpoints
from ddpm_jax.workdir.checkpoints import restore_part
from records import rows, saved
from tiny_run import tiny_config


def test_a_callback_sees_each_row_and_a_copy_and_ends_the_run(tiny, tmp_path, capsys):
    """Its copies stay when the state is donated, and the run that it ended goes on later."""
    loop.train(tiny_config(), tmp_path / "whole")
    settings, calls = {"train.log_every": 2, "train.eval_every": 3}, []

    def callback(step, trained, metrics):
        calls.append((step, trained(), metrics))
        if step == 4:
            raise ddpm_jax.StopTraining

    stopped = loop.train(tiny_config(**settings), tmp_path / "run", callback=callback)
    assert [step for step, *_ in calls] == [2, 3, 4]
    assert ["heldout_loss" in metrics for *_, metrics in calls] == [False, True, False]
    for (_, _, metrics), row in zip(calls, rows(tmp_path / "run"), strict=True):
        assert metrics.items() <= row.items() and {"loss", "eta"} <= set(metrics)
    assert checkpoints.steps(tmp_path / "run") == [4]
    said = capsys.readouterr().out
    assert "\nstopped by the callback at step 4 of 6, which is saved, 4 of them now in" in said
    saved_ema = restore_part(tmp_path / "run", "ema_params", 4)[1]
    for other in (calls[2][1].params, stopped.params):
        jax.tree.map(np.testing.assert_array_equal, other, saved_ema)
    first, last = (jax.tree.leaves(calls[i][1].params) for i in (0, 2))
    assert all(isinstance(x, np.ndarray) for x in first)
    assert any((x != y).any() for x, y in zip(first, last, strict=True))

    loop.train(tiny_config(), tmp_path / "run", callback=lambda *_: None)
    for a, b in zip(saved(tmp_path / "whole", 6), saved(tmp_path / "run", 6), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_callback_that_is_no_function_is_refused(tmp_path):
    with pytest.raises(UserError, match="callback=3 must be a function of .step, trained, metrics"):
        loop.train(tiny_config(), tmp_path, callback=3)
    assert not list(tmp_path.iterdir())
