"""One update of parameters from one batch: sum/weight normalisation, accumulation, a guard. Pure and not jitted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxalign.errors import InputError
from jaxalign.training._batches import constrain_batch
from jaxalign.training._dce import only_outputs

Terms = dict[str, tuple[Any, Any, Any]]
"""Term name -> (sum, weight, coefficient): all scalars."""
Metrics = dict[str, tuple[Any, Any]]
"""Metric name -> (sum, count): all scalars; only a writer divides."""
LossFunction = Callable[[Any, Any, Any, Any, Any], tuple[Terms, Metrics]]
"""``loss(params, frozen, batch, key, extra) -> (terms, metrics)``."""

ROUNDING = 0x8000_0000
"""Folded into a step's key for the rounding of bfloat16 parameters: no record id, which losses fold in, is this."""


def weighted_total(terms: Terms, weights: dict[str, Any] | None = None) -> jax.Array:
    """Return the sum over terms of ``coefficient * sum / weight``, a scalar; a term of weight 0 counts 0.

    Args:
        terms: the terms of a batch, or of part of one.
        weights: the weights of the whole batch where ``terms`` are of a part; those of ``terms`` if None.
    """
    total = jnp.zeros((), jnp.float32)
    for name, (value, weight, coefficient) in terms.items():
        whole = jax.lax.stop_gradient(jnp.asarray(weight if weights is None else weights[name], _wide(value)))
        safe = jnp.where(whole == 0, 1.0, whole)
        total = total + coefficient * jnp.where(whole == 0, 0.0, value / safe)
    return total


class Updated(NamedTuple):
    """What one update leaves."""

    params: Any
    optimizer_state: Any
    metrics: Metrics
    """Those of the loss, ``loss`` (the total), ``loss/<term>`` where there are several terms, and ``grad_norm``
    (global, before any clipping)."""
    finite: jax.Array
    """bool []: False if the total or the gradient is not finite; parameters and optimizer state are then the old."""


Update = Callable[[Any, Any, Any, Any, jax.Array, Any], Updated]
"""``update(params, optimizer_state, frozen, batch, key, extra) -> Updated``."""


def make_update(
    loss: LossFunction,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    shardings: Any,
    accumulation: int = 1,
) -> Update:
    """Return the pure update of a loss, traced into a jitted step (``make_train_step``) or several times into one.

    What is minimised is the sum over the loss's terms of ``coefficient * sum / weight``, sum and weight each over the
    whole batch. With accumulation the weights of the whole batch come first (they do not depend on parameters, so the
    model is not run for them), then each micro-batch adds the gradient of its share of the sums. So the number of
    micro-batches, the mesh and the packing change a result only by rounding.

    The loss gets ``key`` as it is, the same in every micro-batch. One that draws folds in what identifies a row (its
    record id), never the row's place in the batch: then its draws do not depend on the split either.

    Args:
        loss: ``loss(params, frozen, batch, key, extra) -> (terms, metrics)``.
        optimizer: an optax transformation.
        mesh: the mesh; it is the ambient mesh while the loss is traced.
        shardings: of the parameters, and so of their gradients.
        accumulation: number of micro-batches; micro-batch m holds the rows m, m + accumulation, ...

    Raises:
        InputError: fewer than one micro-batch.
    """
    if accumulation < 1:
        raise InputError(f"--accumulation {accumulation}: must be at least 1")
    transform = optax.with_extra_args_support(optimizer).update

    def gradients(
        params: Any, frozen: Any, batch: Any, key: jax.Array, extra: Any
    ) -> tuple[jax.Array, Any, Terms, Metrics]:
        def share(params: Any, part: Any, weights: dict[str, Any] | None) -> tuple[jax.Array, tuple[Terms, Metrics]]:
            terms, metrics = loss(params, frozen, part, key, extra)
            return weighted_total(terms, weights), (terms, metrics)

        differentiate = jax.value_and_grad(share, has_aux=True)
        if accumulation == 1:
            (total, (terms, metrics)), grads = differentiate(params, batch, None)
            return total, jax.lax.with_sharding_constraint(grads, shardings), terms, metrics

        def weights_of(params: Any, frozen: Any, batch: Any, key: jax.Array, extra: Any) -> dict[str, Any]:
            return {name: weight for name, (_, weight, _) in loss(params, frozen, batch, key, extra)[0].items()}

        weights = only_outputs(weights_of, params, frozen, batch, key, extra)
        split = split_rows(batch, accumulation)

        def micro_batch(sums: Any, index: jax.Array) -> tuple[Any, Any]:
            part = take_part(split, index, mesh)
            (total, (terms, metrics)), grads = differentiate(params, part, weights)
            sums = jax.tree.map(lambda old, new: old + new.astype(old.dtype), sums, grads)
            return jax.lax.with_sharding_constraint(sums, shardings), (total, terms, metrics)

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, _wide(leaf)), params)
        zeros = jax.lax.with_sharding_constraint(zeros, shardings)
        grads, (totals, terms, metrics) = jax.lax.scan(micro_batch, zeros, jnp.arange(accumulation))
        grads = jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), grads, params)
        terms = {name: (jnp.sum(value), weights[name], 1.0) for name, (value, _, _) in terms.items()}
        return jnp.sum(totals), grads, terms, jax.tree.map(jnp.sum, metrics)

    def update(params: Any, optimizer_state: Any, frozen: Any, batch: Any, key: jax.Array, extra: Any) -> Updated:
        total, grads, terms, metrics = gradients(params, frozen, batch, key, extra)
        norm = _global_norm(grads)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        report: Metrics = {"loss": (total, 1.0)}
        if len(terms) > 1:
            report |= {f"loss/{name}": (value, weight) for name, (value, weight, _) in terms.items()}
        report |= metrics | {"grad_norm": (norm, 1.0)}
        updates, new_state = transform(grads, optimizer_state, params, key=jax.random.fold_in(key, ROUNDING))
        new_params = optax.apply_updates(params, updates)
        new_params, new_state = select(finite, (new_params, new_state), (params, optimizer_state))
        return Updated(new_params, new_state, report, finite)

    return update


def select(condition: jax.Array, new: Any, old: Any) -> Any:
    """``new`` where the condition holds, else ``old``, leaf by leaf.

    A select, not a branch: it is fused into the update, and nothing has to be copied to survive the donation.
    """
    return jax.tree.map(lambda one, other: one if one is other else jnp.where(condition, one, other), new, old)


def split_rows(batch: Any, parts: int) -> Any:
    """``[B, ...]`` as ``[B / parts, parts, ...]``: a part is a column, so every device keeps its rows."""
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0] // parts, parts, *leaf.shape[1:]), batch)


def take_part(split: Any, index: jax.Array, mesh: Mesh) -> Any:
    """Part ``index`` of what ``split_rows`` returned, laid out as a batch is."""
    part = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, 1, keepdims=False), split)
    return constrain_batch(part, mesh)


def _global_norm(tree: Any) -> jax.Array:
    squares = [jnp.sum(jnp.square(leaf.astype(_wide(leaf)))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))


def _wide(value: Any) -> Any:
    return jnp.promote_types(jnp.result_type(value), jnp.float32)
