"""A loss or gradient that is not finite, and what methods carry from step to step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.training import OptimizerConfig, put_batch
from tests.training.helpers import loss, make_batch, make_params, setup


def poisoned(params, frozen, batch, key, extra):
    """The tested loss, plus a term that is infinite, or has an infinite gradient only, where a row says so."""
    terms, metrics = loss(params, frozen, batch, key, extra)
    weight = params["up"][0, 0]
    infinite = jnp.sum(batch["factor"]) * weight**2
    steep = jnp.sum(jnp.sqrt(batch["floor"] + weight - jax.lax.stop_gradient(weight)))  # at 0: value 0, slope infinite
    return terms | {"poison": (infinite + steep, 1.0, 1.0)}, metrics


def with_poison(index, kind):
    factor, floor = np.zeros(16, np.float32), np.ones(16, np.float32)
    if kind == "loss":
        factor[3] = np.inf
    elif kind == "gradient":
        floor[3] = 0
    return make_batch(index) | {"factor": factor, "floor": floor}


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("mesh", ["fsdp=1", "data=2,tensor=2"])
def test_the_state_stays_whole(kind, accumulation, mesh):
    step, state, frozen, _, _ = setup(
        mesh,
        loss=poisoned,
        accumulation=accumulation,
        optimizer=OptimizerConfig(learning_rate=0.1, weight_decay=0.1),
        extra={"count": np.float32(0)},
        update_extra=lambda extra, params, metrics, step: {"count": extra["count"] + metrics["loss"][0]},
    )
    state, metrics = step(state, frozen, put_batch(with_poison(0, None), step.mesh))
    assert float(metrics["nonfinite"][0]) == 0
    before = jax.device_get((state.params, state.optimizer_state, state.step, state.extra))
    state, metrics = step(state, frozen, put_batch(with_poison(1, kind), step.mesh))
    assert float(metrics["nonfinite"][0]) == 1
    assert np.isfinite(float(metrics["loss"][0])) == (kind == "gradient")
    after = jax.device_get((state.params, state.optimizer_state, state.step, state.extra))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    state, metrics = step(state, frozen, put_batch(with_poison(1, None), step.mesh))
    assert float(metrics["nonfinite"][0]) == 0
    assert int(state.step) == 2


def test_a_moving_reference():
    """extra is updated with the new parameters and the number of updates: here a copy every second update."""

    def update(extra, params, metrics, step):
        moves = step % 2 == 0
        moved = jax.tree.map(lambda old, new: jnp.where(moves, new, old), extra["reference"], params)
        return {"reference": moved, "seen": extra["seen"] + metrics["accuracy"][1]}

    step, state, frozen, _, _ = setup(
        "fsdp=2", extra={"reference": make_params(), "seen": np.float32(0)}, update_extra=update
    )
    seen = 0.0
    reference = make_params()
    for index in range(4):
        state, metrics = step(state, frozen, put_batch(make_batch(index), step.mesh))
        seen += float(metrics["accuracy"][1])
        if index % 2:
            reference = jax.device_get(state.params)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.extra["reference"]), reference)
    assert float(state.extra["seen"]) == seen
