"""Editing pictures with a model: mix, invert, fill in, restyle, colour them.

Images are float32 [n, h, w, c] in [-1, 1] everywhere, in and out, as `sample` returns them;
`ddpm_jax.data.to_float` converts uint8. Image i depends on the model, the picture, the key and i
alone. Everything runs in batches on every local device. `settings` are those of `sample`: the
ancestral chain or DDIM, on all steps or fewer.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import errors
from ddpm_jax.diffusion import randomness
from ddpm_jax.errors import UserError
from ddpm_jax.inference import edit_chains, edit_checks
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.samplers import inpainting
from ddpm_jax.samplers import ddim as ddim_lib
from ddpm_jax.samplers import settings as settings_lib
from ddpm_jax.samplers.settings import Settings

LAM = tuple(k / 10 for k in range(11))  # From one picture to the other (the paper's Fig. 8).


def diffuse(
    trained: Trained, rng: Any, images: np.ndarray, t: Sequence[int]
) -> np.ndarray:
    """Pictures after t steps of the forward process (Ho et al. 2020, Eq. 4).

    Each image has one noise for all t, so that a row shows one picture dissolving.

    Args:
        trained: what `load` and `train` return; only its schedule is used.
        rng: a typed key, a legacy `PRNGKey` or an int.
        images: [n, h, w, c].
        t: numbers of noising steps, 0 (the picture itself) to T.

    Returns:
        [n, len(t), h, w, c].

    Raises:
        ValueError: images have another shape or type, or t leaves 0..T.
    """
    images = edit_checks.pictures(trained, images)
    starts = np.array(edit_checks.noisings(t, trained.schedule.num_timesteps), np.int32)
    n, rows = len(images), len(starts)
    return np.asarray(jax.jit(edit_chains.noised)(
        trained.schedule, np.repeat(images, rows, axis=0),
        jnp.repeat(_keys(rng, n), rows), np.tile(starts, n),
    )).reshape(n, rows, *images.shape[1:])


def interpolate(
    trained: Trained,
    rng: Any,
    a: np.ndarray,
    b: np.ndarray,
    *,
    t: Sequence[int] | None = None,
    lam: Sequence[float] = LAM,
    settings: Settings = Settings(),
    **options,
) -> np.ndarray:
    """Pictures between a and b, mixed in x_t and decoded (Ho et al. 2020, Figs. 8 and 9).

    Both are noised t times with the same noise, mixed as (1 - lam) x_t + lam x'_t, and denoised
    by the chain, whose noise is the same for every lam and t of a pair.

    Args:
        trained: what `load` and `train` return.
        rng: a typed key, a legacy `PRNGKey` or an int.
        a, b: [n, h, w, c], n pairs.
        t: numbers of noising steps, 0 (the pictures themselves are mixed) to T, a row each; T / 2
            by default, as in Fig. 8. The `num_steps` of a shorter chain are spread over the t
            steps; a grid of given steps runs t - 1 and those below.
        lam: 0 is a, 1 is b, a column each.
        settings: "ancestral" or "ddim".
        **options: labels, vectors and condition as of `sample.sample`, for all pictures or one for
            each; without labels there is no class. batch_size (images at a time on all devices
            together; what fits by default) and progress (as of `sample.sample`).

    Returns:
        [n, len(t), len(lam), h, w, c].

    Raises:
        ValueError: images have another shape, type or range, t leaves 0..T, the grid has no step
            below t, or the settings are a solver's.
    """
    a, b = edit_checks.pictures(trained, a, "a"), edit_checks.pictures(trained, b, "b")
    edit_checks.pairs(a, b)
    num_timesteps = trained.schedule.num_timesteps
    t = edit_checks.noisings((num_timesteps // 2,) if t is None else t, num_timesteps)
    lam, rngs = edit_checks.weights(lam), _keys(rng, len(a))
    # The whole chain serves all t; a shorter one has steps of its own for each.
    whole = _chain(trained, settings).full is None
    return np.concatenate([
        _mixtures(trained, rngs, a, b, row, lam, settings, options)
        for row in ([t] if whole else [(noisings,) for noisings in t])
    ], axis=1)


def _mixtures(trained, rngs, a, b, t, lam, settings, options):
    """The rows [n, len(t), len(lam), h, w, c] of `interpolate` that one chain decodes."""
    chain = edit_chains.step_chain(
        settings, trained.schedule, max(t) or trained.schedule.num_timesteps
    )
    starts = np.searchsorted(np.asarray(chain.schedule.timesteps), t)  # Its steps below each t.
    n, shape = len(a), (len(a), len(t), len(lam))
    pair, start, weight = (
        np.broadcast_to(x, shape).ravel() for x in (
            np.arange(n)[:, None, None], np.int32(starts)[:, None], lam)
    )
    return edit_chains.run(
        edit_chains.mixture, trained, rngs[pair], (a[pair], b[pair], start, weight), chain,
        num_calls=int(max(1, *starts)), row_of=pair, **options,
    ).reshape(*shape, *a.shape[1:])


def img2img(
    trained: Trained,
    rng: Any,
    images: np.ndarray,
    *,
    strength: float = 0.5,
    settings: Settings = Settings(),
    **options,
) -> np.ndarray:
    """Pictures redrawn from noised copies of themselves (SDEdit, Meng et al. 2022, Algorithm 1).

    Args:
        trained, rng, settings, **options: as of `interpolate`.
        images: [n, h, w, c].
        strength: fraction of the T noising steps that are applied and undone, in (0, 1]: small
            values change little, 1 almost everything.

    Returns:
        [n, h, w, c].

    Raises:
        ValueError: strength leaves (0, 1], or as `interpolate` does.
    """
    t = noising_steps(trained, strength)
    if t == 0:
        raise UserError(
            f"must be at least 1 of {trained.schedule.num_timesteps} steps", field="strength",
            value=strength, instead={"strength": 0.5},
        )
    images = edit_checks.pictures(trained, images)
    return interpolate(
        trained, rng, images, images, t=(t,), lam=(0.0,), settings=settings,
        **options,
    )[:, 0, 0]


def noising_steps(trained: Trained, strength: float) -> int:
    """The number of noising steps t of a strength: this fraction of T, rounded.

    Raises:
        ValueError: it leaves 0..1.
    """
    trained_lib.check(trained)
    strength = errors.number("strength", strength)
    if not 0 <= strength <= 1:
        raise UserError(
            "must lie in 0..1", field="strength", value=strength, instead={"strength": 0.5}
        )
    return round(strength * trained.schedule.num_timesteps)


def prior(trained: Trained, rng: Any, n: int) -> np.ndarray:
    """The x_T [n, h, w, c] from which `sample(trained, rng, n)` starts."""
    trained_lib.check(trained)
    n = errors.whole_number("n", n, low=1)
    return np.asarray(randomness.standard_normal(
        randomness.fold_each(_keys(rng, n), randomness.X_T), trained.image_shape
    ))


def encode(
    trained: Trained,
    images: np.ndarray,
    *,
    settings: Settings = Settings("ddim"),
    **options,
) -> np.ndarray:
    """The x_T that DDIM turns into these pictures (see `ddim.invert`).

    Args:
        trained, **options: as of `interpolate`.
        images: [n, h, w, c].
        settings: "ddim" with eta=0. x_0 is neither clipped nor thresholded, whatever they ask for.

    Raises:
        ValueError: images have another shape or type, or the settings are others.
    """
    edit_checks.check_deterministic(settings)
    images, chain = edit_checks.pictures(trained, images), _chain(trained, _leaving_x_0(settings))
    return edit_chains.run(
        edit_chains.encode, trained, _keys(0, len(images)), (images,), chain, **options
    )


def decode(
    trained: Trained,
    x_T: np.ndarray,
    *,
    settings: Settings = Settings("ddim"),
    **options,
) -> np.ndarray:
    """The images [n, h, w, c] that DDIM makes of x_T.

    Args:
        trained, **options: as of `interpolate`.
        x_T: [n, h, w, c], for example of `prior` or `encode`.
        settings: "ddim" with eta=0.

    Raises:
        ValueError: x_T has another shape or type, or the settings are others.
    """
    return _decode(trained, edit_checks.arrays(trained, x_T, "x_T"), settings, options)


def _decode(trained, x_T, settings, options, row_of=None):
    """`decode` of checked x_T."""
    edit_checks.check_deterministic(settings)
    return edit_chains.run(
        edit_chains.decode, trained, _keys(0, len(x_T)), (x_T,), _chain(trained, settings),
        row_of=row_of, **options,
    )


def reconstruct(
    trained: Trained, images: np.ndarray, *, settings: Settings = Settings("ddim"), **options
) -> np.ndarray:
    """Pictures taken to x_T and back by DDIM; the error falls as the number of steps grows.

    Args:
        trained: what `load` and `train` return.
        images: [n, h, w, c].
        settings: "ddim" with eta=0. x_0 is neither clipped nor thresholded, whatever they ask for.
        **options: as of `interpolate`.

    Raises:
        ValueError: as `encode` does.
    """
    edit_checks.check_deterministic(settings)
    settings = _leaving_x_0(settings)
    x_T = encode(trained, images, settings=settings, **options)
    return decode(trained, x_T, settings=settings, **options)


def slerp(
    trained: Trained,
    x_T: np.ndarray,
    y_T: np.ndarray,
    *,
    lam: Sequence[float] = LAM,
    settings: Settings = Settings("ddim"),
    **options,
) -> np.ndarray:
    """Images along the arcs from x_T to y_T, decoded by DDIM (Song et al. 2021, Sec. 5.3).

    Args:
        trained: what `load` and `train` return.
        x_T, y_T: [n, h, w, c], n pairs, for example of `prior` or `encode`.
        lam: 0 is x_T, 1 is y_T, a column each.
        settings: "ddim" with eta=0.
        **options: as of `interpolate`.

    Returns:
        [n, len(lam), h, w, c].

    Raises:
        ValueError: as `decode` does.
    """
    x_T, y_T = edit_checks.arrays(trained, x_T, "x_T"), edit_checks.arrays(trained, y_T, "y_T")
    edit_checks.pairs(x_T, y_T, ("x_T", "y_T"))
    lam = edit_checks.weights(lam)
    shape = (len(x_T), len(lam), *trained.image_shape)
    ends = (np.repeat(x, len(lam), axis=0) for x in (x_T, y_T))
    between = np.asarray(ddim_lib.slerp(*ends, jnp.tile(lam, len(x_T))))
    row_of = np.repeat(np.arange(len(x_T)), len(lam))
    return _decode(trained, between, settings, options, row_of).reshape(shape)


def inpaint(
    trained: Trained,
    rng: Any,
    images: np.ndarray,
    mask: np.ndarray,
    *,
    jump_length: int = inpainting.JUMP_LENGTH,
    resamplings: int = 1,
    settings: Settings = Settings(),
    **options,
) -> np.ndarray:
    """Pictures whose pixels outside the mask are drawn anew (see `inpainting`).

    Args:
        trained, rng, settings, **options: as of `interpolate`.
        images: [n, h, w, c]; pixels outside the mask are not used.
        mask: bool [h, w], or one per image, [n, h, w]: True where the picture is known.
        jump_length, resamplings: of RePaint, which has 10 and 10 on 250 steps; with 1 resampling
            the known pixels are only replaced. The chain must be longer than a jump.

    Returns:
        [n, h, w, c]; the known pixels equal those of the pictures exactly.

    Raises:
        ValueError: images or mask have another shape, type or range, the mask leaves nothing or
            everything to draw, a number is less than 1 or has no effect, or the settings are a
            solver's.
    """
    images = edit_checks.pictures(trained, images)
    mask = edit_checks.known_pixels(trained, mask, len(images))
    return _hold(trained, rng, (images, mask), settings, jump_length, resamplings, options)


def colourise(
    trained: Trained,
    rng: Any,
    images: np.ndarray,
    *,
    jump_length: int = inpainting.JUMP_LENGTH,
    resamplings: int = 1,
    settings: Settings = Settings(),
    **options,
) -> np.ndarray:
    """Pictures in new colours: the mean of the channels is known, the rest is drawn anew.

    Args:
        trained, rng, settings, **options: as of `interpolate`; the model must have colour.
        images: [n, h, w, c]; only the mean of their channels is used.
        jump_length, resamplings: as of `inpaint`.

    Returns:
        [n, h, w, c]; the mean of the channels is that of the pictures, so a channel may lie a
        little outside [-1, 1].

    Raises:
        ValueError: the model is grey, or as `inpaint` does.
    """
    trained_lib.check(trained)
    if trained.image_shape[-1] != 3:
        raise UserError(
            f"colourise needs a model of 3 channels, and this one has {trained.image_shape[-1]}; "
            "use a model trained with config.data.channels=3."
        )
    images = edit_checks.pictures(trained, images)
    return _hold(trained, rng, (images,), settings, jump_length, resamplings, options)


def _hold(trained, rng, arrays, settings, jump_length, resamplings, options):
    """Runs `edit_chains.hold` on the rows of RePaint."""
    chain = _chain(trained, settings)
    rows = inpainting.repaint(chain.schedule, jump_length=jump_length, resamplings=resamplings)
    return edit_chains.run(
        edit_chains.hold, trained, _keys(rng, len(arrays[0])), arrays, chain, rows=rows,
        **options,
    )


def _leaving_x_0(settings: Settings) -> Settings:
    """The settings without clipping or thresholds, which an inversion cannot undo."""
    settings_lib.check_is_settings(settings)
    return dataclasses.replace(settings, clip=False, dynamic_threshold=0.0, rederive_eps=True)


def _chain(trained, settings):
    return edit_chains.step_chain(settings, trained.schedule)


def _keys(rng, n):
    return randomness.image_keys(randomness.as_key(rng), jnp.arange(n))
