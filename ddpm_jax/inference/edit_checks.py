"""Checks of what editing is given: pictures, masks, noising steps, weights of mixtures."""

from typing import Any

import numpy as np

from ddpm_jax import errors
from ddpm_jax.errors import UserError
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.samplers import settings as settings_lib

_ROUNDING = 1e-3  # Pictures may be this far outside [-1, 1].


def arrays(trained: Trained, images: Any, name: str = "images") -> np.ndarray:
    """The array as float32 [n, h, w, c], if it is finite and has the model's shape.

    Raises:
        UserError: it is not.
    """
    trained_lib.check(trained)
    try:
        images = np.asarray(images)
    except ValueError:  # A list of pictures of several sizes.
        raise UserError(
            f"{name} have several sizes; resize them to {_shape(trained)} and write "
            f"{name}=numpy.stack([...])."
        ) from None
    given = f"{name} are {images.dtype} {list(images.shape)}"
    if images.ndim != 4 or not len(images) or images.shape[1:] != tuple(trained.image_shape):
        raise UserError(
            f"{given}, and the model's are float [n, {_shape(trained)[1:]}; write "
            f"{name}[None] for a single one, and resize those of another size."
        )
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"{given}: must be float in [-1, 1]; write ddpm_jax.data.to_float({name}).")
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    if not finite.all():
        raise UserError(f"{name}[{np.argmin(finite)}] has NaN or infinite pixels; leave it out.")
    return np.float32(images)


def pictures(trained: Trained, images: Any, name: str = "images") -> np.ndarray:
    """As `arrays`, and in [-1, 1].

    Raises:
        UserError: they are not.
    """
    images = arrays(trained, images, name)
    low, high = images.min(), images.max()
    if max(-low, high) > 1 + _ROUNDING:
        mended = f"{name} / 127.5 - 1" if low >= 0 else f"numpy.clip({name}, -1, 1)"
        raise UserError(
            f"{name} lie in [{low:g}, {high:g}], and must lie in [-1, 1]; write {mended}."
        )
    return images


def pairs(a: np.ndarray, b: np.ndarray, names: tuple[str, str] = ("a", "b")) -> None:
    """Raises UserError unless there are as many of both."""
    if len(a) != len(b):
        raise UserError(
            f"{names[0]} has {len(a)} images and {names[1]} {len(b)}; give as many of both, in "
            "pairs."
        )


def known_pixels(trained: Trained, mask: Any, n: int) -> np.ndarray:
    """The mask as bool [n, h, w, 1].

    Raises:
        UserError: it is no bool [h, w] or [n, h, w], or leaves nothing or everything to draw.
    """
    mask = np.asarray(mask)
    height, width, _ = trained.image_shape
    if mask.dtype != bool or mask.shape not in ((height, width), (n, height, width)):
        raise UserError(
            f"mask is {mask.dtype} {list(mask.shape)}, but must be bool [{height}, {width}], or "
            f"one per image, [{n}, {height}, {width}]: True where the picture is known."
        )
    each = mask.reshape(-1, height * width)
    useless = np.flatnonzero(each.all(axis=1) | ~each.any(axis=1))
    if useless.size:
        name = "mask" if mask.ndim == 2 else f"mask[{useless[0]}]"
        all_known = bool(each[useless[0], 0])
        raise UserError(
            f"{name} is {all_known} everywhere, which leaves "
            + ("nothing to draw; make it False where the picture is to be drawn." if all_known else
               "nothing of the picture: make it True where the picture is known, or use sample().")
        )
    return np.broadcast_to(mask, (n, height, width))[..., None]


def noisings(t: Any, num_timesteps: int) -> tuple[int, ...]:
    """The numbers of noising steps, at least one, each in 0..T.

    Raises:
        UserError: they are not.
    """
    t = errors.whole_numbers("t", t, low=0, high=num_timesteps)
    if not t:
        raise UserError(
            "must have at least one number of noising steps", field="t", value=t,
            instead={"t": (num_timesteps // 2,)},
        )
    return t


def weights(lam: Any) -> np.ndarray:
    """The weights of the second picture as float32, at least one.

    Raises:
        UserError: they are no list of finite numbers.
    """
    lam = errors.numbers("lam", lam)
    if not lam:
        raise UserError(
            "must have at least one weight, where 0 is the first picture and 1 the second",
            field="lam", value=lam, instead={"lam": (0.0, 0.5, 1.0)},
        )
    return np.float32(lam)


def check_deterministic(settings: Any) -> None:
    """Raises UserError unless the settings lead from x_0 to x_T and back."""
    settings_lib.check_is_settings(settings)
    if settings.sampler != "ddim" or settings.eta:
        raise UserError(
            f"sampler={settings.sampler!r} with eta={settings.eta} does not lead from x_0 to x_T "
            "and back; write sampler='ddim' and eta=0."
        )


def _shape(trained):
    return f"[{', '.join(map(str, trained.image_shape))}]"
