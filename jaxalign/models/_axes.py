"""The logical names of every parameter's axes, which ``jaxalign.sharding`` maps to mesh axes."""

from typing import Any

import jax

from jaxalign.models._config import ModelConfig
from jaxalign.models._decoder import Params, init

_PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "query": {"kernel": ("embed", "heads", "head_dim"), "bias": ("heads", "head_dim")},
    "key": {"kernel": ("embed", "kv_heads", "head_dim"), "bias": ("kv_heads", "head_dim")},
    "value": {"kernel": ("embed", "kv_heads", "head_dim"), "bias": ("kv_heads", "head_dim")},
    "output": {"kernel": ("heads", "head_dim", "embed"), "bias": ("norm",)},
    "gate": {"kernel": ("embed", "mlp"), "bias": ("mlp",)},
    "up": {"kernel": ("embed", "mlp"), "bias": ("mlp",)},
    "down": {"kernel": ("mlp", "embed"), "bias": ("norm",)},
    "embed": {"tokens": ("vocab", "embed"), "positions": ("positions", "embed"), "project_in": ("norm", "embed")},
    "project_out": {"kernel": ("embed", "norm")},
    "unembed": {"kernel": ("vocab", "embed"), "bias": ("vocab",)},
    "score": {"kernel": ("labels", "embed")},
}


_TABLES = ("embed", "project_out", "unembed", "score")
PARAMETER_AXES = (
    *(axes for part in _TABLES for axes in _PARTS[part].values()),
    # Of a layer's kernel and the two sides of its adapter at once: each axis of the one meets the rank in the other.
    *(("layers", *axes, "rank") for part in _PARTS if part not in _TABLES for axes in _PARTS[part].values()),
)
"""The logical axes that lie in one parameter, of any model: what one table of rules must be able to split."""


def logical_axes(config: ModelConfig) -> Params:
    """The parameter tree with, at each leaf, a tuple of the logical names of its axes.

    Names: ``layers, embed, heads, kv_heads, head_dim, mlp, vocab, positions, labels, norm``; ``jaxalign.sharding`` maps
    them to mesh axes.
    """

    def axes(path: Any, leaf: Any) -> tuple[str, ...]:
        del leaf
        *above, part, name = (entry.key for entry in path)
        names = ("norm",) if part.endswith("norm") else _PARTS[part][name]
        return ("layers", *names) if above else names

    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(axes, shapes)
