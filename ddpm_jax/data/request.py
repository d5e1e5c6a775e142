"""`Request`: what `loading.load` asks of a data set."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ddpm_jax.data.kept import Kept
from ddpm_jax.data.value_range import Range
from ddpm_jax.errors import UserError, shown


@dataclasses.dataclass(frozen=True)
class Request:
    """One split of a data set, and the form in which it is wanted.

    Attributes:
        name: of the data set, for example "npz" or "cifar10:3.0.2".
        data_dir: its folder or file; "" if none was given.
        split: "train" or "test".
        shape: (height, width, channels) of the images; a 0 keeps that of the data.
        holdout: how many images are set aside as "test" if the set has no test split.
        seed: chooses those images.
        labels: whether the images come with labels.
        num_classes: of the labels, as the user set it; 0: the data decide.
        vectors: which numbers they come with: arrays, columns or features of the data.
        stored_condition: whether they come with the images that are stored beside them.
        image_column, label_column: of "hf"; "": the first of the kind.
        value_range: (low, high) of pixels that are not uint8; () for uint8.
        named: the data in messages; "" for config.data.dir.
        kept: of the run that reads the data; None for a new run, and outside of runs.
    """

    name: str
    data_dir: str
    split: str
    shape: tuple[int, int, int] = (0, 0, 0)
    holdout: int = 0
    seed: int = 0
    labels: bool = False
    num_classes: int = 0
    vectors: tuple[str, ...] = ()
    stored_condition: bool = False
    image_column: str = ""
    label_column: str = ""
    value_range: Range = ()
    named: str = ""
    kept: Kept | None = None

    @property
    def where(self) -> str:
        """The data in messages."""
        return self.named or f"config.data.dir={shown(self.data_dir)}"

    @property
    def origin(self) -> str:
        """As `where`, but data without a folder or file by their name."""
        by_name = not (self.named or self.data_dir)
        return f"config.data.name={shown(self.name)}" if by_name else self.where

    def part(self, n: int, names: Sequence[str] = ()) -> np.ndarray:
        """Which of n images without a test split are in `split`, int64 indices in order.

        Args:
            n: number of images.
            names: what they are called; by default by their number, from 0.

        Raises:
            UserError: all n would be set aside, or an image that the run has set aside is gone.
        """
        if self.kept is not None and self.kept.held_out is not None:
            chosen = self._kept_from_training(names or list(map(str, range(n))))
        else:
            # RandomState, because its permutations are promised never to change.
            chosen = np.random.RandomState(self.seed).permutation(n)[:self.holdout]
        if len(chosen) >= n:
            raise UserError(
                f"config.data.holdout={len(chosen)}: must leave some of the {n} images for "
                f"training; try --config.data.holdout={n // 10}."
            )
        chosen = np.sort(chosen)
        return chosen if self.split == "test" else np.delete(np.arange(n), chosen)

    def _kept_from_training(self, names):
        """The places of the images that the run has set aside."""
        size = len(self.kept.held_out)
        if self.holdout not in (0, size):
            raise UserError(
                f"is not the {size} images that the run keeps from training since it began",
                field="config.data.holdout", value=self.holdout,
                instead={"config.data.holdout": size},
            )
        return self.kept.find(names, self.origin)
