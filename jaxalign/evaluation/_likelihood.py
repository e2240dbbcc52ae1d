"""What a model's own numbers say: perplexity of texts, accuracy of a reward model."""

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from jaxalign.errors import InputError
from jaxalign.evaluation._bootstrap import Interval, interval_of, resampled_means
from jaxalign.evaluation._wilson import wilson_interval
from jaxalign.evaluation._wins import group_index

__all__ = ["perplexity", "reward_accuracy"]


def perplexity(
    log_probs: Sequence[npt.ArrayLike],
    *,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """exp(-sum of log p over all tokens / number of tokens) of texts, with an interval over texts.

    Every token counts alike, so a long text counts for more. Resampled are whole texts, or whole prompts.

    Args:
        log_probs: of each text its tokens' log-probs, ``[T_i]``, nats; a text without tokens counts for nothing.
        groups: ``[N]`` the prompt of each text, where prompts have several.

    Raises:
        InputError: fewer than two texts (or prompts) with tokens, a log-prob that is not finite or above 0, or another
            number of groups.
    """
    rows = [np.asarray(row, np.float64).reshape(-1) for row in log_probs]
    labels = np.arange(len(rows)) if groups is None else group_index(groups)
    if len(labels) != len(rows):
        raise InputError(f"perplexity: {len(rows)} texts but {len(labels)} groups")
    for index, row in enumerate(rows):
        if not np.isfinite(row).all() or (row > 0).any():
            raise InputError(f"perplexity: text {index} has a log-prob that is not finite or above 0")
    units = int(labels.max(initial=-1)) + 1
    totals = np.array([[row.sum(), len(row)] for row in rows]).reshape(-1, 2)
    columns = np.stack([np.bincount(labels, weights=column, minlength=units) for column in totals.T], axis=1)
    columns = columns[columns[:, 1] > 0]
    if len(columns) < 2:
        raise InputError(f"perplexity: needs at least two texts with tokens, got {len(columns)}")
    means = np.concatenate(list(resampled_means(columns, resamples=resamples, seed=seed)))
    total, tokens = columns.sum(axis=0)
    return interval_of(float(np.exp(-total / tokens)), np.exp(-means[:, 0] / means[:, 1]), len(columns), level)


def reward_accuracy(chosen: npt.ArrayLike, rejected: npt.ArrayLike, *, level: float = 0.95) -> Interval:
    """Share of pairs whose chosen answer has the higher reward, with Wilson's interval; equal rewards are one half.

    ``calibration`` has the same with log loss and calibration. Raises ``InputError`` for no pairs, other shapes or a
    reward that is not finite.
    """
    better, worse = np.asarray(chosen, np.float64), np.asarray(rejected, np.float64)
    if better.shape != worse.shape or not better.size or not (np.isfinite(better) & np.isfinite(worse)).all():
        raise InputError(
            f"reward_accuracy: needs as many finite rewards of chosen as of rejected answers, got {better.shape} and "
            f"{worse.shape}"
        )
    right = np.where(better == worse, 0.5, better > worse)
    return wilson_interval(float(right.mean()), right.size, level=level)
