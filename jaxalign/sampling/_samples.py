"""What a sampler returns."""

from dataclasses import dataclass
from typing import TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Samples:
    """Sampled responses, the prompts left out; N is ``max_new_tokens``.

    Rows are prompt-major: with k samples a prompt, rows i k .. i k + k - 1 belong to prompt i.
    """

    tokens: Array
    """int32 ``[B, N]``; the pad token where ``mask`` is False."""
    mask: Array
    """bool ``[B, N]``: the response's tokens, its stop token included."""
    log_probs: Array
    """float32 ``[B, N]``, nats: log softmax(logits / temperature) of each token, before top-k, top-p and min-p, so the
    policy's own log-prob at the sampling temperature (temperature 1 for greedy samples). 0 where ``mask`` is False."""
    finished: Array
    """bool ``[B]``: the response ended with a stop token; False if it was cut at N tokens."""

    @property
    def lengths(self) -> Array:
        """int ``[B]``: tokens of each response, its stop token included."""
        return self.mask.sum(-1)

    def responses(self) -> list[list[int]]:
        """The B responses as ragged lists of ids, stop tokens included."""
        tokens, lengths = np.asarray(self.tokens), np.asarray(self.lengths)
        return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]

    def rows(self, indices: Array) -> "Samples":
        """The samples at ``indices`` (int ``[b]``)."""
        return jax.tree.map(lambda leaf: leaf[indices], self)
