"""Looking into a jaxpr."""

import jax


def equations(jaxpr):
    """Every equation of a jaxpr and, after each, those of the jaxprs in its parameters."""
    for equation in jaxpr.eqns:
        yield equation
        params = list(equation.params.values())
        for value in jax.tree.leaves(params, is_leaf=lambda value: hasattr(value, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)
