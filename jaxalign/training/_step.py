"""The one train step: sum/weight normalisation over the global batch, accumulation, a guard, an update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxalign.errors import InputError
from jaxalign.sharding import batch_sharding, replicated
from jaxalign.training._batches import check_rows
from jaxalign.training._dce import only_outputs
from jaxalign.training._state import TrainState

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


class TrainStep:
    """A jitted step ``(state, frozen, batch) -> (state, metrics)``. The state passed in is donated: do not reuse it.

    ``lower`` is ``jax.jit``'s, for planning and for reading the compiled program.
    """

    def __init__(self, function: jax.stages.Wrapped, mesh: Mesh, accumulation: int) -> None:
        self._function = function
        self.mesh = mesh
        self.accumulation = accumulation

    def __call__(self, state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
        check_rows(batch, self.mesh, self.accumulation)
        with jax.set_mesh(self.mesh):
            return self._function(state, frozen, batch)

    def lower(self, state: Any, frozen: Any, batch: Any) -> Any:
        """Lower the step for these arrays or shapes, as ``jax.jit(...).lower`` does."""
        check_rows(batch, self.mesh, self.accumulation)
        with jax.set_mesh(self.mesh):
            return self._function.lower(state, frozen, batch)


def make_train_step(
    loss: LossFunction,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    state_shardings: TrainState,
    frozen_shardings: Any = None,
    accumulation: int = 1,
    schedule: Callable[[Any], Any] | None = None,
    update_extra: Callable[..., dict[str, Any]] | None = None,
) -> TrainStep:
    """Return the jitted step ``(state, frozen, batch) -> (state, metrics)`` of a loss.

    What is minimised is the sum over the loss's terms of ``coefficient * sum / weight``, sum and weight each over the
    whole global batch. With accumulation the weights of the whole batch come first (they do not depend on parameters,
    so the model is not run for them), then each micro-batch adds the gradient of its share of the sums. So the number
    of micro-batches, the mesh and the packing change a result only by rounding.

    Randomness: the loss gets ``fold_in(state.key, state.step)``, the same key in every micro-batch. A loss that draws
    folds in what identifies a row (its record id), never the row's place in the batch: then its draws do not depend
    on the split either.

    The guard: if the total or the gradient is not finite, every leaf of the state (the step counter too) stays what
    it was and the metric ``nonfinite`` is 1; so the last state is whole, and a resumed run meets the same batch.

    Metrics: those of the loss, ``loss`` (the total), ``loss/<term>`` where there are several terms, ``grad_norm``
    (global, before any clipping), ``nonfinite``, and ``learning_rate`` if ``schedule`` is given.

    Args:
        loss: ``loss(params, frozen, batch, key, extra) -> (terms, metrics)``.
        optimizer: an optax transformation.
        mesh: the mesh; it is the ambient mesh while the loss is traced.
        state_shardings: from ``jaxalign.training.state_shardings``.
        frozen_shardings: shardings of the frozen trees (a prefix is enough); None takes them as they lie.
        accumulation: number of micro-batches; micro-batch m holds the rows m, m + accumulation, ...
        schedule: the learning rate of update k (0-based), to be reported.
        update_extra: ``update_extra(extra, params, metrics, step) -> extra`` with the new parameters, this step's
            metrics as (sum, count) and the number of updates including this one; must keep shapes and dtypes.

    Raises:
        InputError: when called with rows that do not divide into accumulation x data shards.
    """
    if accumulation < 1:
        raise InputError(f"--accumulation {accumulation}: must be at least 1")
    rows = batch_sharding(mesh)
    update = optax.with_extra_args_support(optimizer).update

    def gradients(state: TrainState, frozen: Any, batch: Any, key: jax.Array) -> tuple[Any, Any, Terms, Metrics]:
        def share(params: Any, part: Any, weights: dict[str, Any] | None) -> tuple[jax.Array, tuple[Terms, Metrics]]:
            terms, metrics = loss(params, frozen, part, key, state.extra)
            return weighted_total(terms, weights), (terms, metrics)

        differentiate = jax.value_and_grad(share, has_aux=True)
        if accumulation == 1:
            (total, (terms, metrics)), grads = differentiate(state.params, batch, None)
            return total, jax.lax.with_sharding_constraint(grads, state_shardings.params), terms, metrics

        def weights_of(params: Any, frozen: Any, batch: Any, key: jax.Array, extra: Any) -> dict[str, Any]:
            return {name: weight for name, (_, weight, _) in loss(params, frozen, batch, key, extra)[0].items()}

        weights = only_outputs(weights_of, state.params, frozen, batch, key, state.extra)
        # [B, ...] -> [B / accumulation, accumulation, ...]: a micro-batch is a column, so every device keeps its rows.
        split = jax.tree.map(
            lambda leaf: leaf.reshape(leaf.shape[0] // accumulation, accumulation, *leaf.shape[1:]), batch
        )

        def micro_batch(sums: Any, index: jax.Array) -> tuple[Any, Any]:
            part = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, 1, keepdims=False), split)
            part = jax.lax.with_sharding_constraint(part, rows)
            (total, (terms, metrics)), grads = differentiate(state.params, part, weights)
            sums = jax.tree.map(lambda old, new: old + new.astype(old.dtype), sums, grads)
            return jax.lax.with_sharding_constraint(sums, state_shardings.params), (total, terms, metrics)

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, _wide(leaf)), state.params)
        zeros = jax.lax.with_sharding_constraint(zeros, state_shardings.params)
        grads, (totals, terms, metrics) = jax.lax.scan(micro_batch, zeros, jnp.arange(accumulation))
        grads = jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), grads, state.params)
        terms = {name: (jnp.sum(value), weights[name], 1.0) for name, (value, _, _) in terms.items()}
        return jnp.sum(totals), grads, terms, jax.tree.map(jnp.sum, metrics)

    def step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        total, grads, terms, metrics = gradients(state, frozen, batch, key)
        norm = _global_norm(grads)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        report: dict[str, tuple[Any, Any]] = {"loss": (total, 1.0)}
        if len(terms) > 1:
            report |= {f"loss/{name}": (value, weight) for name, (value, weight, _) in terms.items()}
        report |= metrics
        report |= {"grad_norm": (norm, 1.0), "nonfinite": (1.0 - finite, 1.0)}
        if schedule is not None:
            report["learning_rate"] = (schedule(state.step), 1.0)
        updates, optimizer_state = update(
            grads, state.optimizer_state, state.params, key=jax.random.fold_in(key, ROUNDING)
        )
        params = optax.apply_updates(state.params, updates)
        extra = state.extra
        if update_extra is not None:
            extra = update_extra(extra, params, report, state.step + 1)
        updated = TrainState(params, optimizer_state, state.step + 1, state.key, extra)
        # A select, not a branch: it is fused into the update, and nothing has to be copied to survive the donation.
        kept = jax.tree.map(lambda new, old: new if new is old else jnp.where(finite, new, old), updated, state)
        return kept, jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), report)

    jitted = jax.jit(
        step,
        in_shardings=(state_shardings, frozen_shardings, rows),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return TrainStep(jitted, mesh, accumulation)


def _global_norm(tree: Any) -> jax.Array:
    squares = [jnp.sum(jnp.square(leaf.astype(_wide(leaf)))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))


def _wide(value: Any) -> Any:
    return jnp.promote_types(jnp.result_type(value), jnp.float32)
