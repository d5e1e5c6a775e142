"""Inpainting: a chain that is held to the known part of an image, with or without resampling.

After every reverse step the known part of x is replaced by that of the given image, noised to the
same level (Song et al. 2021, score SDE, Appendix I.2). RePaint (Lugmayr et al. 2022, Algorithm 1)
now and then goes back up some steps and comes down again, so that the free part can adapt to the
known one. Both are `Rows`, made on the host, and one scan over them.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key

from ddpm_jax.diffusion import randomness, self_conditioning
from ddpm_jax.diffusion.process import Images, Prediction
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.errors import UserError, check_floats, whole_number
from ddpm_jax.samplers import reverse_chain

JUMP_LENGTH = 10  # That of RePaint, and the default.


@flax.struct.dataclass
class Rows:
    """What to do at each of the n network calls, in order; arrays [n] on the host.

    A row denoises from step t, replaces the known part by signal x_0 + noise eps, and goes up
    again to up_signal x + up_noise z (with 1 and 0 it stays).

    Attributes:
        t: int32 index into the schedule.
        signal, noise: float64, the level of x after denoising.
        up_signal, up_noise: float64.
    """

    t: Any
    signal: Any
    noise: Any
    up_signal: Any
    up_noise: Any

    @property
    def num_calls(self) -> int:
        """Network calls per image."""
        return self.t.shape[0]


def visits(num_timesteps: int, jump_length: int, resamplings: int) -> list[tuple[int, int]]:
    """(t to denoise from, steps to go up afterwards) of each call, from T - 1 to 0.

    As in `get_schedule_jump` of RePaint's code, the steps above the first are cut into stretches
    of `jump_length`. Each whole stretch is run `resamplings` times, the other steps once.

    Raises:
        ValueError: resamplings or jump_length is no whole number from 1 on.
    """
    resamplings = whole_number("resamplings", resamplings, low=1)
    jump_length = whole_number("jump_length", jump_length, low=1)
    left = dict.fromkeys(range(1, num_timesteps - jump_length + 1, jump_length), resamplings - 1)
    calls, steps = [], num_timesteps
    while steps:
        steps -= 1
        up = jump_length if left.get(steps) else 0
        calls.append((steps, up))
        if up:
            left[steps] -= 1
            steps += up
    return calls


def repaint(
    schedule: Schedule, *, jump_length: int = JUMP_LENGTH, resamplings: int = 1
) -> Rows:
    """The rows of RePaint on a schedule; with one resampling, those of plain replacement.

    RePaint itself has 250 steps, jump_length=10 and resamplings=10, which makes 2,410 calls.

    Args:
        schedule: of the chain, respaced or not, as host arrays.
        jump_length: steps in a stretch, which are noised and denoised again together.
        resamplings: number of runs through each stretch.

    Raises:
        ValueError: resamplings or jump_length is no whole number from 1 on, or has no effect.
    """
    rows = visits(schedule.num_timesteps, jump_length, resamplings)
    _check_effect(schedule.num_timesteps, jump_length, resamplings)
    t, up = np.array(rows).T
    alpha_bar = np.append(1.0, np.asarray(schedule.alpha_bar, np.float64))  # By noising steps.
    ratio = alpha_bar[t + up] / alpha_bar[t]
    return Rows(
        t=np.int32(t), signal=np.sqrt(alpha_bar[t]), noise=np.sqrt(1 - alpha_bar[t]),
        up_signal=np.sqrt(ratio), up_noise=np.sqrt(1 - ratio),
    )


def _check_effect(num_timesteps, jump_length, resamplings):
    if resamplings > 1 and jump_length >= num_timesteps:
        shorter = {"jump_length": max(1, num_timesteps // 2)} if num_timesteps > 1 else {}
        raise UserError(
            f"has no effect with {{jump_length}} on a chain of {num_timesteps} steps, which holds "
            "no whole stretch", field="resamplings", value=resamplings,
            given={"jump_length": jump_length}, instead=shorter | {"resamplings": 1},
        )
    if resamplings == 1 and jump_length != JUMP_LENGTH:
        raise UserError(
            "has no effect with {resamplings}, which goes back no step", field="jump_length",
            value=jump_length, given={"resamplings": resamplings},
            instead={"resamplings": 10, "jump_length": JUMP_LENGTH},
        )


def inpaint(
    rows: Rows,
    predict_fn: Callable[..., Prediction],
    x_T: Images,
    rngs: Key[Array, " b"],
    known: Images,
    hold: Callable[[Array, Array], Array],
    *,
    self_condition: bool = False,
    on_step: Callable[[Array], None] | None = None,
) -> Images:
    """Draws x_0 whose known part is that of `known`.

    Args:
        rows: of `repaint`; the scan calls the network once per row.
        predict_fn: (x_t, t [b] int32) -> Prediction, on the schedule of the rows; its mean and
            variance are those of the reverse step (`ddim.ddim_fn` for DDIM).
        x_T: [b, h, w, c] standard normal.
        rngs: [b] keys; image i draws the noises of row k from `fold_in(rngs[i], k)`.
        known: the given images; only their known part is read.
        hold: (known, x) -> x with the known part replaced, for example `masked(mask)` or `grey`.
        self_condition: `predict_fn` also takes the x_0 of the last row, zeros at the start.
        on_step: called inside the scan with the number of the row; for progress reports.

    Returns:
        x_0, whose known part equals that of `known` exactly.
    """
    check_floats(x_T=x_T, known=known)

    def step(carry, row):
        (x_t, last), (k, row) = carry, row
        if on_step is not None:
            on_step(k)
        rngs_row = randomness.fold_each(rngs, k)
        z, eps, up = (
            randomness.fold_each(rngs_row, use)
            for use in (randomness.REVERSE, randomness.KNOWN, randomness.UP)
        )
        prediction = predict_fn(x_t, jnp.full(x_t.shape[:1], row.t), *last)
        x = reverse_chain.reverse_step(prediction, row.t, z)
        noised = row.signal * known + row.noise * randomness.standard_normal(eps, x.shape[1:])
        x = hold(noised, x)
        x = row.up_signal * x + row.up_noise * randomness.standard_normal(up, x.shape[1:])
        return (x, self_conditioning.after(prediction.x_0, last)), None

    rows = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.int32 if x.dtype == np.int32 else jnp.float32), rows
    )
    places = jnp.arange(rows.num_calls, dtype=jnp.int32)
    x_T = jnp.asarray(x_T)
    last = self_conditioning.nothing(x_T, self_condition)
    return jax.lax.scan(step, (x_T, last), (places, rows))[0][0]


def masked(mask: Bool[Array | np.ndarray, "b h w 1"]) -> Callable[[Array, Array], Array]:
    """A `hold` that keeps the pixels where the mask is True, in all channels."""
    return lambda known, x: jnp.where(mask, known, x)


def grey(known: Array, x: Array) -> Array:
    """A `hold` that keeps the mean of the channels; how they differ from it, the colour, is free.

    In an orthonormal basis of the channels whose first axis is grey, (1, ..., 1) / sqrt(c),
    this replaces the first coordinate (Song et al. 2021, score SDE, Appendix I.3).
    """
    return x + jnp.mean(known - x, axis=-1, keepdims=True)
