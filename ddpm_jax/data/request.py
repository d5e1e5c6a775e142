"""`Request`: what `loading.load` asks of a data set."""

import dataclasses

import numpy as np

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
        stored_condition: whether they come with the images that are stored beside them.
        named: the data in messages; "" for config.data.dir.
    """

    name: str
    data_dir: str
    split: str
    shape: tuple[int, int, int] = (0, 0, 0)
    holdout: int = 0
    seed: int = 0
    labels: bool = False
    stored_condition: bool = False
    named: str = ""

    @property
    def where(self) -> str:
        """The data in messages."""
        return self.named or f"config.data.dir={shown(self.data_dir)}"

    def part(self, n: int) -> np.ndarray:
        """Which of n images without a test split are in `split`, int64 indices in order.

        Raises:
            UserError: all n would be set aside.
        """
        if self.holdout >= n:
            raise UserError(
                f"config.data.holdout={self.holdout}: must leave some of the {n} images for "
                f"training; try --config.data.holdout={n // 10}."
            )
        # RandomState, because its permutations are promised never to change.
        order = np.random.RandomState(self.seed).permutation(n)
        return np.sort(order[:self.holdout] if self.split == "test" else order[self.holdout:])
