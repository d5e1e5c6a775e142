"""Parameters together with what they need, and the shapes that fit a network."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class About:
    """Where a model is from: no part of what it computes, so all are equal and nothing recompiles.

    Attributes:
        config: of the run, or None.
        step: updates that the parameters have seen, or None.
        class_names: of the classes, in order; () where they are not known.
    """

    config: Any = None
    step: int | None = None
    class_names: tuple[str, ...] = ()

    def __eq__(self, other):
        return isinstance(other, About)

    def __hash__(self):
        return hash(About)


@flax.struct.dataclass
class Trained:
    """Parameters with the static configuration that they need; a pytree.

    `config`, `step` and `class_names` tell where it is from (see `About`).

    Attributes:
        params: the network's parameters, as a rule their running average.
        model: the Linen module (static).
        schedule: the noise schedule, host arrays.
        diffusion: `process.Parameterization` (static).
        image_shape: (h, w, c) of one image (static).
        value_range: (low, high), the values of the data that are -1 and 1; () for uint8 (static).
        bins: how many values a pixel of the data can have; 0 for floats (static).
        vector_scale: (mean, standard deviation) of the numbers that go with each image of the data,
            which the network gets less the one and over the other; () without them (static).
        about: where it is from (static).
    """

    params: Any
    model: nn.Module = flax.struct.field(pytree_node=False)
    schedule: Any
    diffusion: Any = flax.struct.field(pytree_node=False)
    image_shape: tuple[int, int, int] = flax.struct.field(pytree_node=False)
    value_range: tuple[float, ...] = flax.struct.field(pytree_node=False, default=())
    bins: int = flax.struct.field(pytree_node=False, default=256)
    vector_scale: tuple[tuple[float, ...], ...] = flax.struct.field(pytree_node=False, default=())
    about: About = flax.struct.field(pytree_node=False, default=About())

    @property
    def config(self) -> Any:
        """The config of the run that it is of; None where there is none."""
        return self.about.config

    @property
    def step(self) -> int | None:
        """Updates that the parameters have seen; None where that is not known."""
        return self.about.step

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in order; () where they are not known."""
        return self.about.class_names

    def __repr__(self) -> str:
        sizes = [np.size(leaf) for leaf in jax.tree.leaves(self.params)]
        num_classes = getattr(self.model, "num_classes", 0)
        parts = [
            f"{type(self.model).__name__} of {sum(sizes):,} parameters",
            f"images {'x'.join(map(str, self.image_shape))}",
            *([f"{num_classes} classes"] if num_classes else []),
            *([f"step {self.step:,}"] if self.step is not None else []),
        ]
        return f"Trained({', '.join(parts)})"


def num_params(params: Any) -> int:
    """How many numbers a parameter tree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def is_self_conditioned(model: nn.Module) -> bool:
    """Whether the network takes its last x_0, as a third argument."""
    return getattr(model, "self_condition", False)


def denoise_fn(trained: Trained) -> Callable[..., jax.Array]:
    """(x_t [b, h, w, c], t [b]) -> the network's raw output, for work of your own; jit-able.

    That of a self-conditioned network also takes its last x_0; zeros by default.
    """
    check(trained)
    return functools.partial(trained.model.apply, {"params": trained.params}, train=False)


def check(trained: Any, field: str = "trained") -> None:
    """Raises UserError where something else stands in the place of a `Trained`."""
    if isinstance(trained, str) or hasattr(trained, "__fspath__"):
        path = str(trained)
        raise UserError(
            f"is a path; load the model first: {field} = ddpm_jax.load({path!r}), or "
            "ddpm_jax.from_pretrained of weights of diffusers.", field=field, value=path,
        )
    if not isinstance(trained, Trained):
        raise UserError(
            "is not the Trained that ddpm_jax.load, train and from_pretrained return; write "
            f"{field} = ddpm_jax.load('runs/digits').", field=field,
            value=trained if isinstance(trained, (int, float)) else type(trained),
        )


def check_params(trained: Trained) -> None:
    """Raises UserError naming the first leaf that does not fit the model."""
    misfit = first_misfit(trained.params, trained.model, trained.image_shape)
    if misfit:
        name, wanted, found = misfit
        raise UserError(
            f"params do not fit the model at {name}: the model has {wanted}, params {found}; pass "
            "the model that they were trained with, for example model=UNet(channels=...)."
        )


def first_misfit(
    params: Any, model: nn.Module, image_shape: tuple[int, int, int]
) -> tuple[str, tuple | str, tuple | str] | None:
    """(name, the network's shape, the shape in `params`) where they differ first, else None.

    A shape is "nothing" where one of the two has no such parameter.
    """
    wanted = _known_shapes(model, tuple(image_shape))
    found = {path: np.shape(leaf) for path, leaf in leaves(params).items()}
    for path in [*wanted, *found]:
        if wanted.get(path) != found.get(path):
            return "/".join(path), wanted.get(path, "nothing"), found.get(path, "nothing")
    return None


def shapes(
    model: nn.Module, image_shape: tuple[int, int, int]
) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shape of each of the network's parameters, by its path; compiles nothing."""
    def init():
        x, t = jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)
        return model.init(jax.random.key(0), x, t, train=False).get("params", {})

    return {path: leaf.shape for path, leaf in leaves(jax.eval_shape(init)).items()}


# Every call of `sample` checks its parameters, and tracing may take as long as a small chain.
_known_shapes = functools.lru_cache(maxsize=8)(shapes)


def leaves(tree: Any) -> dict[tuple[str, ...], Any]:
    """The leaves of a tree of parameters by their paths, for example ("conv_in", "kernel")."""
    return {
        tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
