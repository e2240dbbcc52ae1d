"""What the TL;DR study found: win rates over temperature, ROUGE, Best-of-N, and what is claimed of them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from experiments._results import Claim, Figure, Result, Table, Value, mean_over_seeds, verdict
from experiments._tldr import CONTENT_WORDS, Study
from experiments._tldr_judges import described
from experiments._tldr_runs import BEST_OF_N, Runs
from experiments._tldr_training import Summary
from jaxalign import evaluation, sampling
from jaxalign.evaluation import Interval, JudgedPair, Percent, Rounded, WinRatePoint

__all__ = ["best_of", "files", "judged_rows", "make_result"]

SOURCE = "Rafailov et al. 2023, figure 2 right"
# Published, at temperature 0 by GPT-4 (C); of the others no number is printed.
PAPER = {"DPO": "about 61", "PPO": "about 57"}
START = "SFT"
Scores = np.ndarray
"""A win as 1, a tie as 1/2, a loss as 0, what is invalid as NaN: ``[seeds, temperatures, posts]``."""


def best_of(runs: Runs, n: int) -> list[list[Summary]]:
    """``[temperature][post]``: of the first ``n`` candidates the one that the reward model likes best."""
    chosen = []
    for posts in runs.candidates:
        scores = np.array([[one["score"] for one in own[:n]] for own in posts])
        picks = sampling.best_of_n(scores)[:, -1]
        chosen.append([own[pick] for own, pick in zip(posts, picks, strict=True)])
    return chosen


def all_summaries(study: Study, runs: Runs) -> dict[str, list[list[list[Summary]]]]:
    """By method ``[seed][temperature][post]``, Best-of-N for every N above 1 among them."""
    return {
        **runs.summaries,
        **{BEST_OF_N.format(n): [best_of(runs, n)] for n in study.best_of if n > 1},
    }


def judged_rows(study: Study, runs: Runs) -> list[JudgedPair]:
    """Every summary against the reference, not judged yet: by method, seed, temperature and post, in this order."""
    return [
        JudgedPair(
            prompt=post.document, ours=summary["text"], theirs=post.reference, outcome="invalid",
            method=method, against="reference", temperature=temperature,
        )
        for method, seeds in all_summaries(study, runs).items()
        for written in seeds
        for temperature, row in zip(study.temperatures, written, strict=True)
        for post, summary in zip(runs.posts.held_out, row, strict=True)
    ]  # fmt: skip


def files(study: Study, runs: Runs, judged: Sequence[JudgedPair], output: Path) -> None:
    """``summaries.jsonl``, what every method wrote, and ``verdicts.jsonl``, for ``jaxalign evaluate``."""
    rows = [
        {
            "prompt": post.document, "reference": post.reference, "method": method, "seed": seed,
            "temperature": temperature, "summary": summary["text"],
        }
        for method, seeds in all_summaries(study, runs).items()
        for seed, written in enumerate(seeds)
        for temperature, row in zip(study.temperatures, written, strict=True)
        for post, summary in zip(runs.posts.held_out, row, strict=True)
    ]  # fmt: skip
    for name, lines in (("summaries", rows), ("verdicts", [asdict(pair) for pair in judged])):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (output / f"{name}.jsonl").write_text(text, encoding="utf-8")


def make_result(
    study: Study, runs: Runs, judged: Sequence[JudgedPair], output: Path, *, preset: str, seconds: float
) -> Result:
    """Draw the figures into ``output`` and put everything together."""
    largest = BEST_OF_N.format(study.best_of[-1])
    drawn = {*runs.summaries, largest}
    points = [point for point in evaluation.win_rate_points(judged) if point.method in drawn]
    scores = _scores(study, judged)
    figures = []
    for judge in described(study.judging):
        own = [point for point in points if point.judge == judge]
        figure = evaluation.plot_win_rate(own, over="temperature", title=f"TL;DR, judge ({judge})")
        evaluation.save_figure(figure, output / f"win_rate_{judge}")
        caption = f"Win rate against the reference summary over sampling temperature, judge ({judge})."
        image = "tldr.png" if judge == "C" else ""  # of which the paper's numbers are
        figures.append(Figure(of=SOURCE, caption=caption, file=f"win_rate_{judge}.svg", image=image))
    values = [
        Value(
            what=f"win rate against the reference at temperature 0, {method}, judge (C) (%); over posts alone",
            paper=PAPER.get(method, ""),
            ours=_percent(_point(points, method, "C", 0.0).wins.interval),
            seeds=len(runs.summaries.get(method, [None])),
        )
        for method in (*PAPER, *(name for name in runs.summaries if name not in PAPER), largest)
    ]  # fmt: skip
    summaries = all_summaries(study, runs)
    return Result(
        experiment="tldr_summarization",
        preset=preset,
        title="TL;DR summarisation: win rate over temperature",
        setting=_setting(study, runs),
        judges=described(study.judging),
        seeds=len(study.seeds),
        seconds=seconds,
        values=values,
        claims=[claim for judge in ("C", "S") for claim in _claims(study, scores, judge, largest)],
        figures=figures,
        tables=[
            Table(
                of=SOURCE,
                caption="Win rate against the reference (%), ties as halves, seeds together, with 95 % intervals over "
                "posts; beside it the share of ties.",
                rows=_win_rows(study, points),
            ),
            Table(
                of="",
                caption="ROUGE (F, x 100) against the reference, mean over posts and seeds with 95 % intervals over "
                "posts; words of a summary, and how many end by themselves (%).",
                rows=_text_rows(study, runs, summaries),
            ),
            Table(
                of="",
                caption="Best-of-N: win rate against the reference (%), nested samples of the SFT model.",
                rows=_best_rows(study, evaluation.win_rate_points(judged)),
            ),
        ],
        remarks=[
            f"The reward model was right about {100 * runs.reward_accuracy:.0f} % of held-out preferences.",
            "Intervals of claims are over seeds and posts; a best temperature is every seed's own, in each resample of "
            "posts anew. DPO's and PPO's seeds share one SFT model and one reward model, so that claims hold given "
            "these; Best-of-N trains nothing further and has one seed, that of its samples.",
        ],
    )


def _setting(study: Study, runs: Runs) -> str:
    source = study.comparisons or (
        f"{study.samples_per_post} samples of the SFT model for each of {study.feedback_posts} posts, ordered by the "
        "mean of ROUGE-1, -2 and -L against the reference"
    )
    return (
        f"{study.model}; posts: {study.posts}, {study.sft_posts} demonstrations; {runs.pairs} preferences: {source}. "
        f"PPO against a reward model of the same preferences, DPO with beta {study.dpo_beta:g}; {study.held_out} "
        f"held-out posts."
    )


def _scores(study: Study, judged: Sequence[JudgedPair]) -> dict[tuple[str, str], Scores]:
    """By (method, judge)."""
    found: dict[tuple[str, str], list[float]] = {}
    worth = {"win": 1.0, "tie": 0.5, "lose": 0.0, "invalid": np.nan}
    for pair in judged:
        found.setdefault((pair.method, pair.judge), []).append(worth[pair.outcome])
    shape = (-1, len(study.temperatures), study.held_out)
    return {name: np.array(values).reshape(shape) for name, values in found.items()}


def _claims(study: Study, scores: Mapping[tuple[str, str], Scores], judge: str, largest: str) -> list[Claim]:
    dpo, ppo, best = (scores[name, judge] for name in ("DPO", "PPO", largest))
    bests, spreads = (
        ", ".join(f"{name} {_mean(of_curve, scores[name, judge]):.1f}" for name in ("DPO", "PPO", largest, START))
        for of_curve in (_best, _spread)
    )
    start = f"means over seeds: {bests}; DPO and PPO start from {START}"
    if not study.comparisons and study.judging.model == CONTENT_WORDS:
        start += "; preferences are by ROUGE to the reference, which this judge does not see"

    def claim(
        text: str, statistic: str, of_curve: Callable[[np.ndarray], np.ndarray], own: Scores, other: Scores
    ) -> Claim:
        found, by_seed = over_seeds(of_curve, own, other)
        means = start if of_curve is _best else f"means over seeds: {spreads}"
        return Claim(
            claim=f"{text}, judge ({judge})", source=SOURCE, statistic=f"{statistic}, points of %", found=found,
            by_seed=by_seed, why="" if verdict(found, by_seed) == "holds" else means,
        )  # fmt: skip

    return [
        claim(
            "At their best temperatures DPO wins more often than PPO",
            "best win rate of DPO minus best win rate of PPO", _best, dpo, ppo,
        ),
        claim(
            "DPO is more robust to the sampling temperature than PPO",
            "largest less smallest win rate over temperature, PPO's minus DPO's", _spread, ppo, dpo,
        ),
        claim(
            f"DPO's best win rate is above that of {largest}",
            f"best win rate of DPO minus best win rate of {largest}", _best, dpo, best,
        ),
    ]  # fmt: skip


def _mean(of_curve: Callable[[np.ndarray], np.ndarray], scores: Scores) -> float:
    """Over seeds."""
    return float(_of_curves(of_curve, scores, np.ones((1, scores.shape[2]))).mean())


def _best(curves: np.ndarray) -> np.ndarray:
    return curves.max(axis=-1)


def _spread(curves: np.ndarray) -> np.ndarray:
    return curves.max(axis=-1) - curves.min(axis=-1)


def over_seeds(
    of_curve: Callable[[np.ndarray], np.ndarray], own: Scores, other: Scores, *, resamples: int = 2000
) -> tuple[Interval, list[float]]:
    """``of_curve`` of the win rates over temperature, own - other, in points of %: mean over seeds with its 95 %
    interval over seeds and posts, and of each seed (the other's only seed where it has one).

    It is taken of every seed's curve and then averaged. The highest point of a noisy curve is too high, and less so on
    a mean of seeds: of that mean it would favour whoever has fewer seeds. The variance of the posts is the bootstrap's,
    the same posts for all curves.
    """
    posts = own.shape[2]
    drawn = np.random.default_rng(0).multinomial(posts, np.full(posts, 1 / posts), resamples)
    one, two = (_of_curves(of_curve, scores, np.vstack([np.ones(posts), drawn])) for scores in (own, other))
    resampled = (one.mean(axis=0) - two.mean(axis=0))[1:]
    resampled = resampled[np.isfinite(resampled)]  # few valid verdicts, and a draw may have none
    return mean_over_seeds(one[:, 0], two[:, 0], [(float(resampled.var(ddof=1)), posts - 1)])


def _of_curves(of_curve: Callable[[np.ndarray], np.ndarray], scores: Scores, counts: np.ndarray) -> np.ndarray:
    """``[seeds, R]``: of every seed's win rates (%) over temperature, posts counted as often as a row of ``[R, posts]``
    says."""
    wins = counts @ np.nan_to_num(scores).swapaxes(1, 2)
    valid = counts @ np.isfinite(scores).swapaxes(1, 2)
    return of_curve(100 * np.divide(wins, valid, out=np.full(wins.shape, np.nan), where=valid > 0))


def _point(points: Sequence[WinRatePoint], method: str, judge: str, temperature: float) -> WinRatePoint:
    return next(
        point for point in points if (point.method, point.judge, point.temperature) == (method, judge, temperature)
    )


def _win_rows(study: Study, points: Sequence[WinRatePoint]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for judge in described(study.judging):
        for method in dict.fromkeys(point.method for point in points):
            own = [_point(points, method, judge, temperature) for temperature in study.temperatures]
            ties = sum(point.wins.ties for point in own) / max(sum(point.wins.judged for point in own), 1)
            rates = {f"T = {point.temperature:g}": Percent(point.wins.interval) for point in own}
            rows.append({"judge": judge, "method": method, **rates, "ties": Percent(ties)})
    return rows


def _best_rows(study: Study, points: Sequence[WinRatePoint]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for judge in described(study.judging):
        for n in study.best_of:
            method = BEST_OF_N.format(n) if n > 1 else "SFT"
            own = [_point(points, method, judge, temperature) for temperature in study.temperatures]
            rates = {f"T = {point.temperature:g}": Percent(point.wins.interval) for point in own}
            rows.append({"judge": judge, "N": n, **rates})
    return rows


def _text_rows(
    study: Study, runs: Runs, summaries: Mapping[str, Sequence[Sequence[Sequence[Summary]]]]
) -> list[dict[str, object]]:
    references = [post.reference for post in runs.posts.held_out]
    rows: list[dict[str, object]] = []
    for method, seeds in summaries.items():
        for place, temperature in enumerate(study.temperatures):
            written = [one for run in seeds for one in run[place]]
            texts = [one["text"] for one in written]
            scores = evaluation.rouge(texts, references * len(seeds))
            rouge: dict[str, Any] = {
                kind.replace("rouge", "ROUGE-"): Rounded(_in_points(values, len(references)), 1)
                for kind, values in scores.items()
            }
            words = float(np.mean([len(text.split()) for text in texts]))
            finished = float(np.mean([one["finished"] for one in written]))
            rows.append({
                "method": method, "temperature": f"{temperature:g}", **rouge, "words": f"{words:.1f}",
                "finished": Percent(finished),
            })  # fmt: skip
    return rows


def _in_points(values: np.ndarray, posts: int) -> Interval:
    return evaluation.bootstrap_interval(100 * values, groups=list(range(posts)) * (len(values) // posts))


def _percent(interval: Interval) -> Interval:
    return Interval(*(100 * value for value in (interval.estimate, interval.low, interval.high)))
