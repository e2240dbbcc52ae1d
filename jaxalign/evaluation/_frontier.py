"""Reward against KL: points measured along training, and methods compared at equal KL."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxalign.evaluation._bootstrap import Interval, bootstrap_interval, interval_of, resampled_means

__all__ = ["FrontierPoint", "RewardAtKL", "RewardDifference", "interpolate_reward_at_kl", "reward_difference_at_kl"]

_ROUNDING = 1e-9  # nats: a mean KL depends on the order of its sum


@dataclass(frozen=True, eq=False)
class FrontierPoint:
    """One policy measured on the held-out prompts: where it lies, and what each prompt contributed.

    ``method`` and ``setting`` name a training curve (``"DPO"``, ``"beta 0.1"``), ``step`` a point on it. KL is in nats
    per sequence. ``kl_is_bound`` says that it is an analytic upper bound (Best-of-N) and not a measurement; ``step``
    is then N. ``extras`` are further numbers for the table (a judge's mean, distinct-2, ...).
    """

    method: str
    setting: str
    step: int
    kl: Interval
    reward: Interval
    kl_per_prompt: np.ndarray
    reward_per_prompt: np.ndarray
    kl_is_bound: bool = False
    extras: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_samples(
        cls,
        method: str,
        setting: str,
        step: int,
        *,
        kl: npt.ArrayLike,
        reward: npt.ArrayLike,
        prompt: npt.ArrayLike,
        kl_is_bound: bool = False,
        extras: Mapping[str, float] | None = None,
        level: float = 0.95,
        seed: int = 0,
    ) -> "FrontierPoint":
        """A point from samples: sequence KL ``[N]`` (or one number, for a bound), reward ``[N]``, prompt ``[N]``.

        Samples of one prompt are averaged first, so every prompt counts alike; points that are to be compared must
        come from the same prompts, numbered alike.
        """
        _, index, counts = np.unique(np.asarray(prompt), return_inverse=True, return_counts=True)

        def per_prompt(values: npt.ArrayLike) -> np.ndarray:
            return np.bincount(index, weights=np.broadcast_to(np.asarray(values, np.float64), index.shape)) / counts

        kls, rewards = per_prompt(kl), per_prompt(reward)
        return cls(
            method=method,
            setting=setting,
            step=step,
            kl=bootstrap_interval(kls, level=level, seed=seed),
            reward=bootstrap_interval(rewards, level=level, seed=seed),
            kl_per_prompt=kls,
            reward_per_prompt=rewards,
            kl_is_bound=kl_is_bound,
            extras=dict(extras or {}),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form that ``from_json`` reads back exactly."""
        return {
            "method": self.method,
            "setting": self.setting,
            "step": self.step,
            "kl": [self.kl.estimate, self.kl.low, self.kl.high],
            "reward": [self.reward.estimate, self.reward.low, self.reward.high],
            "kl_per_prompt": self.kl_per_prompt.tolist(),
            "reward_per_prompt": self.reward_per_prompt.tolist(),
            "kl_is_bound": self.kl_is_bound,
            "extras": dict(self.extras),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "FrontierPoint":
        """The point that ``to_json`` wrote."""
        arrays = {name: np.asarray(value[name], np.float64) for name in ("kl_per_prompt", "reward_per_prompt")}
        return cls(**{**value, **arrays, "kl": Interval(*value["kl"]), "reward": Interval(*value["reward"])})


@dataclass(frozen=True)
class RewardAtKL:
    """A method's reward at a KL; ``reached`` is whether a measured point of it lies at that KL or beyond."""

    method: str
    kl: float
    reward: Interval
    reached: bool


@dataclass(frozen=True)
class RewardDifference:
    """``method`` minus ``baseline`` at a KL, with each one's reward and whether it got that far."""

    method: str
    baseline: str
    kl: float
    difference: Interval
    method_reward: float
    baseline_reward: float
    method_reached: bool
    baseline_reached: bool


def interpolate_reward_at_kl(
    points: Sequence[FrontierPoint], kl: float, *, level: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> list[RewardAtKL]:
    """Each method's best reward within a budget of ``kl`` nats per sequence, with intervals over prompts.

    **Rule.** Each setting is a training curve: its points in order of step, joined by straight lines in (KL, reward).
    A method's reward at a KL is the highest reward on any of its curves at that KL *or below*: the upper envelope. So
    a method that never gets as far as ``kl`` keeps the best reward it did reach (it could have stopped there), and is
    marked ``reached=False``; that favours it, so a positive difference against it stands.

    In each resample the prompts are drawn once for all points, every point's KL and reward are averaged anew, and the
    envelope is taken again: the interval holds the noise of both axes and of choosing the best curve. That choice
    flatters whoever has more settings and points to choose from, in the estimate too: compare methods that were given
    equally many.

    Raises:
        ValueError: points of different prompts, or a method with no point at or below ``kl`` (give each method its
            start, KL 0).
    """
    estimates, resampled, reached = envelopes(points, [kl], resamples, seed)
    prompts = len(points[0].kl_per_prompt)
    return [
        RewardAtKL(method, kl, interval_of(estimates[method][0], resampled[method][:, 0], prompts, level), far[0])
        for method, far in reached.items()
    ]


def reward_difference_at_kl(
    points: Sequence[FrontierPoint],
    method: str,
    baseline: str,
    kls: Sequence[float],
    *,
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> list[RewardDifference]:
    """``method`` minus ``baseline`` in reward at equal KL; the rule is that of ``interpolate_reward_at_kl``.

    Prompts are resampled jointly for both methods, so the difference is paired.
    """
    for name in (method, baseline):
        if all(point.method != name for point in points):
            raise ValueError(f"no point of method {name!r}")
    chosen = [point for point in points if point.method in (method, baseline)]
    estimates, resampled, reached = envelopes(chosen, kls, resamples, seed)
    prompts = len(chosen[0].kl_per_prompt)
    rows = []
    for i, kl in enumerate(kls):
        first, second = float(estimates[method][i]), float(estimates[baseline][i])
        difference = resampled[method][:, i] - resampled[baseline][:, i]
        rows.append(
            RewardDifference(
                method=method,
                baseline=baseline,
                kl=kl,
                difference=interval_of(first - second, difference, prompts, level),
                method_reward=first,
                baseline_reward=second,
                method_reached=reached[method][i],
                baseline_reached=reached[baseline][i],
            )
        )
    return rows


def envelopes(
    points: Sequence[FrontierPoint], kls: Sequence[float], resamples: int, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, list[bool]]]:
    """By method: the envelope at each KL ``[K]``, the same in each resample ``[R, K]``, and whether it was reached."""
    if len({len(point.kl_per_prompt) for point in points}) != 1:
        raise ValueError("points of one comparison must come from the same prompts")
    columns = np.stack([a for p in points for a in (p.kl_per_prompt, p.reward_per_prompt)], axis=1)
    measured = columns.mean(axis=0)[None]
    drawn = np.concatenate([measured, *resampled_means(columns, resamples=resamples, seed=seed)])
    curves: dict[str, dict[str, list[int]]] = {}
    for i in sorted(range(len(points)), key=lambda i: points[i].step):
        curves.setdefault(points[i].method, {}).setdefault(points[i].setting, []).append(i)
    estimates, resampled, reached = {}, {}, {}
    for method, settings in curves.items():
        indices = [i for curve in settings.values() for i in curve]
        placed = measured[0, [2 * i for i in indices]]
        for kl in kls:
            if not (placed <= kl + _ROUNDING).any():
                raise ValueError(f"{method} has no point at or below KL {kl}: add its start, at KL 0")
        at = np.stack([_envelope(drawn, list(settings.values()), kl) for kl in kls], axis=1)
        estimates[method], resampled[method] = at[0], at[1:]
        reached[method] = [bool((placed >= kl - _ROUNDING).any()) for kl in kls]
    return estimates, resampled, reached


def _envelope(drawn: np.ndarray, curves: Sequence[Sequence[int]], kl: float) -> np.ndarray:
    """The highest reward at KL <= ``kl`` on any curve, for each row of ``drawn`` ``[R, 2 * points]``: ``[R]``."""
    candidates = []
    everything = [i for curve in curves for i in curve]
    for curve in curves:
        x, y = drawn[:, [2 * i for i in curve]], drawn[:, [2 * i + 1 for i in curve]]
        candidates.append(np.where(x <= kl, y, -np.inf))
        left, right, gap = x[:, :-1], x[:, 1:], np.diff(x, axis=1)
        crosses = (left - kl) * (right - kl) < 0
        share = np.where(crosses, (kl - left) / np.where(crosses, gap, 1.0), 0.0)
        candidates.append(np.where(crosses, y[:, :-1] + share * np.diff(y, axis=1), -np.inf))
    best = np.concatenate(candidates, axis=1).max(axis=1)
    # A resample may push every point beyond ``kl``; the one nearest to it then stands in.
    x, y = drawn[:, [2 * i for i in everything]], drawn[:, [2 * i + 1 for i in everything]]
    nearest = np.take_along_axis(y, x.argmin(axis=1)[:, None], axis=1)[:, 0]
    return np.where(np.isfinite(best), best, nearest)
