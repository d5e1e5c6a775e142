"""Folders called train, test, val and the like as the splits of a folder of pictures."""

from collections.abc import Sequence

import numpy as np

from ddpm_jax.data.kept import Kept
from ddpm_jax.data.request import Request

_NAMES = ("train", "test", "val", "valid", "validation")  # In the order in which they are taken.


def find(names: Sequence[str]) -> tuple[str, ...]:
    """The folder "train", that of the test split, and others, if all pictures are in such.

    The test split is in "test", "val", "valid" or "validation", in any case. Of several the first
    is taken, and the others are not used. () where there are other folders or pictures beside
    them, or no "train".

    Args:
        names: of the files, relative to the folder.
    """
    top = {_top(name) for name in names}
    by_split = {folder.lower(): folder for folder in top}
    if "train" not in by_split or len(by_split) < len(top) or not set(by_split) <= set(_NAMES):
        return ()
    return tuple(by_split[split] for split in _NAMES if split in by_split)


def of_run(kept: Kept | None, names: Sequence[str]) -> tuple[str, ...]:
    """The folders of `find` that a run goes by.

    Args:
        kept: what the run keeps of its data; None for a new run.
        names: as of `find`.
    """
    if kept is None:
        return find(names)
    splits = find(names) if kept.split_folders else ()
    set_aside = any(_top(name) in splits[:1] for name in kept.held_out or ())
    return splits[:1] if set_aside else splits  # A test folder that was added is not the run's.


def divide(
    request: Request, names: Sequence[str], splits: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The files to train on, before any are set aside, and those of `request.split`.

    Args:
        request: what is asked for.
        names: of all files.
        splits: of `of_run`.

    Raises:
        UserError: too many would be set aside, or a file that the run keeps is gone.
    """
    def among(folders):
        return [name for name in names if _top(name) in folders]

    trained, tested = (among(splits[:1]), among(splits[1:2])) if splits else (list(names), [])
    if not tested:
        return trained, [trained[i] for i in request.part(len(trained), trained)]
    if request.split == "train":
        return trained, trained
    if request.kept is not None:  # Files that were added since are not of the split.
        tested = [tested[i] for i in np.sort(request.kept.find(tested, request.where))]
    return trained, tested


def _top(name):
    """The first folder on the way to a file; "" where it is in none."""
    folder, slash, _ = name.partition("/")
    return folder if slash else ""
