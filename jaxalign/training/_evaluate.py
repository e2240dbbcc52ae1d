"""Evaluation: the same losses, without gradients, added over batches."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign.sharding import replicated, settle
from jaxalign.training._batches import constrain_batch, input_sharding, put_batch
from jaxalign.training._update import LossFunction, Metrics, Terms

EvalStep = Callable[..., tuple[Terms, Metrics]]


def make_eval_step(
    loss: LossFunction, *, mesh: Mesh, params_shardings: Any = None, frozen_shardings: Any = None
) -> EvalStep:
    """Return the jitted ``(params, frozen, batch, key, extra) -> (terms, metrics)`` of a loss; nothing is donated.

    Terms and metrics are sums over the batch, to be added over batches and divided once (``evaluate``).

    Args:
        loss: ``loss(params, frozen, batch, key, extra) -> (terms, metrics)``.
        mesh: the mesh.
        params_shardings: shardings of ``params``; None takes them as they lie.
        frozen_shardings: shardings of the frozen trees; None takes them as they lie.
    """

    def on_mesh(params: Any, frozen: Any, batch: Any, key: jax.Array, extra: Any) -> tuple[Terms, Metrics]:
        return loss(params, frozen, constrain_batch(batch, mesh), key, extra)

    jitted = jax.jit(
        on_mesh,
        in_shardings=(params_shardings, frozen_shardings, input_sharding(mesh), None, None),
        out_shardings=replicated(mesh),
    )

    def eval_step(params: Any, frozen: Any, batch: Any, key: jax.Array, extra: Any) -> tuple[Terms, Metrics]:
        with jax.set_mesh(mesh):
            return jitted(params, frozen, batch, key, extra)

    return eval_step


def evaluate(
    eval_step: EvalStep,
    params: Any,
    frozen: Any,
    batches: Iterable[Any],
    key: jax.Array,
    *,
    mesh: Mesh,
    extra: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Return ``{name: value}`` over all batches: ``loss``, ``loss/<term>`` where there are several, every metric.

    Sums and weights are added in float64 over the batches and divided once, so how rows fall into batches does not
    matter. A name whose count is 0 is left out. Every batch gets the same key: as in training, a loss that draws folds
    in the record's id.

    Args:
        eval_step: from ``make_eval_step``.
        params: parameters.
        frozen: frozen trees.
        batches: host batches (pytrees of arrays ``[B, ...]``).
        key: a typed key.
        mesh: the mesh.
        extra: the state's ``extra``.
    """
    sums: dict[str, np.ndarray] = {}
    coefficients: dict[str, float] = {}

    def add(terms: Terms, metrics: Metrics) -> None:
        for name, (value, weight, coefficient) in terms.items():
            pair = np.asarray([value, weight], np.float64)
            sums[f"loss/{name}"] = sums.get(f"loss/{name}", 0.0) + pair
            coefficients[f"loss/{name}"] = float(coefficient)
        for name, values in metrics.items():
            sums[name] = sums.get(name, 0.0) + np.asarray(values, np.float64)

    waiting = None
    for batch in batches:
        running = settle(eval_step(params, frozen, put_batch(batch, mesh), key, extra or {}))
        if waiting is not None:  # read one batch late: the device always has work
            add(*jax.device_get(waiting))
        waiting = running
    if waiting is not None:
        add(*jax.device_get(waiting))
    means = {name: float(pair[0] / pair[1]) for name, pair in sums.items() if pair[1] != 0}
    result = {"loss": sum(coefficient * means.get(name, 0.0) for name, coefficient in coefficients.items())}
    return result | {name: value for name, value in means.items() if name not in coefficients or len(coefficients) > 1}
