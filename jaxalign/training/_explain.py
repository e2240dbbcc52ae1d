"""In words: where a loss or gradient that is not finite began."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.training._origins import Origin, Tracked, find_origins
from jaxalign.training._update import LossFunction, split_rows, take_part, weighted_total

NAMES = ("the parameters", "the frozen parameters", "the batch", "the key", "the state's extra")


NameRows = Callable[[Sequence[int], int], list[int] | None]
"""``name(rows, length) -> record ids`` of these entries of an axis of that length, or None if it is no axis of rows."""


def explain_loss(
    loss: LossFunction,
    params: Any,
    frozen: Any,
    batch: Any,
    key: jax.Array,
    extra: Any,
    *,
    mesh: jax.sharding.Mesh,
    accumulation: int = 1,
    name_rows: NameRows | None = None,
) -> str:
    """Say which module of a loss's forward pass was the first whose values were not finite, else which gradient.

    The loss is run again, one micro-batch after the other, operation by operation: slow, exact, and only for a step
    that has failed. Named scopes say which module an operation belongs to.

    Args:
        loss, params, frozen, batch, key, extra: the step's own.
        mesh: the mesh.
        accumulation: micro-batches of the step.
        name_rows: says which records rows are.

    Returns:
        A clause such as "it began in layer 3/query (dot_general), in records [17]".
    """

    def forward(*arguments: Any) -> list[Any]:
        return [value for value, _, _ in loss(*arguments)[0].values()]

    def gradient(params: Any, *arguments: Any) -> Any:
        return jax.grad(lambda params: weighted_total(loss(params, *arguments)[0]))(params)

    def parts() -> Iterator[tuple[Any, NameRows]]:
        if accumulation == 1:
            yield batch, name_rows or (lambda rows, length: None)
            return
        split, size = split_rows(batch, accumulation), jax.tree.leaves(batch)[0].shape[0]
        for index in range(accumulation):

            def name(rows: Sequence[int], length: int, index: int = index) -> list[int] | None:
                if name_rows is None or length * accumulation != size:
                    return None
                return name_rows([row * accumulation + index for row in rows], size)

            yield take_part(split, jnp.int32(index), mesh), name

    with jax.set_mesh(mesh):
        for part, name in parts():
            found = find_origins(forward, params, frozen, part, key, extra, names=NAMES)
            if origins := [one.origin for one in found if one.origin is not None]:
                return f"it began in {_where(min(origins), name)}"
        for part, name in parts():
            found = find_origins(gradient, params, frozen, part, key, extra, names=NAMES)
            leaves = jax.tree_util.tree_leaves_with_path(found, is_leaf=lambda one: isinstance(one, Tracked))
            bad = {jax.tree_util.keystr(path): one.origin for path, one in leaves if one.origin is not None}
            if bad:
                first = min(bad, key=lambda leaf: bad[leaf])
                more = f" (and of {len(bad) - 1} more)" if len(bad) > 1 else ""
                began = _where(bad[first], name)
                return f"the forward pass is finite, the gradient of {first}{more} is not: it began in {began}"
    return "computed again operation by operation all of it is finite: an overflow where XLA fuses operations"


def _where(origin: Origin, name_rows: NameRows) -> str:
    records = name_rows(origin.rows, origin.length) if origin.rows else None
    named = f", in records {records}" if records else ""
    if not origin.operation:
        inside = f", at {_few(origin.rows)} of its first axis" if origin.rows and not named else ""
        return f"{origin.scope}, which came in like that{named or inside}"
    # JAX's wrappers, Flax's classes and einsum's equations stand between the modules' names.
    parts = re.sub(r"\b(transpose|jvp|vmap|rematted_computation)\b|[()]", "", origin.scope).split("/")
    scope = "/".join(part for part in parts if re.fullmatch(r"[a-z][a-z_0-9 ]*", part))
    scope = scope or "the loss, outside the model"
    backward = "the backward pass of " if "transpose(" in origin.scope else ""
    return f"{backward}{scope} ({origin.operation}){named}"


def _few(rows: tuple[int, ...]) -> str:
    return f"{list(rows[:8])}" + (" ..." if len(rows) > 8 else "")
