"""A schedule made of another: for images of another size, or with nothing of x_0 at its end."""

import numpy as np

from ddpm_jax import errors
from ddpm_jax.diffusion.schedule import Schedule, from_betas
from ddpm_jax.errors import UserError


def shifted(schedule: Schedule, size: int, *, base: int = 64) -> Schedule:
    """The schedule for images of another size: log-SNR moved by 2 log(base / size) at every step.

    Larger images hide less of what they show under the same noise, because neighbouring pixels
    agree (Hoogeboom, Heek and Salimans 2023, Sec. 3.1).

    Args:
        schedule: one that suits images of `base` pixels a side.
        size: pixels a side of the images.
        base: of the schedule.

    Raises:
        UserError: a size is less than 1.
    """
    size, base = errors.whole_number("size", size, low=1), errors.whole_number("base", base, low=1)
    odds = (base / size) ** 2 * schedule.alpha_bar / (1 - schedule.alpha_bar)  # The SNR.
    alpha_bar = odds / (1 + odds)
    return _of_alpha_bar(alpha_bar)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """The schedule with nothing of x_0 left at its last step (Lin et al. 2024, Algorithm 1).

    sqrt(alpha_bar) is moved down to 0 at the end and stretched to what it was at the start. It
    needs a network that predicts x_0 or v, and a chain that visits the last step: `steps.trailing`,
    or all.

    Raises:
        UserError: there is one step alone.
    """
    if schedule.num_timesteps < 2:
        raise UserError(
            "needs two steps or more, and this schedule has one", field="num_timesteps", value=1,
            instead={"num_timesteps": 1000},
        )
    first, *_, last = signal = schedule.sqrt_alpha_bar
    alpha_bar = ((signal - last) * first / (first - last)) ** 2
    return _of_alpha_bar(alpha_bar)


def _of_alpha_bar(alpha_bar: np.ndarray) -> Schedule:
    return from_betas(1 - alpha_bar / np.append(1.0, alpha_bar[:-1]))
