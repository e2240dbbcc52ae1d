"""The one train step: an update over the global batch, jitted, its state donated."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxalign.sharding import replicated
from jaxalign.training._batches import check_rows, constrain_batch, input_sharding
from jaxalign.training._explain import NameRows, explain_loss
from jaxalign.training._state import TrainState
from jaxalign.training._update import LossFunction, Metrics, make_update, select

StepFunction = Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]
"""``step(state, frozen, batch) -> (state, metrics)``, pure."""
Explain = Callable[[TrainState, Any, Any, Mapping[str, float], NameRows | None], str]
"""``explain(state, frozen, batch, metrics, name_rows)``, of the state that a step that was not finite returned."""


class TrainStep:
    """A jitted step ``(state, frozen, batch) -> (state, metrics)``. The state passed in is donated: do not reuse it.

    ``lower`` is ``jax.jit``'s, for planning and for reading the compiled program.
    """

    def __init__(
        self, function: jax.stages.Wrapped, mesh: Mesh, accumulation: int, explain: Explain | None = None
    ) -> None:
        self._function = function
        self._explain = explain
        self.mesh = mesh
        self.accumulation = accumulation

    def __call__(self, state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
        check_rows(batch, self.mesh, self.accumulation)
        with jax.set_mesh(self.mesh):
            return self._function(state, frozen, batch)

    def explain(
        self, state: TrainState, frozen: Any, batch: Any, metrics: Mapping[str, float], name_rows: NameRows | None
    ) -> str:
        """Say where the number began that made a step not finite; runs it again operation by operation.

        Args:
            state: what the step returned: the state it was given, for the guard left it as it was.
            frozen, batch: what it was given.
            metrics: what it reported, divided.
            name_rows: says which records rows of the batch are.
        """
        if self._explain is None:
            return "this step cannot say where it began"
        return self._explain(state, frozen, batch, metrics, name_rows)

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
    count_tokens: Callable[[Any], Any] | None = None,
) -> TrainStep:
    """Return the jitted step ``(state, frozen, batch) -> (state, metrics)`` of a loss.

    What is minimised, and what accumulation means, ``make_update`` says.

    Randomness: the loss gets ``fold_in(state.key, state.step)``, the same key in every micro-batch. A loss that draws
    folds in what identifies a row (its record id), never the row's place in the batch: then its draws do not depend
    on the split either.

    The guard: if the total or the gradient is not finite, every leaf of the state (the step counter too) stays what
    it was and the metric ``nonfinite`` is 1; so the last state is whole, and a resumed run meets the same batch.

    Metrics: those of the loss, ``loss`` (the total), ``loss/<term>`` where there are several terms, ``grad_norm``
    (global, before any clipping), ``nonfinite``, ``learning_rate`` if ``schedule`` is given, and ``tokens`` if
    ``count_tokens`` is.

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
        count_tokens: ``batch -> number of tokens``, traced: of the whole batch, whichever process holds its rows.

    Raises:
        InputError: when called with rows that do not divide into accumulation x data shards.
    """
    update = make_update(loss, optimizer, mesh=mesh, shardings=state_shardings.params, accumulation=accumulation)

    def step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        updated = update(state.params, state.optimizer_state, frozen, batch, key, state.extra)
        report = updated.metrics | {"nonfinite": (1.0 - updated.finite, 1.0)}
        if schedule is not None:
            report["learning_rate"] = (schedule(state.step), 1.0)
        if count_tokens is not None:
            report["tokens"] = (count_tokens(batch), 1.0)
        extra = state.extra
        if update_extra is not None:
            extra = update_extra(extra, updated.params, report, state.step + 1)
        number, extra = select(updated.finite, (state.step + 1, extra), (state.step, state.extra))
        return TrainState(updated.params, updated.optimizer_state, number, state.key, extra), report

    def explain(
        state: TrainState, frozen: Any, batch: Any, metrics: Mapping[str, float], name_rows: NameRows | None
    ) -> str:
        key = jax.random.fold_in(state.key, state.step)
        return explain_loss(
            loss, state.params, frozen, batch, key, state.extra,
            mesh=mesh, accumulation=accumulation, name_rows=name_rows,
        )  # fmt: skip

    return jit_step(
        step,
        mesh=mesh,
        state_shardings=state_shardings,
        frozen_shardings=frozen_shardings,
        divisor=accumulation,
        explain=explain,
    )


def jit_step(
    step: StepFunction,
    *,
    mesh: Mesh,
    state_shardings: TrainState,
    frozen_shardings: Any = None,
    divisor: int = 1,
    explain: Explain | None = None,
) -> TrainStep:
    """Jit a pure step over the mesh: state donated, rows over the data axes, metrics replicated and float32.

    Args:
        step: ``(state, frozen, batch) -> (state, metrics)``.
        mesh, state_shardings, frozen_shardings: as in ``make_train_step``.
        divisor: the number of parts that the step divides the rows of a batch into.
        explain: what ``TrainStep.explain`` says.
    """

    def with_float32_metrics(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
        state, report = step(state, frozen, constrain_batch(batch, mesh))
        return state, jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), report)

    jitted = jax.jit(
        with_float32_metrics,
        in_shardings=(state_shardings, frozen_shardings, input_sharding(mesh)),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return TrainStep(jitted, mesh, divisor, explain)
