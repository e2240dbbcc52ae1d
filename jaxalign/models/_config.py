"""What a decoder is, as a value."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxalign.errors import InputError
from jaxalign.models._lora import LoRA
from jaxalign.models._rope import RopeScaling

CHOICES: dict[str, tuple[str, ...]] = {
    "norm": ("rms", "layer"),
    "block": ("pre_norm", "post_norm", "sandwich_norm", "parallel", "parallel_one_norm"),
    "position": ("rotary", "learned"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu"),
    "remat": ("none", "full", "dots"),
    "compute_dtype": ("float32", "bfloat16"),
    "attention": ("auto", "xla", "cudnn", "splash", "ring"),
}
SIZES = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "mlp_width", "max_positions")


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
    """Longest position the model was made for; with learned positions, the rows of the table less the offset."""
    family: str = "llama"
    """Which file of ``jaxalign.models.families`` reads and writes its weights."""

    norm: Literal["rms", "layer"] = "rms"
    """Root-mean-square norm (scale only) or layer norm (scale and bias)."""
    norm_epsilon: float = 1e-5
    """Added to the variance inside the norm."""
    norm_unit_offset: bool = False
    """Norms multiply by 1 + scale (Gemma) instead of by scale."""
    block: Literal["pre_norm", "post_norm", "sandwich_norm", "parallel", "parallel_one_norm"] = "pre_norm"
    """How attention f and feed-forward g meet the residual stream x; n, m are the two norms:

    pre_norm           x += f(n x); x += g(m x)
    post_norm          x = n(x + f x); x = m(x + g x)                  (the 2017 order; OPT-350m)
    sandwich_norm      x += n'(f(n x)); x += m'(g(m x))                (Gemma 2 and 3)
    parallel           x += f(n x) + g(m x)                            (GPT-NeoX)
    parallel_one_norm  x += f(n x) + g(n x)                            (GPT-J)
    """
    final_norm: bool = True
    """A norm after the last block; OPT-350m has none."""

    position: Literal["rotary", "learned"] = "rotary"
    """Rotary embedding of queries and keys (half-split), or a learned table added to the token embedding."""
    position_offset: int = 0
    """Learned positions: the table's row of position 0 (OPT: 2)."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths; unused with learned positions."""
    rotary_dim: int | None = None
    """How many of a head's first dimensions are rotated; None = all (GPT-J, Pythia: some)."""
    rope_scaling: RopeScaling | None = None
    """How the wavelengths are stretched for long contexts; layers with ``local_rope_theta`` are not stretched."""
    local_rope_theta: float | None = None
    """Base of the wavelengths in layers with a window, where it is another (Gemma 3)."""

    windows: tuple[int | None, ...] = (None,)
    """Layer i attends to its last ``windows[i % len(windows)]`` tokens, itself included; None = to all."""
    qk_norm: bool = False
    """A root-mean-square norm of every query and key head before the rotation (Qwen 3, Gemma 3)."""
    attention_scale: float | None = None
    """Factor of q . k; None = 1 / sqrt(head_dim)."""
    attention_soft_cap: float | None = None
    """cap * tanh(score / cap) before the mask (Gemma 2)."""
    attention_bias: bool = False
    """Biases on the query, key and value projections."""
    attention_output_bias: bool = False
    """A bias on the attention's output projection."""

    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    """The feed-forward non-linearity; ``gelu`` is the exact form, ``gelu_tanh`` its tanh approximation."""
    gated_mlp: bool = True
    """down(activation(gate x) * up x) instead of down(activation(up x))."""
    mlp_bias: bool = False
    """Biases on the feed-forward projections."""

    embedding_width: int | None = None
    """Size of the embedding table's rows, projected to and from ``width`` (OPT-350m); None = ``width``."""
    embedding_scale: float | None = None
    """Factor of the token embeddings, rounded to the compute dtype (Gemma: sqrt(width)); None = 1."""
    tied_embeddings: bool = False
    """The unembedding is the token embedding table."""
    unembedding_bias: bool = False
    """A bias on the logits (GPT-J)."""
    logit_soft_cap: float | None = None
    """cap * tanh(logit / cap) (Gemma 2)."""
    labels: int = 0
    """Outputs of a linear score head (``...ForSequenceClassification``); 0 = a language model, without one."""

    stacks: tuple[int, ...] = ()
    """Lengths of the scanned stacks, sum = ``layers``; empty means one stack of all layers."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass recomputes: nothing, whole blocks, or everything but matrix products."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations; parameters are cast to it at use. Norm statistics and softmax stay float32."""
    attention: Literal["auto", "xla", "cudnn", "splash", "ring"] = "auto"
    """Which kernel attends; ``auto`` asks the table in ``jaxalign.models._kernels``."""
    lora: LoRA | None = None
    """The adapter whose leaves may lie beside the kernels; parameters without such leaves are the plain model's."""
    extra: tuple[tuple[str, Any], ...] = ()
    """Hugging Face config fields kept for the way back (ids of special tokens ...); no effect on the numbers."""

    def __post_init__(self) -> None:
        if not self.stacks:
            object.__setattr__(self, "stacks", (self.layers,))
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise InputError(f"ModelConfig.{field}: {getattr(self, field)!r} is not one of {', '.join(allowed)}")
        for field in SIZES:
            if getattr(self, field) < 1:
                raise InputError(f"ModelConfig.{field}: must be at least 1, is {getattr(self, field)}")
        if self.heads % self.kv_heads:
            raise InputError(f"ModelConfig.kv_heads: {self.kv_heads} does not divide heads = {self.heads}")
        rotated = self.head_dim if self.rotary_dim is None else self.rotary_dim
        if self.position == "rotary" and (rotated % 2 or not 0 < rotated <= self.head_dim):
            field = "head_dim" if self.rotary_dim is None else "rotary_dim"
            raise InputError(f"ModelConfig.{field}: rotary positions need an even size up to a head's, not {rotated}")
        if not self.windows or any(window is not None and window < 1 for window in self.windows):
            raise InputError(f"ModelConfig.windows: {self.windows} must be one or more of None and positive numbers")
        if min(self.stacks) < 1 or sum(self.stacks) != self.layers:
            raise InputError(f"ModelConfig.stacks: {self.stacks} must be positive and sum to layers = {self.layers}")
        if self.labels < 0:
            raise InputError(f"ModelConfig.labels: must be at least 0, is {self.labels}")

    @property
    def hidden_width(self) -> int:
        """Size of the hidden states that ``apply`` returns and heads read: the embedding's."""
        return self.width if self.embedding_width is None else self.embedding_width

    @property
    def layer_windows(self) -> tuple[int | None, ...]:
        """The window of every layer."""
        return tuple(self.windows[layer % len(self.windows)] for layer in range(self.layers))

    def replace(self, **changes: Any) -> "ModelConfig":
        """This config with some fields changed; changing ``layers`` alone resets ``stacks`` to one stack."""
        if "layers" in changes and "stacks" not in changes:
            changes["stacks"] = ()
        return replace(self, **changes)
