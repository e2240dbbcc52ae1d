"""config.json of the published GPT-2, GPT-NeoX, Pythia, GPT-J and OPT models, as on the hub."""

from typing import Any

_SUMMARY = {
    "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True,
}  # fmt: skip
GPT2 = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
    "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
    "resid_pdrop": 0.1, **_SUMMARY,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": 50257,
}  # fmt: skip
PYTHIA_14B = {
    "architectures": ["GPTNeoXForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "bos_token_id": 0,
    "classifier_dropout": 0.1, "eos_token_id": 0, "hidden_act": "gelu", "hidden_dropout": 0.0, "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 8192, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
    "model_type": "gpt_neox", "num_attention_heads": 16, "num_hidden_layers": 24, "rope_scaling": None,
    "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16",
    "transformers_version": "4.24.0", "use_cache": True, "use_parallel_residual": True, "vocab_size": 50304,
}  # fmt: skip
PYTHIA_14B_AS_TRANSFORMERS_5_SAVES_IT = {
    **{name: value for name, value in PYTHIA_14B.items() if not name.startswith(("rope_", "rotary_", "torch_"))},
    "dtype": "float16", "is_decoder": False, "pad_token_id": None, "transformers_version": "5.23.0",
    "rope_parameters": {"partial_rotary_factor": 0.25, "rope_theta": 10000, "rope_type": "default"},
}  # fmt: skip
NEOX_20B = {
    "architectures": ["GPTNeoXForCausalLM"], "attention_probs_dropout_prob": 0, "bos_token_id": 0, "eos_token_id": 0,
    "hidden_act": "gelu_fast", "hidden_dropout_prob": 0, "hidden_size": 6144, "initializer_range": 0.02,
    "intermediate_size": 24576, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "model_type": "gpt_neox",
    "num_attention_heads": 64, "num_hidden_layers": 44, "rotary_emb_base": 10000, "rotary_pct": 0.25,
    "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.19.0.dev0", "use_cache": True,
    "vocab_size": 50432,
}  # fmt: skip
GPTJ_6B = {
    "activation_function": "gelu_new", "architectures": ["GPTJForCausalLM"], "attn_pdrop": 0.0, "bos_token_id": 50256,
    "embd_pdrop": 0.0, "eos_token_id": 50256, "gradient_checkpointing": False, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_inner": None, "n_layer": 28,
    "n_positions": 2048, "resid_pdrop": 0.0, "rotary": True, "rotary_dim": 64, "scale_attn_weights": True, **_SUMMARY,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50, "temperature": 1.0}},
    "tie_word_embeddings": False, "tokenizer_class": "GPT2Tokenizer", "transformers_version": "4.18.0.dev0",
    "use_cache": True, "vocab_size": 50400,
}  # fmt: skip
OPT_125M = {
    "_name_or_path": "facebook/opt-125m", "_remove_final_layer_norm": False, "activation_dropout": 0.0,
    "activation_function": "relu", "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 2,
    "do_layer_norm_before": True, "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 3072, "hidden_size": 768,
    "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048, "model_type": "opt",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "prefix": "</s>", "torch_dtype": "float16",
    "transformers_version": "4.21.0.dev0", "use_cache": True, "vocab_size": 50272, "word_embed_proj_dim": 768,
}  # fmt: skip
OPT_350M = {
    **OPT_125M, "do_layer_norm_before": False, "ffn_dim": 4096, "hidden_size": 1024, "num_attention_heads": 16,
    "num_hidden_layers": 24, "word_embed_proj_dim": 512,
}  # fmt: skip

# name -> (config.json, what it means: fields of ModelConfig)
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt2": (GPT2, {
        "width": 768, "layers": 12, "heads": 12, "mlp_width": 3072, "max_positions": 1024, "position": "learned",
        "position_offset": 0, "activation": "gelu_tanh", "block": "pre_norm", "tied_embeddings": True,
    }),
    "pythia-1.4b": (PYTHIA_14B, {
        "block": "parallel", "rotary_dim": 32, "head_dim": 128, "rope_theta": 10000.0, "activation": "gelu",
        "attention_bias": True, "attention_output_bias": True, "tied_embeddings": False, "gated_mlp": False,
    }),
    "pythia-1.4b saved by transformers 5": (PYTHIA_14B_AS_TRANSFORMERS_5_SAVES_IT, {
        "block": "parallel", "rotary_dim": 32, "head_dim": 128, "rope_theta": 10000.0,
    }),
    "gpt-neox-20b": (NEOX_20B, {"block": "parallel", "rotary_dim": 24, "head_dim": 96, "activation": "gelu_tanh"}),
    "gpt-j-6b": (GPTJ_6B, {
        "block": "parallel_one_norm", "rotary_dim": 64, "head_dim": 256, "mlp_width": 16384, "attention_bias": False,
        "attention_output_bias": False, "mlp_bias": True, "unembedding_bias": True, "tied_embeddings": False,
    }),
    "opt-125m": (OPT_125M, {
        "block": "pre_norm", "final_norm": True, "position_offset": 2, "activation": "relu", "embedding_width": None,
        "attention_bias": True, "attention_output_bias": True, "mlp_bias": True, "tied_embeddings": True,
    }),
    "opt-350m": (OPT_350M, {
        "block": "post_norm", "final_norm": False, "width": 1024, "embedding_width": 512, "hidden_width": 512,
    }),
}  # fmt: skip
