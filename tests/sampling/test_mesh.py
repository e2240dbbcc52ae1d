"""The sampler on a mesh: every device decodes its share of the rows, and no sample changes."""

import jax
import numpy as np
import pytest

from jaxalign import models, sampling, sharding
from jaxalign.sampling import _engine as engine
from tests.sampling.models_under_test import FAMILIES, LLAMA, parameters, prompts_of
from tests.tolerances import SAMPLER_LOG_PROBS

SETTINGS = {"max_new_tokens": [9, 2, 7, 1, 5, 9, 3, 8, 6], "samples_per_prompt": 2, "stop_tokens": [7], "batch_size": 8}


def sharded(config, params, mesh):
    return sharding.shard_tree(params, sharding.tree_shardings(models.logical_axes(config), params, mesh))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shape", ["data=8", "data=2,fsdp=2,tensor=2", "tensor=8", "data=2,sequence=4"])
def test_a_mesh_changes_no_sample(name, shape):
    config = FAMILIES[name]
    params, prompts = parameters(config), prompts_of(config, (3, 11, 5, 5, 20, 1, 9, 2, 6))
    wanted = sampling.generate(config, params, prompts, jax.random.key(0), **SETTINGS)
    mesh = sharding.parse_mesh(shape)
    spread = sharded(config, params, mesh)
    with jax.set_mesh(mesh):
        found = sampling.generate(config, spread, prompts, jax.random.key(0), **SETTINGS)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.mask, wanted.mask)
    np.testing.assert_allclose(found.log_probs, wanted.log_probs, atol=SAMPLER_LOG_PROBS)


def test_every_device_has_its_rows_alone():
    mesh = sharding.parse_mesh("data=4,tensor=2")
    plan = engine.Plan(steps=6, greedy=False, top_k=0, top_p=False, min_p=False, cache_dtype=None)
    with jax.set_mesh(mesh):
        params = engine.unstack(LLAMA, sharded(LLAMA, parameters(LLAMA), mesh))
        prefix = engine.prefill_prefix(LLAMA, None, params, np.zeros((1, 0), np.int32))
        staged = engine.stage(LLAMA, params, prefix, np.ones((8, 8), np.int32), np.full(8, 8, np.int32))
        rows = engine.empty(plan, prefix, staged, 8)
        take = np.arange(8, dtype=np.int32)
        fresh = engine.Fresh(take, np.full(8, 8, "i4"), np.full(8, 6, "i4"), take.astype("u4"), 0 * take)
        rows = engine.refill(rows, staged, fresh)
        controls = engine.Controls(jax.random.key(0), *(np.float32(x) for x in (1, 1, 0)), np.zeros(0, np.int32))
        rows = engine.decode(LLAMA, plan, 0, params, rows, controls, np.zeros(8, bool), np.int32(8), np.int32(6))
    for leaf in (*rows.cache.keys, *rows.cache.values, rows.hidden, rows.emitted):
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {2}
    assert {shard.data.shape for shard in rows.tokens.addressable_shards} == {(6, 2)}
