"""Several draws per condition: the mean is the estimate, the spread its uncertainty."""

import dataclasses

import numpy as np

from ddpm_jax.workdir import pictures


@dataclasses.dataclass(frozen=True)
class Summary:
    """The draws of each of n conditions compared with the truth, in grey levels 0..255.

    Attributes:
        mean: float64 [n, h, w, c] over the draws.
        disagreement: float64 [n, h, w, c], the standard deviation over the draws.
        error: [n] root mean squared error of the mean.
        single_error: [n] root mean squared error of a single draw, over all draws.
        dice: [n] Dice coefficient of the mean, thresholded at half intensity, and the truth:
            twice the shared area over the sum of the areas (1 if both are empty). None unless the
            truth is black and white.
    """

    mean: np.ndarray
    disagreement: np.ndarray
    error: np.ndarray
    single_error: np.ndarray
    dice: np.ndarray | None


def summarize(draws: np.ndarray, truth: np.ndarray) -> Summary:
    """Compares draws with the truth.

    Args:
        draws: uint8 [n, k, h, w, c], k >= 2 draws per condition.
        truth: uint8 [n, h, w, c].
    """
    values = draws.astype(np.float64)
    mean = values.mean(axis=1)
    pixels = (-3, -2, -1)
    error = np.sqrt(np.square(mean - truth).mean(axis=pixels))
    single_error = np.sqrt(np.square(values - truth[:, None]).mean(axis=(1, *pixels)))
    dice = None
    if np.isin(truth, (0, 255)).all():
        predicted, actual = mean >= 127.5, truth == 255
        areas = predicted.sum(axis=pixels) + actual.sum(axis=pixels)
        shared = (predicted & actual).sum(axis=pixels)
        dice = np.where(areas, 2 * shared / np.maximum(areas, 1), 1.0)
    return Summary(mean, values.std(axis=1, ddof=1), error, single_error, dice)


def picture(
    condition: np.ndarray, draws: np.ndarray, summary: Summary, truth: np.ndarray, shown: int = 4
) -> np.ndarray:
    """A grid with a row per condition: condition, draws, mean, disagreement and truth.

    A pixel of the disagreement is white from 127.5 on.

    Args:
        condition: uint8 [n, h, w, k]; as many of its channels as the truth has are shown.
        draws: uint8 [n, >= shown, h, w, c].
        summary: of these draws.
        truth: uint8 [n, h, w, c].
        shown: how many draws.
    """
    c = truth.shape[-1]
    condition = condition[..., np.minimum(np.arange(c), condition.shape[-1] - 1)]
    mean = np.round(summary.mean).astype(np.uint8)
    disagreement = np.round(np.minimum(2 * summary.disagreement, 255)).astype(np.uint8)
    columns = [condition, *draws[:, :shown].swapaxes(0, 1), mean, disagreement, truth]
    tiles = np.stack(columns, axis=1)
    return pictures.grid(tiles.reshape(-1, *truth.shape[1:]), columns=len(columns))
