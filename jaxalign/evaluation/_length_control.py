"""Win rates at equal length: judges like long answers, so what would they say were both as long?"""

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

from jaxalign.errors import InputError
from jaxalign.evaluation._bootstrap import Interval, interval_of, resampled_counts
from jaxalign.evaluation._wins import Outcome, TieRule, group_index, outcome_scores

__all__ = ["length_controlled_win_rate"]

_ITERATIONS = 50


def length_controlled_win_rate(
    outcomes: Sequence[Outcome],
    lengths: npt.ArrayLike,
    reference_lengths: npt.ArrayLike,
    *,
    ties: TieRule = "half",
    ridge: float = 0.1,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """The win rate that a logistic model of the outcomes has where both answers are equally long.

        P(win) = sigmoid(theta + phi tanh(d / std(d))),  d = length - reference length;   rate = sigmoid(theta)

    as in AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475) for one method and one reference, without its
    term for the difficulty of an instruction, which needs a leaderboard of methods. Fitted by Newton's method; a tie
    is a target of one half. ``ridge / 2 * phi^2`` is added to the summed log loss, so that lengths which part wins from
    losses give a finite slope (with AlpacaEval's regularisation, phi alone shrinks: towards the plain win rate).
    Swapping the sides maps the rate to 1 - rate. The interval is the bootstrap's, the model fitted anew each time.

    Args:
        outcomes: one a comparison; what is invalid is left out.
        lengths, reference_lengths: ``[N]`` of the two answers, in any one unit.
        ties: as in ``win_rate``.
        groups: ``[N]`` prompts, where some have several comparisons.

    Raises:
        InputError: fewer than two outcomes (or groups) that count, other numbers of lengths, one that is not finite,
            or every pair differing by the same length other than 0: length and quality then cannot be told apart.
    """
    scores = outcome_scores(outcomes, ties)
    ours, theirs = np.asarray(lengths, np.float64), np.asarray(reference_lengths, np.float64)
    if not ours.shape == theirs.shape == scores.shape or not (np.isfinite(ours) & np.isfinite(theirs)).all():
        raise InputError(
            f"length_controlled_win_rate: needs two finite lengths an outcome, got {ours.size} and {theirs.size} for "
            f"{scores.size}"
        )
    kept = np.isfinite(scores)
    labels = np.arange(len(scores)) if groups is None else group_index(groups)
    if len(labels) != len(scores):
        raise InputError(f"length_controlled_win_rate: {len(scores)} outcomes but {len(labels)} groups")
    unit = np.unique(labels[kept], return_inverse=True)[1]
    units = int(unit.max(initial=-1)) + 1
    if units < 2:
        raise InputError(f"length_controlled_win_rate: needs at least two judged prompts, got {units}")
    difference = (ours - theirs)[kept]
    spread = difference.std()
    if spread == 0 and difference[0] != 0:
        raise InputError(
            f"length_controlled_win_rate: every pair differs in length by {difference[0]:g}: length and quality cannot "
            "be told apart"
        )
    feature = np.tanh(difference / spread) if spread else np.zeros_like(difference)
    target = scores[kept]
    (estimate,), (phi,) = _fitted(feature, target, np.ones((1, len(target))), ridge)
    drawn = [
        _fitted(feature, target, times[:, unit].astype(np.float64), ridge, phi)[0]
        for times in resampled_counts(units, resamples=resamples, seed=seed)
    ]
    return interval_of(float(estimate), np.concatenate(drawn), units, level)


def _fitted(
    feature: np.ndarray, target: np.ndarray, weights: np.ndarray, ridge: float, start: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """sigmoid(theta) and phi of the model fitted under each row of ``weights`` ``[R, N]``, both ``[R]``.

    ``start``: a phi to begin from, such as that of all data.
    """
    mean = weights @ target / weights.sum(axis=1)
    one_sided = (mean == 0) | (mean == 1)  # theta is then infinite
    theta = special.logit(np.where(one_sided, 0.5, mean)) - start * (weights @ feature) / weights.sum(axis=1)
    phi = np.full_like(theta, start)
    for _ in range(_ITERATIONS):
        p = special.expit(theta[:, None] + phi[:, None] * feature)
        residual, curvature = weights * (target - p), weights * p * (1 - p)
        g_theta, g_phi = residual.sum(axis=1), residual @ feature - ridge * phi
        h_theta, h_mixed, h_phi = curvature.sum(axis=1), curvature @ feature, curvature @ feature**2 + ridge
        determinant = h_theta * h_phi - h_mixed**2
        steps = np.stack([h_phi * g_theta - h_mixed * g_phi, h_theta * g_phi - h_mixed * g_theta]) / determinant
        steps = np.clip(np.where(one_sided, 0.0, steps), -1.0, 1.0)
        theta, phi = theta + steps[0], phi + steps[1]
        if np.abs(steps).max() < 1e-11:  # it converges quadratically: rounding is all that is left
            break
    return np.where(one_sided, mean, special.expit(theta)), phi
