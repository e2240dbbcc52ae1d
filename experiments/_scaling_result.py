"""The figure, the table and the claims of a score over model sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments._hindsight import BASE, RLHF_ROW
from experiments._hindsight_tasks import Measured
from experiments._model_sizes import slope_over_seeds
from experiments._results import Claim, Figure, Result, Table, Value, difference_over_seeds, verdict
from jaxalign import evaluation
from jaxalign.evaluation import Interval, Rounded, ScorePoint

__all__ = ["Size", "result_of"]

FIGURE = "Liu et al. 2023, figure 5"
COH = "CoH"
_DECIMALS = 3  # the score is a share, and sizes differ little


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model size and what its methods scored."""

    name: str
    parameters: int
    rows: Mapping[str, Sequence[Measured]]
    """Method -> a measurement a seed."""
    score: str


def result_of(sizes: Sequence[Size], output: Path, *, preset: str, setting: str, seconds: float) -> Result:
    """Draw the figure into ``output`` and put the result together."""
    sizes = sorted(sizes, key=lambda size: size.parameters)
    methods = list(sizes[0].rows)
    score = sizes[0].score
    curves = {method: [_point(size, method) for size in sizes] for method in methods}
    evaluation.save_figure(evaluation.plot_scores({"parameters": curves}, label=score), output / "scaling")
    growth = {
        method: slope_over_seeds([size.parameters for size in sizes], [_scores(size, method) for size in sizes])
        for method in methods
    }
    largest, seeds = sizes[-1], len(sizes[0].rows[COH])
    return Result(
        experiment="model_scaling",
        preset=preset,
        title="Score against model size",
        setting=setting,
        judges={"score": score},
        seeds=seeds,
        seconds=seconds,
        values=[
            Value(
                what=f"{score}, {method}, {largest.parameters:,} parameters; over items",
                ours=_interval(largest, method), seeds=len(largest.rows[method]), decimals=_DECIMALS,
            )
            for method in methods
        ],
        claims=[
            Claim(
                claim="Chain of Hindsight's score rises with size", source=FIGURE,
                statistic="slope of the score over ln(parameters); over seeds and held-out items",
                found=growth[COH][0], by_seed=growth[COH][1], decimals=_DECIMALS + 1,
                why=f"its means by size: {_means(sizes, COH)}; those of the base: {_means(sizes, BASE)}",
            ),
            *(_above(largest, other) for other in ("SFT", RLHF_ROW, BASE)),
            *(_rises_faster(sizes, other) for other in ("SFT", RLHF_ROW)),
        ],
        figures=[
            Figure(
                of=FIGURE, file="scaling.svg", image="scaling.png",
                caption="Score against parameters. Bars: 95 % over held-out items, seeds averaged; crosses: seeds.",
            )
        ],
        tables=[
            Table(
                of=FIGURE,
                caption=f"{score}, by size; the last row is its slope over ln(parameters)",
                rows=[
                    *({"parameters": f"{size.parameters:,}"} | {
                        method: Rounded(_interval(size, method), _DECIMALS) for method in methods} for size in sizes),
                    {"parameters": "slope"} | {
                        method: Rounded(found, _DECIMALS + 1) for method, (found, _) in growth.items()},
                ],
            )
        ],
        remarks=[
            "Every size has one base, and one set of samples of its own where samples are rated: intervals are over "
            "the methods' training seeds and held-out items, not over what came before.",
        ],
    )  # fmt: skip


def _scores(size: Size, method: str) -> list[list[float]]:
    return [row["score"] for row in size.rows[method]]


def _interval(size: Size, method: str) -> Interval:
    return evaluation.bootstrap_interval(np.mean(_scores(size, method), axis=0))


def _point(size: Size, method: str) -> ScorePoint:
    return ScorePoint(size.parameters, _interval(size, method), [float(np.mean(row)) for row in _scores(size, method)])


def _above(largest: Size, other: str) -> Claim:
    own, others = _scores(largest, COH), _scores(largest, other)
    if len(others) == 1:  # the base is the same for every seed
        others = others * len(own)
    found, by_seed = difference_over_seeds(own, others)
    compared = dict.fromkeys((COH, other, BASE))
    there = ", ".join(f"{method} {np.mean(_scores(largest, method)):.{_DECIMALS}f}" for method in compared)
    return Claim(
        claim=f"At the largest size Chain of Hindsight is above {other}", source=FIGURE,
        statistic=f"score, Chain of Hindsight minus {other}, {largest.parameters:,} parameters; over seeds and "
        "held-out items",
        found=found, by_seed=by_seed, decimals=_DECIMALS,
        why="" if verdict(found, by_seed) == "holds" else f"means there: {there}",
    )  # fmt: skip


def _rises_faster(sizes: Sequence[Size], other: str) -> Claim:
    gaps = [np.asarray(_scores(size, COH)) - np.asarray(_scores(size, other)) for size in sizes]
    found, by_seed = slope_over_seeds([size.parameters for size in sizes], gaps)
    by_size = ", ".join(f"{gap.mean():+.{_DECIMALS}f}" for gap in gaps)
    return Claim(
        claim=f"Chain of Hindsight gains more by size than {other}", source=FIGURE,
        statistic=f"slope of (Chain of Hindsight minus {other}) over ln(parameters); over seeds and held-out items",
        found=found, by_seed=by_seed, decimals=_DECIMALS + 1,
        why="" if verdict(found, by_seed) == "holds" else f"CoH minus {other} by size: {by_size}",
    )  # fmt: skip


def _means(sizes: Sequence[Size], method: str) -> str:
    return ", ".join(f"{np.mean(_scores(size, method)):.{_DECIMALS}f}" for size in sizes)
