"""Averages rebuilt after training, against averages of every step's parameters in float64."""

import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.network import averages
from ddpm_jax.workdir import checkpoints, snapshots

METADATA = {"versions": {}, "config": {}}
NUM_STEPS, EVERY = 320, 10


def trajectory():
    """[step, 50]: parameters that wander, as while the learning rate is constant."""
    rng = np.random.default_rng(0)
    return np.cumsum(rng.standard_normal((NUM_STEPS, 50)), axis=0) / np.sqrt(NUM_STEPS) + 1


def averaged(params, width):
    """The average after the last of `params`, by the weights of its definition."""
    steps = np.arange(1, len(params) + 1)
    exponent = averages.power(width) + 1
    weights = ((steps / len(params)) ** exponent - ((steps - 1) / len(params)) ** exponent)
    return weights @ params


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, params = tmp_path_factory.mktemp("run"), trajectory()

    def tracked(step):
        return {
            name: {"x": np.float32(averaged(params[:step], averages.sigma_rel(name)))}
            for name in averages.TRACKED
        }

    with snapshots.open_snapshots(folder, 0) as kept:
        for step in range(EVERY, NUM_STEPS + 1, EVERY):
            snapshots.save(kept, step, tracked(step), METADATA)
    with checkpoints.Checkpoints(folder) as saved:
        for step in (160, NUM_STEPS):
            saved.save(step, {"extra_ema_params": tracked(step)}, METADATA)
    return folder


@pytest.mark.parametrize("step", [160, NUM_STEPS])
@pytest.mark.parametrize("width", [0.04, 0.05, 0.07, 0.1, 0.15, 0.2])
def test_it_is_the_average_within_its_bound(folder, step, width):
    params = trajectory()[:step]
    found, rebuilt, _ = snapshots.rebuilt(folder, step, width)
    assert found == step
    num_snapshots = step // EVERY
    factors, error = averages.coefficients(
        np.repeat(EVERY * np.arange(1, num_snapshots + 1), 2),
        np.tile([0.05, 0.1], num_snapshots), step, width,
    )
    power = averages.power(width)
    length = (power + 1) / np.sqrt((2 * power + 1) * step)  # The norm of the weights wanted.
    wandering = np.linalg.norm(params - params[-1], axis=0)
    rounding = 2.0**-11 * np.abs(factors).sum() * np.abs(params).max()
    bound = error * length * wandering + rounding
    off = np.abs(rebuilt["x"] - averaged(params, width))
    assert (off <= bound).all()
    assert off.max() < (error + 0.005) * np.std(params)


def test_what_was_tracked_is_read_from_the_checkpoint(folder):
    _, rebuilt, _ = snapshots.rebuilt(folder, NUM_STEPS, 0.05)
    np.testing.assert_allclose(rebuilt["x"], averaged(trajectory(), 0.05), rtol=1e-6)


def test_too_few_snapshots_are_refused(folder):
    refused = "sigma_rel=0.01. cannot .* step 320 from 31 snapshots.*17%"
    with pytest.raises(UserError, match=refused):
        snapshots.rebuilt(folder, NUM_STEPS, 0.01)


def test_they_take_a_quarter_of_two_states(folder):
    stored = checkpoints.restore_part(folder / "ema", "sigma_rel=0.1", EVERY)[1]
    assert stored["x"].dtype == np.float16


def test_those_of_steps_that_are_made_again_are_removed(tmp_path):
    tree = {name: {"x": np.ones(3)} for name in averages.TRACKED}
    with snapshots.open_snapshots(tmp_path, 0) as kept:
        for step in (10, 20, 30):
            snapshots.save(kept, step, tree, METADATA)
    again = {name: {"x": np.zeros(3)} for name in averages.TRACKED}
    with snapshots.open_snapshots(tmp_path, 20) as kept:
        assert checkpoints.steps(tmp_path / "ema") == [10, 20]
        snapshots.save(kept, 30, again, METADATA)
    assert checkpoints.steps(tmp_path / "ema") == [10, 20, 30]
    stored = checkpoints.restore_part(tmp_path / "ema", "sigma_rel=0.05", 30)[1]
    assert (stored["x"] == 0).all()
