"""The image sets that an evaluation reads, opened when they are needed and known by their content.

    sets = Sets()
    images = sets.reference("train", image_shape=(32, 32, 3), data_settings={"name": "cifar10"})
    images.digest, len(images.open())
"""

import dataclasses
import json
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ddpm_jax.data import decoding, loading, pixels
from ddpm_jax.data.kept import Kept
from ddpm_jax.data.source import Source, spread
from ddpm_jax.errors import UserError, shown
from ddpm_jax.evaluation import identity, references
from ddpm_jax.runtime import files, parallel


class Content(NamedTuple):
    """What a set holds.

    Attributes:
        digest: of its images (`identity.of_images`).
        size: number of images.
        image_shape: (h, w, c) of each.
    """

    digest: str
    size: int
    image_shape: tuple[int, int, int]


class Sets:
    """The image sets that were opened, with their digests.

    At most one of the sets that are held in memory is kept. A set that has to be opened again is
    hashed again, because its files may have changed. Of several processes each has to make every
    call; the first hashes.
    """

    def __init__(self):
        self._opened, self._contents = {}, {}

    def open(self, num_images: int = 0, **request: Any) -> Source | None:
        """The images of a request; None for a split that the data do not have.

        Args:
            num_images: so many of them, evenly spaced; 0 is all of them.
            **request: arguments of `loading.load`, or `npz=`, the path of a reference batch, with
                `channels=`.

        Raises:
            ValueError: there are no such images.
        """
        key = _key(request)
        if key not in self._opened:
            self._opened = {
                other: source for other, source in self._opened.items()
                if source is None or not source.in_memory
            }
            self._opened[key] = _load(**request)
            self._contents = {
                other: content for other, content in self._contents.items() if other[0] != key
            }
        source = self._opened[key]
        if source is None or not num_images or num_images >= len(source):
            return source
        return source.select(spread(0, len(source) - 1, num_images))

    def content(self, num_images: int = 0, inputs: bool = False, **request: Any) -> Content | None:
        """What `open` gives, by its digest; opens the set only if it is not known.

        Args:
            num_images, **request: as of `open`.
            inputs: whether labels and conditions are part of the digest.
        """
        key = (_key(request), num_images, inputs)
        if key not in self._contents:
            source = self.open(num_images, **request)
            self._contents[key] = None if source is None else Content(
                parallel.from_first(lambda: identity.of_images(source, inputs=inputs)),
                len(source), tuple(source.image_shape),
            )
        return self._contents[key]

    def reference(
        self,
        name: str,
        *,
        image_shape: tuple[int, int, int],
        data_settings: dict[str, Any],
        channels: int = 3,
    ) -> "Images | str":
        """The images that samples are compared with, or the digest of a file of statistics.

        Args:
            name: "train" or "test", a split of the run's data; a folder of pictures; or an `.npz`
                with statistics or with a reference batch of ADM, whose images count.
            image_shape: (h, w, c) of the samples; images of another size are refused.
            data_settings: arguments of `loading.load`, for "train" and "test".
            channels: convert a folder's pictures and a batch to so many.

        Raises:
            ValueError: there is no such split, folder or file, or it does not fit.
        """
        if name in ("train", "test"):
            request = {**data_settings, "split": name}
            origin = {"data": data_settings["name"], "split": name}
        elif str(name).endswith(".npz") and files.path(name).exists():
            if references.load(name).images is None:
                return parallel.from_first(lambda: identity.of_file(name))
            request = {"npz": str(name), "channels": channels}
            origin = {"file": epath.Path(name).name}
        else:
            _check_folder(str(name))
            request = {  # All of it, also where it has a folder for each split.
                "name": "image_folder", "data_dir": str(name), "channels": channels,
                "named": _named(name), "kept": Kept(held_out={}),
            }
            origin = {"folder": epath.Path(name).name}
        content = self.content(**request)
        if content is None:
            raise UserError(
                "config.evaluate.references has 'test', and config.data.name="
                f"{data_settings['name']!r} has no test split; use "
                "--config.evaluate.references=\"('train',)\"."
            )
        _check(name, content, image_shape)
        return Images(self, request, origin, content)


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of a reference.

    Attributes:
        sets: what opens them.
        request: arguments of `Sets.open`.
        origin: where they come from, for provenance.
        content: what they are.
    """

    sets: Sets
    request: dict[str, Any]
    origin: dict[str, str]
    content: Content

    def open(self) -> Source:
        """The images, uint8."""
        return pixels.as_pictures(self.sets.open(**self.request))


def _key(request: dict[str, Any]) -> str:
    return json.dumps(request, sort_keys=True, default=repr)


def _load(npz: str = "", channels: int = 0, **request: Any) -> Source | None:
    if not npz:
        return loading.load(channels=channels, **request)
    images = np.concatenate(list(references.image_batches(npz, 1024)))
    return decoding.converted_source(images, (0, 0, channels))


def _check_folder(name):
    """Raises UserError unless there is a folder of this name."""
    problem = ""
    if not name or not files.path(name).exists():
        problem = "does not exist"
    elif not files.path(name).is_dir():
        problem = "is neither a folder nor an .npz"
    if problem:
        raise UserError(
            f"{_named(name)}, which {problem}; name 'train', 'test', a folder of pictures or an "
            ".npz."
        )


def _check(name, content, image_shape):
    height, width, _ = content.image_shape
    if (height, width) != tuple(image_shape[:2]):
        raise UserError(
            f"{_named(name)}, which has images of {height}x{width}, and the samples are "
            f"{image_shape[0]}x{image_shape[1]}; samples are compared with images of one size: "
            "resize the reference first."
        )
    if content.size < 2:
        raise UserError(
            f"{_named(name)}, which holds one image; samples are compared with at least 2: add "
            "more, or name another reference."
        )


def _named(name):
    return f"config.evaluate.references has {shown(str(name))}"
