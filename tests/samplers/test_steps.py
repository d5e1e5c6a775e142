"""Choices of steps against published numbers and their rules, by plain loops."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

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
    """The numbers of the DDIM authors' code, of improved-diffusion and of diffusers."""
    assert_array_equal(
        steps_lib.uniform(1000, 10), [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    )
    assert_array_equal(
        steps_lib.quadratic(1000, 10), [0, 9, 39, 88, 158, 246, 355, 483, 632, 800]
    )
    assert_array_equal(steps_lib.quadratic(1000, 50)[:4], [0, 1, 2, 5])  # 0 only once.
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


@hypothesis.given(
    st.sampled_from(sorted(steps_lib.NAMED)), st.integers(1, 400), st.data())
@SETTINGS
def test_below(name, T, data):
    t, num_steps = (data.draw(st.integers(1, T)) for _ in range(2))
    steps = steps_lib.below(name, T, t, num_steps)
    assert steps[-1] == t - 1 and steps[0] >= 0 and np.all(np.diff(steps) > 0)
    assert steps.size == min(num_steps, t) or name == "quadratic"
    assert_array_equal(steps[:-1], steps_lib.named(name, t, min(num_steps, t))[:-1])
    assert_array_equal(steps_lib.below(steps, T, t), steps)


@pytest.mark.parametrize("arguments, says", [
    (("cubic", 10, 5), "grid='cubic' is not known; use one of uniform, quadratic"),
    (("uniform", 10, 11), "num_steps=11 must lie in 1..10"),
    (("quadratic", 10, 0), "num_steps=0 must lie in 1..10.*; write num_steps=10"),
    (("trailing", 10, 11), "num_steps=11 must lie in 1..10"),
    (("ddim6", 10), "grid='ddim6' cannot be: no whole stride visits 6 of 10"),
    (("ddim", 10), "no whole stride visits so many of 10"),
    (("6,4", 10), "asks for 6 steps of section 1, which has 5; write a count in 1..5"),
    (("5,0", 10), "asks for 0 steps of section 2"),
    (("5,x", 10), "grid='5,x' must be 1 to 10 whole numbers"),
    (("1,1,1", 2), "must be 1 to 2 whole numbers"),
    (("5,5", 10, 9),
     "num_steps=9 does not go with grid='5,5', which has 10 steps; write num_steps=10"),
    (([0, 3, 3], 10), r"grid=\[0, 3, 3\] must be .* within 0..9"),
    (([0, 10], 10), "must be one or more whole numbers that increase within 0..9"),
    (([-1, 2], 10), "must be one or more"),
    (([0.5], 10), r"grid\[0\]=0.5 must be a whole number"),
    (([], 10), r"grid=\[\] must be one or more.*; write grid=\[9\]"),
    (([[1]], 10), r"grid\[0\]=\[1\] must be a whole number"),
])
def test_wrong_grids_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        steps_lib.named(*arguments)


def test_section_counts_must_be_whole():
    with pytest.raises(ValueError, match="whole numbers"):
        steps_lib.sections(10, [2.5])
