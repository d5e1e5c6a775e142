"""Images from an .npz file, with labels, vectors or conditions beside them."""

import contextlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ddpm_jax.data import decoding, labels, raw_pictures
from ddpm_jax.data import source as source_lib
from ddpm_jax.data.request import Request
from ddpm_jax.data.source import Source
from ddpm_jax.errors import UserError, one_line, shown
from ddpm_jax.runtime import files

_OTHER_KINDS = {  # By how such a file begins: what it is, and how to read its images.
    b"\x93NUMPY": (" but an .npy file", "np.load(PATH)"),
    b"MATLAB 5": (" but a MATLAB file", "scipy.io.loadmat(PATH)['X'].transpose(3, 0, 1, 2)"),
    b"\x89HDF": (" but an HDF5 file", "h5py.File(PATH)['images'][:]"),
    b"\x80": (" but a pickle", "images"),
    b"version https://git-lfs": (" but a pointer of Git LFS, whose file is not there", "images"),
    b"PK": (", or one that is cut short", "images"),
}


def load(request: Request) -> Source | None:
    """The images of an .npz file; None if there is no test split and none is set aside.

    "train", "images", "arr_0" or the only array are the images to train on, "test" those of the
    test split. KEY_labels, or labels, are the labels of the images KEY (see `labels.read`), and
    arr_1 may be those of arr_0; likewise with condition, and with each name of vectors. class_names
    are the names of the labels 0, 1, ... in order.

    Raises:
        UserError: it is no such file, or it has no such arrays.
    """
    with _opened(request) as file:
        train = file.train_key()
        has_test = "test" in file.keys and train != "test"
        key = "test" if has_test and request.split == "test" else train
        arrays = {"images": file.images(key)}
        n = len(arrays["images"])
        if request.labels:
            arrays["labels"] = file.beside(key, "labels", n)
            # The classes are those of training.
            trained = arrays["labels"] if key == train else file.beside(train, "labels")
            classes = labels.read(trained, len(trained), f"{request.where} {train}_labels")[1]
            labels.check_number(classes, request.num_classes, f"{request.where} {train}_labels")
            names = file.class_names(classes)
        if request.stored_condition:
            arrays["condition"] = file.beside(key, "condition", n)
        vectors = {kind: file.beside(key, kind, n) for kind in request.vectors}
    if not has_test:
        chosen = request.part(n)
        arrays = {name: array[chosen] for name, array in arrays.items()}
        vectors = {name: array[chosen] for name, array in vectors.items()}
    if not len(arrays["images"]):
        return None
    name = f"config.data.dir={request.data_dir!r} {key}"
    if request.value_range:
        source = raw_pictures.converted_source(
            arrays["images"], request.shape, request.value_range, name
        )
    else:
        source = decoding.converted_source(arrays["images"], request.shape)
    if request.labels:
        source = source.with_labels(
            arrays["labels"], name=f"{name}_labels", classes=classes, names=names
        )
    source = source.with_vectors({f"{name}_{kind}": v for kind, v in vectors.items()})
    if request.stored_condition:
        size = arrays["images"].shape[:3]
        source = _with_condition(source, arrays["condition"], f"{name}_condition", size)
    if not has_test and request.split == "test":
        source = source.with_fingerprints(chosen, lambda i: arrays["images"][i].tobytes())
    return source


def _with_condition(source, condition, name, size):
    """The source with an array uint8 [n, h, w, k] beside it, resized to its images.

    Args:
        source: the images, resized.
        condition: the array.
        name: of it in messages.
        size: (n, h, w) of the images as they are stored.
    """
    source_lib.in_memory(condition, name, size)
    planes = [  # One by one, because there may be any number of channels.
        decoding.converted_source(plane[..., None], (*source.image_shape[:2], 1))
        for plane in np.moveaxis(condition, -1, 0)
    ]

    def read(indices):
        return np.concatenate([plane.read(indices) for plane in planes], axis=-1)

    return source.with_condition(read, len(planes))


class _File:
    """An open .npz file; its errors name it.

    Attributes:
        keys: the names of its arrays.
    """

    def __init__(self, arrays: Any, request: Request):
        self.keys = arrays.files
        self._arrays, self._name = arrays, f"config.data.dir={shown(request.data_dir)}"
        self._value_range = request.value_range
        self._vectors = request.vectors

    def train_key(self) -> str:
        """The name of the images to train on."""
        single = [
            key for key in self.keys if not key.endswith(("labels", "condition", "class_names"))
            and not any(key == name or key.endswith(f"_{name}") for name in self._vectors)
        ]
        known = [key for key in ("train", "images", "arr_0") if key in self.keys]
        if not known and len(single) != 1:
            raise UserError(
                f"{self._name}: holds {shown(self.keys)}, none called 'train'; write "
                "np.savez('images.npz', train=np.load(PATH)[KEY]), with the KEY of the images."
            )
        return (known or single)[0]

    def images(self, key: str) -> np.ndarray:
        """The images [n, h, w, c] of that name, of another dtype than uint8 with a range."""
        images = self._array(key)
        source_lib.in_memory(images, f"{self._name} {key!r}", value_range=self._value_range)
        return images

    def beside(self, key: str, kind: str, rows: int | None = None) -> np.ndarray:
        """The array "labels", say, of the images `key`, with this many rows if given."""
        names = [f"{key}_{kind}", kind]
        if (key, kind) == ("arr_0", "labels"):
            names.append("arr_1")  # In the files of guided diffusion and of `--mode=sample`.
        stored = next((name for name in names if name in self.keys), None)
        array = np.empty(0) if stored is None else np.atleast_1d(self._array(stored))
        if not len(array):
            shape = {
                "condition": "uint8 [n, h, w, k]", "labels": "a number or a string each"
            }.get(kind, "numbers [n] or [n, k]")
            raise UserError(
                f"{self._name}: has no {key}_{kind}, {shape}, a row for each image; write "
                f"np.savez('images.npz', {key}=images, {key}_{kind}={kind})."
            )
        if rows not in (None, len(array)):
            raise UserError(
                f"{self._name}: has {len(array):,} {stored} for {rows:,} images; write one for "
                "each image, in the same order."
            )
        return array

    def class_names(self, classes: Sequence[labels.Value]) -> list[str]:
        """The names of the labels 0, 1, ...; [] where there are none.

        Args:
            classes: the labels that occur.
        """
        if "class_names" not in self.keys:
            return []
        names = self._array("class_names")
        last = max((label for label in classes if isinstance(label, int)), default=-1)
        if names.dtype.kind not in "US" or names.ndim != 1 or len(names) <= last:
            raise UserError(
                f"{self._name}: class_names is {names.dtype} {list(names.shape)}; give a string "
                f"for each of the labels 0..{last}, or leave it out."
            )
        return [name.decode() if isinstance(name, bytes) else name for name in names.tolist()]

    def _array(self, key):
        try:
            return np.asarray(self._arrays[key])  # Bytes if the zip holds something else.
        except files.NPZ_DAMAGE as error:
            raise UserError(
                f"{self._name}: {key!r} cannot be read ({one_line(error)}); make it again with "
                f"np.savez('images.npz', {key}=array), of plain numbers or strings."
            ) from None


@contextlib.contextmanager
def _opened(request: Request) -> Iterator[_File]:
    data_dir = request.data_dir
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(files.path(data_dir).open("rb"))
            if not zipfile.is_zipfile(file):
                raise zipfile.BadZipFile
            file.seek(0)
            arrays = stack.enter_context(np.load(file, allow_pickle=False))
        except files.NPZ_DAMAGE:
            raise UserError(
                f"config.data.dir={shown(data_dir)}: {_problem(data_dir)}."
            ) from None
        yield _File(arrays, request)


def _problem(data_dir: str) -> str:
    """Why this is no .npz file, and what to do."""
    if not data_dir:
        return "not given; write --config.data.dir=PATH, an .npz file"
    path = files.path(data_dir)
    if not path.exists():
        return "no such file; write --config.data.dir=PATH, an .npz file"
    if path.is_dir():
        return (
            "not an .npz file but a folder; write --config.data.dir=PATH, a file in it, or, if it "
            "has pictures, --config.data.name=image_folder"
        )
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError as error:
        return f"cannot be read ({one_line(error)}); give yourself the right to read it"
    known = (kind for start, kind in _OTHER_KINDS.items() if head.startswith(start))
    kind, images = next(known, ("", "images"))
    return (
        f"not an .npz file{kind}; make one with np.savez('images.npz', train={images}), and "
        "write --config.data.dir=images.npz"
    )
