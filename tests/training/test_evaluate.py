import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.sharding import parse_mesh
from jaxalign.training import evaluate, make_eval_step
from tests.tolerances import FLOAT32
from tests.training.helpers import loss, make_batch, make_params


def rows_of(start, stop):
    return jax.tree.map(lambda leaf: leaf[start:stop], make_batch(0, 24))


@pytest.mark.parametrize("mesh", ["fsdp=1", "data=4,tensor=2"])
def test_how_rows_fall_into_batches_does_not_matter(mesh):
    mesh = parse_mesh(mesh)
    eval_step = make_eval_step(loss, mesh=mesh)
    params, frozen, key = make_params(), make_params(1), jax.random.key(3)
    whole = evaluate(eval_step, params, frozen, [rows_of(0, 24)], key, mesh=mesh)
    parts = evaluate(eval_step, params, frozen, [rows_of(0, 4), rows_of(4, 16), rows_of(16, 24)], key, mesh=mesh)
    terms, metrics = loss(params, frozen, rows_of(0, 24), key, {})
    assert set(whole) == {"loss", "loss/tokens", "loss/rows", "accuracy"}
    expected = sum(float(coefficient * value / weight) for value, weight, coefficient in terms.values())
    assert whole["loss"] == pytest.approx(expected, rel=FLOAT32)
    assert whole["accuracy"] == pytest.approx(float(metrics["accuracy"][0] / metrics["accuracy"][1]), rel=FLOAT32)
    for name, value in whole.items():
        assert parts[name] == pytest.approx(value, rel=FLOAT32), name


def test_nothing_is_donated_and_empty_counts_are_left_out():
    mesh = parse_mesh("fsdp=1")
    params = jax.device_put(make_params())

    def one(params, frozen, batch, key, extra):
        terms, _ = loss(params, params, batch, key, extra)
        return {"rows": terms["rows"]}, {"none": (jnp.zeros(()), jnp.zeros(())), "shift": (extra["shift"], 1.0)}

    found = evaluate(
        make_eval_step(one, mesh=mesh),
        params,
        None,
        [make_batch(0)] * 3,
        jax.random.key(0),
        mesh=mesh,
        extra={"shift": 2.0},
    )
    assert found == {"loss": pytest.approx(0.3 * np.log(2), rel=FLOAT32), "shift": 2.0}
    np.testing.assert_array_equal(params["up"], make_params()["up"])


def test_rows_that_do_not_divide_are_refused():
    mesh = parse_mesh("data=8")
    with pytest.raises(InputError, match="--batch-size"):
        evaluate(
            make_eval_step(loss, mesh=mesh),
            make_params(),
            make_params(),
            [make_batch(0, 12)],
            jax.random.key(0),
            mesh=mesh,
        )
