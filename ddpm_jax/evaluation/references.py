"""Files with the statistics of a reference set, which samples are compared with.

Three kinds of `.npz` are read, never with pickled objects:

- `mu` [2048] and `sigma` [2048, 2048] of pooled Inception features, as pytorch-fid and TTUR
  write them;
- reference batches of ADM (Dhariwal and Nichol 2021): `arr_0`, uint8 images [n, h, w, 3], or of
  1 or 4 channels, often
  with `mu` and `sigma`, and with `mu_s` [2023] and `sigma_s` of spatial features;
- our own, written by `save`: the same four names, so that pytorch-fid reads them too, and
  `count`, `provenance` (JSON) and optionally `features`.
"""

import dataclasses
import json
import math
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ddpm_jax import errors
from ddpm_jax.data import decoding
from ddpm_jax.errors import UserError, one_line
from ddpm_jax.evaluation.scores import Moments
from ddpm_jax.runtime import files, parallel

POOL = 2048  # Pooled Inception features.
SPATIAL = 2023  # Spatial features, 7 channels of 17 x 17, for sFID.


@dataclasses.dataclass(frozen=True)
class Reference:
    """Statistics of a reference set, named as the arrays in its file.

    Attributes:
        mu: float64 [2048], mean of the pooled features.
        sigma: float64 [2048, 2048], their unbiased covariance.
        mu_s: float64 [2023], mean of the spatial features; None if they are not known.
        sigma_s: float64 [2023, 2023], their covariance; None if they are not known.
        features: float32 [m, 2048], pooled features of m of the images, for KID and for precision
            and recall; None if they are not known. 8 KiB per image: 82 MB for 10,000, 410 MB for
            50,000.
        count: number of images; None if a file does not have it.
        provenance: JSON, what the statistics were computed from: data set, split, n, resolution,
            resize, checksum of the Inception weights.
    """

    mu: np.ndarray
    sigma: np.ndarray
    mu_s: np.ndarray | None = None
    sigma_s: np.ndarray | None = None
    features: np.ndarray | None = None
    count: int | None = None
    provenance: dict = dataclasses.field(default_factory=dict)


class Loaded(NamedTuple):
    """What a file holds: statistics, images or both.

    Attributes:
        statistics: moments, ready for FID; None if there are only images.
        images: shape (n, h, w, c) of the uint8 images that `image_batches` reads; None if there
            are only statistics.
    """

    statistics: Reference | None
    images: tuple[int, int, int, int] | None


def from_moments(
    pool: Moments,
    spatial: Moments | None = None,
    *,
    features: Any = None,
    provenance: dict,
) -> Reference:
    """The reference with these moments of its features.

    Args:
        pool: of pooled features [n, 2048].
        spatial: of spatial features [n, 2023] of the same images.
        features: [m, 2048], pooled features to keep.
        provenance: as in `Reference`.

    Raises:
        ValueError: fewer than 2 images, another dimension, or different counts.
    """
    if spatial is not None and spatial.count != pool.count:
        raise UserError(
            f"pool.count={pool.count} and spatial.count={spatial.count} differ; both must "
            "be of the same images."
        )
    reference = Reference(
        mu=pool.mean,
        sigma=pool.covariance,
        mu_s=None if spatial is None else spatial.mean,
        sigma_s=None if spatial is None else spatial.covariance,
        features=None if features is None else np.asarray(features, np.float32),
        count=pool.count,
        provenance=provenance,
    )
    _check(reference, "reference")
    return reference


def remarks(pool: Moments, reference: Reference) -> list[str]:
    """Warnings about the FID of `pool` against `reference`; often none.

    Args:
        pool: moments of the samples' pooled features.
        reference: what they are compared with.

    Returns:
        Short sentences, about a singular covariance or an unknown count.

    Raises:
        ValueError: the dimensions differ, or there are fewer than 2 samples.
    """
    d = reference.mu.size
    if pool.mean.size != d:
        raise UserError(
            f"samples have {pool.mean.size} features and the reference {d}: use the same "
            "network for both."
        )
    if pool.count < 2:
        raise UserError(f"{pool.count} samples have no covariance; draw at least 2.")
    sentences = []
    if pool.count <= d:
        sentences.append(_singular(f"{pool.count} samples", d))
    if reference.count is None:
        sentences.append("The reference does not say how many images it is of.")
    elif reference.count <= d:
        sentences.append(_singular(f"{reference.count} reference images", d))
    return sentences


def _singular(images: str, d: int) -> str:
    return (
        f"{images} leave a singular covariance of {d} features: the FID is far too high, "
        "and compares only with that of as many images."
    )


def load(path: Any) -> Loaded:
    """The statistics in an `.npz`, the shape of its images, or both.

    Args:
        path: str or path, gs:// too.

    Raises:
        ValueError: the file is missing, cannot be read, holds neither, or holds what samples cannot
            be compared with: features of another dimension, a matrix that is no covariance, images
            that are not uint8 of 1, 3 or 4 channels.
    """
    path = files.path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; name an .npz of statistics or of images.")
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            header = _header(archive) if "arr_0" in names else None
        statistics = _read(path) if {"mu", "sigma"} <= set(names) else None
    except files.NPZ_DAMAGE as error:
        raise UserError(
            f"{path} cannot be read as an .npz of plain arrays ({one_line(error)}): fetch or "
            "make it again."
        ) from None
    if statistics is not None:
        _check(statistics, path)
    if header is not None:
        _check_images(header, path)
    if statistics is None and header is None:
        raise UserError(
            f"{path} holds {', '.join(names) or 'nothing'}; it needs mu and sigma "
            "(statistics), or arr_0 (images uint8 [n, h, w, c])."
        )
    return Loaded(statistics, None if header is None else header[0])


def image_batches(path: Any, batch_size: int) -> Iterator[np.ndarray]:
    """The images `arr_0` of an `.npz` in order, uint8 [b, h, w, c].

    The last batch may be smaller. One batch at a time is in memory: 50,000 images of 256x256 would
    take 9.8 GB.

    Raises:
        ValueError: batch_size < 1, `load` would refuse the file, or its images are damaged.
    """
    batch_size = errors.whole_number("batch_size", batch_size)
    if batch_size < 1:
        raise UserError(
            "must be at least 1", field="batch_size", value=batch_size,
            instead={"batch_size": 256},
        )
    shape = load(path).images
    if shape is None:
        raise UserError(
            f"{path} holds no arr_0, only statistics; name a file that holds images too."
        )
    file = files.path(path).open("rb")
    with file, zipfile.ZipFile(file) as archive, archive.open("arr_0.npy") as member:
        _npy_header(member)
        for start in range(0, shape[0], batch_size):
            size = (min(batch_size, shape[0] - start), *shape[1:])
            try:
                batch = np.frombuffer(member.read(math.prod(size)), np.uint8).reshape(size)
            except files.NPZ_DAMAGE as error:
                raise UserError(
                    f"{path} is damaged at or before image {start + size[0]} of "
                    f"{shape[0]} ({one_line(error)}): fetch or make it again."
                ) from None
            yield batch


def save(reference: Reference, path: Any) -> None:
    """Writes the reference as an `.npz`, whole or not at all; makes its folder.

    It takes 34 MB with the moments of pooled features, 66 MB with those of spatial features too,
    and 8 KiB for each row of `features`.

    Raises:
        ValueError: the arrays do not fit `Reference`, or the provenance is not JSON.
    """
    _check(reference, "reference")
    arrays = {
        "mu": reference.mu,
        "sigma": reference.sigma,
        "mu_s": reference.mu_s,
        "sigma_s": reference.sigma_s,
        "features": reference.features,
        "count": reference.count,
        "provenance": _canonical(reference.provenance),
    }
    arrays = {name: np.asarray(v) for name, v in arrays.items() if v is not None}
    files.write(files.path(path), lambda file: np.savez(file, **arrays))


def cached(folder: Any, provenance: dict, compute: Callable[[], Reference]) -> Reference:
    """The reference of this provenance, read from its file in `folder` or computed.

    The file is named by a hash of the provenance, so the provenance must hold everything that the
    statistics depend on, the number of kept `features` too. A damaged file triggers a warning and
    is written again. A file that cannot be written triggers a warning too, and the result is still
    returned. Of several processes the first reads and writes; all of them compute.

    Args:
        folder: str or path; made if missing.
        provenance: JSON.
        compute: called without arguments if there is no sound file; its result gets this
            provenance.

    Raises:
        ValueError: the provenance is not JSON, or `compute` returns what `save` refuses.
    """
    text = _canonical(provenance)
    name = f"reference-{files.short_hash(text.encode(), 16)}.npz"
    path = files.path(folder) / name
    reference = parallel.from_first(lambda: _kept(path, text))
    if reference is not None:
        return reference
    reference = dataclasses.replace(compute(), provenance=json.loads(text))
    if parallel.is_first():
        _keep(reference, path)
    return reference


def _kept(path: epath.Path, text: str) -> Reference | None:
    """The reference in a file of the cache; None unless it is that of this provenance."""
    if not path.exists():
        return None
    try:
        reference = load(path).statistics
        if reference is not None and _canonical(reference.provenance) == text:
            return reference
    except ValueError as error:
        warnings.warn(f"{error} It is computed again.", stacklevel=2)
        return None
    warnings.warn(f"{path} was made from something else: it is computed again.", stacklevel=2)
    return None


def _keep(reference: Reference, path: epath.Path) -> None:
    try:
        save(reference, path)
    except OSError as error:
        warnings.warn(
            f"{path} cannot be written ({one_line(error)}): it is computed again next time.",
            stacklevel=2,
        )


def _read(path: epath.Path) -> Reference:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:

        def moments(name):
            return np.asarray(arrays[name], np.float64) if name in arrays else None

        features = np.asarray(arrays["features"]) if "features" in arrays else None
        provenance = {"source": "file", "path": str(path)}
        if "provenance" in arrays:
            provenance = json.loads(str(arrays["provenance"]))
        return Reference(
            mu=moments("mu"),
            sigma=moments("sigma"),
            mu_s=moments("mu_s"),
            sigma_s=moments("sigma_s"),
            features=features,
            count=int(arrays["count"]) if "count" in arrays else None,
            provenance=provenance,
        )


def _header(archive: zipfile.ZipFile) -> tuple[tuple, bool, np.dtype]:
    with archive.open("arr_0.npy") as member:
        return _npy_header(member)


def _npy_header(member) -> tuple[tuple, bool, np.dtype]:
    """(shape, whether in Fortran order, dtype); leaves `member` at the first value."""
    if np.lib.format.read_magic(member) == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)


def _check(reference: Reference, where: Any) -> None:
    """Raises ValueError for arrays that FID, sFID, KID or precision and recall cannot use."""
    _check_moments(reference.mu, reference.sigma, POOL, ("mu", "sigma"), where)
    if (reference.mu_s is None) != (reference.sigma_s is None):
        raise UserError(f"{where} holds one of mu_s and sigma_s: give both or neither.")
    if reference.mu_s is not None:
        _check_moments(
            reference.mu_s, reference.sigma_s, SPATIAL, ("mu_s", "sigma_s"), where
        )
    if reference.count is not None and reference.count < 2:
        raise UserError(
            f"{where} has count={reference.count}; a covariance needs at least 2 images."
        )
    features = reference.features
    if features is None:
        return
    if features.dtype != np.float32 or features.ndim != 2 or features.shape[1] != POOL:
        raise UserError(
            f"{where} has features {features.dtype} {list(features.shape)}; they must be "
            f"float32 [m, {POOL}], of the Inception pool layer."
        )
    if not np.isfinite(features).all():
        raise UserError(f"{where} has NaN or infinity in features: compute them again.")


def _check_moments(mu, sigma, d: int, names: tuple[str, str], where: Any) -> None:
    if mu.shape != (d,) or sigma.shape != (d, d):
        raise UserError(
            f"{where} has {names[0]} {list(mu.shape)} and {names[1]} {list(sigma.shape)}; "
            f"they must be [{d}] and [{d}, {d}], of the Inception network of FID."
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(
            f"{where} has NaN or infinity in {names[0]} or {names[1]}: make it again."
        )
    if np.abs(sigma - sigma.T).max() > 1e-5 * np.abs(sigma).max():  # Float32 files: 1e-7.
        raise UserError(
            f"{where} has a {names[1]} that is not symmetric, so it is no covariance: make it "
            "again."
        )
    if sigma.diagonal().min() < 0:
        raise UserError(f"{where} has a negative variance in {names[1]}: make it again.")


def _check_images(header: tuple[tuple, bool, np.dtype], where: Any) -> None:
    shape, fortran_order, dtype = header
    if len(shape) == 3 and dtype == np.uint8:
        raise UserError(
            f"{where} has arr_0 {dtype} {list(shape)}, without channels; write images[..., None] "
            "for grey images [n, h, w]."
        )
    channels = shape[3] if len(shape) == 4 else 0
    if dtype != np.uint8 or channels not in decoding.MODES or not math.prod(shape):
        raise UserError(
            f"{where} has arr_0 {dtype} {list(shape)}; images must be uint8 [n, h, w, c], values "
            "0..255, n >= 1, of 1, 3 or 4 channels: use pixels.to_uint8 on floats in [-1, 1]."
        )
    if fortran_order:
        raise UserError(
            f"{where} has arr_0 in Fortran order; write np.ascontiguousarray(images)."
        )


def _canonical(provenance: dict) -> str:
    """The provenance as JSON with sorted keys, equal for equal provenance."""
    try:
        return json.dumps(provenance, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"provenance={provenance!r} is not JSON ({error}); write strings, finite "
            "numbers, lists and dicts."
        ) from None
