"""Which dtype is where in a run: what trains, what is frozen, what is added up, what is saved."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import data, models, recipes, sharding, training
from jaxalign.recipes import sft
from jaxalign.training import OptimizerConfig
from tests.recipes import toy
from tests.tolerances import FLOAT32

ADAMW = OptimizerConfig(learning_rate=1e-2, clip_norm=1.0, weight_decay=0.1)


@pytest.fixture(scope="module")
def pairs():
    return toy.examples(toy.pair_records())


def dpo(config):
    return recipes.preference_objective(config, recipes.PreferenceObjective(beta=0.5))


def options(**changes):
    return recipes.FitConfig(**{
        "max_steps": 2, "batch_size": 4, "mesh": "data=1", "optimizer": ADAMW,
    } | changes)  # fmt: skip


def fit(examples, config, *, objective=dpo, **more):
    return recipes.fit(
        toy.SHAPES["llama"], toy.params("llama"), examples, objective, config, report=lambda *_: None, **more
    )


def bits(tree):
    return [(str(leaf.dtype), leaf.tobytes()) for leaf in map(np.asarray, jax.tree.leaves(tree))]


# --- reductions -------------------------------------------------------------------------------------------------------

# Primitives that add up elements. Not here: dot_general, which accumulates in float32 on every platform and rounds
# once, and the addition of two arrays.
ADDING = {"reduce_sum", "cumsum", "cumlogsumexp", "reduce_prod", "reduce_window_sum", "scatter-add", "psum"}


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def narrow_sums(program):
    """(primitive, input, output) of every sum of more than one element whose result is narrower than float32."""
    found = []
    for equation in equations(program.jaxpr):
        if equation.primitive.name not in ADDING:
            continue
        before, after = equation.invars[0].aval, equation.outvars[0].aval
        one_each = equation.primitive.name == "reduce_sum" and before.size == after.size
        if after.dtype in (jnp.bfloat16, jnp.float16) and not one_each:
            found.append((equation.primitive.name, str(before), str(after)))
    return found


EVERYTHING = toy.SHAPES["llama"].replace(
    norm_unit_offset=True, block="sandwich_norm", qk_norm=True, attention_soft_cap=50.0, logit_soft_cap=30.0,
    windows=(4, None), attention_bias=True, embedding_scale=4.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "parameter_dtype", "accumulation"),
    [
        (toy.SHAPES["llama"], "float32", 2),
        (toy.SHAPES["gpt2"], "bfloat16", 1),
        (EVERYTHING.replace(remat="full"), "bfloat16", 2),
    ],
    ids=["llama", "gpt2", "everything"],
)
def test_nothing_is_added_up_in_bfloat16(config, parameter_dtype, accumulation, pairs):
    """In the whole step: forward, backward, the sum over micro-batches, the gradient's norm, the update."""
    mesh = sharding.parse_mesh("data=1")
    config = config.replace(compute_dtype="bfloat16")
    params = jax.eval_shape(lambda: models.init(config, jax.random.key(0)))
    layout_of = sharding.tree_shardings(models.logical_axes(config), params, mesh)
    rule, _ = training.make_optimizer(OptimizerConfig(clip_norm=1.0, weight_decay=0.1, state_dtype="bfloat16"), 1)
    step = training.make_train_step(
        dpo(config).loss,
        rule,
        mesh=mesh,
        state_shardings=training.state_shardings(params, rule, mesh=mesh, shardings=layout_of),
        accumulation=accumulation,
    )
    state = training.state_shapes(params, rule, dtype=parameter_dtype)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.params)} == {"float32", parameter_dtype}
    batch = next(iter(data.make_batches(pairs, batch_size=4, num_epochs=1)))
    program = jax.make_jaxpr(lambda *args: step._function(*args))(state, {"base": {}, "reference": state.params}, batch)
    assert len(list(equations(program.jaxpr))) > 500
    assert narrow_sums(program) == []


def test_a_sum_in_bfloat16_would_be_found():
    def bias_gradient(x):
        return jax.grad(lambda bias: jnp.sum((x + bias).astype(jnp.float32) ** 2))(jnp.zeros(3, jnp.bfloat16))

    def lookup_gradient(table):
        return jax.grad(lambda t: jnp.sum(t[jnp.array([1, 1])].astype(jnp.float32)))(table)

    x = jnp.ones((4, 3), jnp.bfloat16)
    assert [name for name, *_ in narrow_sums(jax.make_jaxpr(jax.jit(bias_gradient))(x))] == ["reduce_sum"]
    assert [name for name, *_ in narrow_sums(jax.make_jaxpr(lookup_gradient)(x))] == ["scatter-add"]


# --- runs -------------------------------------------------------------------------------------------------------------


def test_bfloat16_parameters_train_and_continue_bit_for_bit(pairs, tmp_path):
    def method(config):
        return recipes.preference_objective(config, recipes.PreferenceObjective(beta=0.5), reference_update_every=2)

    narrow = OptimizerConfig(learning_rate=1e-2, clip_norm=1.0, weight_decay=0.1, state_dtype="bfloat16")

    def run(steps, name):
        config = options(max_steps=steps, parameter_dtype="bfloat16", accumulation=2, optimizer=narrow)
        return fit(pairs, config, objective=method, directory=tmp_path / name)

    whole = run(4, "whole")
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    # Policy and reference are the same bfloat16 numbers, and activations are float32.
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=FLOAT32)
    assert rows[3]["loss"] < math.log(2) - 0.01
    expected = training.cast_parameters(toy.params("llama"), "bfloat16")
    assert jax.tree.map(lambda leaf: leaf.dtype, whole.params) == jax.tree.map(lambda leaf: leaf.dtype, expected)
    assert run(2, "halves").step == 2
    halves = run(4, "halves")
    assert bits(halves.params) == bits(whole.params)
    assert halves.metrics == whole.metrics


def test_bfloat16_frozen_trees_change_no_number_of_a_bfloat16_run(pairs):
    """The reference and the frozen layers."""
    found = [fit(pairs, options(dtype="bfloat16", frozen_dtype=dtype, frozen_layers=1)) for dtype in (None, "bfloat16")]
    assert found[0].metrics == found[1].metrics
    trained = [models.freeze(result.config, result.params, 1)[1] for result in found]
    assert bits(trained[0]) == bits(trained[1])
    assert [str(result.params["embed"]["tokens"].dtype) for result in found] == ["float32", "bfloat16"]


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_bfloat16_folder_trains_in_float32_and_is_saved_as_asked(tmp_path):
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), toy.params("llama"))
    models.save_pretrained(tmp_path / "model", toy.SHAPES["llama"], narrow, toy.tokenizer())
    rows = toy.write_jsonl(tmp_path / "rows.jsonl", toy.demonstrations())

    def run(save_dtype):
        sft.run(
            recipes.SFTConfig(
                model=str(tmp_path / "model"), dataset=str(rows), output_dir=tmp_path / "run", max_steps=2,
                batch_size=4, mesh="data=1", frozen_layers=1, save_dtype=save_dtype,
            )
        )  # fmt: skip
        described = json.loads((tmp_path / "run" / "final" / "config.json").read_text())
        return described["dtype"], models.load_pretrained(tmp_path / "run" / "final")[1]

    dtype, whole = run(None)
    assert dtype == "float32"
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(whole)} == {"float32"}
    _, trained, frozen = models.freeze(toy.SHAPES["llama"], whole, 1)
    _, before, kept = models.freeze(toy.SHAPES["llama"], narrow, 1)
    # What was frozen is what was loaded; what trained moved by less than bfloat16 shows.
    assert bits(frozen) == bits(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), kept))
    assert bits(trained) != bits(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), before))
    # The same command, saved otherwise: the run is done, only the folder is written again.
    dtype, rounded = run("bfloat16")
    assert dtype == "bfloat16"
    assert bits(rounded) == bits(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), whole))
