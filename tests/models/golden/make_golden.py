"""Writes the golden fixtures beside this file: tiny random models saved by transformers, and torch's own logits.

Needs the ``parity`` extra. Run from the repository root: ``python -m tests.models.golden.make_golden``.

Each folder is what ``from_pretrained`` opens; ``expected.npz`` holds tokens ``[B, T]`` and float32 logits
``[B, T, V]``.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 11))


def models() -> dict[str, transformers.PreTrainedModel]:
    llama = {
        "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "initializer_range": 0.2,
    }  # fmt: skip
    gpt2 = {
        "vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32, "initializer_range": 0.2,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return {
        "llama_tied": transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama, tie_word_embeddings=True)),
        "llama_untied_biased": transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**llama, head_dim=8, attention_bias=True, mlp_bias=True)
        ),
        "gpt2": transformers.GPT2LMHeadModel(transformers.GPT2Config(**gpt2)),
    }


def main() -> None:
    torch.manual_seed(0)
    for name, model in models().items():
        # Biases and norms start at constants, which would hide a swap.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
        model.eval().save_pretrained(HERE / name)
        with torch.no_grad():
            logits = model(torch.from_numpy(TOKENS)).logits.numpy()
        np.savez_compressed(HERE / name / "expected.npz", tokens=TOKENS, logits=logits)


if __name__ == "__main__":
    main()
