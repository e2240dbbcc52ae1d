"""A language model as a judge: which of two answers it finds likelier."""

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from jaxalign.data import Example
from jaxalign.models import ModelConfig
from jaxalign.recipes._cached import OnProgress, example_log_probs
from jaxalign.recipes._objective import Params

__all__ = ["likelihood_margins"]


def likelihood_margins(
    config: ModelConfig,
    params: Params,
    examples: Sequence[Example],
    *,
    average: bool = False,
    mesh: Mesh | None = None,
    batch_size: int = 16,
    on_progress: OnProgress | None = None,
) -> np.ndarray:
    """log pi(better) - log pi(worse) of every pair of the examples, float32 ``[n]``, in order, nats.

    The share above 0 is the accuracy of choosing the preferred answer by likelihood; under the words of a good output
    (``data.FeedbackPrompts.comparison``) it is what the Chain of Hindsight paper reports of dialogues.

    Args:
      config, params: the model.
      examples: tokenised records with pairs.
      average: compare means a token instead of sums: of answers of different length the longer loses nothing by it.
      mesh, batch_size: where, and how many rows at a time, each of as many examples as fit.
      on_progress: called as ``on_progress(done, total)``, in examples.
    """
    rows = example_log_probs(config, params, examples, mesh=mesh, batch_size=batch_size, on_progress=on_progress)
    margins = []
    for log_probs, example in zip(rows, examples, strict=True):
        counts = np.bincount(example.target_sequence, minlength=example.sequences)
        sums = np.bincount(example.target_sequence, weights=log_probs, minlength=example.sequences)
        scores = sums / np.maximum(counts, 1) if average else sums
        margins.append(scores[example.pairs[:, 0]] - scores[example.pairs[:, 1]])
    return np.concatenate(margins).astype(np.float32)
