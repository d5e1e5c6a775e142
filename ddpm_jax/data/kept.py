"""`Kept`: what a run keeps of its data, so that it finds the same classes and images again."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ddpm_jax.data.labels import Value, listed, shortened
from ddpm_jax.data.source import Source
from ddpm_jax.errors import UserError


class OtherImagesError(UserError):
    """The images that a run keeps from training are not among these data."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """How a run read its data when it began; without arguments, as versions without it did.

    Attributes:
        classes: the label of each class; () without labels, and in runs of older versions.
        class_counts: images of each class to train on.
        num_classes: of a run of an older version, whose labels are classes as they are.
        split_folders: whether folders called train, test and the like were the splits.
        held_out: a fingerprint of each image kept from training, by its name, but for those of a
            test split that no setting changes; None where the seed decides, as in older versions.
    """

    classes: tuple[Value, ...] = ()
    class_counts: tuple[int, ...] = ()
    num_classes: int = 0
    split_folders: bool = False
    held_out: Mapping[str, str] | None = None

    def find(self, names: Sequence[str], where: str) -> np.ndarray:
        """The places of the images kept from training, int64, among those of these names.

        Args:
            names: of all images.
            where: the data in messages.

        Raises:
            UserError: one of them is not there.
        """
        place = {name: i for i, name in enumerate(names)}
        self._refuse([name for name in self.held_out if name not in place], "are gone", where)
        return np.array([place[name] for name in self.held_out], np.int64)

    def check(self, test: Source | None, where: str) -> None:
        """Raises UserError unless these are the images that the run keeps from training.

        Args:
            test: the test split.
            where: the data in messages.
        """
        if self.held_out:
            found = {} if test is None else test.fingerprints()
            self._refuse(
                [name for name, value in self.held_out.items() if found.get(name) != value],
                "are not what they were when it began", where,
            )

    def _refuse(self, names, what, where):
        if names:
            raise OtherImagesError(
                f"{where}: {len(names)} of the {len(self.held_out)} images that the run keeps from "
                f"training {what} ({listed(map(shortened, names))}); put them back, or train in a "
                "new --workdir."
            )


def of(source: Source, held_out: Source | None, holdout: int) -> Kept:
    """What a run keeps that trains on `source`, with `held_out` kept from training.

    Args:
        source, held_out: the splits; a kind of data set without fingerprints keeps no images.
        holdout: images to set aside, as the user set it.
    """
    fingerprints = {} if held_out is None else held_out.fingerprints()
    if holdout and held_out is not None and len(held_out) == holdout and not fingerprints:
        fingerprints = None
    return Kept(
        classes=source.classes, class_counts=source.class_counts,
        split_folders=bool(source.split_folders), held_out=fingerprints,
    )
