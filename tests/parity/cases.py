"""Every checked feature of every family, as tiny random torch models: the one table the parity tests share.

A family's entry is {name of a case: constructor of its causal language model}. ``test_transformers.py`` runs every
check on every case; a new family, or a new feature of one, is a new line here.

Write constructors with ``tiny``: it gives the sizes that every family spells differently. Sequences of the tests are
``LENGTH`` tokens long: choose sliding windows shorter.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the table itself is read where torch is not installed
    import torch
    import transformers

VOCABULARY = 97
LENGTH = 17
POSITIONS = 64
SIZES = {"vocab_size": VOCABULARY, "initializer_range": 0.15, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

Case = Callable[[], "transformers.PreTrainedModel"]


def tiny(model: str, config: str, **fields: Any) -> "transformers.PreTrainedModel":
    """``transformers.<model>(transformers.<config>(**fields))``, fields on top of ``SIZES``."""
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**{**SIZES, **fields}))


def llama(**fields: Any) -> "transformers.PreTrainedModel":
    sizes = {
        "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
    }  # fmt: skip
    return tiny("LlamaForCausalLM", "LlamaConfig", **{**sizes, **fields})


def llama_like(name: str, **fields: Any) -> "transformers.PreTrainedModel":
    """A family whose config names sizes as Llama's does."""
    sizes = {
        "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
    }  # fmt: skip
    return tiny(f"{name}ForCausalLM", f"{name}Config", **{**sizes, **fields})


def rope(kind: str = "default", theta: float = 10000.0, **fields: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **fields}


def gemma2(**fields: Any) -> "transformers.PreTrainedModel":
    """Eager attention: Transformers' other kernels leave the cap of the scores out."""
    sizes = {
        "head_dim": 16, "num_key_value_heads": 2, "sliding_window": 5, "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0, "attn_implementation": "eager",
    }  # fmt: skip
    return llama_like("Gemma2", **{**sizes, **fields})


def gemma3(**fields: Any) -> "transformers.PreTrainedModel":
    sizes = {
        "hidden_size": 32, "intermediate_size": 56, "num_attention_heads": 4, "max_position_embeddings": POSITIONS,
        "head_dim": 16, "num_key_value_heads": 2, "sliding_window": 5, "query_pre_attn_scalar": 16,
    }  # fmt: skip
    return tiny("Gemma3ForCausalLM", "Gemma3TextConfig", **{**sizes, **fields})


def gpt2(**fields: Any) -> "transformers.PreTrainedModel":
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": POSITIONS}
    return tiny("GPT2LMHeadModel", "GPT2Config", **{**sizes, **fields})


def gpt_neox(**fields: Any) -> "transformers.PreTrainedModel":
    sizes = {
        "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 2,
        "max_position_embeddings": POSITIONS,
    }  # fmt: skip
    return tiny("GPTNeoXForCausalLM", "GPTNeoXConfig", **{**sizes, **fields})


def gptj(**fields: Any) -> "transformers.PreTrainedModel":
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": POSITIONS, "rotary_dim": 4}
    return tiny("GPTJForCausalLM", "GPTJConfig", **{**sizes, **fields})


def opt(**fields: Any) -> "transformers.PreTrainedModel":
    sizes = {
        "hidden_size": 32, "ffn_dim": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS, "init_std": 0.15,
    }  # fmt: skip
    return tiny("OPTForCausalLM", "OPTConfig", **{**sizes, **fields})


CASES: Mapping[str, Mapping[str, Case]] = {
    "llama": {
        "tied": lambda: llama(tie_word_embeddings=True),
        "untied": llama,
        "gqa": lambda: llama(num_key_value_heads=2),
        "mqa_head_dim_biases": lambda: llama(
            num_key_value_heads=1, head_dim=16, attention_bias=True, mlp_bias=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e5}, hidden_act="gelu_pytorch_tanh",
        ),
        "rope_linear": lambda: llama(head_dim=16, rope_parameters=rope("linear", factor=2.5)),
        "rope_llama3": lambda: llama(
            head_dim=16, num_key_value_heads=2,
            rope_parameters=rope(
                "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16,
            ),
        ),
        "rope_yarn_mscale": lambda: llama(
            head_dim=16,
            rope_parameters=rope(
                "yarn", factor=4.0, mscale=1.0, mscale_all_dim=0.5, beta_fast=2.0, beta_slow=0.5, truncate=False,
                original_max_position_embeddings=16,
            ),
        ),
    },
    "mistral": {
        "window": lambda: llama_like("Mistral", sliding_window=5, num_key_value_heads=2),
        "no_window_head_dim": lambda: llama_like("Mistral", sliding_window=None, head_dim=16, num_key_value_heads=1),
    },
    "qwen2": {
        "tied": lambda: llama_like("Qwen2", num_key_value_heads=2, tie_word_embeddings=True),
        "untied_yarn": lambda: llama_like(
            "Qwen2", num_key_value_heads=1,
            rope_parameters=rope("yarn", 1000.0, factor=4.0, original_max_position_embeddings=16),
        ),
        "windows_above": lambda: llama_like(
            "Qwen2", num_key_value_heads=2, num_hidden_layers=4, use_sliding_window=True, sliding_window=6,
            max_window_layers=1,
        ),
        "layer_types": lambda: llama_like(
            "Qwen2", num_key_value_heads=4, use_sliding_window=True, sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    },
    "qwen3": {
        "tied": lambda: llama_like("Qwen3", head_dim=16, num_key_value_heads=2, tie_word_embeddings=True),
        "untied_biases": lambda: llama_like("Qwen3", head_dim=8, num_key_value_heads=1, attention_bias=True),
        "window_yarn": lambda: llama_like(
            "Qwen3", head_dim=16, num_key_value_heads=2, use_sliding_window=True, sliding_window=5, max_window_layers=2,
            rope_parameters=rope("yarn", 1000.0, factor=4.0, attention_factor=0.9, original_max_position_embeddings=16),
        ),
    },
    "gemma2": {
        "alternating_odd": lambda: gemma2(num_hidden_layers=3),
        "tight_caps_biases": lambda: gemma2(
            attn_logit_softcapping=1.5, final_logit_softcapping=2.0, query_pre_attn_scalar=9, attention_bias=True,
            num_key_value_heads=1, num_hidden_layers=2, tie_word_embeddings=False,
        ),
        "no_caps": lambda: gemma2(attn_logit_softcapping=None, final_logit_softcapping=None, num_hidden_layers=2),
    },
    "gemma3_text": {
        "period_of_six_and_tail": lambda: gemma3(num_hidden_layers=8),
        "scaled_global_layers": lambda: gemma3(
            num_hidden_layers=5, sliding_window_pattern=3, final_logit_softcapping=3.0, num_key_value_heads=1,
            rope_parameters={"full_attention": rope("linear", 3e3, factor=8.0), "sliding_attention": rope(theta=50.0)},
        ),
        "all_local": lambda: gemma3(num_hidden_layers=2, layer_types=["sliding_attention"] * 2, attention_bias=True),
    },
    "phi3": {
        "window": lambda: llama_like("Phi3", sliding_window=5),
        "gqa_tied": lambda: llama_like("Phi3", num_key_value_heads=2, tie_word_embeddings=True),
        "longrope_part_rotated": lambda: llama_like(
            "Phi3", hidden_size=64, num_key_value_heads=1, max_position_embeddings=256,
            original_max_position_embeddings=32,
            rope_parameters=rope(
                "longrope", partial_rotary_factor=0.75, short_factor=[1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
                long_factor=[1.0, 2.0, 3.0, 5.0, 8.0, 13.0], original_max_position_embeddings=32,
            ),
        ),
        "longrope_attention_factor": lambda: llama_like(
            "Phi3", original_max_position_embeddings=32, sliding_window=32,
            rope_parameters=rope(
                "longrope", 500.0, attention_factor=1.25, short_factor=[1.0, 1.5, 2.0, 4.0],
                long_factor=[1.0, 2.0, 3.0, 5.0], original_max_position_embeddings=32,
            ),
        ),
    },
    "gpt2": {
        "plain": gpt2,
        "untied_inner_relu": lambda: gpt2(tie_word_embeddings=False, n_inner=48, activation_function="relu"),
        "exact_gelu": lambda: gpt2(activation_function="gelu"),
    },
    "gpt_neox": {
        "parallel_quarter_rotated": gpt_neox,
        "sequential_half_rotated_tied": lambda: gpt_neox(
            use_parallel_residual=False, rotary_pct=0.5, rotary_emb_base=500, tie_word_embeddings=True,
        ),
        "all_rotated_tanh_gelu": lambda: gpt_neox(rotary_pct=1.0, hidden_act="gelu_fast"),
        "without_attention_biases_rope_linear": lambda: gpt_neox(
            attention_bias=False, rope_parameters=rope("linear", factor=2.5, partial_rotary_factor=0.5),
        ),
        "rope_llama3_part_rotated": lambda: gpt_neox(
            rope_parameters=rope(
                "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16,
                partial_rotary_factor=0.75,
            ),
        ),
        "rope_yarn_part_rotated": lambda: gpt_neox(
            rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=16, partial_rotary_factor=0.5),
        ),
        "sequential_without_attention_biases_relu": lambda: gpt_neox(
            use_parallel_residual=False, attention_bias=False, num_attention_heads=4, hidden_act="relu",
        ),
    },
    "gptj": {
        "half_rotated": gptj,
        "all_rotated_tied": lambda: gptj(rotary_dim=8, tie_word_embeddings=True),
        "inner_relu": lambda: gptj(n_head=2, rotary_dim=6, n_inner=40, activation_function="relu"),
    },
    "opt": {
        "relu": opt,
        "gelu_without_biases_untied": lambda: opt(
            activation_function="gelu", enable_bias=False, tie_word_embeddings=False,
        ),
        "projected_post_norm": lambda: opt(word_embed_proj_dim=16, do_layer_norm_before=False),
        "projected_untied_wider": lambda: opt(word_embed_proj_dim=48, tie_word_embeddings=False),
        "post_norm_without_biases": lambda: opt(do_layer_norm_before=False, enable_bias=False),
        "without_final_norm": lambda: opt(_remove_final_layer_norm=True),
    },
}  # fmt: skip
"""Family (``model_type``) -> name -> constructor."""


def build(family: str, name: str, dtype: "torch.dtype | None" = None) -> "transformers.PreTrainedModel":
    """The case's model in evaluation mode; ``dtype``: of the parameters, None = float32."""
    import torch

    return randomise(CASES[family][name]).to(dtype or torch.float32)


def randomise(case: Case) -> "transformers.PreTrainedModel":
    """A model in evaluation mode, always the same, biases and norms random too: their constants would hide a swap."""
    import torch

    torch.manual_seed(0)
    model = case().eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model
