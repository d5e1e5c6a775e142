"""Several draws for one condition: their mean is an answer, where they differ it is unsure."""

import dataclasses

import numpy as np

from ddpm_jax.workdir import pictures


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the draws of n conditions are together, against the truth; grey levels 0..255.

    Attributes:
        mean: float64 [n, h, w, c] over the draws.
        disagreement: float64 [n, h, w, c], the standard deviation over the draws.
        error: [n] root mean squared error of the mean.
        single_error: [n] that of one draw, the root of the mean square over all of them.
        dice: [n] Dice coefficient of the mean, at half intensity, and the truth: twice the
            shared area over the sum of areas (1 where both are empty); None unless the truth
            is black and white.
    """

    mean: np.ndarray
    disagreement: np.ndarray
    error: np.ndarray
    single_error: np.ndarray
    dice: np.ndarray | None


def summary(draws: np.ndarray, truth: np.ndarray) -> Summary:
    """Compares draws with the truth.

    Args:
        draws: uint8 [n, k, h, w, c], at least two of each.
        truth: uint8 [n, h, w, c].
    """
    values = draws.astype(np.float64)
    mean = values.mean(axis=1)
    pixels = (-3, -2, -1)
    error = np.sqrt(np.square(mean - truth).mean(axis=pixels))
    single = np.sqrt(np.square(values - truth[:, None]).mean(axis=(1, *pixels)))
    dice = None
    if np.isin(truth, (0, 255)).all():
        found, wanted = mean >= 127.5, truth == 255
        areas = found.sum(axis=pixels) + wanted.sum(axis=pixels)
        shared = (found & wanted).sum(axis=pixels)
        dice = np.where(areas, 2 * shared / np.maximum(areas, 1), 1.0)
    return Summary(mean, values.std(axis=1, ddof=1), error, single, dice)


def picture(
    condition: np.ndarray, draws: np.ndarray, found: Summary, truth: np.ndarray, shown: int = 4
) -> np.ndarray:
    """Rows of condition, draws, mean, disagreement (white: 127.5 and more) and truth.

    Args:
        condition: uint8 [n, h, w, k]; as many of its channels as the truth has are shown.
        draws: uint8 [n, >= shown, h, w, c].
        found: of these draws.
        truth: uint8 [n, h, w, c].
        shown: how many draws.
    """
    c = truth.shape[-1]
    condition = condition[..., np.minimum(np.arange(c), condition.shape[-1] - 1)]
    mean = np.round(found.mean).astype(np.uint8)
    disagreement = np.round(np.minimum(2 * found.disagreement, 255)).astype(np.uint8)
    columns = [condition, *draws[:, :shown].swapaxes(0, 1), mean, disagreement, truth]
    tiles = np.stack(columns, axis=1)
    return pictures.grid(tiles.reshape(-1, *truth.shape[1:]), columns=len(columns))
