"""One decoder as pure functions over parameter trees, and weights in and out of Hugging Face folders.

Flax Linen stays inside this package: everything above sees ``apply`` and plain nested dicts. No optimiser, no data, no
sampling policy lives here; torch is never imported.
"""

from jaxalign.models._attention import visibility
from jaxalign.models._block import Block
from jaxalign.models._cache import Cache, init_cache
from jaxalign.models._config import ModelConfig
from jaxalign.models._decode import extend, unstack
from jaxalign.models._decoder import apply, init, logical_axes, logits, trunk, unembed, unembedding
from jaxalign.models._freeze import combine, freeze, restack
from jaxalign.models._pretrained import load_config, load_pretrained, save_pretrained
from jaxalign.models._scores import target_log_probs

__all__ = [
    "Block",
    "Cache",
    "ModelConfig",
    "apply",
    "combine",
    "extend",
    "freeze",
    "init",
    "init_cache",
    "load_config",
    "load_pretrained",
    "logical_axes",
    "logits",
    "restack",
    "save_pretrained",
    "target_log_probs",
    "trunk",
    "unembed",
    "unembedding",
    "unstack",
    "visibility",
]
