"""Two tiny models, one of each family, and the dense computation that the sampler is held to."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import models

LLAMA = models.ModelConfig(
    vocab_size=300, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48, max_positions=96
)
GPT2 = models.ModelConfig(
    family="gpt2", vocab_size=270, width=24, layers=2, heads=3, kv_heads=3, head_dim=8, mlp_width=64, max_positions=96,
    norm="layer", position="learned", activation="gelu_tanh", gated_mlp=False, attention_bias=True,
    attention_output_bias=True, mlp_bias=True, tied_embeddings=True,
)  # fmt: skip
FAMILIES = {"llama": LLAMA, "gpt2": GPT2}


def parameters(config, seed=0):
    """Matrices and the final norm five times their usual size: at the usual one every distribution is nearly flat.

    The norms inside the layers stay: they enter both queries and keys, and five times them makes an attention where
    one rounding of a weight moves a log-prob by 8e-5, more than the sampler is allowed (here 6e-6).
    """

    def scaled(path, leaf):
        inner_norm = any("norm" in str(key) and "final" not in str(key) for key in path)
        return leaf if inner_norm else 5 * leaf

    return jax.tree_util.tree_map_with_path(scaled, models.init(config, jax.random.key(seed)))


def prompts_of(config, lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, config.vocab_size, length).tolist() for length in lengths]


def dense_logits(config, params, tokens):
    """Logits ``[n, V]`` of one text by a forward pass; padded to the longest text, so compiled once a model."""
    padded = np.zeros((1, config.max_positions), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(_forward(config, params, padded))[0, : len(tokens)]


_forward = jax.jit(models.logits, static_argnums=0)


def dense_log_probs(config, params, prompt, response, temperature=1.0):
    """log softmax(logits / temperature) of each response token, float64 after the logits."""
    logits = dense_logits(config, params, [*prompt, *response])[len(prompt) - 1 : -1].astype(np.float64) / temperature
    logits -= logits.max(-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_probs[np.arange(len(response)), response]


def memoryless(probabilities):
    """A model whose next-token distribution is ``probabilities`` whatever came before, and its parameters."""
    vocab_size = len(probabilities)
    config = LLAMA.replace(
        vocab_size=vocab_size, layers=1, width=4, heads=2, kv_heads=1, head_dim=2, mlp_width=4, norm_epsilon=1e-12
    )
    params = jax.tree.map(jnp.zeros_like, models.init(config, jax.random.key(0)))
    # The hidden state of every token is the same unit-scale vector (2, 0, 0, 0) after the final norm.
    params["embed"]["tokens"] = params["embed"]["tokens"].at[:, 0].set(1.0)
    params["final_norm"]["scale"] = jnp.ones(4)
    params["unembed"]["kernel"] = params["unembed"]["kernel"].at[:, 0].set(jnp.log(jnp.asarray(probabilities)) / 2)
    return config, params
