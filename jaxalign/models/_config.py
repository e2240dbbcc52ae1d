"""What a decoder is, as a value."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxalign.errors import InputError

NORMS = ("rms", "layer")
POSITIONS = ("rotary", "learned")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
REMATS = ("none", "full", "dots")
COMPUTE_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder as a tuple of named choices: frozen, hashable, comparable, safe as a static argument of ``jax.jit``.

    Raises:
        InputError: a choice that does not exist, or numbers that contradict each other; the message names the field.
    """

    vocab_size: int
    """Rows of the embedding table, V."""
    width: int
    """Size of the residual stream, D."""
    layers: int
    """Number of blocks, L."""
    heads: int
    """Query heads, H."""
    kv_heads: int
    """Key and value heads; divides ``heads`` (grouped-query attention when smaller)."""
    head_dim: int
    """Size of one head, K."""
    mlp_width: int
    """Hidden size of the feed-forward layer, F."""
    max_positions: int
    """Longest position the model was made for; with learned positions, the rows of the table."""
    family: str = "llama"
    """Which file of ``jaxalign.models.families`` reads and writes its weights."""
    norm: Literal["rms", "layer"] = "rms"
    """Root-mean-square norm (scale only) or layer norm (scale and bias)."""
    norm_epsilon: float = 1e-5
    """Added to the variance inside the norm."""
    position: Literal["rotary", "learned"] = "rotary"
    """Rotary embedding of queries and keys (half-split), or a learned table added to the token embedding."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths; unused with learned positions."""
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    """The feed-forward non-linearity; ``gelu`` is the exact form, ``gelu_tanh`` its tanh approximation."""
    gated_mlp: bool = True
    """down(activation(gate x) * up x) instead of down(activation(up x))."""
    attention_bias: bool = False
    """Biases on the query, key, value and output projections."""
    mlp_bias: bool = False
    """Biases on the feed-forward projections."""
    tied_embeddings: bool = False
    """The unembedding is the token embedding table."""
    stacks: tuple[int, ...] = ()
    """Lengths of the scanned stacks, sum = ``layers``; empty means one stack of all layers."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass recomputes: nothing, whole blocks, or everything but matrix products."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations; parameters are cast to it at use. Norm statistics and softmax stay float32."""
    extra: tuple[tuple[str, Any], ...] = ()
    """Hugging Face config fields kept for the way back (ids of special tokens ...); no effect on the numbers."""

    def __post_init__(self) -> None:
        if not self.stacks:
            object.__setattr__(self, "stacks", (self.layers,))
        for field, value, allowed in (
            ("norm", self.norm, NORMS),
            ("position", self.position, POSITIONS),
            ("activation", self.activation, ACTIVATIONS),
            ("remat", self.remat, REMATS),
            ("compute_dtype", self.compute_dtype, COMPUTE_DTYPES),
        ):
            if value not in allowed:
                raise InputError(f"ModelConfig.{field}: {value!r} is not one of {', '.join(allowed)}")
        for field in (
            "vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "mlp_width", "max_positions",
        ):  # fmt: skip
            if getattr(self, field) < 1:
                raise InputError(f"ModelConfig.{field}: must be at least 1, is {getattr(self, field)}")
        if self.heads % self.kv_heads:
            raise InputError(f"ModelConfig.kv_heads: {self.kv_heads} does not divide heads = {self.heads}")
        if self.position == "rotary" and self.head_dim % 2:
            raise InputError(f"ModelConfig.head_dim: rotary positions need an even size, not {self.head_dim}")
        if min(self.stacks) < 1 or sum(self.stacks) != self.layers:
            raise InputError(f"ModelConfig.stacks: {self.stacks} must be positive and sum to layers = {self.layers}")

    def replace(self, **changes: Any) -> "ModelConfig":
        """This config with some fields changed; changing ``layers`` alone resets ``stacks`` to one stack."""
        if "layers" in changes and "stacks" not in changes:
            changes["stacks"] = ()
        return replace(self, **changes)
