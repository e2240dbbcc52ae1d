"""A program for test_memory.py: write a folder of known sizes, read it or save it, print what memory was taken.

``load_memory.py write FOLDER`` | ``load_memory.py load FOLDER DEVICES DTYPE`` | ``load_memory.py save FOLDER DEVICES``
"""

import json
import resource
import sys
import tracemalloc

import jax
import numpy as np

action, folder = sys.argv[1:3]
if action != "write":
    jax.config.update("jax_num_cpu_devices", int(sys.argv[3]))

from jaxalign import models, sharding  # noqa: E402

# 24 million numbers; the largest leaves are the three of the feed-forward layers, 24 of 256 x 1024.
CONFIG = models.ModelConfig(
    vocab_size=4096, width=256, layers=24, heads=4, kv_heads=4, head_dim=64, mlp_width=1024, max_positions=64,
    tied_embeddings=True,
)  # fmt: skip


def shapes():
    return jax.eval_shape(lambda: models.init(CONFIG, jax.random.key(0)))


def grown(function):
    """The result; bytes that numpy's arrays took at their peak and take still; growth of the process's peak."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tracemalloc.start()
    result = jax.block_until_ready(function())
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return result, {"kept": kept, "peak": peak, "resident": after - before}


if action == "write":
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes())
    models.save_pretrained(folder, CONFIG, params)
    figures = {}
else:
    mesh = sharding.make_mesh(1, len(jax.devices()), 1)
    models.load_config(folder)
    if action == "load":
        (_, params), figures = grown(lambda: models.load_pretrained(folder, dtype=sys.argv[4], mesh=mesh))
    else:
        config, params = models.load_pretrained(folder, mesh=mesh)
        _, figures = grown(lambda: models.save_pretrained(f"{folder}/again", config, params, max_shard_bytes=10**7))
    leaves = jax.tree.leaves(params)
    figures |= {
        "parameters": sum(leaf.nbytes for leaf in leaves),
        "largest": max(leaf.nbytes for leaf in leaves),
        "largest_shard": max(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards),
        "largest_layer": max(
            leaf.nbytes // (leaf.shape[0] if leaf.ndim > 2 else 1) for leaf in [*leaves, params["embed"]["tokens"]]
        ),
    }
print(json.dumps(figures))
