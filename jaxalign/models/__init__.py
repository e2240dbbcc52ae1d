"""One decoder as pure functions over parameter trees, and weights in and out of Hugging Face folders.

Flax Linen stays inside this package: everything above sees ``apply`` and plain nested dicts. No optimiser, no data, no
sampling policy lives here; torch is never imported.
"""

from jaxalign.models._adapter import init_lora, lora_axes, merge_lora
from jaxalign.models._attention import visibility
from jaxalign.models._axes import PARAMETER_AXES, logical_axes
from jaxalign.models._block import Block
from jaxalign.models._cache import Cache, init_cache
from jaxalign.models._card import base_of, card_text, code, has_chat_template, public_name, write_card
from jaxalign.models._classifier import Labels, classifier_size, classify, load_classifier, load_labels
from jaxalign.models._config import ModelConfig
from jaxalign.models._decode import extend, unstack
from jaxalign.models._decoder import apply, init, logits, score, trunk, unembed, unembedding
from jaxalign.models._freeze import combine, freeze, restack
from jaxalign.models._kernels import causal_kernel
from jaxalign.models._load import config_of_fields, load_config, load_fields, load_pretrained
from jaxalign.models._lora import LoRA
from jaxalign.models._mesh import constrain_rows, row_shards
from jaxalign.models._peft import load_adapter, save_adapter
from jaxalign.models._reward_model import RewardModel, add_score_head, load_reward_model, save_reward_model
from jaxalign.models._rope import RopeScaling
from jaxalign.models._save import save_pretrained
from jaxalign.models._scores import target_entropy, target_log_probs
from jaxalign.models._take import take_tokens
from jaxalign.models._tokenizer_files import TokenizerFiles
from jaxalign.models.encoders import EncoderConfig

__all__ = [
    "PARAMETER_AXES",
    "Block",
    "Cache",
    "EncoderConfig",
    "Labels",
    "LoRA",
    "ModelConfig",
    "RewardModel",
    "RopeScaling",
    "TokenizerFiles",
    "add_score_head",
    "apply",
    "base_of",
    "card_text",
    "causal_kernel",
    "classifier_size",
    "classify",
    "code",
    "combine",
    "config_of_fields",
    "constrain_rows",
    "extend",
    "freeze",
    "has_chat_template",
    "init",
    "init_cache",
    "init_lora",
    "load_adapter",
    "load_classifier",
    "load_config",
    "load_fields",
    "load_labels",
    "load_pretrained",
    "load_reward_model",
    "logical_axes",
    "logits",
    "lora_axes",
    "merge_lora",
    "public_name",
    "restack",
    "row_shards",
    "save_adapter",
    "save_pretrained",
    "save_reward_model",
    "score",
    "take_tokens",
    "target_entropy",
    "target_log_probs",
    "trunk",
    "unembed",
    "unembedding",
    "unstack",
    "visibility",
    "write_card",
]
