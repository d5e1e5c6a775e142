"""Parameters of any module, filled so that its activations stay near 1."""

import jax
import numpy as np


def shapes(model, *inputs, **settings):
    """The tree of shapes of a module's parameters; computes nothing."""
    return jax.eval_shape(
        lambda: model.init(jax.random.key(0), *inputs, **settings)["params"]
    )


def fill(tree, seed=0):
    """Random values in every leaf, zero-initialised ones too: activations stay near 1."""
    rng = np.random.default_rng(seed)

    def leaf(path, like):
        name, value = path[-1].key, rng.standard_normal(like.shape)
        if name == "kernel":
            value = value / np.sqrt(np.prod(like.shape[:-1]))
        else:
            value = 0.3 * value + (name == "scale")
        return np.float32(value)

    return jax.tree_util.tree_map_with_path(leaf, tree)
