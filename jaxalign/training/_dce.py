"""Computing a few outputs of a function without paying for the rest."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def only_outputs(function: Callable[..., Any], *args: Any) -> Any:
    """Return ``function(*args)``, leaving out every operation that its result does not need.

    A compiler removes dead operations too, but not all: a collective that was written by hand counts as a side effect.
    So the operations are dropped here, from the traced program, before it is lowered.

    Args:
        function: a pure function of pytrees.
        args: its arguments.
    """
    leaves, structure = jax.tree.flatten(args)
    closed, shapes = jax.make_jaxpr(lambda *flat: function(*jax.tree.unflatten(structure, flat)), return_shape=True)(
        *leaves
    )
    jaxpr = closed.jaxpr
    needed = {var for var in jaxpr.outvars if isinstance(var, core.Var)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            kept.append(equation)
            needed.update(var for var in equation.invars if isinstance(var, core.Var))
    program = core.ClosedJaxpr(jaxpr.replace(eqns=kept[::-1]), closed.consts)
    return jax.tree.unflatten(jax.tree.structure(shapes), core.jaxpr_as_fun(program)(*leaves))
