"""Floating-point operations of a JAX function: its matrix products and convolutions, no others.

Multiplying and adding are two, as everywhere; what is left out (norms, activations) is a few
percent of a U-Net. A training step is taken for three forward passes.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

TRAINING = 3  # Forward, and the gradients of inputs and of parameters.


# How JAX names them; the last two are `ddpm_jax.convolution`'s own.
PRODUCTS = ("dot_general", "conv_general_dilated", "conv3x3", "kernel3x3")


def count(fn: Callable, *args: Any) -> int:
    """FLOPs of `fn(*args)`, traced and not run.

    Args:
        fn: a function without a `while` loop, whose turns nobody knows.
        *args: arrays or `jax.ShapeDtypeStruct`.
    """
    return _of(jax.make_jaxpr(fn)(*args).jaxpr)


def _of(jaxpr):
    return sum(
        of_equation(equation) + sum(turns * _of(inner) for turns, inner in inside(equation))
        for equation in jaxpr.eqns
    )


def of_equation(equation: Any) -> int:
    """FLOPs of one equation of a jaxpr, every product taken; 0 where it is none of `PRODUCTS`."""
    kind, params = equation.primitive.name, equation.params
    if kind not in PRODUCTS:
        return 0
    shapes = [v.aval.shape for v in (*equation.invars, *equation.outvars)]
    if kind == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * math.prod(shapes[-1]) * math.prod(shapes[0][axis] for axis in contracted)
    if kind == "conv_general_dilated":
        kernel, out_axis = shapes[1], params["dimension_numbers"].rhs_spec[0]
        return 2 * math.prod(shapes[-1]) * math.prod(kernel) // kernel[out_axis]
    kernel = shapes[1 if kind == "conv3x3" else 2]
    return 2 * math.prod(shapes[0][:3]) * math.prod(kernel)


def inside(equation: Any) -> Iterator[tuple[int, Any]]:
    """(how often it runs, jaxpr) of each program inside an equation."""
    turns = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
    for value in equation.params.values():
        for found in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(found, "eqns"):
                yield turns, getattr(found, "jaxpr", found)
