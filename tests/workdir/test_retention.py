"""Which checkpoints stay, by hand."""

import types

import pytest

from ddpm_jax.workdir.retention import Retention


def kept(steps, timed, keep, keep_every):
    policy = Retention(keep, keep_every)
    policy.timed.update(timed)
    stays = policy.should_preserve([types.SimpleNamespace(step=s) for s in steps], context=None)
    return [step for step, stay in zip(steps, stays, strict=True) if stay]


@pytest.mark.parametrize("timed, keep, keep_every, wanted", [
    ((), 2, 0, [40, 50]),
    ((), None, 0, [10, 20, 30, 40, 50]),
    ((), 1, 20, [20, 40, 50]),
    ((20, 50), 2, 0, [30, 40, 50]),  # The newest of these, beside two others.
    ((20, 40), 1, 0, [40, 50]),
    ((20, 40), 1, 20, [20, 40, 50]),  # A multiple stays for good, whatever it was saved for.
    ((30,), 5, 0, [10, 20, 30, 40, 50]),
])
def test_what_stays(timed, keep, keep_every, wanted):
    assert kept([10, 20, 30, 40, 50], timed, keep, keep_every) == wanted
