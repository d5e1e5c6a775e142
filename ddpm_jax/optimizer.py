"""The optimizer, AdamW after clipping, and its learning rate: warm-up, then a schedule."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddpm_jax import errors
from ddpm_jax.errors import UserError

_TO_THE_END = ("cosine", "linear")  # Schedules whose last rate is that of the run's last update.
SCHEDULES = ("constant", *_TO_THE_END, "inverse_sqrt", "piecewise")
_USED_BY = {  # The schedules that read a setting, and its value for the others.
    "decay_start": ((*_TO_THE_END, "inverse_sqrt"), 0),
    "end_learning_rate": (_TO_THE_END, 0.0),
    "piecewise_steps": (("piecewise",), ()),
    "piecewise_scales": (("piecewise",), ()),
}


@dataclasses.dataclass(frozen=True)
class LearningRate:
    """Number of updates done -> the rate of the next one; named as in `config.train`.

    `configs/cifar10.py` explains each setting.

    Attributes:
        schedule: one of `SCHEDULES`.
        learning_rate: after the warm-up.
        warmup_steps: updates from 0 to that rate, linearly.
        num_steps: where "cosine" and "linear" end.
        decay_start: the update at which the decay starts, if that is after the warm-up.
        end_learning_rate: where "cosine" and "linear" end.
        piecewise_steps: updates at which "piecewise" changes.
        piecewise_scales: what it multiplies the rate by there.
        moved_start: of a decay that was resumed with another end: a decay from here to
            `num_steps` is where that one was when it was resumed. Any number, also below 0.
    """

    schedule: str
    learning_rate: float
    warmup_steps: int
    num_steps: int
    decay_start: int = 0
    end_learning_rate: float = 0.0
    piecewise_steps: tuple[int, ...] = ()
    piecewise_scales: tuple[float, ...] = ()
    moved_start: float | None = None

    def check(self) -> None:
        """Raises UserError for a setting that the schedule cannot take, or does not use."""
        errors.check_known("schedule", self.schedule, SCHEDULES)
        for field, (schedules, unused) in _USED_BY.items():
            if self.schedule not in schedules and getattr(self, field) != unused:
                raise UserError(
                    f"is for {', '.join(schedules)} alone, and has no effect with {{schedule}}",
                    field=field, value=getattr(self, field), given={"schedule": self.schedule},
                    instead={field: unused},
                )
        if self.end_learning_rate > self.learning_rate:
            raise UserError(
                "is above {learning_rate}, from which the rate decays",
                field="end_learning_rate", value=self.end_learning_rate,
                given={"learning_rate": self.learning_rate}, instead={"end_learning_rate": 0.0},
            )
        if self.schedule == "inverse_sqrt" and not self.start:
            raise UserError(
                "must be at least 1 with {schedule} and {warmup_steps}: the rate is proportional "
                "to 1 / sqrt(updates) from there on",
                field="decay_start", value=self.decay_start, instead={"decay_start": 1000},
                given={"schedule": self.schedule, "warmup_steps": self.warmup_steps},
            )
        if self.schedule == "piecewise":
            self._check_pieces()

    def _check_pieces(self):
        steps, scales, start = self.piecewise_steps, self.piecewise_scales, self.warmup_steps
        if not steps or list(steps) != sorted(set(steps)) or steps[0] <= start:
            raise UserError(
                "must be one or more increasing numbers of updates above {warmup_steps}",
                field="piecewise_steps", value=steps, given={"warmup_steps": start},
                instead={"piecewise_steps": (2 * start + 1000, 3 * start + 2000)},
            )
        if len(scales) != len(steps):
            raise UserError(
                "must have a number for each of {piecewise_steps}",
                field="piecewise_scales", value=scales, given={"piecewise_steps": steps},
                instead={"piecewise_scales": (0.1,) * len(steps)},
            )

    @property
    def start(self) -> float:
        """The update at which the decay starts."""
        start = max(self.warmup_steps, self.decay_start)
        return start if self.moved_start is None else self.moved_start

    @property
    def ends(self) -> bool:
        """Whether the rate depends on `num_steps`."""
        return self.schedule in _TO_THE_END

    def progress(self, count: int) -> float:
        """The share of "cosine" or "linear" that is over after so many updates: 0 to 1."""
        length = max(self.num_steps - self.start, 1)
        return min(max((count - self.start) / length, 0.0), 1.0)

    def __call__(self, count: Any) -> Any:
        """The rate of the update that follows on `count` updates, a number or an array of one."""
        rate = self.learning_rate
        if self.warmup_steps:
            before = optax.schedules.linear_schedule(0.0, rate, self.warmup_steps)
        else:
            before = optax.schedules.constant_schedule(rate)
        if self.schedule == "constant":
            return before(count)
        return optax.schedules.join_schedules([before, self._decay()], [self.start])(count)

    def _decay(self) -> optax.Schedule:
        """Number of updates since `start` -> rate."""
        rate, start = self.learning_rate, self.start
        length = max(self.num_steps - start, 1)
        if self.schedule == "cosine":
            alpha = self.end_learning_rate / rate
            return optax.schedules.cosine_decay_schedule(rate, length, alpha)
        if self.schedule == "linear":
            return optax.schedules.linear_schedule(rate, self.end_learning_rate, length)
        if self.schedule == "piecewise":
            steps = (step - start for step in self.piecewise_steps)
            return optax.schedules.piecewise_constant_schedule(
                rate, dict(zip(steps, self.piecewise_scales, strict=True))
            )
        return lambda n: rate / jnp.sqrt(1 + jnp.maximum(n, 0) / start)

    def resumed(self, before: "LearningRate", count: int) -> "LearningRate":
        """This rate for a run that made `count` updates with the rate `before`.

        A decay to another end goes on from where it is, without a jump. One that had ended, or
        had not begun, is as if the run had had this end from its first update; so is another
        schedule.
        """
        same = all(
            getattr(self, name) == getattr(before, name)
            for name in ("schedule", "warmup_steps", "decay_start")
        )
        if not (self.ends and same):
            return self
        if self.num_steps == before.num_steps:
            return dataclasses.replace(self, moved_start=before.moved_start)
        done = before.progress(count)
        if done in (0, 1):
            return self
        moved = self.num_steps - (self.num_steps - count) / (1 - done)
        return dataclasses.replace(self, moved_start=moved)


def adamw(
    learning_rate: optax.ScalarOrSchedule, *, b1: float = 0.9, b2: float = 0.999,
    eps: float = 1e-8, weight_decay: float = 0.0, max_norm: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """AdamW (Loshchilov and Hutter 2019) after clipping the global norm of the gradient.

    Its state is that of Adam, whatever the settings are. Its `update` takes `norm`, that of the
    gradient.

    Args:
        learning_rate: number of updates done -> rate.
        b1, b2: decays of the averages of the gradient and its square.
        eps: is added to the root of the latter.
        weight_decay: each update also takes learning rate times this share of the kernels and
            embeddings, but not of biases and the scales of norms. 0: Adam.
        max_norm: of the gradient; 0: no clipping.
    """
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)

    def update(grads, state, params):
        updates, state = adam.update(grads, state, params)
        return jax.tree_util.tree_map_with_path(
            lambda path, u, p: u + weight_decay * p if _decays(path) else u, updates, params
        ), state

    return optax.chain(
        clip_by_norm(max_norm) if max_norm else optax.identity(),
        optax.chain(
            optax.GradientTransformation(adam.init, update) if weight_decay else adam,
            optax.scale_by_learning_rate(learning_rate),
        ),
    )


def _decays(path) -> bool:
    """Whether a parameter is one of a layer's weights; by name, as a step may flatten its axes."""
    return any(getattr(entry, "key", None) in ("kernel", "embedding") for entry in path)


def clip_by_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm` (Pascanu, Mikolov and Bengio 2013) for a norm that is known.

    Args:
        max_norm: a longer gradient is scaled to this length. Its `update` takes `norm`, the
            gradient's, a float32 scalar, which the log needs too.
    """
    def clip(g, norm):
        return jnp.where(norm < max_norm, g, g / norm * max_norm)

    def update(grads, state, params=None, *, norm, **_):
        return jax.tree.map(lambda g: clip(g, norm), grads), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
