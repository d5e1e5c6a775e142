"""Guidance by a gradient: of a classifier, of a measurement, or by a function of the user's own.

A guide says how log p(y | x_t) grows with x_t. The score of x_t given y is the network's plus that
gradient (Dhariwal and Nichol 2021, Eq. 14), so with x_t = signal x_0 + sigma eps

    eps' = eps - sigma g,    x_0' = x_0 + sigma^2 / signal g,

and the output of the network moves accordingly. Every sampler takes it, because each reads that
output alone. On the ancestral chain the mean of x_{t-1} moves by beta_t / sqrt(alpha_t) g.
"""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import errors
from ddpm_jax.diffusion import process
from ddpm_jax.diffusion.process import PIXEL_AXES, Parameterization
from ddpm_jax.diffusion.schedule import Schedule, at
from ddpm_jax.errors import UserError

_ITERATIONS = 20  # Of conjugate gradients, for a covariance.
_NOTHING_LEFT = 1e-6  # A signal below it tells nothing of x_0, and no gradient can change that.


@dataclasses.dataclass(frozen=True)
class Guide:
    """What leads a chain: a rule, and what it needs to know of each image.

    `classifier_guide` and `measurement_guide` make them; a plain function (x_t, t, x_0) -> gradient
    is one as well.

    Attributes:
        rule: (x_t, t, x_0, y, signal, sigma) -> [b, h, w, c], for x_t and x_0 [b, h, w, c], t [b]
            and signal and sigma [b, 1, 1, 1]. Hashable: equal rules share a compiled chain.
        y: [n, ...], or [...] for all images; None where the rule knows all.
        by_x_0: the rule's result is the gradient by x_0, and goes back to x_t through the network.
    """

    rule: Callable[..., jax.Array]
    y: Any = None
    by_x_0: bool = False


@dataclasses.dataclass(frozen=True)
class _Own:
    """The rule of a function of the user's own."""

    fn: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

    def __call__(self, x_t, t, x_0, y, signal, sigma):
        return self.fn(x_t, t, x_0)


@dataclasses.dataclass(frozen=True)
class _Classifier:
    """scale times the gradient of log p(y | x_t) by x_t."""

    log_prob_fn: Callable[..., jax.Array]
    scale: float

    def __call__(self, x_t, t, x_0, y, signal, sigma):
        def total(x_t):
            log_prob = self.log_prob_fn(x_t, t, *([] if y is None else [y]))
            if log_prob.shape != t.shape:
                raise UserError(
                    f"log_prob_fn returned {list(log_prob.shape)} for {len(t)} images, and must "
                    f"return [{len(t)}], log p(y | x_t) of each."
                )
            return log_prob.sum()

        return self.scale * jax.grad(total)(x_t)

    def shape_of_y(self, image_shape):
        return ()


@dataclasses.dataclass(frozen=True)
class _Measurement:
    """scale times the gradient of log N(y; A(x_0), noise^2 I + v A A^T) by x_0."""

    operator: Callable[[jax.Array], jax.Array]
    scale: float
    noise: float
    data_std: float

    def __call__(self, x_t, t, x_0, y, signal, sigma):
        v = jnp.square(self.data_std * sigma)
        v /= jnp.square(self.data_std * signal) + jnp.square(sigma)

        def of_one(x_0, y, v):
            measured, forward = jax.linearize(lambda x: self.operator(x[None])[0], x_0)
            backward = jax.linear_transpose(forward, x_0)

            def covariance_times(u):
                return self.noise**2 * u + v * forward(*backward(u))

            weighed, _ = jax.scipy.sparse.linalg.cg(
                covariance_times, y - measured, tol=1e-4, maxiter=_ITERATIONS
            )
            return backward(weighed)[0]

        return self.scale * jax.vmap(of_one)(x_0, y, v.reshape(-1))

    def shape_of_y(self, image_shape):
        return jax.eval_shape(self.operator, _images(image_shape)).shape[1:]


def classifier_guide(
    log_prob_fn: Callable[..., jax.Array], scale: float = 1.0, y: Any = None
) -> Guide:
    """Guidance by a classifier of noised images (Dhariwal and Nichol 2021).

    With DDIM it is their Algorithm 2. With the ancestral chain it is Algorithm 1, whose mean moves
    by scale sigma_t^2 g, where here it is beta_t / sqrt(alpha_t): the same to first order in beta.

    Args:
        log_prob_fn: (x_t, t) -> log p(y | x_t) of each image, [b], for x_t [b, h, w, c] in about
            [-1, 1] and t [b], the step of the full schedule, which solvers give as a fraction. With
            `y` it is (x_t, t, y). Define it once: each new function recompiles the chain.
        scale: of the gradient; 1 is Bayes' rule, more is more of y and less variety.
        y: what is asked of each image, [n], for example classes, or one for all.

    Raises:
        UserError: an argument has another type.
    """
    _check_function("log_prob_fn", log_prob_fn, "(x_t, t) -> [b]")
    return Guide(_Classifier(log_prob_fn, errors.number("scale", scale)), y)


def measurement_guide(
    operator: Callable[[jax.Array], jax.Array],
    y: Any,
    scale: float = 1.0,
    *,
    noise: float = 0.01,
    data_std: float = 0.5,
) -> Guide:
    """Guidance towards images that were measured as y: diffusion posterior sampling.

    The gradient is that of log p(y | x_0), with the x_0 that the network predicts at x_t, and goes
    back through the network: Chung et al. 2023 (DPS), Eq. 16. That x_0 is uncertain, which Eq. 16
    leaves out and which they make up for by a step of their own, divided by |y - A(x_0)|. Here it
    counts as in Song et al. 2023 (pseudoinverse-guided diffusion, Eq. 7), so that one scale suits
    every sampler and any number of steps:

        N(y; A(x_0), noise^2 I + v A A^T)  with  v = s^2 sigma^2 / (s^2 signal^2 + sigma^2),

    where s is data_std, and v the variance of x_0 given x_t for normal data, which makes it exact
    for these.

    Args:
        operator: A, x_0 [b, h, w, c] -> [b, ...], differentiable, each image by itself. Define it
            once: each new function recompiles the chain.
        y: what was measured, [n, ...], or [...] for all images.
        scale: of the gradient.
        noise: the standard deviation of the noise in y, in its units; more than 0. Pixels of 8 bits
            are rounded by 0.002.
        data_std: of the data in [-1, 1], where they are unknown; 0 is DPS's Eq. 16 itself.

    Raises:
        UserError: an argument has another type, noise is not more than 0, or data_std negative.
    """
    _check_function("operator", operator, "x_0 -> [b, ...]")
    scale, noise, data_std = (
        errors.number(name, value)
        for name, value in (("scale", scale), ("noise", noise), ("data_std", data_std))
    )
    if noise <= 0:
        raise UserError(
            "must be more than 0, the standard deviation of the noise in y", field="noise",
            value=noise, instead={"noise": 0.01},
        )
    if data_std < 0:
        raise UserError(
            "must be at least 0", field="data_std", value=data_std, instead={"data_std": 0.5}
        )
    return Guide(_Measurement(operator, scale, noise, data_std), y, by_x_0=True)


def prepared(guide: Any, n: int, image_shape: tuple[int, int, int]) -> Guide:
    """The guide with y of n images, [n, ...], once its rule was seen to return a gradient.

    Args:
        guide: a `Guide`, or a function (x_t, t, x_0) -> gradient.
        n: number of images.
        image_shape: (h, w, c).

    Raises:
        UserError: it is something else, y is of another size, or the gradient has another shape.
    """
    if not isinstance(guide, Guide):
        _check_function("guide", guide, "(x_t, t, x_0) -> gradient")
        guide = Guide(_Own(guide))
    if guide.y is not None:
        guide = dataclasses.replace(guide, y=_of_each(guide, n, image_shape))
    x, t, level = _images(image_shape), _shaped((2,)), _shaped((2, 1, 1, 1))
    y = None if guide.y is None else _shaped((2, *guide.y.shape[1:]), guide.y.dtype)
    gradient = jax.eval_shape(guide.rule, x, t, x, y, level, level)
    shape = list(getattr(gradient, "shape", ()))
    if shape != list(x.shape):
        raise UserError(
            f"guide returned {shape or type(gradient).__name__} for images {list(x.shape)}, and "
            "must return a gradient of their shape."
        )
    return guide


def _of_each(guide, n, image_shape):
    """y as an array [n, ...]."""
    y = np.asarray(guide.y)
    if np.issubdtype(y.dtype, np.floating):
        y = np.float32(y)
    shape_of_y = getattr(guide.rule, "shape_of_y", None)
    if shape_of_y is None:  # A rule of the user's own: [n, ...], or else one for all.
        shape = y.shape[1:] if y.shape[:1] == (n,) else y.shape
    else:
        shape = tuple(shape_of_y(image_shape))
    if y.shape not in (shape, (n, *shape)):
        raise UserError(
            f"y is {list(y.shape)}, and must be {[n, *shape]}, one for each image, or "
            f"{list(shape)}, for all; give it in the size that the operator makes of an image "
            f"{list(image_shape)}."
        )
    if not np.isfinite(y).all():
        raise UserError("y has NaN or infinite numbers; leave these measurements out.")
    return np.broadcast_to(y, (n, *shape))


def _images(image_shape):
    return _shaped((2, *image_shape))


def _shaped(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def _check_function(name, value, what):
    if not (callable(value) and isinstance(value, Hashable)):
        raise UserError(f"must be a hashable function {what}.", field=name, value=value)


def check_finite(images: np.ndarray) -> None:
    """Raises UserError where a guided chain led to NaN or infinity.

    Args:
        images: [n, h, w, c].
    """
    finite = np.isfinite(images).all(axis=PIXEL_AXES)
    if not finite.all():
        raise UserError(
            f"guide led to NaN or infinity in {np.sum(~finite)} of {len(images)} images, first in "
            f"number {np.argmin(finite)}; look for a division by 0, a log of 0 or a norm at 0 in "
            "it, or lower its scale."
        )


@flax.struct.dataclass
class Levels:
    """Noise levels of a schedule at any t.

    Attributes:
        schedule: the full one.
        half_log_snr: [T], log(signal / sigma) at each step, finite.
    """

    schedule: Any
    half_log_snr: Any

    @classmethod
    def of(cls, schedule: Schedule) -> "Levels":
        """Those of a schedule as host arrays."""
        alpha_bar = np.asarray(schedule.alpha_bar, np.float64)
        alpha_bar = np.maximum(alpha_bar, _NOTHING_LEFT**4)  # The last may keep nothing of x_0.
        return cls(schedule, np.float32(0.5 * (np.log(alpha_bar) - np.log1p(-alpha_bar))))

    def at(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(signal, sigma) at t [b], whole or between two steps, each [b, 1, 1, 1]."""
        steps = jnp.asarray(self.schedule.timesteps, jnp.float32)
        ratio = 2 * jnp.interp(t.astype(jnp.float32), steps, self.half_log_snr)
        return tuple(
            jnp.sqrt(jax.nn.sigmoid(x)).reshape(-1, 1, 1, 1) for x in (ratio, -ratio)
        )


def gradient_guided(
    denoise_fn: Callable[..., jax.Array],
    guide: Guide,
    levels: Levels,
    diffusion: Parameterization,
    *,
    clip: bool = True,
) -> Callable[..., jax.Array]:
    """(x_t, t) -> the network's output, moved along the gradient of a guide.

    Args:
        denoise_fn: (x_t, t) -> output. If it takes a third argument, so does the result (see
            `self_conditioning`).
        guide: of `prepared`, with y of these images.
        levels: of the schedule that the network was trained with.
        diffusion: what the output means.
        clip: show the guide x_0 in [-1, 1]. The gradient goes through the network as without.
    """
    def guided_fn(x_t, t, *last):
        signal, sigma = levels.at(t)

        def x_0_of(x_t):
            output = denoise_fn(x_t, t, *last)
            mean, _ = process.split_output(output, diffusion.variance)
            if diffusion.mean == "x_prev":
                return process.x_0_from_x_prev(levels.schedule, x_t, t, mean), output
            return process.x_0_and_eps(mean, x_t, signal, sigma, diffusion.mean)[0], output

        if guide.by_x_0:
            x_0, to_x_t, output = jax.vjp(x_0_of, x_t, has_aux=True)
        else:
            x_0, output = x_0_of(x_t)
        seen = jnp.clip(x_0, -1.0, 1.0) if clip else x_0
        gradient = guide.rule(x_t, t, seen, guide.y, signal, sigma)
        if guide.by_x_0:
            (gradient,) = to_x_t(gradient)
        return _moved(output, gradient, t, levels, diffusion)

    return guided_fn


def _moved(output, gradient, t, levels, diffusion):
    """The output of a network whose score grew by this gradient."""
    signal, sigma = levels.at(t)
    by = {
        "eps": -sigma,
        "x_0": jnp.square(sigma) / signal,
        "v": -sigma / signal,
    }
    if diffusion.mean == "x_prev":
        to_mean = at(levels.schedule.posterior_coef_x_0, t, gradient)
        by["x_prev"] = to_mean * by["x_0"]
    mean, variance_output = process.split_output(output, diffusion.variance)
    by = jnp.where(signal > _NOTHING_LEFT, by[diffusion.mean], 0.0)
    mean = mean + by * gradient
    return mean if variance_output is None else jnp.concatenate([mean, variance_output], axis=-1)
