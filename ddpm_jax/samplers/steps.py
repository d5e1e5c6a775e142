"""Which steps a short chain visits.

Each choice is an increasing array of distinct int64 indices into the full schedule, code index
t in 0..T-1, for `schedule.respace`; NumPy on the host.
"""

from collections.abc import Sequence

import numpy as np

from ddpm_jax import errors
from ddpm_jax.diffusion.schedule import check_num_steps, evenly_spaced
from ddpm_jax.errors import UserError


def uniform(num_timesteps: int, num_steps: int) -> np.ndarray:
    """Evenly spaced steps, both ends among them, as `schedule.evenly_spaced` gives them."""
    return evenly_spaced(num_timesteps, num_steps)


def quadratic(num_timesteps: int, num_steps: int) -> np.ndarray:
    """Steps from 0 to 0.8 T, dense near the data (Song, Meng and Ermon 2021, Appendix D.2).

    They are the squares, rounded down, of `num_steps` evenly spaced points in 0..sqrt(0.8 T), as
    in the authors' code. Duplicates are dropped, so the chain may be shorter: 50 of 1000 leave
    49. One step alone is the last of them.

    Raises:
        ValueError: num_steps is not in 1..T.
    """
    check_num_steps(num_timesteps, num_steps)
    end = np.sqrt(0.8 * num_timesteps)
    roots = np.linspace(0, end, num_steps) if num_steps > 1 else np.array([end])
    return np.unique(np.square(roots).astype(np.int64))


def trailing(num_timesteps: int, num_steps: int) -> np.ndarray:
    """Evenly spaced steps that end at T - 1: 99, 199, ..., 999 for 10 of 1000.

    Lin et al. 2024 recommend this spacing (Common Diffusion Noise Schedules and Sample Steps are
    Flawed, Table 2).

    Raises:
        ValueError: num_steps is not in 1..T.
    """
    check_num_steps(num_timesteps, num_steps)
    ends = num_timesteps * np.arange(1, num_steps + 1) / num_steps
    return np.round(ends).astype(np.int64) - 1


def sections(num_timesteps: int, counts: str | Sequence[int]) -> np.ndarray:
    """Evenly spaced steps within each of equal sections (code of Nichol and Dhariwal 2021).

    The T steps are cut into one section per count; where T does not divide, the first sections
    are longer by one. From each section its count of steps is taken, both of its ends among them;
    a count of 1 takes the first.

    Args:
        num_timesteps: T, at least 1.
        counts: for example [10, 10, 20] or "10,10,20"; or "ddim50", every k-th step from 0, with
            the smallest whole k that leaves 50 of them.

    Raises:
        ValueError: the counts cannot be read or do not fit the sections, or there is no such k.
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
            f"must be 1 to {num_timesteps} whole numbers, the steps of each section, for example "
            "'10,10,20', or one like 'ddim50'.", field="grid", value=counts,
        )
    chosen, start = [], 0
    shortest, longer = divmod(num_timesteps, len(numbers))
    for i, count in enumerate(numbers):
        size = shortest + 1 if i < longer else shortest
        if not 1 <= count <= size:
            raise UserError(
                f"asks for {count} steps of section {i + 1}, which has {size}; write a count in "
                f"1..{size} there.", field="grid", value=counts,
            )
        # Strides are added one by one, as in the authors' code, so that halves round as there.
        stride = (size - 1) / max(count - 1, 1)
        places = np.cumsum(np.append(0.0, np.full(count - 1, stride)))
        chosen.append(start + np.round(places).astype(np.int64))
        start += size
    return np.concatenate(chosen)


def _strided(num_timesteps: int, name: str) -> np.ndarray:
    """Every k-th step from 0, for the smallest k that gives the number in `name`."""
    wanted = name.removeprefix("ddim")
    for stride in range(1, max(num_timesteps, 2)):
        steps = np.arange(0, num_timesteps, stride)
        if str(steps.size) == wanted:
            return steps
    raise UserError(
        f"cannot be: no whole stride visits {wanted or 'so many'} of {num_timesteps} steps; write "
        "the counts instead, for example '50'.", field="grid", value=name,
    )


def given(num_timesteps: int, steps: Sequence[int] | np.ndarray) -> np.ndarray:
    """The given steps as int64, checked.

    Raises:
        ValueError: there are none, or they are not whole, leave 0..T-1 or do not increase.
    """
    steps = errors.whole_numbers("grid", steps)
    pairs = zip((-1, *steps), (*steps, num_timesteps))
    if not steps or any(later <= step for step, later in pairs):
        raise UserError(
            f"must be one or more whole numbers that increase within 0..{num_timesteps - 1}",
            field="grid", value=list(steps), instead={"grid": [num_timesteps - 1]},
        )
    return np.array(steps, np.int64)


NAMED = {"uniform": uniform, "quadratic": quadratic, "trailing": trailing}


def named(
    name: str | Sequence[int] | np.ndarray, num_timesteps: int, num_steps: int | None = None
) -> np.ndarray:
    """The steps of a grid.

    Args:
        name: a key of `NAMED`; or section counts, for example "10,10,20" or "ddim50"; or the
            steps themselves.
        num_timesteps: T, at least 1.
        num_steps: the number of steps, for a key of `NAMED`; None is all T. The other grids have
            a number of their own, and it must be that or None.

    Raises:
        ValueError: the name is unknown, or as the function of that grid does.
    """
    if isinstance(name, str) and name in NAMED:
        return NAMED[name](num_timesteps, num_timesteps if num_steps is None else num_steps)
    if isinstance(name, str) and not name.startswith("ddim") and not name[:1].isdigit():
        raise UserError(
            f"is not known; use one of {', '.join(NAMED)}, section counts, for example "
            "'10,10,20' or 'ddim50', or a list of steps.", field="grid", value=name,
        )
    read = sections if isinstance(name, str) else given
    steps = read(num_timesteps, name)
    if num_steps not in (None, steps.size):
        raise UserError(
            f"does not go with {{grid}}, which has {steps.size} steps", field="num_steps",
            value=num_steps, given={"grid": name}, instead={"num_steps": steps.size},
        )
    return steps


def below(
    name: str | Sequence[int] | np.ndarray,
    num_timesteps: int,
    t: int,
    num_steps: int | None = None,
) -> np.ndarray:
    """The steps of a chain that starts from images noised t times; the last is t - 1.

    The steps of a key of `NAMED` are spread over the t steps, as over all of them in `named`. Of
    other grids those below t are visited, after t - 1.

    Args:
        name: as of `named`.
        num_timesteps: T.
        t: number of noising steps, 1..T.
        num_steps: as of `named`; all t steps where it is more than t.

    Raises:
        ValueError: no step of the grid is below t, or as `named` does.
    """
    if isinstance(name, str) and name in NAMED:
        steps = named(name, t, None if num_steps is None else min(num_steps, t))
        steps[-1] = t - 1  # "quadratic" ends at 0.8 t.
        return steps
    steps = named(name, num_timesteps, num_steps)
    left = steps[steps < t]
    if not left.size:
        raise UserError(
            f"has no step below t={t}, where this chain starts: its first is {steps[0]}; write "
            "another grid, for example {instead}, or start later.", field="grid", value=name,
            instead={"grid": "uniform"},
        )
    return left if left[-1] == t - 1 else np.append(left, t - 1)
