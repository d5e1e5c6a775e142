"""`Trained`, and trees of parameters: leaves by path, the first that does not fit a network."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import process
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.network import trained as trained_lib
from nonzero import TinyNet

SHAPE = (8, 8, 1)


def params():
    shapes = trained_lib.shapes(TinyNet(), SHAPE)
    tree = {}
    for path, shape in shapes.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = np.zeros(shape)
    return tree


def test_leaves_stand_by_their_paths():
    found = trained_lib.leaves({"b": [1, {"c": 2}], "a": 3})
    assert found == {("a",): 3, ("b", "0"): 1, ("b", "1", "c"): 2}


def test_what_fits_has_no_misfit():
    assert trained_lib.first_misfit(params(), TinyNet(), SHAPE) is None


def test_the_first_misfit_is_named_with_both_shapes():
    tree = params()
    paths = list(trained_lib.leaves(tree))
    (first, second), shapes = paths[:2], trained_lib.shapes(TinyNet(), SHAPE)
    tree[second[0]][second[1]] = jnp.zeros((1, 2))
    named = trained_lib.first_misfit(tree, TinyNet(), SHAPE)
    assert named == ("/".join(second), shapes[second], (1, 2))
    del tree[first[0]][first[1]]
    assert trained_lib.first_misfit(tree, TinyNet(), SHAPE)[0] == "/".join(first)
    more = params() | {"more": np.zeros(3)}
    assert trained_lib.first_misfit(more, TinyNet(), SHAPE) == ("more", "nothing", (3,))


def test_where_a_model_is_from_is_no_part_of_what_is_compiled():
    calls = []

    @jax.jit
    def total(trained):
        calls.append(trained.step)
        return trained.params["conv_in"]["bias"].sum()

    made = [trained_lib.Trained(
        params(), TinyNet(), schedule_lib.linear(20), process.Parameterization(), SHAPE,
        about=trained_lib.About({"seed": step}, step, ("cat", "dog"))) for step in (1, 2)]
    assert [float(total(trained)) for trained in made] == [0, 0] and calls == [1]
    assert [trained.step for trained in made] == [1, 2]
    assert made[1].config == {"seed": 2} and made[1].class_names == ("cat", "dog")
    bare = made[0].replace(about=trained_lib.About())
    assert (bare.config, bare.step, bare.class_names) == (None, None, ())


def test_a_model_is_shown_in_one_line():
    trained = trained_lib.Trained(
        params(), TinyNet(), schedule_lib.linear(20), process.Parameterization(), SHAPE)
    size = sum(leaf.size for leaf in jax.tree.leaves(params()))
    assert repr(trained) == f"Trained(TinyNet of {size} parameters, images 8x8x1)"
    told = trained.replace(
        model=TinyNet(num_classes=3), about=trained_lib.About(step=12000))
    assert repr(told).endswith("images 8x8x1, 3 classes, step 12,000)")
    assert "\n" not in repr(jax.eval_shape(lambda: told))


def test_trained_is_a_pytree_with_hashable_statics():
    trained = trained_lib.Trained(
        params(), TinyNet(), schedule_lib.linear(20), process.Parameterization(), SHAPE)
    leaves, structure = jax.tree.flatten(trained)
    assert hash(structure) == hash(jax.tree.structure(jax.tree.unflatten(structure, leaves)))
    more = jax.jit(lambda trained: jax.tree.map(lambda x: x + 2, trained.params))(trained)
    np.testing.assert_array_equal(more["conv_in"]["bias"], 2 + trained.params["conv_in"]["bias"])
