"""Where numbers that are not finite began: a function is run operation by operation, and each result looked at."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# Their body is walked through; what has a body and is not here (a while, a kernel) is one operation.
INLINED = {
    "jit": "jaxpr", "closed_call": "call_jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr",
}  # fmt: skip
LAYERS = re.compile(r"layers\[(\d+)::(\d+)\]")
"""A scope inside the body of a scan over layers: iteration i is layer first + step * i."""


@dataclasses.dataclass(frozen=True, order=True)
class Origin:
    """The first value that was not finite though nothing it was computed from was the reason."""

    order: int
    """Number of the operation in the order of execution; inputs have -1."""
    scope: str
    """Names of the modules around it ("layer 3/query"), or of the input."""
    operation: str
    """Name of the operation, "" for an input."""
    rows: tuple[int, ...] | None
    """Entries of the first axis in which it is not finite; None where there is none, or it lies on other processes."""
    length: int
    """Of the first axis."""


class Tracked(NamedTuple):
    """A value, and where what is not finite in it began; None also where infinities were meant (a mask's)."""

    value: Any
    origin: Origin | None


def find_origins(function: Callable[..., Any], *arguments: Any, names: Sequence[str]) -> Any:
    """Return the tree of ``Tracked`` that ``function(*arguments)`` computes.

    A result that is not finite inherits the earliest origin among its operands. Without one it is an origin itself if
    it is NaN and no operand is, or infinite and all operands are finite; otherwise it is a constant's infinity passed
    on (a mask), and that is no fault. So the origin of a final value is what made it not finite, and no number on the
    way that was selected away.

    Args:
        function: pure; traced with ``jax.make_jaxpr``.
        arguments: trees of arrays.
        names: what to call each argument where it is not finite to begin with.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    inputs = [
        Tracked(leaf, _input_origin(leaf, name + jax.tree_util.keystr(path)))
        for name, tree in zip(names, arguments, strict=True)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    results = _Walk().run(closed.jaxpr, closed.consts, inputs, "", 0)
    return jax.tree.unflatten(jax.tree.structure(shape), results)


class _Walk:
    """One execution; counts its operations."""

    def __init__(self) -> None:
        self.count = 0

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Tracked], scope: str, turn: int) -> list[Tracked]:
        """Evaluate a jaxpr whose operations lie in ``scope``, in iteration ``turn`` of the scan around it."""
        found: dict[Any, Tracked] = {}
        found.update(zip(jaxpr.constvars, (Tracked(const, None) for const in consts), strict=True))
        found.update(zip(jaxpr.invars, inputs, strict=True))
        uses = {}  # a value is dropped after its last use: the memory of a forward pass without its backward
        for number, equation in enumerate(jaxpr.eqns):
            uses.update({var: number for var in equation.invars if not isinstance(var, core.Literal)})
        kept = {var for var in jaxpr.outvars if not isinstance(var, core.Literal)}

        def read(atom: Any) -> Tracked:
            return Tracked(atom.val, None) if isinstance(atom, core.Literal) else found[atom]

        for number, equation in enumerate(jaxpr.eqns):
            operands = [read(atom) for atom in equation.invars]
            own = _resolve(str(equation.source_info.name_stack), turn)
            results = self.step(equation, operands, "/".join(filter(None, (scope, own))), turn)
            found.update(zip(equation.outvars, results, strict=True))
            for var in [var for var, last in uses.items() if last == number and var not in kept]:
                found.pop(var, None)
                del uses[var]
        return [read(atom) for atom in jaxpr.outvars]

    def step(self, equation: Any, operands: list[Tracked], scope: str, turn: int) -> list[Tracked]:
        """Evaluate one operation, or what is inside it."""
        name, parameters = equation.primitive.name, equation.params
        if name in INLINED:
            inner = parameters[INLINED[name]]
            body, consts = (inner.jaxpr, inner.consts) if isinstance(inner, core.ClosedJaxpr) else (inner, ())
            return self.run(body, consts, operands, scope, turn)
        if name == "cond":
            branch = parameters["branches"][int(operands[0].value)]
            return self.run(branch.jaxpr, branch.consts, operands[1:], scope, turn)
        if name == "scan":
            return self.scan(parameters, operands, scope)
        self.count += 1
        with equation.ctx.manager:
            bound = equation.primitive.get_bind_params(parameters)
            functions, bound = bound if isinstance(bound, tuple) else ((), bound)  # by version of JAX
            values = equation.primitive.bind(*functions, *(operand.value for operand in operands), **bound)
        values = values if equation.primitive.multiple_results else [values]
        return [Tracked(value, self.origin(value, operands, scope, name)) for value in values]

    def scan(self, parameters: Any, operands: list[Tracked], scope: str) -> list[Tracked]:
        """Evaluate a scan an iteration at a time, in its own order."""
        fixed, carry, over = _divided(parameters, operands)
        carries = len(carry)
        body = parameters["jaxpr"]
        turns = range(parameters["length"])
        stacks: dict[int, list[Tracked]] = {}
        for turn in reversed(turns) if parameters["reverse"] else turns:
            slices = [_slice(one, turn) for one in over]
            results = self.run(body.jaxpr, body.consts, [*fixed, *carry, *slices], scope, turn)
            carry, stacks[turn] = results[:carries], results[carries:]
        columns = zip(*(stacks[turn] for turn in turns), strict=True)
        return [*carry, *(_stack(column) for column in columns)]

    def origin(self, value: Any, operands: list[Tracked], scope: str, operation: str) -> Origin | None:
        """Where what is not finite in a result began."""
        if _finite(value):
            return None
        if inherited := [operand.origin for operand in operands if operand.origin is not None]:
            return min(inherited)
        new_nan = _has_nan(value) and not any(_has_nan(operand.value) for operand in operands)
        if new_nan or all(_finite(operand.value) for operand in operands):
            return Origin(self.count, scope, operation, _rows(value), _length(value))
        return None


def _divided(parameters: Any, operands: list[Tracked]) -> tuple[list[Tracked], list[Tracked], list[Tracked]]:
    """A scan's operands: what stays, what is carried, what it goes over."""
    if "num_consts" in parameters:  # JAX before 0.12
        consts, carries = parameters["num_consts"], parameters["num_carry"]
        return operands[:consts], operands[consts : consts + carries], operands[consts + carries :]
    fixed, carry, over = (list(part) for part in parameters["ft_in"].update(operands).unpack())
    return fixed, carry, over


def _resolve(scope: str, turn: int) -> str:
    return LAYERS.sub(lambda found: f"layer {int(found[1]) + turn * int(found[2])}", scope)


def _slice(tracked: Tracked, turn: int) -> Tracked:
    value = tracked.value[turn]
    return Tracked(value, None if tracked.origin is None or _finite(value) else tracked.origin)


def _stack(column: Sequence[Tracked]) -> Tracked:
    origins = [one.origin for one in column if one.origin is not None]
    return Tracked(jnp.stack([one.value for one in column]), min(origins) if origins else None)


def _input_origin(leaf: Any, name: str) -> Origin | None:
    return None if _finite(leaf) else Origin(-1, name, "", _rows(leaf), _length(leaf))


def _finite(value: Any) -> bool:
    if not jnp.issubdtype(jnp.result_type(value), jnp.inexact):
        return True
    return bool(_all_finite(value))


def _has_nan(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact) and bool(_any_nan(value))


def _rows(value: Any) -> tuple[int, ...] | None:
    if jnp.ndim(value) == 0 or not getattr(value, "is_fully_addressable", True):
        return None
    return tuple(np.flatnonzero(jax.device_get(_bad_rows(value))).tolist())


def _length(value: Any) -> int:
    return jnp.shape(value)[0] if jnp.ndim(value) else 0


@jax.jit
def _all_finite(value: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(value))


@jax.jit
def _any_nan(value: jax.Array) -> jax.Array:
    return jnp.any(jnp.isnan(value))


@jax.jit
def _bad_rows(value: jax.Array) -> jax.Array:
    return ~jnp.all(jnp.isfinite(value), axis=tuple(range(1, value.ndim)))
