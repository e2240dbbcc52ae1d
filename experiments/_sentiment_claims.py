"""What the sentiment study found: the paper's statements, each with a statistic over seeds and prefixes."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments._results import Claim, Value, difference_over_seeds
from experiments._sentiment import DPO, OTHER_PAIRS, UNWEIGHTED, Measurement, Method, Study
from experiments._sentiment_runs import Run, seeded
from jaxalign import evaluation
from jaxalign.evaluation import FrontierArea, FrontierPoint, Interval, WinRatePoint

__all__ = [
    "ABLATION",
    "BASELINES",
    "BEST_OF_N",
    "ablation_curves",
    "ablation_rows",
    "best_point",
    "calibration_row",
    "claims",
    "values",
]

BASELINES = ("PPO", "PPO-GT", "Preferred-FT", "Unlikelihood")
"""What is trained."""
BEST_OF_N = "Best-of-N"
FIGURE = "Rafailov et al. 2023, figure 2 left"
ABLATION = (DPO, UNWEIGHTED, OTHER_PAIRS)
_ABOVE = "DPO's frontier lies above that of"
_OVER = "interval over training seeds and held-out prefixes"
_OVER_DPO = "interval over DPO's training seeds and held-out prefixes"
_PANELS = {
    "pairs of words repeated (share)": lambda one: float(np.mean(one.repetition)),
    "reference perplexity": lambda one: one.extras()["start-model perplexity"],
    "judge's P(positive)": lambda one: float(np.mean(one.judge)),
}


def claims(
    study: Study,
    start: Measurement,
    results: Mapping[Method, Run],
    *,
    best_of_n: Sequence[FrontierPoint] = (),
    calibration: Mapping[str, Any] | None = None,
) -> list[Claim]:
    """Every statement that the study's runs decide.

    Args:
      start: the start model, with as many samples a prefix as the runs have.
      best_of_n: points of ``BEST_OF_N``, by the true reward.
      calibration: the reward model's on held-out preferences.
    """
    found = [*_best_reward(study, results), *_areas(study, start, results, best_of_n)]
    if calibration is not None and calibration["low"] <= 0.5:
        why = (
            f"says little of PPO: its reward model orders held-out preferences no better than chance (accuracy "
            f"{calibration['accuracy']:.3f} [{calibration['low']:.3f}, {calibration['high']:.3f}])"
        )
        learned = ("DPO reaches a higher reward than PPO does with a learned reward", f"{_ABOVE} PPO")
        found = [
            dataclasses.replace(one, why=f"{one.why}; {why}" if one.why else why) if one.claim in learned else one
            for one in found
        ]
    dpo, unweighted, other = (_group(results, name) for name in ABLATION)
    at = f"at beta {study.dpo_seeds_at:g}, after the last update"
    if dpo and unweighted:
        for claim, name, unit, decimals in (
            ("texts repeat themselves more", "repetition", "share of pairs of words that a text had before", 4),
            ("text is less likely under the reference", "log_perplexity", "nats a token under the start model", 2),
        ):
            interval, by_seed = difference_over_seeds(_rows(unweighted, name), _rows(dpo, name))
            means = [float(_rows(group, name).mean()) for group in (dpo, unweighted)]
            own = Claim(
                claim=f"Weighing is important: without the weight of DPO's gradient {claim}",
                source="Rafailov et al. 2023, section 4 and appendix table 3",
                statistic=f"without the weight minus DPO {at}, {unit}; {_OVER}",
                found=interval,
                by_seed=by_seed,
                decimals=decimals,
            )
            why = f"after {study.steps} updates: DPO {means[0]:.4f}, without the weight {means[1]:.4f}"
            found.append(own if own.verdict == "holds" else dataclasses.replace(own, why=why))
    if other:
        rows = _rows(other, "judge")
        interval, by_seed = difference_over_seeds(rows, np.tile(start.by_prefix("judge"), (len(rows), 1)))
        found.append(
            Claim(
                claim="DPO can use another model's pairs",
                source="Rafailov et al. 2023, section 4",
                statistic=f"independent judge's P(positive), DPO on pairs of {_whose(study)} {at} minus start; {_OVER}",
                found=interval,
                by_seed=by_seed,
                decimals=3,
            )
        )
    return found


def best_point(runs: Sequence[Run]) -> int:
    """Which of the points along runs of one setting has the highest mean reward over all of them."""
    return int(np.argmax(np.mean([[np.mean(point.reward) for point in run.points] for run in runs], axis=0)))


def values(
    study: Study,
    start: Measurement,
    results: Mapping[Method, Run],
    areas: Sequence[FrontierArea],
    wins: Sequence[WinRatePoint],
) -> list[Value]:
    """The numbers behind the claims; the paper prints none of them."""
    found = [
        Value(
            what=f"mean best reward within {row.kl_range[1]:g} nats, {row.method} (log-odds)", ours=row.area,
            seeds=row.runs, decimals=2,
        )
        for row in areas
    ]  # fmt: skip
    for name in ABLATION:
        if group := _group(results, name):
            rows = _rows(group, "judge")
            interval, _ = difference_over_seeds(rows, np.tile(start.by_prefix("judge"), (len(rows), 1)))
            what = f"independent judge's P(positive) minus start, {name}, beta {study.dpo_seeds_at:g}"
            found.append(Value(what=what, ours=interval, seeds=len(rows), decimals=3))
    dpo, unweighted = _group(results, DPO), _group(results, UNWEIGHTED)
    if dpo and unweighted:
        interval, _ = difference_over_seeds(_rows(unweighted, "judge"), _rows(dpo, "judge"))
        what = f"independent judge's P(positive), {UNWEIGHTED} minus {DPO}, beta {study.dpo_seeds_at:g}"
        found.append(Value(what=what, ours=interval, seeds=min(len(dpo), len(unweighted)), decimals=3))
    found += [
        Value(
            what=f"win rate against {point.against}, {point.method} at temperature {point.temperature:g} (%)",
            ours=_percent(point.wins.interval),
        )
        for point in wins
    ]
    return found


def ablation_rows(results: Mapping[Method, Run]) -> list[dict[str, object]]:
    """A row for every point of the runs that an ablation compares, seeds averaged."""
    rows = []
    for name in ABLATION:
        group = _group(results, name)
        for place, point in enumerate(group[0].points if group else ()):
            own = [run.points[place] for run in group]
            rows.append({
                "method": name, "step": point.step, "seeds": len(own),
                "KL (nats/sequence)": _mean(own, "kl"), "reward": _mean(own, "reward"),
                "judge P(positive)": _mean(own, "judge"), "repeated-2": _mean(own, "repetition"),
                "distinct-2": float(np.mean([one.extras()["distinct-2"] for one in own])),
                "reference nats/token": _mean(own, "log_perplexity"),
            })  # fmt: skip
    return rows


def calibration_row(found: Mapping[str, Any]) -> dict[str, object]:
    """How right the reward model is on held-out preferences."""
    return {
        "accuracy": Interval(found["accuracy"], found["low"], found["high"]), "pairs": found["pairs"],
        "log loss (nats; knowing nothing: 0.693)": found["log_loss"],
        "expected calibration error": found["expected_calibration_error"],
    }  # fmt: skip


def ablation_curves(
    start: Measurement, results: Mapping[Method, Run]
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Panels over training, seeds averaged: repetition, perplexity under the reference, the judge."""
    groups = {name: group for name in ABLATION if (group := _group(results, name))}
    return {
        title: {
            name: [
                (float(points[0].step), float(np.mean([measure(point) for point in points])))
                for points in [(start,), *zip(*(run.points for run in group), strict=True)]
            ]
            for name, group in groups.items()
        }
        for title, measure in _PANELS.items()
    }


def _best_reward(study: Study, results: Mapping[Method, Run]) -> list[Claim]:
    dpo, ppo = _group(results, DPO), _group(results, "PPO")
    if not dpo or not ppo:
        return []
    one, two = best_point(dpo), best_point(ppo)
    interval, by_seed = difference_over_seeds(_rows(dpo, "reward", one), _rows(ppo, "reward", two))
    settings = [seeded(list(results), name)[0].label for name in (DPO, "PPO")]
    paid = [float(_rows(group, "kl", place).mean()) for group, place in ((dpo, one), (ppo, two))]
    why = f"the best points lie at {paid[0]:.1f} nats (DPO) and {paid[1]:.1f} (PPO)"
    if dpo[0].points[one].step == study.steps:
        why += f"; DPO's is its last of {study.steps} updates, which may have been too few"
    return [
        Claim(
            claim="DPO reaches a higher reward than PPO does with a learned reward",
            source=FIGURE,
            statistic=f"true reward (log-odds of positive) of {settings[0]} at step {dpo[0].points[one].step} minus "
            f"{settings[1]} at step {ppo[0].points[two].step}, each method's best point; {_OVER}",
            found=interval,
            by_seed=by_seed,
            decimals=2,
            why=why,
        )
    ]


def _areas(
    study: Study, start: Measurement, results: Mapping[Method, Run], best_of_n: Sequence[FrontierPoint]
) -> list[Claim]:
    """DPO's area minus each baseline's: seed against seed, as far as both go. A baseline of one training seed stands
    with its whole frontier against each of DPO's, which decides nothing; Best-of-N trains nothing and has no seed."""
    dpo = _group(results, DPO)
    if not dpo or not study.compare_at:
        return []
    own, budgets = seeded(list(results), DPO)[0].label, (0.0, study.compare_at[-1])

    def claim(name: str, versus: str, others: Sequence[Sequence[FrontierPoint]], **fields: str) -> Claim:
        runs = [[*_curve(study, DPO, "", start, run.points), *points] for run, points in zip(dpo, others, strict=False)]
        area = evaluation.frontier_area_difference(runs, DPO, name, kl_range=budgets, seed=study.seed)
        return Claim(
            claim=f"{_ABOVE} {name}",
            statistic=f"mean best true reward within {budgets[0]:g} to {budgets[1]:g} nats, {own} minus {versus}",
            found=area.difference,
            by_seed=list(area.by_run),
            decimals=2,
            **fields,
        )

    found = []
    for name in BASELINES:
        group = seeded(list(results), name)
        if min(len(group), len(dpo)) > 1:
            curves = [_curve(study, name, method.setting, start, results[method].points) for method in group]
            setting = re.sub(r",? ?seed \d+$", "", group[0].label)
            first = [float(np.mean(results[method].points[0].kl)) for method in group]
            inside = [_within(runs, budgets[1]) for runs in ([results[method] for method in group], dpo)]
            why = (
                f"a run of {name} was measured {inside[0]} times in that range, first at {_range(first)} nats, one of "
                f"DPO {inside[1]}; between measurements lines are straight"
            )
            found.append(claim(name, f"{setting}, seed against seed; {_OVER}", curves, source=FIGURE, why=why))
        elif group:
            whole = [method for method in results if method.name == name and not method.repeat]
            curve = [
                point
                for method in whole
                for point in _curve(study, name, method.setting, start, results[method].points)
            ]
            few = f"{name} has one training seed" if len(group) == 1 else ""
            versus = f"all {name} runs; {_OVER_DPO}"
            found.append(claim(name, versus, [curve] * len(dpo), source=FIGURE, undecidable=few))
    if best_of_n:
        curve = [start.point(BEST_OF_N, "", seed=study.seed), *best_of_n]
        versus = f"{BEST_OF_N} of the true reward, at the bound of its KL, which trains nothing; {_OVER_DPO}"
        n = max(point.step for point in best_of_n)
        bound = max(point.kl.estimate for point in best_of_n)
        why = (
            f"the best of {n} is picked by the true reward, at {bound:.2f} nats at most, and pays {n} samples an answer"
        )
        found.append(claim(BEST_OF_N, versus, [curve] * len(dpo), source="", why=why))
    return found


def _within(runs: Sequence[Run], most: float) -> str:
    """How often a run was measured at no more than so many nats: "2", or "1 to 3" where runs differ."""
    counts = {sum(float(np.mean(point.kl)) <= most for point in run.points) for run in runs}
    return " to ".join(str(count) for count in sorted({min(counts), max(counts)}))


def _curve(
    study: Study, name: str, setting: str, start: Measurement, points: Sequence[Measurement]
) -> list[FrontierPoint]:
    return [point.point(name, setting, seed=study.seed) for point in (start, *points)]


def _group(results: Mapping[Method, Run], name: str) -> list[Run]:
    """The runs of a method's setting with most seeds."""
    return [results[method] for method in seeded(list(results), name)]


def _rows(runs: Sequence[Run], name: str, place: int = -1) -> np.ndarray:
    """``[S, N]``: a value of every run and prefix."""
    return np.stack([run.points[place].by_prefix(name) for run in runs])


def _mean(points: Sequence[Measurement], name: str) -> Interval:
    """Over the points' prefixes; seeds are averaged first."""
    return evaluation.bootstrap_interval(np.mean([point.by_prefix(name) for point in points], axis=0))


def _percent(interval: Interval) -> Interval:
    return Interval(100 * interval.estimate, 100 * interval.low, 100 * interval.high)


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def _whose(study: Study) -> str:
    other = study.ablations.other_model
    return "the model before its fine-tuning" if other == "base" else other
