"""Fast samplers: good images in 10 to 50 network calls.

`ddim` runs on the steps of a respaced schedule. `solve` runs any of `plans`, which solve the
probability-flow ODE (or its SDE) and tell the network fractional t. Each is one
`jax.lax.scan` with one network call in it.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ddpm_jax.diffusion.process import Images, Prediction, split_output
from ddpm_jax.diffusion.schedule import Schedule, at
from ddpm_jax.samplers.dpm_solver import Plan
from ddpm_jax.samplers.reverse_chain import Trajectory, ancestral, asked_for, standard_normal


def ddim(
    schedule: Schedule,
    predict_fn: Callable[[Array, Array], Prediction],
    x_T: Images,
    rngs: Key[Array, " b"],
    *,
    eta: float = 0.0,
    start: int | None = None,
    stop: int = 0,
    trajectory: Sequence[int] = (),
    on_step: Callable[[Array], None] | None = None,
) -> Images | tuple[Images, Trajectory]:
    """Draws x_0 by DDIM (Song, Meng and Ermon 2021, Eqs. 12 and 16), one call a step.

    With ' for the step before,

        x' = sqrt(alpha_bar') x_0 + sqrt(1 - alpha_bar' - sigma^2) eps + sigma z,

    where sigma^2 is eta^2 times the posterior variance. At t = 0 alpha_bar' is 1 and the
    result x_0. eta = 0 adds no noise: x_T alone decides. eta = 1 is the ancestral chain
    with the smaller variance, draw for draw. (The sigma-hat of that paper is the ancestral
    chain with "fixed_large".)

    eps is that of the `Prediction`, which follows x_0 when that is clipped, as in
    improved-diffusion. Code that clips x_0 but keeps the network's eps gives other images:
    that of `process.predict(..., rederive_eps=False)`.

    Args:
        schedule: of the chain, such as `schedule.respace(full, steps.uniform(1000, 50))`.
        predict_fn: (x_t, t [b] int32) -> Prediction.
        x_T: [b, h, w, c] standard normal; with `start` the images noised start times.
        rngs: [b] keys; without effect if eta = 0.
        eta: in 0..1.
        start, stop, trajectory, on_step: as of `reverse_chain.ancestral`.

    Returns:
        As `reverse_chain.ancestral` does.

    Raises:
        ValueError: eta leaves 0..1, or as `reverse_chain.ancestral` does.
    """
    return ancestral(
        schedule, ddim_fn(schedule, predict_fn, eta), x_T, rngs, start=start, stop=stop,
        trajectory=trajectory, on_step=on_step,
    )


def ddim_fn(
    schedule: Schedule, predict_fn: Callable[[Array, Array], Prediction], eta: float = 0.0
) -> Callable[[Array, Array], Prediction]:
    """`predict_fn` with the mean and variance of DDIM's step, as `ddim` describes it.

    Raises:
        ValueError: eta leaves 0..1.
    """
    if not 0 <= eta <= 1:
        raise ValueError(
            f"eta={eta} must lie in 0..1; write eta=0 for no noise or eta=1 for that of "
            "the ancestral chain."
        )

    def predict(x_t, t):
        prediction = predict_fn(x_t, t)
        noise = at(schedule.sqrt_one_minus_alpha_bar, t, x_t)
        before = at(schedule.sqrt_one_minus_alpha_bar, jnp.maximum(t - 1, 0), x_t)
        before = jnp.where((t > 0).reshape(noise.shape), before, 0.0)
        # 1 - alpha_bar' - sigma^2, without the difference of two nearly equal numbers.
        kept = jnp.square(at(schedule.posterior_coef_x_t, t, x_t) * noise)
        along = jnp.sqrt((1 - eta**2) * jnp.square(before) + eta**2 * kept)
        signal = jnp.sqrt(at(schedule.alpha_bar_prev, t, x_t))
        spread = jnp.log(eta**2 * at(schedule.posterior_variance, t, x_t)) if eta else None
        mean = signal * prediction.x_0 + along * prediction.eps
        return prediction.replace(mean=mean, log_variance=spread)

    return predict


def solve(
    plan: Plan,
    denoise_fn: Callable[[Array, Array], Array],
    x_T: Images,
    rngs: Key[Array, " b"],
    *,
    mean: str = "eps",
    variance: str = "fixed_large",
    clip: bool = True,
    denoised_fn: Callable[[Array], Array] | None = None,
    trajectory: Sequence[int] = (),
    on_step: Callable[[Array], None] | None = None,
) -> Images | tuple[Images, Trajectory]:
    """Runs a plan: one scan that calls the network `plan.num_calls` times.

    Args:
        plan: such as `dpm_solver.dpm_solver_pp(schedule, 20)`.
        denoise_fn: (x_t, t [b] float32) -> the network's output; t is not whole.
        x_T: [b, h, w, c] standard normal.
        rngs: [b] keys; the noise of call i is drawn from `fold_in(rngs[j], i)`. Not used by
            plans without noise, all but that of
            `dpm_solver.dpm_solver_pp(..., sde=True)`.
        mean: what the output is: "eps", "x_0" or "v".
        variance: as of `process.predict`; if learned, the second half of the output's
            channels is dropped.
        clip: keep x_0 in [-1, 1] at every call; eps follows it.
        denoised_fn: applied to x_0 before clipping, such as `dynamic_threshold`.
        trajectory: calls at which to keep x and the predicted x_0, by the number of calls
            left after them: 0 is the last. Calls within a step count too.
        on_step: called inside the scan with the number of calls left after this one; for
            progress reports.

    Returns:
        x_0: [b, h, w, c] float32, in [-1, 1] if clipped; x at the first noise level if the
        plan does not end with x_0. With `trajectory` also the `Trajectory`, in the order
        asked for.

    Raises:
        ValueError: `mean` is another, or trajectory leaves the plan.
    """
    if mean not in ("eps", "x_0", "v"):
        raise ValueError(
            f"mean={mean!r} cannot go with a solver, which needs the noise between whole "
            "steps; use a network of mean 'eps', 'x_0' or 'v', or the ancestral chain."
        )

    trajectory = asked_for(trajectory, 0, plan.num_calls)

    def predict(x, call):
        output, _ = split_output(denoise_fn(x, jnp.full(x.shape[:1], call.t)), variance)
        if mean == "eps":
            x_0 = (x - call.sigma * output) / call.signal
        else:
            x_0 = call.signal * x - call.sigma * output if mean == "v" else output
        if denoised_fn is not None:
            x_0 = denoised_fn(x_0)
        if clip:
            x_0 = jnp.clip(x_0, -1.0, 1.0)
        untouched = mean == "eps" and not clip and denoised_fn is None
        return x_0, output if untouched else (x - call.signal * x_0) / call.sigma

    def step(carry, row):
        x, start, said, kept = carry
        i, call = row
        left = plan.num_calls - 1 - i
        if on_step is not None:
            on_step(left)
        x_0, eps = predict(x, call)
        if kept is not None:
            kept = kept.keep(trajectory == left, x, x_0)
        said = (jnp.where(call.says_x_0, x_0, eps), *said)
        x = call.keep * start + sum(w * s for w, s in zip(call.weights, said, strict=True))
        if call.spread is not None:
            each = jax.vmap(jax.random.fold_in, (0, None))(rngs, i)
            x = x + call.spread * standard_normal(each, x.shape[1:])
        return (x, jnp.where(call.commit, x, start), said[:-1], kept), None

    calls = jax.tree.map(
        lambda a: jnp.asarray(a, None if a.dtype == bool else jnp.float32), plan
    )
    nothing = (jnp.zeros(x_T.shape),) * (plan.weights.shape[1] - 1)
    numbers = jnp.arange(plan.num_calls, dtype=jnp.int32)
    kept = Trajectory.empty(trajectory.size, x_T) if trajectory.size else None
    (x, _, _, kept), _ = jax.lax.scan(step, (x_T, x_T, nothing, kept), (numbers, calls))
    return x if kept is None else (x, kept)


def dynamic_threshold(x_0: Images, percentile: float = 0.995) -> Float[Array, "b h w c"]:
    """Divides each image by its largest pixels instead of clipping them all to 1.

    s is the `percentile` of |x_0| over the image, at least 1; x_0 is clipped to [-s, s] and
    divided by s (Saharia et al. 2022, Imagen, Sec. 2.3). For `denoised_fn`.

    Args:
        x_0: predicted images.
        percentile: in (0, 1], as a fraction.

    Raises:
        ValueError: percentile leaves (0, 1].
    """
    if not 0 < percentile <= 1:
        raise ValueError(
            f"percentile={percentile} must lie in (0, 1]; write such as percentile=0.995."
        )
    s = jnp.quantile(jnp.abs(x_0), percentile, axis=(1, 2, 3), keepdims=True)
    s = jnp.maximum(s, 1.0)
    return jnp.clip(x_0, -s, s) / s
