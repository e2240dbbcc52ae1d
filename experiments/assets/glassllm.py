"""The 0.85M-parameter model of the ``glassllm`` package: small enough to align on two CPU cores in seconds.

Its weights are (in, out) already. It rotates neighbouring pairs (interleaved RoPE), so the columns of Q and K are put
into half-split order on reading: the scores q.k are sums over pairs and do not change.
"""

import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.assets._packages import packaged_file
from jaxalign import models
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig

__all__ = ["curl_quotes", "load", "load_tokenizer", "untrained"]

REQUIREMENT = "glassllm==0.1.0"
SPECIALS = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
SPACE = "▁"


def load(compute_dtype: str = "float32") -> tuple[ModelConfig, dict[str, Any], Any]:
    """Read the model: config, float32 parameters and its tokenizer as a ``transformers`` one.

    Args:
        compute_dtype: of the activations, "float32" or "bfloat16".

    Returns:
        (config, params, tokenizer).

    Raises:
        InputError: the package is not installed.
    """
    with np.load(packaged_file("glassllm", REQUIREMENT, "weights", "en.npz")) as file:
        arrays = {name: file[name] for name in file.files}
    config = _config(json.loads(str(arrays["__config__"])), arrays, compute_dtype)

    def stack(name: str, *shape: int) -> Any:
        layers = [arrays[f"blocks.{layer}.{name}"].astype(np.float32) for layer in range(config.layers)]
        return jnp.asarray(np.stack(layers).reshape(config.layers, *shape))

    def rotary(name: str, heads: int) -> Any:
        """Columns (x0, y0, x1, y1 ...) of each head to (x0, x1 ... y0, y1 ...)."""
        paired = stack(name, config.width, heads, config.head_dim // 2, 2)
        return paired.swapaxes(-1, -2).reshape(config.layers, config.width, heads, config.head_dim)

    d, h, g, k, f = config.width, config.heads, config.kv_heads, config.head_dim, config.mlp_width
    params = {
        "embed": {"tokens": jnp.asarray(arrays["E"].astype(np.float32))},
        "stacks": {
            "0": {
                "attention_norm": {"scale": stack("norm1.gamma", d)},
                "query": {"kernel": rotary("attn.W_Q", h)},
                "key": {"kernel": rotary("attn.W_K", g)},
                "value": {"kernel": stack("attn.W_V", d, g, k)},
                "output": {"kernel": stack("attn.W_O", h, k, d)},
                "mlp_norm": {"scale": stack("norm2.gamma", d)},
                "gate": {"kernel": stack("ffn.W1", d, f)},
                "up": {"kernel": stack("ffn.W3", d, f)},
                "down": {"kernel": stack("ffn.W2", f, d)},
            }
        },
        "final_norm": {"scale": jnp.asarray(arrays["norm_f.gamma"].astype(np.float32))},
    }
    return config, params, load_tokenizer()


def untrained(width: int, layers: int, *, seed: int = 0) -> tuple[ModelConfig, dict[str, Any], Any]:
    """A model of the same family in another size, with random parameters, and the package's tokenizer.

    Args:
        width: of the hidden states; a multiple of 16, the size of a head.
        layers: blocks.
        seed: of the parameters.

    Raises:
        InputError: the package is not installed, or no such width.
    """
    if width < 16 or width % 16 or layers < 1:
        raise InputError(f"a model of width {width} and {layers} layers: heads are 16 wide, and it needs a layer")
    packaged, _, tokenizer = load()
    heads = width // 16
    config = packaged.replace(
        width=width, layers=layers, heads=heads, kv_heads=heads // 2 if heads % 2 == 0 else heads, head_dim=16,
        mlp_width=8 * width // 3, stacks=(layers,),
    )  # fmt: skip
    return config, models.init(config, jax.random.key(seed)), tokenizer


def load_tokenizer() -> Any:
    """The package's character BPE as a fast tokenizer: the same ids, and decode(encode(text)) = text.

    It has no straight double quote; see ``curl_quotes``.
    """
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    path = packaged_file("glassllm", REQUIREMENT, "weights", "en.tokenizer.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    merges = [tuple(pair) for pair in data["merges"]]
    vocabulary = [*SPECIALS.values(), *data["alphabet"], *(left + right for left, right in merges)]
    model = BPE(
        vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges, unk_token="<unk>", fuse_unk=False
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", SPACE)])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(rf"\n|{SPACE}*[^{SPACE}\n]+|{SPACE}+"), behavior="isolated")
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=128, clean_up_tokenization_spaces=False, **SPECIALS
    )


def curl_quotes(text: str) -> str:
    """Straight double quotes as curly ones, which this tokenizer knows: opening after a space, a dash or a bracket."""
    return re.sub(r'(^|[\s(\[—-])"', r"\1“", text).replace('"', "”")


def _config(fields: dict[str, Any], arrays: dict[str, np.ndarray], compute_dtype: str) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocab_size=fields["vocab_size"],
        width=fields["d_model"],
        layers=fields["n_layers"],
        heads=fields["n_heads"],
        kv_heads=fields["n_kv_heads"],
        head_dim=fields["d_model"] // fields["n_heads"],
        mlp_width=arrays["blocks.0.ffn.W1"].shape[1],
        max_positions=fields["max_len"],
        norm_epsilon=fields["eps"],
        rope_theta=fields["rope_base"],
        tied_embeddings=True,
        compute_dtype=compute_dtype,  # type: ignore[arg-type]
        extra=(("bos_token_id", 2), ("eos_token_id", 3), ("pad_token_id", 0)),
    )
