"""Schedules against the oracle and against published numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import oracle
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.schedule import at, evenly_spaced, from_betas, named, respace

CONSTRUCTORS = [
    schedule_lib.linear, schedule_lib.quadratic, schedule_lib.constant, schedule_lib.jsd,
    schedule_lib.warmup, schedule_lib.cosine, schedule_lib.sigmoid,
]


# Computed from the paper's formulas in float64, apart from the package.
LINEAR = {
    "alpha_bar": {
        0: 0.9999, 1: 0.99978009207, 99: 0.89701814567, 249: 0.52408537383,
        499: 0.078587242882, 749: 0.0033505504389, 998: 4.1181936381e-5,
        999: 4.0358297654e-5,
    },
    "alpha_bar_prev": {0: 1.0, 1: 0.9999, 999: 4.1181936381e-5},
    "sqrt_alpha_bar": {0: 1 / 1.0000500038, 999: 6.3528180876e-3},
    "sqrt_one_minus_alpha_bar": {0: 0.01, 999: 0.99997982065},
    "posterior_variance": {
        0: 0.0, 1: 5.4531876613e-5, 2: 8.5489115231e-5, 499: 0.010031355415,
        999: 0.019999983527,
    },
    "posterior_log_variance": {
        0: -9.8167251353, 1: -9.8167251353, 2: -9.3671214974, 499: -4.6020395501,
        999: -3.9120238291,
    },
    "posterior_coef_x_0": {
        0: 1.0, 1: 0.54529149951, 499: 3.0700711143e-3, 999: 1.2835148717e-4,
    },
    "posterior_coef_x_t": {
        0: 0.0, 1: 0.45470849899, 499: 0.99410667021, 999: 0.98994867827,
    },
}


@pytest.mark.parametrize("field", LINEAR)
def test_linear_has_the_published_numbers(field):
    actual = getattr(schedule_lib.linear(), field)
    # rtol: eleven digits are written; float32 tables would be off by 1e-7 to 2e-4. atol:
    # for the zeros, though 1 - alpha_bar has an ulp of 1e-16.
    assert_allclose(
        actual[list(LINEAR[field])], list(LINEAR[field].values()), rtol=1e-10, atol=1e-15
    )


def test_linear_has_the_published_signal_to_noise():
    alpha_bar = schedule_lib.linear().alpha_bar[[0, 499, 999]]
    half_log_snr = 0.5 * np.log(alpha_bar / (1 - alpha_bar))
    # rtol: twelve digits are written.
    assert_allclose(
        half_log_snr, [4.60512018349, -1.23084935791, -5.05883659165], rtol=1e-11
    )


# rtol: half a unit in the last digit written.
@pytest.mark.parametrize(
    "schedule, alpha_bar, rtol",
    [
        (schedule_lib.quadratic(), 7.334e-4, 7e-5),
        (schedule_lib.warmup(), 4.61e-9, 2e-3),
        (schedule_lib.warmup(fraction=0.5), 2.61e-7, 2e-3),
        (schedule_lib.constant(), 1.683e-9, 3e-4),
        (schedule_lib.linear(4000, 0.25e-4, 0.005), 4.2467e-5, 2e-5),
        (schedule_lib.rescaled_linear(4000), 4.2467e-5, 2e-5),
        (schedule_lib.cosine(), 2.4288e-9, 3e-5),
        (schedule_lib.cosine(4000), 1.5180e-10, 4e-5),
    ],
    ids=[
        "quadratic", "warmup10", "warmup50", "constant", "linear 4000", "rescaled_linear 4000",
        "cosine", "cosine 4000",
    ],
)
def test_last_alpha_bar_is_the_published_one(schedule, alpha_bar, rtol):
    assert_allclose(schedule.alpha_bar[-1], alpha_bar, rtol=rtol)


@pytest.mark.parametrize(
    "num_timesteps, beta, alpha_bar",
    [
        (
            1000,
            {0: 4.128422e-5, 1: 4.614175e-5, 500: 3.155692e-3, 998: 0.7499994, 999: 0.999},
            {0: 0.9999587158, 500: 0.4922851725},
        ),
        (
            4000,
            {0: 9.865819e-6, 2000: 7.889356e-4, 3998: 0.75},
            {0: 0.9999901342, 2000: 0.4934539797},
        ),
    ],
)
def test_cosine_has_the_published_numbers(num_timesteps, beta, alpha_bar):
    schedule = schedule_lib.cosine(num_timesteps)
    for actual, expected in ((schedule.beta, beta), (schedule.alpha_bar, alpha_bar)):
        # rtol: seven digits are written.
        assert_allclose(actual[list(expected)], list(expected.values()), rtol=2e-7)


def test_jsd_erases_the_data_in_equal_steps():
    """alpha_bar telescopes to 1 - t/T."""
    schedule = schedule_lib.jsd(50)
    # atol: the product telescopes only up to rounding, 50 ulps of 1.
    assert_allclose(schedule.alpha_bar, 1 - np.arange(1, 51) / 50, atol=1e-14)
    assert schedule.beta[-1] == 1 and schedule.alpha_bar[-1] == 0


def test_sigmoid_is_symmetric_about_the_middle():
    alpha_bar = schedule_lib.sigmoid(100).alpha_bar
    # atol: rounding; a sigmoid from -3 to 3 is odd about its middle.
    assert_allclose(alpha_bar[:99] + alpha_bar[:99][::-1], 1, atol=1e-12)
    assert np.all(np.diff(alpha_bar) < 0) and schedule_lib.sigmoid(100).beta[-1] == 0.999


def test_sigmoid_is_the_sigmoid():
    """By tanh: a logistic of x is (1 + tanh(x / 2)) / 2, and the scale cancels."""
    u = np.arange(1, 100) / 100
    end = np.tanh(1.5 / 0.7)
    expected = (end - np.tanh((3 * u - 1.5) / 0.7)) / (2 * end)
    actual = schedule_lib.sigmoid(100, tau=0.7).alpha_bar[:99]
    # rtol: alpha_bar(u) is a difference of numbers near 1, about 1e-2 at its smallest.
    assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("fraction, ramp", [(0.1, 4), (0.5, 20)])
def test_warmup_ramps_then_stays(fraction, ramp):
    beta = schedule_lib.warmup(40, 0.01, 0.3, fraction).beta
    assert_allclose(np.diff(beta[:ramp], n=2), 0, atol=1e-15)  # An ulp of beta.
    assert beta[0] == 0.01 and np.all(beta[ramp - 1:] == 0.3) and beta[ramp - 2] < 0.3


def test_quadratic_and_constant():
    # An ulp of the square root.
    assert_allclose(np.diff(np.sqrt(schedule_lib.quadratic(9).beta), n=2), 0, atol=1e-15)
    assert_array_equal(schedule_lib.constant(3, 0.25).beta, [0.25] * 3)


RANDOM = np.random.default_rng(0).uniform(0.01, 0.9, 12)


@pytest.mark.parametrize(
    "schedule",
    [*(make(20) for make in CONSTRUCTORS), from_betas(RANDOM), from_betas(list(RANDOM)),
     from_betas([0.3])],
    ids=[*(make.__name__ for make in CONSTRUCTORS), "random", "list", "one step"],
)
def test_every_coefficient_matches_the_oracle(schedule):
    beta = schedule.beta
    for t in range(1, len(beta) + 1):
        scale, variance = oracle.compose(beta, t)
        row = {name: value[t - 1] for name, value in vars(schedule).items()}
        expected = {
            "alpha_bar": scale**2,
            "alpha_bar_prev": oracle.compose(beta, t - 1)[0] ** 2,
            "sqrt_alpha_bar": scale,
            "sqrt_one_minus_alpha_bar": np.sqrt(variance),
            "posterior_coef_x_0": oracle.posterior(beta, t, 1.0, 0.0)[0],
            "posterior_coef_x_t": oracle.posterior(beta, t, 0.0, 1.0)[0],
            "posterior_variance": oracle.posterior(beta, t, 0.0, 0.0)[1],
            "posterior_log_variance": np.log(
                oracle.reverse_variance(beta, t, "fixed_small")
            ),
            "timesteps": t - 1,
        }
        for name, value in expected.items():
            # rtol: float64, but 1 - alpha_bar cancels to 1e-4 at the first step. atol: for
            # zeros, though 1 - alpha_bar has an ulp of 1e-16.
            assert_allclose(row[name], value, rtol=1e-11, atol=1e-15, err_msg=name)


@pytest.mark.parametrize("make", CONSTRUCTORS, ids=lambda make: make.__name__)
def test_one_step(make):
    """T = 1: the small variance at the only step borrows beta_0."""
    schedule = make(1)
    assert schedule.num_timesteps == 1 and 0 < schedule.beta[0] <= 1
    assert schedule.posterior_variance[0] == 0
    assert schedule.posterior_log_variance[0] == np.log(schedule.beta[0])
    assert schedule.posterior_coef_x_t[0] == 0
    # 1 - (1 - 1e-4) has lost four digits of sixteen.
    assert_allclose(schedule.posterior_coef_x_0[0], 1, rtol=1e-12)


def test_tables_are_float64_on_the_host():
    schedule = schedule_lib.linear()
    for name in set(LINEAR):
        value = getattr(schedule, name)
        assert type(value) is np.ndarray and value.dtype == np.float64, name
    # float32 would give 1 - alpha_bar_0 to 1.7e-4 only.
    assert_allclose(1 - schedule.alpha_bar[0], 1e-4, rtol=1e-11)


@pytest.mark.parametrize(
    "beta, message",
    [
        ([], r"shape \(0,\)"),
        ([[0.1]], r"shape \(1, 1\)"),
        (0.1, r"shape \(\)"),
        ([0.1, 0.0], r"beta\[1\]=0.0 "),
        ([-0.1, 0.1], r"beta\[0\]=-0.1 "),
        ([0.1, 1.5], r"beta\[1\]=1.5 "),
        ([0.1, 1.0, 0.1], r"beta\[1\]=1.0 .*only the last"),
        ([0.1, np.nan], r"beta\[1\]=nan "),
    ],
    ids=["empty", "2-d", "scalar", "zero", "negative", "above 1", "1 inside", "nan"],
)
def test_bad_betas_are_refused(beta, message):
    with pytest.raises(ValueError, match=message):
        from_betas(np.asarray(beta, np.float64))


@pytest.mark.parametrize("name, start, end, message", [
    ("linear", 0.0, 0.02, r"start=0.0 must lie in \(0, 1\); write start=0.0001"),
    ("quadratic", 1.0, 0.02, r"start=1.0 must lie in \(0, 1\)"),
    ("linear", 1e-4, 1.5, r"end=1.5 must lie in \(0, 1\]; write end=0.02"),
    ("warmup10", 1e-4, 1.0, r"end=1.0 must lie in \(0, 1\)"),
    ("constant", 1e-4, 1.0, r"beta=1.0 must lie in \(0, 1\)"),
])
def test_ends_that_make_no_schedule_are_refused(name, start, end, message):
    with pytest.raises(ValueError, match=message):
        named(name, 10, start, end)


def test_one_step_may_erase_all():
    assert named("constant", 1, 1e-4, 1.0).beta == [1.0] == named("linear", 1, 1.0, 0.02).beta


@pytest.mark.parametrize("make", CONSTRUCTORS, ids=lambda make: make.__name__)
def test_no_steps_are_refused(make):
    with pytest.raises(ValueError, match="num_timesteps=0 .*at least 1"):
        make(0)


@pytest.mark.parametrize(
    "name, schedule",
    [
        ("linear", schedule_lib.linear(10, 0.01, 0.3)),
        ("rescaled_linear", schedule_lib.linear(10, 100 * 0.001, 100 * 0.009)),
        ("quadratic", schedule_lib.quadratic(10, 0.01, 0.3)),
        ("constant", schedule_lib.constant(10, 0.3)),
        ("jsd", schedule_lib.jsd(10)),
        ("warmup10", schedule_lib.warmup(10, 0.01, 0.3, 0.1)),
        ("warmup50", schedule_lib.warmup(10, 0.01, 0.3, 0.5)),
        ("cosine", schedule_lib.cosine(10)),
        ("sigmoid", schedule_lib.sigmoid(10)),
    ],
)
def test_named(name, schedule):
    start, end = (0.001, 0.009) if name == "rescaled_linear" else (0.01, 0.3)
    assert_array_equal(named(name, 10, start, end).beta, schedule.beta)


def test_rescaled_linear_ends_as_noisy_at_every_length():
    """The integral of beta over the chain is that of 1000 steps."""
    assert_array_equal(schedule_lib.rescaled_linear().beta, schedule_lib.linear().beta)
    for num_timesteps in (21, 100, 4000):
        total = schedule_lib.rescaled_linear(num_timesteps).beta.sum()
        assert_allclose(total, 1000 * (1e-4 + 0.02) / 2, rtol=1e-12)
    with pytest.raises(ValueError, match="num_timesteps=19 is too few.*write num_timesteps=21"):
        schedule_lib.rescaled_linear(19)
    assert schedule_lib.rescaled_linear(20).beta[-1] == 1


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match="schedule='cosin' .*use one of .*cosine"):
        named("cosin", 10, 0.01, 0.3)


def test_respaced_betas_are_the_published_ones():
    """Ten evenly spaced steps; the network still gets the original t of each."""
    timesteps = [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    respaced = respace(schedule_lib.linear(), timesteps)
    assert_array_equal(respaced.timesteps, timesteps)
    # atol: six decimals are written.
    assert_allclose(
        respaced.beta,
        [
            1e-4, .126308, .316844, .466119, .583005, .674481, .746030, .801963, .845663,
            .879788,
        ],
        atol=6e-7,
    )


@pytest.mark.parametrize("timesteps", [[0], [999], [3, 500], range(1000)])
def test_respacing_keeps_the_marginals(timesteps):
    full = schedule_lib.linear()
    respaced = respace(full, timesteps)
    # rtol: float64; the betas are re-derived and multiplied up again.
    assert_allclose(respaced.alpha_bar, full.alpha_bar[list(timesteps)], rtol=1e-10)
    steps = [t + 1 for t in timesteps]
    assert_allclose(respaced.beta, oracle.visit(full.beta, steps), rtol=1e-10)


def test_respacing_takes_what_evenly_spaced_gives():
    respaced = respace(schedule_lib.linear(), evenly_spaced(1000, 10))
    assert_array_equal(respaced.timesteps, range(0, 1000, 111))


def test_respacing_twice_keeps_the_original_steps():
    once = respace(schedule_lib.linear(), [10, 20, 30, 40])
    assert_array_equal(respace(once, [1, 3]).timesteps, [20, 40])


def test_respacing_allows_a_last_beta_of_one():
    assert respace(schedule_lib.jsd(10), [4, 9]).beta[-1] == 1


@pytest.mark.parametrize(
    "timesteps", [[], [-1, 5], [5, 10], [3, 3], [4, 2]],
    ids=["empty", "negative", "beyond", "twice", "falling"],
)
def test_bad_timesteps_are_refused(timesteps):
    with pytest.raises(ValueError, match=r"timesteps=\[.* increase within 0\.\.9"):
        respace(schedule_lib.linear(10), timesteps)


def test_evenly_spaced_has_both_ends_and_no_duplicates():
    for total in range(2, 40):
        for count in range(2, total + 1):
            steps = evenly_spaced(total, count)
            assert len(steps) == count and steps[0] == 0 and steps[-1] == total - 1
            gaps = np.diff(steps)
            assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 2, (total, count)


def test_evenly_spaced_known_cases():
    assert_array_equal(evenly_spaced(1000, 1), [999])
    assert_array_equal(evenly_spaced(1, 1), [0])
    assert_array_equal(evenly_spaced(7, 7), range(7))
    assert_array_equal(evenly_spaced(1000, 10), range(0, 1000, 111))
    assert list(evenly_spaced(1000, 250)[-2:]) == [995, 999]


@pytest.mark.parametrize("count", [0, 11])
def test_evenly_spaced_refuses(count):
    with pytest.raises(ValueError, match=rf"num_steps={count} .*1\.\.10"):
        evenly_spaced(10, count)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_at_rounds_only_at_the_look_up(transform):
    schedule = schedule_lib.linear()
    t = jnp.array([999, 0])
    images = jnp.zeros((2, 3, 3, 1))
    actual = transform(lambda t, images: at(schedule.alpha_bar, t, images))(t, images)
    assert actual.shape == (2, 1, 1, 1) and actual.dtype == jnp.float32
    assert_array_equal(actual.ravel(), np.float32(schedule.alpha_bar[[999, 0]]))


def test_a_schedule_is_a_pytree_of_its_fields():
    doubled = jax.tree.map(lambda field: 2 * field, schedule_lib.linear(4))
    assert_array_equal(doubled.beta, 2 * schedule_lib.linear(4).beta)


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
        schedule_lib.t_at_half_log_snr(schedule, schedule_lib.half_log_snr(schedule, t)), t,
        atol=1e-9,
    )
