"""What an encoder with a classification head is, as a value."""

from dataclasses import dataclass
from typing import Literal

from jaxalign.errors import InputError

CHOICES = {"activation": ("silu", "gelu", "gelu_tanh", "relu"), "head_activation": ("tanh", "relu")}
SIZES = ("vocab_size", "width", "layers", "heads", "mlp_width", "max_positions", "labels")


@dataclass(frozen=True)
class EncoderConfig:
    """An encoder as a tuple of named choices: frozen, hashable, safe as a static argument of ``jax.jit``.

    Layers are those of Vaswani et al. 2017: x = norm(x + attention(x)), x = norm(x + mlp(x)), biases everywhere.

    Raises:
        InputError: a choice that does not exist, or numbers that contradict each other; the message names the field.
    """

    vocab_size: int
    """Rows of the embedding table, V."""
    width: int
    """Size of the residual stream, D."""
    layers: int
    """Number of layers, L."""
    heads: int
    """Attention heads, H; divides ``width``."""
    mlp_width: int
    """Hidden size of the feed-forward layer, F."""
    max_positions: int
    """Most tokens of a text, special tokens included."""
    labels: int
    """Outputs of the head, C."""
    family: str = "roberta"
    """The model type in config.json."""
    position_offset: int = 0
    """The position table's row of the first token (RoBERTa: padding id + 1)."""
    uncounted_token: int | None = None
    """A token that has no position of its own, wherever it stands, but the row before the first (RoBERTa: padding)."""
    token_types: int = 0
    """Rows of the table of token types; 0 = no such table (DistilBERT)."""
    norm_epsilon: float = 1e-12
    """Added to the variance inside the layer norms."""
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "gelu"
    """The feed-forward non-linearity; ``gelu`` is the exact form."""
    head_activation: Literal["tanh", "relu"] = "tanh"
    """Between the head's two linear layers."""

    def __post_init__(self) -> None:
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise InputError(f"EncoderConfig.{field}: {getattr(self, field)!r} is not one of {', '.join(allowed)}")
        for field in SIZES:
            if getattr(self, field) < 1:
                raise InputError(f"EncoderConfig.{field}: must be at least 1, is {getattr(self, field)}")
        if self.width % self.heads:
            raise InputError(f"EncoderConfig.heads: {self.heads} does not divide width = {self.width}")

    @property
    def head_dim(self) -> int:
        """Size of one head, K."""
        return self.width // self.heads
