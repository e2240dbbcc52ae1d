"""Writes the golden fixtures beside this file: tiny random models saved by transformers, and torch's own logits.

Needs the ``parity`` extra. Run from the repository root: ``python -m tests.models.golden.make_golden [NAME ...]``;
without names it writes all.

Each folder is what ``from_pretrained`` opens; ``expected.npz`` holds tokens ``[B, T]`` and float32 logits
``[B, T, V]``. A new family is a new line in ``MODELS``; keep files below 60 KB.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.parity import cases

HERE = Path(__file__).parent
VOCABULARY = 61
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (2, 11))  # longer than the windows below

COMMON = {"vocab_size": VOCABULARY, "initializer_range": 0.2}
# Sizes under Llama's names, and under GPT-2's.
LLAMA = COMMON | {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 32, "rope_parameters": cases.rope(theta=500.0), "pad_token_id": None,
}  # fmt: skip
SMALL = COMMON | {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 32,
    "num_attention_heads": 2,
}  # fmt: skip
SMALL_GQA = SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
GPT2 = COMMON | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
OPT = COMMON | {
    "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32,
    "init_std": 0.2,
}  # fmt: skip

MODELS: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    "llama_tied": lambda: cases.llama(**LLAMA, tie_word_embeddings=True),
    "llama_untied_biased": lambda: cases.llama(**LLAMA, head_dim=8, attention_bias=True, mlp_bias=True),
    "mistral": lambda: cases.llama_like("Mistral", **SMALL_GQA, sliding_window=5),
    "qwen2": lambda: cases.llama_like("Qwen2", **(SMALL_GQA | {"head_dim": 4}), tie_word_embeddings=True),
    "qwen3": lambda: cases.llama_like("Qwen3", **SMALL_GQA),
    "gemma2": lambda: cases.gemma2(**SMALL_GQA),
    "gemma3_text": lambda: cases.gemma3(
        **SMALL_GQA, layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"full_attention": cases.rope("linear", 3e3, factor=8.0), "sliding_attention": cases.rope()},
    ),
    "phi3": lambda: cases.llama_like(
        "Phi3", **SMALL, num_key_value_heads=1, sliding_window=5,
        rope_parameters=cases.rope(partial_rotary_factor=0.75),
    ),
    "gpt2": lambda: cases.gpt2(**GPT2),
    "gpt_neox": lambda: cases.gpt_neox(**SMALL, rotary_pct=0.5),
    "gptj": lambda: cases.gptj(**GPT2, rotary_dim=4),
    "opt": lambda: cases.opt(**OPT),
    "opt_350m": lambda: cases.opt(**OPT, word_embed_proj_dim=8, do_layer_norm_before=False),
}  # fmt: skip
"""Folder -> constructor; a folder's name begins with its family's ``model_type``."""


def main(names: list[str]) -> None:
    for name in names or MODELS:
        model = cases.randomise(MODELS[name])
        model.save_pretrained(HERE / name)
        with torch.no_grad():
            logits = model(torch.from_numpy(TOKENS)).logits.numpy()
        np.savez_compressed(HERE / name / "expected.npz", tokens=TOKENS, logits=logits)


if __name__ == "__main__":
    main(sys.argv[1:])
