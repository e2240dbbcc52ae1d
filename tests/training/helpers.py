"""A tiny model in pure JAX, a weighted loss with two terms and real randomness, and data that is a function of k."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.sharding import parse_mesh, shard_tree, tree_shardings
from jaxalign.training import OptimizerConfig, create_state, make_optimizer, make_train_step, put_batch, state_shardings

VOCABULARY, WIDTH, HIDDEN, LENGTH = 16, 8, 24, 6
AXES = {"embed": ("vocab", "embed"), "up": ("embed", "mlp"), "up_bias": ("mlp",), "down": ("mlp", "embed")}


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"embed": (VOCABULARY, WIDTH), "up": (WIDTH, HIDDEN), "up_bias": (HIDDEN,), "down": (HIDDEN, WIDTH)}
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def make_batch(index, rows=16, seed=0):
    """Batch ``index``: ragged masks, so that no two rows have the same weight."""
    rng = np.random.default_rng([seed, index])
    lengths = rng.integers(1, LENGTH + 1, rows)
    return {
        "tokens": rng.integers(0, VOCABULARY, (rows, LENGTH)).astype(np.int32),
        "mask": np.arange(LENGTH) < lengths[:, None],
        "record": (index * rows + np.arange(rows)).astype(np.int32),
        "nothing": np.zeros((rows, 0, 2), np.int32),  # a batch without pairs has such a leaf
    }


def batches_from(position, **options):
    while True:
        yield make_batch(position, **options)
        position += 1


def log_probs(params, tokens):
    hidden = params["embed"][tokens]
    hidden = hidden + jnp.tanh(hidden @ params["up"] + params["up_bias"]) @ params["down"]
    scores = jax.nn.log_softmax(hidden @ params["embed"].T)
    return jnp.take_along_axis(scores[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]


def loss(params, frozen, batch, key, extra):
    """Token cross-entropy with random token weights (drawn by record), and a term a row against a frozen tree."""
    mask = batch["mask"][:, 1:]
    keys = jax.vmap(lambda record: jax.random.fold_in(key, record))(batch["record"])
    kept = mask & jax.vmap(lambda row: jax.random.bernoulli(row, 0.8, mask.shape[1:]))(keys)
    policy = log_probs(params, batch["tokens"])
    reference = log_probs(frozen, batch["tokens"])
    ratio = jnp.sum(jnp.where(mask, policy - reference, 0.0), axis=-1)
    present = jnp.any(mask, axis=-1)
    terms = {
        "tokens": (-jnp.sum(jnp.where(kept, policy, 0.0)), jnp.sum(kept), 1.0),
        "rows": (-jnp.sum(jnp.where(present, jax.nn.log_sigmoid(ratio), 0.0)), jnp.sum(present), 0.3),
    }
    return terms, {"accuracy": (jnp.sum(jnp.where(mask, policy > -2, 0)), jnp.sum(mask))}


def setup(
    mesh="fsdp=1", *, accumulation=1, optimizer=None, loss=loss, extra=None, total_steps=20, dtype=None, **options
):
    """Return (step, state, frozen copy of the start, optimizer, shardings of the state) on this mesh."""
    mesh = parse_mesh(mesh)
    transformation, schedule = make_optimizer(
        optimizer or OptimizerConfig(optimizer="sgd", learning_rate=0.3), total_steps
    )
    params = make_params()
    shardings = tree_shardings(AXES, params, mesh)
    layout = state_shardings(params, transformation, mesh=mesh, shardings=shardings, extra=extra)
    state = create_state(
        params, transformation, jax.random.key(7), mesh=mesh, shardings=shardings, dtype=dtype, extra=extra
    )
    step = make_train_step(
        loss,
        transformation,
        mesh=mesh,
        state_shardings=layout,
        frozen_shardings=shardings,
        accumulation=accumulation,
        schedule=schedule,
        **options,
    )
    return step, state, shard_tree(params, shardings), transformation, layout


def train(steps, *args, rows=16, **options):
    """Return (params, [metrics of each step as floats]) as NumPy after some steps."""
    step, state, frozen, _, _ = setup(*args, **options)
    history = []
    for index in range(steps):
        state, metrics = step(state, frozen, put_batch(make_batch(index, rows), step.mesh))
        history.append({name: float(total) / float(count) for name, (total, count) in metrics.items()})
    return jax.device_get(state.params), history
