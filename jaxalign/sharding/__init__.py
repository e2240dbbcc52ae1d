"""Where arrays lie: the device mesh, one table of logical-axis rules, and multi-host start-up.

Nothing here knows a model, a loss or a batch: trees of axis names and shapes come in, shardings go out. The same
functions serve one device and a pod; on one device every sharding is simply "here".
"""

from jaxalign.sharding._distributed import abandon_distributed, initialize_distributed, started_together
from jaxalign.sharding._exchange import exchange
from jaxalign.sharding._gather import fetch, to_host
from jaxalign.sharding._mesh import MESH_AXES, make_mesh, parse_mesh
from jaxalign.sharding._put import make_from_shards, settle, shard_tree
from jaxalign.sharding._rules import (
    BATCH_AXES,
    LENGTH_AXIS,
    RULES,
    Rules,
    batch_sharding,
    data_shards,
    length_shards,
    parse_rules,
    partition_spec,
    replicated,
    row_order,
    row_share,
    tree_shardings,
)

__all__ = [
    "BATCH_AXES",
    "LENGTH_AXIS",
    "MESH_AXES",
    "RULES",
    "Rules",
    "abandon_distributed",
    "batch_sharding",
    "data_shards",
    "exchange",
    "fetch",
    "initialize_distributed",
    "length_shards",
    "make_from_shards",
    "make_mesh",
    "parse_mesh",
    "parse_rules",
    "partition_spec",
    "replicated",
    "row_order",
    "row_share",
    "settle",
    "shard_tree",
    "started_together",
    "to_host",
    "tree_shardings",
]
