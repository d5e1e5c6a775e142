"""Choices of steps against published numbers and their rules, by plain loops."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import oracle
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.samplers import dpm_solver
from ddpm_jax.samplers import heun as heun_lib
from ddpm_jax.samplers import steps as steps_lib

SETTINGS = hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
T_AND_N = st.integers(1, 1200).flatmap(lambda T: st.tuples(st.just(T), st.integers(1, T)))


@hypothesis.given(T_AND_N)
@SETTINGS
def test_steps_are_different_and_inside(T_and_n):
    T, n = T_and_n
    for name in steps_lib.NAMED:
        steps = steps_lib.named(name, T, n)
        assert steps.dtype == np.int64
        assert 0 <= steps[0] and steps[-1] < T and np.all(np.diff(steps) > 0)
        assert steps.size == n if name != "quadratic" else steps.size <= n
    assert steps_lib.trailing(T, n)[-1] == steps_lib.uniform(T, n)[-1] == T - 1
    assert n == 1 or steps_lib.uniform(T, n)[0] == steps_lib.quadratic(T, n)[0] == 0
    # The last square root squared may round to just below 0.8 T.
    assert abs(steps_lib.quadratic(T, n)[-1] - 0.8 * T) <= 1


def test_golden_steps():
    """Those of the DDIM authors' code, of improved-diffusion's and of diffusers'."""
    assert_array_equal(
        steps_lib.uniform(1000, 10), [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    )
    assert_array_equal(
        steps_lib.quadratic(1000, 10), [0, 9, 39, 88, 158, 246, 355, 483, 632, 800]
    )
    assert_array_equal(steps_lib.quadratic(1000, 50)[:4], [0, 1, 2, 5])  # Once 0, not twice.
    assert steps_lib.quadratic(1000, 50).size == 49
    assert_array_equal(steps_lib.quadratic(1000, 1), [800])
    assert_array_equal(steps_lib.trailing(1000, 10), np.arange(99, 1000, 100))
    assert_array_equal(steps_lib.trailing(1000, 1), [999])
    assert_array_equal(steps_lib.sections(1000, "10"), steps_lib.uniform(1000, 10))
    assert_array_equal(steps_lib.sections(1000, "250")[[0, 1, 2, -2, -1]], [0, 4, 8, 995, 999])
    parts = steps_lib.sections(1000, [10, 15, 20])
    assert_array_equal(parts[[0, 1, 2, 3, 9]], [0, 37, 74, 111, 333])
    assert_array_equal(parts[[10, 11, 24]], [334, 358, 666])
    assert_array_equal(parts[[25, 26, 43, 44]], [667, 684, 982, 999])
    assert_array_equal(steps_lib.sections(1000, "ddim50"), np.arange(0, 1000, 20))
    assert_array_equal(steps_lib.sections(10, "ddim4"), [0, 3, 6, 9])
    assert_array_equal(steps_lib.sections(1, "ddim1"), [0])


def section_by_section(T, counts):
    """improved-diffusion's rule, as a loop."""
    steps, start = [], 0
    for i, count in enumerate(counts):
        size = T // len(counts) + (1 if i < T % len(counts) else 0)
        place = 0.0
        for _ in range(count):
            steps.append(start + round(place))
            place += (size - 1) / (count - 1) if count > 1 else 1
        start += size
    return steps


@hypothesis.given(st.integers(1, 400), st.lists(st.integers(1, 60), min_size=1, max_size=6))
@SETTINGS
def test_sections(T, counts):
    hypothesis.assume(len(counts) <= T)
    counts = [min(count, T // len(counts)) for count in counts]
    steps = steps_lib.sections(T, counts)
    assert_array_equal(steps, section_by_section(T, counts))
    assert_array_equal(steps, steps_lib.sections(T, ",".join(map(str, counts))))
    assert steps.size == sum(counts) and np.all(np.diff(steps) > 0)


def test_named():
    assert_array_equal(steps_lib.named("uniform", 7), np.arange(7))
    assert_array_equal(steps_lib.named("10,10,20", 1000), steps_lib.sections(1000, [10, 10, 20]))
    assert_array_equal(steps_lib.named("ddim50", 1000, 50), np.arange(0, 1000, 20))
    assert_array_equal(steps_lib.named([0, 5, 9], 10, 3), [0, 5, 9])
    assert_array_equal(steps_lib.named((9,), 10), [9])
    assert steps_lib.named(np.array([3, 4], np.int32), 10).dtype == np.int64


@pytest.mark.parametrize("arguments, says", [
    (("cubic", 10, 5), "grid='cubic' is not known; use one of uniform, quadratic"),
    (("uniform", 10, 11), "num_steps=11 must lie in 1..10"),
    (("quadratic", 10, 0), "num_steps=0 must lie in 1..10.*such as num_steps=10"),
    (("trailing", 10, 11), "num_steps=11 must lie in 1..10"),
    (("ddim6", 10), "cannot be: no whole stride visits 6 of 10"),
    (("ddim", 10), "no whole stride visits so many of 10"),
    (("6,4", 10), "asks for 6 steps of section 1, which has 5; write a count in 1..5"),
    (("5,0", 10), "asks for 0 steps of section 2"),
    (("5,x", 10), "sections='5,x' must be 1 to 10 whole numbers"),
    (("1,1,1", 2), "must be 1 to 2 whole numbers"),
    (("5,5", 10, 9), "grid='5,5' has 10 steps, but num_steps=9; leave num_steps out"),
    (([0, 3, 3], 10), r"steps=\[0, 3, 3\] must be .* within 0..9"),
    (([0, 10], 10), "must be one or more whole numbers that increase within 0..9"),
    (([-1, 2], 10), "must be one or more"),
    (([0.5], 10), "must be one or more whole"),
    (([], 10), r"steps=\[\] must be one or more.*write such as \[9\]"),
    (([[1]], 10), "must be one or more"),
])
def test_wrong_grids_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        steps_lib.named(*arguments)


def test_section_counts_must_be_whole():
    with pytest.raises(ValueError, match="whole numbers"):
        steps_lib.sections(10, [2.5])


def test_half_log_snr_at_whole_steps_and_between():
    schedule = schedule_lib.linear()
    assert_allclose(  # The handbook's, from the paper's schedule.
        schedule_lib.half_log_snr(schedule, [0, 499, 999]),
        [4.60512018349, -1.23084935791, -5.05883659165], rtol=1e-11,
    )
    scale, variance = oracle.compose(schedule.beta, 8)
    here, there = schedule_lib.half_log_snr(schedule, [7, 8])
    assert_allclose(here, np.log(scale / np.sqrt(variance)), rtol=1e-12)
    assert_allclose(schedule_lib.half_log_snr(schedule, 7.25), 0.75 * here + 0.25 * there)
    t = np.linspace(0, 999, 77)
    assert_allclose(
        schedule_lib.at_half_log_snr(schedule, schedule_lib.half_log_snr(schedule, t)), t, atol=1e-9
    )


def test_golden_log_snr_levels():
    """DPM-Solver's grid of 20 steps, computed for the handbook in units of t + 1."""
    t = dpm_solver.log_snr(schedule_lib.linear(), 21)
    golden = [
        1000, 950.98, 899.29, 844.45, 785.82, 722.56, 653.59, 577.54, 493.11, 400.32,
        303.31, 212.44, 139.04, 86.92, 52.73, 31.15, 17.81, 9.72, 4.96, 2.36, 1,
    ]
    assert_allclose(t[::-1] + 1, golden, atol=0.0051)  # Rounded to two places.


def test_karras_levels():
    schedule = schedule_lib.linear()
    sigma = np.exp(-schedule_lib.half_log_snr(schedule, heun_lib.karras(schedule, 18)))
    low, high = 0.010000500037, 157.40728081  # Of the handbook.
    expected = [
        (high ** (1 / 7) + i / 17 * (low ** (1 / 7) - high ** (1 / 7))) ** 7
        for i in range(18)
    ]
    assert_allclose(sigma[::-1], expected, rtol=1e-8)


def test_levels_stop_where_nothing_is_left():
    """Of the cosine at lambda = -5.1, in whatever number of levels."""
    schedule = schedule_lib.cosine()
    for grid in (dpm_solver.log_snr, heun_lib.karras):
        for n in (1, 2, 30):
            t = grid(schedule, n)
            assert t.shape == (n,) and np.all(np.diff(t) > 0)
            assert_allclose(schedule_lib.half_log_snr(schedule, t[-1]), -5.1, rtol=1e-9)
            assert n == 1 or abs(t[0]) < 1e-9
    assert_allclose(dpm_solver.log_snr(schedule, 5)[-1], 995.08, atol=0.01)


def test_levels_of_a_respaced_schedule_are_in_original_steps():
    schedule = schedule_lib.respace(schedule_lib.linear(), np.arange(99, 1000, 100))
    assert_allclose(dpm_solver.log_snr(schedule, 3)[[0, -1]], [99, 999], atol=1e-9)


def test_a_schedule_of_one_step_has_one_level():
    one = schedule_lib.linear(1)
    assert_allclose(dpm_solver.log_snr(one, 1), [0])
    assert_allclose(heun_lib.karras(one, 1), [0])
    noisy = schedule_lib.from_betas([1 - 1e-9])  # Noisier than lambda = -5.1 from the start.
    assert_allclose(dpm_solver.log_snr(noisy, 1), [0])
    with pytest.raises(ValueError, match="num_levels=2 is not possible: .* T=1 has one"):
        dpm_solver.log_snr(one, 2)
    with pytest.raises(ValueError, match="num_levels=0 is not possible"):
        heun_lib.karras(schedule_lib.linear(), 0)


def test_a_schedule_that_keeps_nothing_has_no_levels():
    with pytest.raises(ValueError, match="last beta is 1 keeps nothing of x_0"):
        dpm_solver.log_snr(schedule_lib.jsd(10), 3)
