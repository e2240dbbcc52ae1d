"""Rotary position embedding: wavelengths, how they are stretched for long contexts, and the rotation."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError

if TYPE_CHECKING:
    from jaxalign.models._config import ModelConfig

Tables = tuple[jax.Array, jax.Array]
"""cos and sin, float32 ``[B, T, 1, R/2]``, R the rotated dimensions."""


@dataclass(frozen=True)
class RopeScaling:
    """How a model's rotary wavelengths are stretched beyond the context it was pretrained on.

    linear      every frequency divided by ``factor`` (Chen et al. 2023, arXiv 2306.15595)
    llama3      long wavelengths divided by ``factor``, short ones kept, a ramp between (Llama 3.1)
    yarn        the same with YaRN's ramp, and scores sharpened by ``attention_factor`` (arXiv 2309.00071)
    longrope    frequency i divided by ``factors[i]``, the published factors for contexts of up to
                ``original_positions`` tokens; longer ones have other factors and are outside ``max_positions``
                (LongRoPE, arXiv 2402.13753; Phi-3)

    Raises:
        InputError: a kind that does not exist; the message names the field.
    """

    kind: Literal["linear", "llama3", "yarn", "longrope"]
    factor: float = 1.0
    """By how much the context is stretched."""
    original_positions: int = 0
    """The context the model was pretrained on; unused by ``linear``."""
    low_frequency_factor: float = 1.0
    """llama3: wavelengths above original_positions / this are divided in full."""
    high_frequency_factor: float = 4.0
    """llama3: wavelengths below original_positions / this are kept."""
    beta_fast: float = 32.0
    """yarn: dimensions that turn more often than this over the original context are kept."""
    beta_slow: float = 1.0
    """yarn: dimensions that turn less often than this are divided in full."""
    truncate: bool = True
    """yarn: the ramp begins and ends at whole dimensions."""
    attention_factor: float = 1.0
    """yarn, longrope: cos and sin are multiplied by this."""
    factors: tuple[float, ...] = ()
    """longrope: one factor a frequency."""

    def __post_init__(self) -> None:
        kinds = ("linear", "llama3", "yarn", "longrope")
        if self.kind not in kinds:
            raise InputError(f"RopeScaling.kind: {self.kind!r} is not one of {', '.join(kinds)}")
        if self.kind != "linear" and self.original_positions < 1:
            raise InputError(f"RopeScaling.original_positions: {self.kind} needs it, is {self.original_positions}")

    def stretch(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """The stretched angular frequencies (radians a token), float32 ``[R/2]`` in and out."""
        if self.kind == "linear":
            return frequencies / np.float32(self.factor)
        if self.kind == "longrope":
            return frequencies / np.asarray(self.factors, np.float32)
        if self.kind == "llama3":
            wavelengths = 2 * math.pi / frequencies
            turns = self.original_positions / wavelengths
            span = self.high_frequency_factor - self.low_frequency_factor
            keep = np.clip((turns - self.low_frequency_factor) / span, 0, 1)
        else:
            low, high = (
                self._dimension(beta, 2 * len(frequencies), theta) for beta in (self.beta_fast, self.beta_slow)
            )
            if self.truncate:
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, 2 * len(frequencies) - 1)
            high = high + 0.001 if low == high else high
            keep = 1 - np.clip((np.arange(len(frequencies)) - low) / (high - low), 0, 1)
        return (keep * frequencies + (1 - keep) * frequencies / self.factor).astype(np.float32)

    def _dimension(self, turns: float, size: int, theta: float) -> float:
        """The (fractional) pair of dimensions that turns so often over the original context. YaRN, eq. 14 ff."""
        return size * math.log(self.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))


def rotary_tables(config: "ModelConfig", positions: jax.Array, *, local: bool = False) -> Tables | None:
    """cos and sin of position * frequency_i, frequency_i = theta^(-2i/R); None with learned positions.

    Args:
        config: the model.
        positions: int ``[B, T]``.
        local: for layers with a window, whose wavelengths may be others.
    """
    if config.position != "rotary":
        return None
    size = config.head_dim if config.rotary_dim is None else config.rotary_dim
    other = local and config.local_rope_theta is not None
    theta = config.local_rope_theta if other else config.rope_theta
    scaling = None if other else config.rope_scaling
    frequencies = 1 / np.float32(theta) ** (np.arange(0, size, 2, dtype=np.float32) / np.float32(size))
    factor = 1.0
    if scaling is not None:
        frequencies, factor = scaling.stretch(frequencies, float(theta)), scaling.attention_factor  # type: ignore
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: jax.Array, tables: Tables) -> jax.Array:
    """Rotary embedding, half-split: pairs are (x_i, x_{i + R/2}) of the first R dimensions, the rest pass.

    float32 inside. RoFormer (arXiv 2104.09864), equation 34.
    """
    cos, sin = tables
    size = 2 * cos.shape[-1]
    first, second = jnp.split(x[..., :size].astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1).astype(x.dtype)
    return turned if size == x.shape[-1] else jnp.concatenate((turned, x[..., size:]), axis=-1)
