"""Published models by name, as the config.json of each says: what can be planned with nothing downloaded."""

from pathlib import Path
from typing import Any

from jaxalign import models
from jaxalign.errors import InputError, did_you_mean
from jaxalign.models import ModelConfig

__all__ = ["NAMED", "model_dtype", "read_model"]

Fields = dict[str, Any]

_LLAMA: Fields = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16"}
_LLAMA_3: Fields = {**_LLAMA, "vocab_size": 128256, "rope_theta": 500000.0, "max_position_embeddings": 8192}


def _llama_31(factor: float) -> Fields:
    scaling = {
        "factor": factor, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }  # fmt: skip
    return {**_LLAMA_3, "max_position_embeddings": 131072, "rope_scaling": scaling}


_LLAMA_2: Fields = {**_LLAMA, "vocab_size": 32000, "max_position_embeddings": 4096, "torch_dtype": "float16"}
_SMOLLM2: Fields = {**_LLAMA, "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True}
_QWEN25: Fields = {
    "model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "vocab_size": 152064,
    "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
}  # fmt: skip
_QWEN25_TIED: Fields = {**_QWEN25, "vocab_size": 151936, "tie_word_embeddings": True}
_QWEN3: Fields = {
    "model_type": "qwen3", "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000, "vocab_size": 151936,
    "max_position_embeddings": 40960, "head_dim": 128, "torch_dtype": "bfloat16",
}  # fmt: skip
_QWEN3_TIED: Fields = {**_QWEN3, "tie_word_embeddings": True}
_MISTRAL: Fields = {
    "model_type": "mistral", "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "vocab_size": 32768,
    "max_position_embeddings": 32768, "sliding_window": None, "torch_dtype": "bfloat16",
}  # fmt: skip
_GEMMA_2: Fields = {
    "model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0, "head_dim": 256, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "sliding_window": 4096, "max_position_embeddings": 8192, "vocab_size": 256000,
    "torch_dtype": "float32",
}  # fmt: skip
_PYTHIA: Fields = {
    "model_type": "gpt_neox", "hidden_act": "gelu", "layer_norm_eps": 1e-5, "rotary_emb_base": 10000,
    "rotary_pct": 0.25, "use_parallel_residual": True, "max_position_embeddings": 2048, "tie_word_embeddings": False,
    "vocab_size": 50304, "torch_dtype": "float16",
}  # fmt: skip


def _sized(
    base: Fields, width: int, mlp: int, layers: int, heads: int, kv_heads: int | None = None, **more: Any
) -> Fields:
    sizes: Fields = {
        "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
    }  # fmt: skip
    if kv_heads is not None:
        sizes["num_key_value_heads"] = kv_heads
    return {**base, **sizes, **more}


def _gpt2(width: int, layers: int, heads: int) -> Fields:
    return {
        "model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "n_embd": width,
        "n_layer": layers, "n_head": heads, "n_positions": 1024, "vocab_size": 50257, "torch_dtype": "float32",
    }  # fmt: skip


NAMED: dict[str, Fields] = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "smollm2-135m": _sized(_SMOLLM2, 576, 1536, 30, 9, 3, rope_theta=100000),
    "smollm2-360m": _sized(_SMOLLM2, 960, 2560, 32, 15, 5, rope_theta=100000),
    "smollm2-1.7b": _sized(_SMOLLM2, 2048, 8192, 24, 32, 32, rope_theta=130000),
    "pythia-70m": _sized(_PYTHIA, 512, 2048, 6, 8),
    "pythia-160m": _sized(_PYTHIA, 768, 3072, 12, 12),
    "pythia-410m": _sized(_PYTHIA, 1024, 4096, 24, 16),
    "pythia-1b": _sized(_PYTHIA, 2048, 8192, 16, 8),
    "pythia-1.4b": _sized(_PYTHIA, 2048, 8192, 24, 16),
    "pythia-2.8b": _sized(_PYTHIA, 2560, 10240, 32, 32),
    "pythia-6.9b": _sized(_PYTHIA, 4096, 16384, 32, 32, vocab_size=50432),
    "pythia-12b": _sized(_PYTHIA, 5120, 20480, 36, 40, vocab_size=50688),
    "llama-2-7b": _sized(_LLAMA_2, 4096, 11008, 32, 32, 32),
    "llama-2-13b": _sized(_LLAMA_2, 5120, 13824, 40, 40, 40),
    "llama-2-70b": _sized(_LLAMA_2, 8192, 28672, 80, 64, 8),
    "llama-3-8b": _sized(_LLAMA_3, 4096, 14336, 32, 32, 8),
    "llama-3-70b": _sized(_LLAMA_3, 8192, 28672, 80, 64, 8),
    "llama-3.1-8b": _sized(_llama_31(8.0), 4096, 14336, 32, 32, 8),
    "llama-3.1-70b": _sized(_llama_31(8.0), 8192, 28672, 80, 64, 8),
    "llama-3.2-1b": _sized(_llama_31(32.0), 2048, 8192, 16, 32, 8, head_dim=64, tie_word_embeddings=True),
    "llama-3.2-3b": _sized(_llama_31(32.0), 3072, 8192, 28, 24, 8, head_dim=128, tie_word_embeddings=True),
    "mistral-7b": _sized(_MISTRAL, 4096, 14336, 32, 32, 8),
    "qwen2.5-0.5b": _sized(_QWEN25_TIED, 896, 4864, 24, 14, 2),
    "qwen2.5-1.5b": _sized(_QWEN25_TIED, 1536, 8960, 28, 12, 2),
    "qwen2.5-3b": _sized(_QWEN25_TIED, 2048, 11008, 36, 16, 2),
    "qwen2.5-7b": _sized(_QWEN25, 3584, 18944, 28, 28, 4),
    "qwen2.5-14b": _sized(_QWEN25, 5120, 13824, 48, 40, 8),
    "qwen2.5-32b": _sized(_QWEN25, 5120, 27648, 64, 40, 8),
    "qwen2.5-72b": _sized(_QWEN25, 8192, 29568, 80, 64, 8),
    "qwen3-0.6b": _sized(_QWEN3_TIED, 1024, 3072, 28, 16, 8),
    "qwen3-1.7b": _sized(_QWEN3_TIED, 2048, 6144, 28, 16, 8),
    "qwen3-4b": _sized(_QWEN3_TIED, 2560, 9728, 36, 32, 8),
    "qwen3-8b": _sized(_QWEN3, 4096, 12288, 36, 32, 8),
    "qwen3-14b": _sized(_QWEN3, 5120, 17408, 40, 40, 8),
    "qwen3-32b": _sized(_QWEN3, 5120, 25600, 64, 64, 8),
    "gemma-2-2b": _sized(_GEMMA_2, 2304, 9216, 26, 8, 4),
    "gemma-2-9b": _sized(_GEMMA_2, 3584, 14336, 42, 16, 8),
}
"""config.json of each, what matters of it; read by the families' own readers."""


def read_model(name: str, *, flag: str = "--model") -> Fields:
    """The config.json of a local folder, a named size or a hub id; no weights are read.

    Raises:
      InputError: neither; the message names the flag and the names nearest.
    """
    if not Path(name).expanduser().exists() and name.lower() in NAMED:
        return dict(NAMED[name.lower()])
    if not Path(name).expanduser().exists() and "/" not in name:
        hint = did_you_mean(name, NAMED, what="sizes known by name:", quoted=False)
        raise InputError(f"{flag} {name}: neither a folder nor a model known by name (a hub id has a '/'); {hint}")
    try:
        return models.load_fields(name)
    except InputError as error:
        raise InputError(f"{flag}: {error}") from None


def model_dtype(fields: Fields) -> str:
    """The type of the weights in the files, as config.json says; float32 where it does not."""
    found = fields.get("dtype") or fields.get("torch_dtype") or "float32"
    known = str(found).removeprefix("torch.")
    return known if known in ("float32", "bfloat16", "float16") else "float32"


def config_of(fields: Fields, name: str) -> ModelConfig:
    """The model of a config.json, by its family's reader."""
    return models.config_of_fields(fields, name)
