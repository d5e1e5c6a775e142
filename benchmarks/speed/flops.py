"""Counts the floating-point operations of a JAX function: its matrix products and convolutions.

A multiply-add counts as two operations, as usual. Norms and activations, a few percent of a U-Net,
are left out. A training step counts as three forward passes.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

TRAINING = 3  # Forward, and the gradients of inputs and of parameters.


# JAX's names; the last two are primitives of `ddpm_jax.network.convolution`.
PRODUCTS = ("dot_general", "conv_general_dilated", "conv3x3", "kernel3x3")


def count(fn: Callable, *args: Any) -> int:
    """The FLOPs of `fn(*args)`, which is traced and not run.

    Args:
        fn: a function without `while` loops, whose number of iterations is unknown.
        *args: arrays or `jax.ShapeDtypeStruct`.
    """
    return _of(jax.make_jaxpr(fn)(*args).jaxpr)


def _of(jaxpr):
    return sum(
        of_equation(equation) + sum(turns * _of(inner) for turns, inner in inside(equation))
        for equation in jaxpr.eqns
    )


def of_equation(equation: Any) -> int:
    """The FLOPs of one equation of a jaxpr with all products; 0 if it is none of `PRODUCTS`."""
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
    """Yields (how often it runs, jaxpr) of each program inside an equation.

    Of a choice that is the last: the default of `jax.lax.platform_dependent`, or `lax.cond`'s if
    the condition holds.
    """
    kind, params = equation.primitive.name, equation.params
    turns = params.get("length", 1) if kind == "scan" else 1
    for value in (params["branches"][-1:],) if kind == "cond" else params.values():
        for program in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(program, "eqns"):
                yield turns, getattr(program, "jaxpr", program)
