"""One training step (Algorithm 1 of Ho, Jain and Abbeel 2020) and the `pmap` around it."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.data import augmentation, pixels
from ddpm_jax.diffusion import losses, randomness
from ddpm_jax.diffusion.process import Parameterization
from ddpm_jax.network import averages
from ddpm_jax.runtime import parallel
from ddpm_jax.samplers import guidance, halving
from ddpm_jax.training import packing, sharding, timesteps
from ddpm_jax.training.state import TrainState

_SMALL = 2**18  # Numbers in a matrix that is faster to copy than to start on.


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What `train_step` needs to know; hashable. `configs/cifar10.py` explains each setting.

    Attributes:
        parameterization: what the network predicts, and the variance.
        objective: what is minimized.
        t_sampling: see `timesteps.draw_t`.
        random_flip: mirror half of the images left and right.
        augment: probability of each transform of `data.augmentation`.
        label_dropout: share of the labels that become `null_label`, and vectors that become zeros.
        null_label: the label that stands for no class.
        self_condition: tell the network its first guess, for half of the images.
        accumulate: micro-batches per step.
        unroll: whether these are written out, and not a loop.
        remat: keep only what goes into each block for the backward pass.
        ema_decay: of the EMA of the parameters.
        ema_warmup: a lower decay early on (see `averages.ema_decay_at`).
        extra_averages: names of further averages (see `averages.share_at`).
        log_every: steps per logged row, over which losses are averaged; 0: all steps.
        shard_update: each device updates a share of the state (see `sharding`).
    """

    parameterization: Parameterization
    objective: losses.Objective
    t_sampling: str
    random_flip: bool
    augment: float
    label_dropout: float
    null_label: int
    self_condition: bool
    accumulate: int
    unroll: bool
    remat: bool
    ema_decay: float
    ema_warmup: bool
    extra_averages: tuple[str, ...]
    log_every: int
    shard_update: bool


def train_step(
    state: TrainState, batch: dict[str, jax.Array], rng: jax.Array, *taught_by, schedule,
    learning_rate, settings, teacher=None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update from this device's share of the batch (Algorithm 1); call under `pmap`.

    Args:
        state: whole on each device, or with shares in it (see `sharding`).
        batch: this device's share of the global batch, as `Source.examples` gives it: `images`
            [b, h, w, c], and for a conditional network `labels`, int32 [b], `vectors` [b, 1 + k] or
            `condition` [b, h, w, k].
        rng: the run's key; the step and each image's place are folded in.
        *taught_by: the parameters of the teacher, if there is one.
        schedule: the noise schedule, or that of a student's steps.
        learning_rate: update -> rate, for the log.
        settings: see `StepSettings`.
        teacher: a `distillation.Teacher`, which gives the objective; None for that of the settings.

    Returns:
        The new state and the metrics, equal on all devices: `loss` and `loss_quartile_1..4` (by
        t; means since the last logged row, over uniform t whatever `t_sampling` is), `grad_norm`
        before clipping, `learning_rate`, and the number of skipped updates: `skipped` since the
        start, `skipped_in_a_row` until now. An update is skipped where the loss of an image or
        the norm of the gradient is not finite. Then only the step and these counts of the state
        change, and the tally where a row starts.
    """
    def loss_fn(*args):
        loss, per_image = loss_and_parts(
            state, rng, *args, *taught_by, schedule=schedule, settings=settings, teacher=teacher
        )
        return loss / jax.lax.axis_size(parallel.AXIS), per_image  # The gradients are added.

    grads, per_image = accumulated_gradients(
        loss_fn, packing.unpacked(sharding.gathered(state.params)), batch,
        parallel.places(len(batch["images"])), settings.accumulate,
        settings.unroll,
    )
    grads = sharding.added(packing.like(grads, state.params), state.params)
    loss, t, weight = jax.lax.all_gather(per_image, parallel.AXIS, tiled=True)
    grad_norm = norm(grads)
    starts_row = state.step % settings.log_every == 0 if settings.log_every else state.step == 0
    tally = jnp.where(starts_row, 0.0, state.tally)
    new_tally = tally + tally_by_quartile(loss, t, weight, schedule.num_timesteps)
    finite = jnp.isfinite(grad_norm) & jnp.isfinite(new_tally.sum())
    learning_rate = learning_rate(state.step - state.skipped[0])  # the optimizer's count
    step = state.step + 1

    @jax.jit  # So that it is traced once.
    def updated(state, grads):
        new = update(state, grads, grad_norm, t, loss, settings)
        return new.replace(step=step, tally=new_tally, skipped=state.skipped.at[1].set(0))

    def skipped(state, grads):
        return state.replace(step=step, tally=tally, skipped=state.skipped + 1)

    state = either(finite, updated, skipped, state, grads)
    metrics = {
        "loss": weighted_mean(state.tally[0].sum(), state.tally[1].sum()),
        **{f"loss_quartile_{i + 1}": weighted_mean(*state.tally[:, i]) for i in range(4)},
        "grad_norm": grad_norm,
        "learning_rate": learning_rate,
        "skipped": state.skipped[0],
        "skipped_in_a_row": state.skipped[1],
    }
    return state, metrics


def either(finite, updated, skipped, state, grads):
    """`updated(state, grads)` where `finite`, else `skipped(state, grads)`.

    In a branch a GPU would start a kernel for each array, so it computes both and takes one.
    Elsewhere `jnp.where` is slower, and moves the last bits of the update that it is fused into.
    """
    def chosen(state, grads):
        parts = {part: flat(getattr(state, part)) for part in packing.PARTS}
        flat_state = state.replace(**parts)
        # Otherwise the new state has the order of axes of cuDNN's gradients, and is turned back.
        flat_state, flat_grads = jax.lax.optimization_barrier((flat_state, flat(grads)))
        new, old = updated(flat_state, flat_grads), skipped(flat_state, grads)
        new = jax.tree.map(functools.partial(jnp.where, finite), new, old)
        return jax.tree.map(lambda x, y: x.reshape(y.shape), new, state)

    return jax.lax.platform_dependent(
        state, grads, cuda=chosen, rocm=chosen,
        default=functools.partial(jax.lax.cond, finite, updated, skipped),
    )


def norm(grads):
    """The global norm, of other devices' shards too."""
    whole, shards = sharding.split(grads)
    squares = sum_squares(whole)  # There are some: biases are never cut.
    if jax.tree.leaves(shards):
        squares += jax.lax.psum(sum_squares(shards), parallel.AXIS)
    return jnp.sqrt(squares)


def sum_squares(tree):
    """The sum of all squares, in few kernels on a GPU.

    One for each large array, by channel, and one for all small matrices of as many channels.
    """
    arrays, matrices = [], collections.defaultdict(list)
    for x in jax.tree.leaves(tree):
        small = x.ndim == 2 and x.size < _SMALL
        (matrices[x.shape[-1]] if small else arrays).append(x)
    arrays += [jnp.concatenate(group) for group in matrices.values()]
    sums = [jnp.sum(x**2, axis=tuple(range(x.ndim - 1))) for x in arrays]
    # Without the barrier XLA would sum each array to one number, in two kernels.
    return jnp.sum(jax.lax.optimization_barrier(jnp.concatenate(sums)))


def flat(tree):
    """The tree, with one axis in place of several."""
    return jax.tree.map(lambda x: x.reshape(-1) if x.ndim > 1 else x, tree)


def loss_and_parts(
    state, rng, params, batch, places, *taught_by, schedule, settings, teacher=None
):
    """The mean loss of some images at a step, and each image's share of it.

    Args:
        state: of the step; its parameters are not used.
        rng: the run's key.
        params: the network's parameters.
        batch: as of `train_step`.
        places: [b], the index of each image in the global batch.
        *taught_by, schedule, settings, teacher: as of `train_step`.

    Returns:
        The mean of loss times weight, and (loss, t, weight), each [b].
    """
    rng_images, rng_dropout = randomness.step_keys(rng, state.step)
    x_0, t, weight, eps, model_kwargs = draw(
        batch, rng=rng_images, places=places, num_timesteps=schedule.num_timesteps,
        t_sampling=settings.t_sampling, loss_history=state.loss_history,
        random_flip=settings.random_flip, augment=settings.augment,
        label_dropout=settings.label_dropout, null_label=settings.null_label,
    )
    denoise_fn = functools.partial(
        state.apply_fn, {"params": params}, train=True, remat=settings.remat, places=places,
        rngs={"dropout": rng_dropout}, **model_kwargs,
    )
    if teacher is None:
        loss = losses.training_loss(
            schedule, denoise_fn, x_0, t, eps,
            parameterization=settings.parameterization, objective=settings.objective,
            tells=draw_tells(rng_images, places) if settings.self_condition else None,
        )
    else:
        loss = halving.loss(
            schedule, denoise_fn, teacher.predict_fn(*taught_by, model_kwargs), x_0, t, eps,
            mean=settings.parameterization.mean,
        )
    return jnp.mean(weight * loss), (loss, t, weight)


def update(state, grads, grad_norm, t, loss, settings):
    """The state after an update by `grads`, whose norm is `grad_norm`.

    t and loss [b] are those of the images.
    """
    updates, opt_state = state.tx.update(grads, state.opt_state, state.params, norm=grad_norm)
    state = state.replace(
        step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state
    )

    def moved(average, name):
        share = averages.share_at(name, step=state.step, warmup=settings.ema_warmup)
        return optax.incremental_update(state.params, average, share)

    state = state.replace(
        ema_params=moved(state.ema_params, str(settings.ema_decay)),
        extra_ema_params={
            name: moved(average, name) for name, average in state.extra_ema_params.items()
        },
    )
    if settings.t_sampling == "importance":
        state = state.replace(loss_history=timesteps.record(state.loss_history, t, loss))
    return state


def draw(
    batch, *, rng, places, num_timesteps, t_sampling, loss_history, random_flip, augment,
    label_dropout, null_label,
):
    """Draws x_0, t, the weight of its loss, eps and the network's keyword arguments.

    Each image's draws follow from the step's key and its own place.

    Args:
        batch: `images` [b, h, w, c], and `labels` [b], `vectors` [b, 1 + k] or `condition`
            [b, h, w, k].
        rng: the key of the step's images.
        places: [b], the index of each image in the global batch.
        num_timesteps: T.
        t_sampling: see `draw_t`.
        loss_history: see `draw_t`.
        random_flip: mirror half of the images left and right, with their conditions.
        augment: probability of each transform of `data.augmentation`, also done to conditions.
        label_dropout: share of the labels that become `null_label` (Ho and Salimans 2022), and of
            the vectors that become zeros: both, of an image that has both.
        null_label: the network's.
    """
    def draw_one(rng, image, model_kwargs):
        rngs = randomness.image_draws(rng)
        flips = jax.random.bernoulli(rngs[randomness.MIRROR]) if random_flip else False

        drawn = {}
        if augment:
            rngs_transform = randomness.transform_draws(rng)
            drawn["augmentation"] = augmentation.draw(rngs_transform, augment)

        def seen(image):
            x = pixels.as_float(image)
            x = jnp.where(flips, x[:, ::-1], x) if random_flip else x
            return augmentation.transform(x, drawn["augmentation"]) if augment else x

        if "condition" in model_kwargs:
            drawn["condition"] = seen(model_kwargs["condition"])
        hidden = guidance.hidden(model_kwargs, null_label)
        if hidden:
            rng_label = randomness.below(rng, randomness.LABEL)
            hides = jax.random.bernoulli(rng_label, label_dropout)
            for name, none in hidden.items():
                drawn[name] = jnp.where(hides, none, model_kwargs[name])
        return seen(image), jax.random.normal(rngs[randomness.EPS], image.shape), drawn

    model_kwargs = {name: x for name, x in batch.items() if name != "images"}
    x_0, eps, model_kwargs = jax.vmap(draw_one)(
        randomness.image_keys(rng, places), batch["images"], model_kwargs
    )
    t, weight = timesteps.draw_t(
        rng, places, num_timesteps=num_timesteps, t_sampling=t_sampling,
        loss_history=loss_history,
    )
    return x_0, t, weight, eps, model_kwargs


def draw_tells(rng, places):
    """Whether a self-conditioned network is told its first guess for each image, bool [b].

    Args:
        rng: the key of the step's images.
        places: [b], the index of each image in the global batch.
    """
    rngs = randomness.fold_each(randomness.image_keys(rng, places), randomness.GUESS)
    return jax.vmap(jax.random.bernoulli)(rngs)


def tally_by_quartile(loss, t, weight, num_timesteps):
    """Weighted sum of losses, and sum of weights, for each quarter of the steps, float32 [2, 4]."""
    quartile = jax.nn.one_hot(4 * t // num_timesteps, 4) * weight[:, None]  # [b, 4]
    return jnp.stack([loss @ quartile, quartile.sum(axis=0)])


def weighted_mean(total, weight):
    """total / weight; inf where there is no weight, because 0 / 0 would end JAX_DEBUG_NANS."""
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), jnp.inf)


def accumulated_gradients(loss_fn, params, batch, places, accumulate, unroll=False):
    """Mean gradient over `accumulate` micro-batches of equal size, and the arrays per image.

    Args:
        loss_fn: (params, batch, places) -> (mean loss, arrays [b], one entry per image).
        params: what to differentiate by.
        batch: arrays [b, ...]; `accumulate` divides b.
        places: [b].
        accumulate: number of micro-batches, one after the other.
        unroll: write them out. The gradient of a convolution is about 20 times slower inside a
            loop on a CPU.
    """
    gradients = jax.grad(loss_fn, has_aux=True)
    if accumulate == 1:
        return gradients(params, batch, places)

    def add(total, micro_batch):
        grads, per_image = gradients(params, *micro_batch)
        return jax.tree.map(jnp.add, total, grads), per_image

    micro_batches = jax.tree.map(
        lambda x: x.reshape(accumulate, -1, *x.shape[1:]), (batch, places)
    )
    zero = jax.tree.map(jnp.zeros_like, params)
    grads, per_image = jax.lax.scan(add, zero, micro_batches, unroll=accumulate if unroll else 1)
    grads = jax.tree.map(lambda x: x / accumulate, grads)
    return grads, jax.tree.map(lambda x: x.reshape(-1), per_image)


def pmap_train_step(*, settings, teacher=None, devices=None, **others):
    """(*held, batch, rng) -> (*held, metrics): `train_step` on all devices.

    With a teacher its parameters follow the key. It is compiled at its first call. `held` is as of
    `sharding.hold`, and donated.

    Args:
        settings, teacher: as of `train_step`.
        devices: as of `parallel.pmap`.
        **others: the other settings of `train_step`.
    """
    step = functools.partial(train_step, settings=settings, teacher=teacher, **others)
    more = 0 if teacher is None else 1
    if settings.shard_update:
        return sharding.pmap(step, devices, more)
    return parallel.pmap(
        step, in_axes=(None, 0, *(None,) * (1 + more)), out_axes=None, donate_argnums=(0,),
        devices=devices,
    )
