"""Floating-point operations of a JAX function: its matrix products and convolutions, no others.

Multiplying and adding are two, as everywhere; what is left out (norms, activations) is a few
percent of a U-Net. A training step is taken for three forward passes.
"""

import math
from collections.abc import Callable
from typing import Any

import jax

TRAINING = 3  # Forward, and the gradients of inputs and of parameters.


def count(fn: Callable, *args: Any) -> int:
    """FLOPs of `fn(*args)`, traced and not run.

    Args:
        fn: a function without a `while` loop, whose turns nobody knows.
        *args: arrays or `jax.ShapeDtypeStruct`.
    """
    with jax.default_matmul_precision("highest"):  # Of which a convolution saves none.
        return _of(jax.make_jaxpr(fn)(*args).jaxpr)


def _of(jaxpr):
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation):
    kind, params = equation.primitive.name, equation.params
    shapes = [v.aval.shape for v in (*equation.invars, *equation.outvars) if hasattr(v, "aval")]
    if kind == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * math.prod(shapes[-1]) * math.prod(shapes[0][axis] for axis in contracted)
    if kind == "conv_general_dilated":
        kernel, out_axis = shapes[1], params["dimension_numbers"].rhs_spec[0]
        return 2 * math.prod(shapes[-1]) * math.prod(kernel) // kernel[out_axis]
    turns = params.get("length", 1) if kind == "scan" else 1
    return turns * sum(_of(inner) for inner in _inner(params))


def _inner(params):
    """The programs inside one."""
    for value in params.values():
        for found in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(found, "eqns"):
                yield found
