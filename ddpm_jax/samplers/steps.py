"""Which steps a short chain visits.

Each choice is an increasing array of distinct int64 indices into the full schedule, code index
t in 0..T-1, for `schedule.respace`; NumPy on the host.
"""

from collections.abc import Sequence

import numpy as np

from ddpm_jax.diffusion.schedule import evenly_spaced
from ddpm_jax.errors import UserError


def uniform(num_timesteps: int, num_steps: int) -> np.ndarray:
    """Evenly spread, both ends among them: `schedule.evenly_spaced`."""
    return evenly_spaced(num_timesteps, num_steps)


def quadratic(num_timesteps: int, num_steps: int) -> np.ndarray:
    """Dense near the data, from 0 to 0.8 T (Song, Meng and Ermon 2021, Appendix D.2).

    The whole parts of the squares of `num_steps` even points in 0..sqrt(0.8 T), as in the
    authors' code; those that come twice are dropped, so that the chain may be shorter (50
    of 1000 leave 49). One step alone is the last of them.

    Raises:
        ValueError: num_steps is not in 1..T.
    """
    _check_count(num_timesteps, num_steps)
    end = np.sqrt(0.8 * num_timesteps)
    roots = np.linspace(0, end, num_steps) if num_steps > 1 else np.array([end])
    return np.unique(np.square(roots).astype(np.int64))


def trailing(num_timesteps: int, num_steps: int) -> np.ndarray:
    """Evenly spread and ending at T - 1: 99, 199, ..., 999 for 10 of 1000.

    The spacing that Lin et al. 2024 (Common Diffusion Noise Schedules and Sample Steps are
    Flawed, Table 2) recommend.

    Raises:
        ValueError: num_steps is not in 1..T.
    """
    _check_count(num_timesteps, num_steps)
    ends = num_timesteps * np.arange(1, num_steps + 1) / num_steps
    return np.round(ends).astype(np.int64) - 1


def sections(num_timesteps: int, counts: str | Sequence[int]) -> np.ndarray:
    """Evenly spread in each of equal sections (Nichol and Dhariwal 2021, their code).

    The T steps are cut into as many sections as there are counts, the first ones longer by
    one where T does not divide; each gets its count of steps, both of its ends among them
    (a count of 1 gets its first).

    Args:
        num_timesteps: T, at least 1.
        counts: such as [10, 10, 20] or "10,10,20"; or "ddim50", every k-th step from 0 for
            the smallest whole k that makes 50 of them.

    Raises:
        ValueError: the counts are not such, do not fit the sections, or no k makes them.
    """
    if isinstance(counts, str) and counts.startswith("ddim"):
        return _strided(num_timesteps, counts)
    try:
        parts = counts.split(",") if isinstance(counts, str) else counts
        numbers = [int(str(part)) for part in parts]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= num_timesteps:
        raise UserError(
            f"sections={counts!r} must be 1 to {num_timesteps} whole numbers, the steps of "
            "each section; write such as '10,10,20' or 'ddim50'."
        )
    chosen, start = [], 0
    for i, count in enumerate(numbers):
        size = num_timesteps // len(numbers) + (i < num_timesteps % len(numbers))
        if not 1 <= count <= size:
            raise UserError(
                f"sections={counts!r} asks for {count} steps of section {i + 1}, which has "
                f"{size}; write a count in 1..{size} there."
            )
        # Added up one by one, as in the authors' code, whose halves round this way or that.
        stride = (size - 1) / max(count - 1, 1)
        places = np.cumsum(np.append(0.0, np.full(count - 1, stride)))
        chosen.append(start + np.round(places).astype(np.int64))
        start += size
    return np.concatenate(chosen)


def _strided(num_timesteps: int, name: str) -> np.ndarray:
    wanted = name.removeprefix("ddim")
    for stride in range(1, max(num_timesteps, 2)):
        steps = np.arange(0, num_timesteps, stride)
        if str(steps.size) == wanted:
            return steps
    raise UserError(
        f"sections={name!r} cannot be: no whole stride visits {wanted or 'so many'} of "
        f"{num_timesteps} steps; write the counts instead, such as '50'."
    )


def given(num_timesteps: int, steps: Sequence[int] | np.ndarray) -> np.ndarray:
    """The steps themselves, as int64, once checked.

    Raises:
        ValueError: there is none, or they are not whole, leave 0..T-1 or do not increase.
    """
    steps = np.asarray(steps)
    whole = steps.ndim == 1 and np.issubdtype(steps.dtype, np.integer)
    if not (whole and steps.size) or np.any(np.diff([-1, *steps, num_timesteps]) <= 0):
        raise UserError(
            f"steps={steps.tolist()} must be one or more whole numbers that increase "
            f"within 0..{num_timesteps - 1}; write such as [{num_timesteps - 1}]."
        )
    return steps.astype(np.int64)


NAMED = {"uniform": uniform, "quadratic": quadratic, "trailing": trailing}


def named(
    name: str | Sequence[int] | np.ndarray, num_timesteps: int, num_steps: int | None = None
) -> np.ndarray:
    """The steps that a setting speaks of.

    Args:
        name: a key of `NAMED`; or section counts such as "10,10,20" or "ddim50"; or the
            steps themselves, as a list.
        num_timesteps: T, at least 1.
        num_steps: how many, for those of `NAMED`; None is all T. The others say it
            themselves, and it must be theirs or None.

    Raises:
        ValueError: the name is unknown, or as the function of that grid does.
    """
    if isinstance(name, str) and name in NAMED:
        return NAMED[name](num_timesteps, num_timesteps if num_steps is None else num_steps)
    if not isinstance(name, str):
        steps = given(num_timesteps, name)
    elif name.startswith("ddim") or name[:1].isdigit():
        steps = sections(num_timesteps, name)
    else:
        raise UserError(
            f"grid={name!r} is not known; use one of {', '.join(NAMED)}, section counts "
            "such as '10,10,20' or 'ddim50', or a list of steps."
        )
    if num_steps not in (None, steps.size):
        raise UserError(
            f"grid={name!r} has {steps.size} steps, but num_steps={num_steps}; leave "
            "num_steps out."
        )
    return steps


def _check_count(num_timesteps: int, num_steps: int) -> None:
    if not 1 <= num_steps <= num_timesteps:
        raise UserError(
            f"num_steps={num_steps} must lie in 1..{num_timesteps}, the steps of the "
            f"schedule; write such as num_steps={min(50, num_timesteps)}."
        )
