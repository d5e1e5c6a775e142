"""Folders of pictures; unreadable files are named and left out."""

import concurrent.futures
import contextlib
import dataclasses
import os
import threading

import numpy as np
from absl import logging

from ddpm_jax.data import decoding, picture_files, raw_pictures, split_folders
from ddpm_jax.data import labels as labels_lib
from ddpm_jax.data import source as source_lib
from ddpm_jax.data import vectors as vectors_lib
from ddpm_jax.data.request import Request
from ddpm_jax.data.source import Source
from ddpm_jax.errors import UserError, located, one_line, shown
from ddpm_jax.runtime import files

MAX_UNREADABLE = 0.05  # Share of a folder's files that may be skipped.
_REASON = 300  # Characters of an error in a message.
_LOOKED_AT = 100  # Files of a streamed folder whose pages are looked for at the start.
THREADS = min(16, os.cpu_count() or 1)


def load(request: Request) -> Source | None:
    """The pictures below a folder; None if none of them are set aside for the test split.

    With labels, the first folder on the way to a picture is its class, in alphabetical order; below
    a folder of a split (see `split_folders.find`) the second one. Vectors are read from the table
    beside the pictures (see `vectors.read_tables`).

    Raises:
        UserError: there is no such folder, it has no pictures, too many are unreadable or they
            vary in size, or some are outside of the folders of classes.
    """
    data_dir = request.data_dir
    if not (data_dir and files.path(data_dir).is_dir()):
        raise UserError(
            f"config.data.dir={data_dir!r}: not a folder; write --config.data.dir=PATH, "
            "the folder that holds the pictures."
        )
    with located(request.where):
        found = picture_files.find(data_dir, vectors_lib.TABLE if request.vectors else "")
    names = found.names
    if not names:
        only = f", only {found.left_out}" if found.left_out else ""
        instead = "name" if request.named else "write --config.data.dir=PATH,"
        raise UserError(
            f"{request.where}: no pictures there or below{only}; {instead} a folder with .png, "
            f".jpg or other picture files ({', '.join(decoding.FORMATS)})."
        )
    if found.left_out and request.split == "train":
        logging.warning(
            "%s: %d pictures are read; left out are %s.",
            request.where, len(names), found.left_out,
        )
    splits = split_folders.of_run(request.kept, names)
    trained, chosen = split_folders.divide(request, names, splits)
    depth = 1 if splits else 0  # Folders above those of the classes.
    classes = _classes(request, trained, chosen, depth)
    if not chosen:
        return None
    height, width, channels = request.shape
    want = (height, width, channels or (0 if request.value_range else 3))
    vectors = None
    if request.vectors:
        vectors = vectors_lib.read_tables(
            files.path(data_dir), splits, chosen, request.vectors, request.where
        )
    folder = _Folder(request, chosen, want, len(names), classes, depth, vectors)
    if source_lib.fits(len(chosen), folder.shape, folder.dtype.itemsize):
        source = folder.in_memory()
    else:
        if not height:
            folder.check_sizes()
        source = folder.streamed()
    if request.split == "test":
        source = dataclasses.replace(source, fingerprints=folder.fingerprints)
    return dataclasses.replace(source, split_folders=splits)


def _classes(request, trained, chosen, depth):
    """The names of the folders to train on below `depth` others, sorted; [] without labels."""
    if not request.labels:
        return []
    bare = [name for name in (*trained, *chosen) if name.count("/") <= depth]
    if bare:
        raise UserError(
            f"{request.where}: {_escaped(bare[0])} is in no folder of a class; put "
            "each class into a folder of its own, or write --config.data.labels=False."
        )
    classes = sorted({name.split("/")[depth] for name in trained})
    labels_lib.check_number(classes, request.num_classes, request.where)
    return classes


def _escaped(name):
    """A file's name as part of one line, whatever its bytes are and however many."""
    return shown(name)[1:-1]


class _Folder:
    """Picture files decoded one by one, with a record of those that cannot be decoded.

    Args:
        request: of the folder.
        names: of the files, relative to it.
        want: (height, width, channels); a height of 0 keeps the size of the first picture.
        total: files in all splits, of which a share may be skipped.
        classes: the names of the classes, sorted; empty without labels.
        depth: folders above those of the classes, 0 or 1.
        vectors: numbers of each file, [n, k]; or None.
    """

    def __init__(self, request, names, want, total, classes, depth, vectors):
        self.path, self.files, self.want = request.data_dir, names, want
        self.where, self.named = request.where, request.named
        self.folder = files.path(self.path)
        self.total, self.classes, self.depth, self.vectors = total, classes, depth, vectors
        self.unreadable, self.lock = {}, threading.Lock()
        self.several = set()  # Files with later pages or frames.
        self.value_range = request.value_range
        self.shape = self.dtype = None
        first = self.nearest(0)
        self.shape, self.dtype = first.shape, first.dtype

    def decode(self, i):
        """Image i, or None if its file is unreadable, which is logged."""
        if i in self.unreadable:
            return None
        try:
            with decoding.opened(self.folder / self.files[i]) as picture:
                image = self.pixels(picture)
                self.look_for_pages(i, picture)
        except decoding.UNREADABLE as error:
            self.skip(i, error)
            return None
        if self.shape and image.shape != self.shape:
            self.refuse_size(i, *image.shape[:2])
        return image

    def pixels(self, picture):
        """The image [h, w, c] of an opened file: uint8, or of another dtype with a range."""
        if not self.value_range:
            return decoding.first_frame(picture, self.want)
        image = raw_pictures.first_frame(picture, self.want, self.value_range)
        if self.dtype not in (None, image.dtype):
            raise UserError(f"its pixels are {image.dtype}, and those of others {self.dtype}")
        return image

    def nearest(self, i):
        """Image i, or the next one of its class that can be read."""
        for j in (*range(i, len(self.files)), *range(i)):
            if self.classes and self.class_of(j) != self.class_of(i):
                continue
            if (image := self.decode(j)) is not None:
                return image
            self.check()
        raise UserError(
            f"config.data.dir={self.path!r}: all pictures of {_escaped(self.class_of(i))} are "
            "unreadable; mend them or remove that folder."
        )

    def exactly(self, i):
        """Image i, where no other can stand for it."""
        if (image := self.decode(i)) is None:
            raise UserError(
                f"{self.where}: {_escaped(self.files[i])} cannot be read, and no other picture has "
                "its vector; mend it, or remove it."
            )
        return image

    def told(self, source, kept=slice(None)):
        """The source with what is known of the files `kept`: their labels and vectors."""
        if self.classes:
            labels = np.array([self.class_of(i) for i in range(len(self.files))], object)[kept]
            source = source.with_labels(labels, name=self.where, classes=self.classes)
        if self.vectors is not None:
            source = source.with_vectors({self.where: self.vectors[kept]})
        return source

    def class_of(self, i):
        """The name of the class of file i."""
        return self.files[i].split("/")[self.depth]

    def fingerprints(self):
        """The hash of each file by its name; "" for those that cannot be read."""
        def fingerprint(file):
            try:
                return files.short_hash((self.folder / file).read_bytes(), 16)
            except OSError:
                return ""

        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            return dict(zip(self.files, pool.map(fingerprint, self.files)))

    def skip(self, i, error):
        """Notes that file i is unreadable, and logs the first ten."""
        with self.lock:
            if i not in self.unreadable and len(self.unreadable) < 10:
                logging.warning("Skipping %s: %s", _escaped(self.files[i]), one_line(error))
            self.unreadable[i] = (_escaped(self.files[i]), one_line(error)[:_REASON])

    def check(self):
        """Raises UserError if more files are unreadable than may be."""
        with self.lock:
            bad, total = sorted(self.unreadable.values()), self.total
        if len(bad) > MAX_UNREADABLE * total or len(bad) == len(self.files):
            names = [*(name for name, _ in bad[:3]), *(["..."] if len(bad) > 3 else [])]
            raise UserError(
                f"{self.where}: {len(bad)} of {total} files "
                f"({len(bad) / total:.0%}) are unreadable, {MAX_UNREADABLE:.0%} may be; "
                f"mend or remove {', '.join(names)} (the first: {bad[0][1]})."
            )

    def check_sizes(self):
        """Refuses pictures of varying size by their headers, before any is streamed."""
        for i, file in enumerate(self.files):
            size = self.shape[:2]
            with contextlib.suppress(*decoding.UNREADABLE):
                with decoding.opened(self.folder / file) as image:
                    size = (image.height, image.width)
            if sorted(size) != sorted(self.shape[:2]):  # In either order: EXIF may turn it.
                self.refuse_size(i, *size)

    def look_for_pages(self, i, picture):
        """Notes whether file i, opened as a picture, has later pages or frames."""
        if decoding.has_later_frames(picture):
            with self.lock:
                self.several.add(i)

    def say_pages(self, among=""):
        """Logs how many files of each kind have later pages or frames."""
        if self.several:
            logging.warning(
                "%s: only the first page or frame is read of %s%s; save the others as files of "
                "their own to use them.", self.where,
                picture_files.counts(self.files[i] for i in sorted(self.several)), among,
            )

    def refuse_size(self, i, height, width):
        setting, instead = "config.data.image_size=0", (
            "choose a size, for example --config.data.image_size=64."
        )
        if self.named:
            setting, instead = self.named, "resize them first."
        raise UserError(
            f"{setting}: needs pictures of one size, but {_escaped(self.files[i])} is "
            f"{height}x{width} and others are {self.shape[0]}x{self.shape[1]}; {instead}"
        )

    def in_memory(self):
        """A source of the readable pictures, all decoded now."""
        images = np.empty((len(self.files), *self.shape), self.dtype)

        def fill(i):
            image = self.decode(i)
            if image is not None:
                images[i] = image
            return image is not None

        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            kept = np.array(list(pool.map(fill, range(len(images)))))
        if len(self.unreadable) > 10:
            logging.warning("Skipped %d files in all.", len(self.unreadable))
        self.check()
        self.say_pages()
        images = images if kept.all() else images[kept]
        source = source_lib.in_memory(images, self.where, value_range=self.value_range)
        return self.told(source, kept)

    def streamed(self):
        """A source that decodes pictures when they are read."""
        pixels = self.nearest if self.vectors is None else self.exactly

        def read(indices):
            return np.stack([pixels(int(i)) for i in indices])

        def look(i):
            with contextlib.suppress(*decoding.UNREADABLE):
                with decoding.opened(self.folder / self.files[i]) as picture:
                    self.look_for_pages(i, picture)

        some = source_lib.spread(0, len(self.files) - 1, _LOOKED_AT).tolist()
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(look, some))
        self.say_pages(f" (of {len(some)} files looked at)")
        source = Source(len(self.files), self.shape, read)
        return self.told(source.scaled(self.value_range, self.dtype))
