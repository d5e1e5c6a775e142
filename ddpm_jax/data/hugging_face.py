"""Data sets of Hugging Face `datasets`: one of the hub by its name, or a folder of `save_to_disk`.

They are map-style: an example is read by its index, so that batch k of a run stays a function of
the seed and k.
"""

import concurrent.futures
import io
from typing import Any

import numpy as np

from ddpm_jax.data import decoding, image_folder, raw_pictures
from ddpm_jax.data import labels as labels_lib
from ddpm_jax.data import source as source_lib
from ddpm_jax.data import vectors as vectors_lib
from ddpm_jax.data.request import Request
from ddpm_jax.data.source import Source
from ddpm_jax.errors import UserError, one_line, shown
from ddpm_jax.runtime import files, parallel

GET_DATASETS = 'pip install "ddpm_jax[hf]"'
_TEST_SPLITS = ("test", "validation")
_SAVED = ("dataset_dict.json", "state.json")  # In a folder of `save_to_disk`.


def load(request: Request) -> Source | None:
    """One split of a set; None if it has no test split and none is set aside.

    The split "train", or the only one, is for training; "test", or else "validation", for testing.

    Raises:
        UserError: `datasets` is not installed, the set is not there or cannot be read, or has no
            such column.
    """
    splits = _splits(request)
    train = "train" if "train" in splits else next(iter(splits))
    test = next((name for name in _TEST_SPLITS if name in splits and name != train), None)
    key = test if test and request.split == "test" else train
    rows = np.arange(len(splits[key])) if test else request.part(len(splits[key]))
    if not len(rows):
        return None
    column = _image_column(request, splits[key].features)
    images = _Images(request, splits[key], column)
    source = images.source(rows)
    if request.labels:
        source = _labelled(request, source, splits[train], splits[key], rows)
    source = source.with_vectors(_vectors(request, splits[key], rows))
    if request.split == "test" and not test:
        source = source.with_fingerprints(rows, lambda i: images.pixels(rows[i]).tobytes())
    return source


def _splits(request):
    """The map-style sets by the names of their splits."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"config.data.name='hf': needs the package datasets; {GET_DATASETS}."
        ) from None
    name, folder = request.data_dir, files.path(request.data_dir or ".")
    if not name:
        raise UserError(
            "config.data.dir='': not given; write --config.data.dir=PATH, a folder of "
            "save_to_disk, or --config.data.dir=OWNER/NAME, of the hub."
        )
    saved = any((folder / file).exists() for file in _SAVED)
    if folder.exists() and not saved:
        raise UserError(
            f"{request.where}: no folder of save_to_disk; write datasets.load_dataset(...)"
            f".save_to_disk({shown(name)}), or, if it has pictures, "
            "--config.data.name=image_folder."
        )
    try:
        with parallel.first_goes_ahead():  # The others find what the first downloads.
            found = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except (OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{request.where}: cannot be read ({one_line(error)[:300]}); name a folder of "
            "save_to_disk, or a data set of the hub, OWNER/NAME."
        ) from None
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    splits = {split: rows.with_format(None) for split, rows in splits.items() if len(rows)}
    if not splits:
        raise UserError(f"{request.where}: has no examples; name another data set.")
    return splits


def _image_column(request, features):
    """The name of the column of images; without a setting the first that holds any."""
    column = request.image_column or next(
        (name for name, feature in features.items() if _is_image(feature)), ""
    )
    if column not in features or not _is_image(features[column]):
        known = [name for name, feature in features.items() if _is_image(feature)]
        raise UserError(
            f"is no column of images of {request.where}, whose columns are "
            f"{shown(list(features))}; "
            + (f"write --config.data.image_column={known[0]}." if known else
               "name another data set."),
            field="config.data.image_column", value=request.image_column,
        )
    return column


def _is_image(feature):
    """Whether a column holds pictures, or arrays [h, w] or [h, w, c]."""
    return type(feature).__name__ in ("Image", "Array2D", "Array3D")


def _labelled(request, source, train, chosen, rows):
    """The source with the labels of some rows; the classes are those of training."""
    features, where = train.features, request.where
    column = request.label_column or next(
        (name for name, feature in features.items() if _names(feature)), ""
    )
    if column not in features:
        raise UserError(
            f"is no column of {where}, whose columns are {shown(list(features))}; write "
            f"--config.data.label_column={next(iter(features))}, or the one with the labels.",
            field="config.data.label_column", value=request.label_column,
        )
    labels = np.asarray(chosen[column][:])[rows]
    if names := _names(features[column]):
        return source.with_labels(labels, len(names), f"{where} {column}", names=names)
    trained = np.asarray(train[column][:])
    classes = labels_lib.read(trained, len(trained), f"{where} {column}")[1]
    labels_lib.check_number(classes, request.num_classes, f"{where} {column}")
    return source.with_labels(labels, name=f"{where} {column}", classes=classes)


def _vectors(request, chosen, rows):
    """The columns of numbers of some rows, by their names in messages; classes are one-hot."""
    columns = {}
    for name in request.vectors:
        if name not in chosen.features:
            raise UserError(
                f"has {name!r}, which is no column of {request.where}, whose columns are "
                f"{shown(list(chosen.features))}; name others.",
                field="config.data.vectors", value=request.vectors,
            )
        numbers, num_classes = chosen[name][:], len(_names(chosen.features[name]))
        if num_classes:
            numbers = vectors_lib.one_hot(numbers, num_classes)
        try:
            numbers = np.asarray(numbers)[rows]
        except ValueError:  # Rows of different lengths.
            numbers = np.empty(len(rows), object)
        columns[f"{request.where} {name}"] = numbers
    return columns


def _names(feature):
    """The names of the classes of a column of labels; none of any other column."""
    return tuple(getattr(feature, "names", None) or ())


class _Images:
    """The images of one column, decoded when they are read.

    Args:
        request: of the set.
        rows: the set, of which a thread may read any example at any time.
        column: the name of the column.
    """

    def __init__(self, request: Request, rows: Any, column: str):
        self.request, self.column = request, column
        self.kind = getattr(rows.features[column], "dtype", "")  # Of an array's numbers.
        self.is_array = type(rows.features[column]).__name__ != "Image"
        if self.is_array:
            self.rows = rows.select_columns([column]).with_format("numpy")
        else:
            import datasets

            raw = datasets.Image(decode=False)  # Decoded by the rules of folders.
            self.rows = rows.select_columns([column]).cast_column(column, raw)
        self.shape = self.dtype = None
        first = self.pixels(0)
        self.shape, self.dtype = first.shape, first.dtype

    def source(self, places: np.ndarray) -> Source:
        """The images at some places of the set, [n], all decoded now if they fit into memory."""
        value_range, n = self.request.value_range, len(places)
        if source_lib.fits(n, self.shape, self.dtype.itemsize):
            images = np.empty((n, *self.shape), self.dtype)

            def fill(i):
                images[i] = self.pixels(places[i])

            with concurrent.futures.ThreadPoolExecutor(image_folder.THREADS) as pool:
                list(pool.map(fill, range(n)))
            return source_lib.in_memory(images, self.request.where, value_range=value_range)

        def read(indices):
            return np.stack([self.pixels(places[i]) for i in indices])

        return Source(n, self.shape, read).scaled(value_range, self.dtype)

    def pixels(self, place: int) -> np.ndarray:
        """The image at one place of the set: uint8, or of another dtype with a range.

        Raises:
            UserError: it cannot be read, or has another size than the first and none is set.
        """
        try:
            image = self._array(place) if self.is_array else self._picture(place)
        except decoding.UNREADABLE as error:
            raise UserError(
                f"{self.request.where}: {self.column} of example {place} cannot be read "
                f"({one_line(error)[:300]}); mend it, or leave it out with .select(...) and "
                "save_to_disk."
            ) from None
        if self.shape not in (None, image.shape) or self.dtype not in (None, image.dtype):
            raise UserError(
                f"config.data.image_size={self.request.shape[0]}: needs images of one kind, but "
                f"example {place} is {image.dtype} {list(image.shape)} and the first {self.dtype} "
                f"{list(self.shape)}; choose a size, for example --config.data.image_size=64."
            )
        return image

    def _picture(self, place):
        example = self.rows[int(place)][self.column]
        file = io.BytesIO(example["bytes"]) if example["bytes"] is not None else example["path"]
        with decoding.open_picture(file) as picture:
            if self.request.value_range:
                return raw_pictures.first_frame(
                    picture, self.request.shape, self.request.value_range
                )
            height, width, channels = self.request.shape
            channels = channels or (self.shape[-1] if self.shape else _channels(picture))
            return decoding.first_frame(picture, (height, width, channels))

    def _array(self, place):
        array = np.asarray(self.rows[int(place)][self.column], self.kind)
        array = array if array.ndim == 3 else array[..., None]
        if not self.request.value_range:
            source_lib.in_memory(array[None], "the array")
            shape = decoding.fill_in(self.request.shape, array.shape)
            return decoding.convert(array, shape)
        return raw_pictures.converted(array, self.request.shape, self.request.value_range)


def _channels(picture):
    """1 for grey pictures, else 3."""
    return 1 if picture.mode in ("1", "L", "I", "F") or picture.mode.startswith("I;16") else 3
