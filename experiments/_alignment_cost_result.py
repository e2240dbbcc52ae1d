"""The table, the figure and the claims of one judge score reached by several pipelines."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from experiments._alignment_cost import PIPELINES, Comparison, Pipeline, Run
from experiments._results import Claim, Figure, Result, Table, Value, difference_over_seeds, mean_over_seeds, verdict
from jaxalign import evaluation
from jaxalign.evaluation import Interval, Rounded, ScorePoint

__all__ = ["result_of"]

SLIDE = "the talk's slide on the problems of RLHF: complex pipeline, several models, costly sampling"
DPO = "Rafailov et al. 2023: DPO needs no reward model, no sampling while it trains"
COH = "Liu et al. 2023: Chain of Hindsight without reinforcement learning"
JUDGE = "judge's mean P(positive)"


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What every pipeline starts from, paid once: samples of the start model, rated."""

    samples: int
    tokens: int
    """Generated."""
    seconds: float
    """Of sampling and rating, compilation in it."""


def result_of(
    comparison: Comparison,
    runs: Sequence[Run],
    start: Sequence[float],
    shared: Shared,
    output: Path,
    *,
    preset: str,
    seconds: float,
) -> Result:
    """Draw the figure into ``output`` and put the result together."""
    of = {pipeline.name: [run for run in runs if run.pipeline == pipeline.name] for pipeline in PIPELINES}
    yardstick = float(np.mean([run.total("seconds") for run in of["DPO"]]))
    held = float(np.mean([run.held_bytes for run in of["DPO"]]))
    figure = evaluation.plot_scores(
        {
            "time, DPO's = 1": {name: _curve(own, start, "seconds", yardstick) for name, own in of.items()},
            "tokens generated": {name: _curve(own, start, "generated_tokens", 1.0) for name, own in of.items()},
        },
        label=JUDGE,
        target=comparison.target,
        logarithmic=False,
    )
    evaluation.save_figure(figure, output / "cost")
    study = comparison.study
    return Result(
        experiment="rlhf_without_rl",
        preset=preset,
        title="DPO, Chain of Hindsight and PPO at one judge score",
        setting=f"{study.model}, {study.reviews} film reviews, {study.prompts} openings with "
        f"{study.samples_per_prompt} rated samples each; every method stops where the judge's mean "
        f"P(positive) on {study.held_out} held-out openings reaches {comparison.target:g}, from {np.mean(start):.3f}",
        judges={"P(positive)": "naive Bayes of character n-grams that saw none of the reward's reviews"},
        seeds=len(comparison.seeds),
        seconds=seconds,
        values=[
            Value(what=f"judge's P(positive) reached, {name}; over openings", ours=_judged(own), seeds=len(own),
                  decimals=3)
            for name, own in of.items()
        ],
        claims=_claims(of["DPO"], of["CoH"], of["PPO"], shared),
        figures=[
            Figure(
                of=SLIDE, file="cost.svg", image="cost.png",
                caption="The judge's score on the way, over time and over tokens generated. A point is the mean of the "
                "seeds that were still running, its bar the lowest and the highest of them.",
            )
        ],
        tables=[
            Table(
                of=SLIDE,
                caption="What each pipeline takes from the rated samples to the target: the mean over seeds. Memory: "
                "arrays on the devices after an update. Tokens trained on have the reward model's and those of Chain "
                "of Hindsight's pretraining text",
                rows=[
                    *(_row(pipeline, of[pipeline.name], yardstick, held) for pipeline in PIPELINES),
                    {
                        "method": "shared by all: sampling and rating", "tokens generated": f"{shared.tokens:,}",
                        "time / DPO's": f"{shared.seconds / yardstick:.2f}",
                    },
                ],
                shown=True,
            )
        ],
        remarks=_remarks(comparison, of, shared),
    )  # fmt: skip


def _row(pipeline: Pipeline, runs: Sequence[Run], yardstick: float, held: float) -> dict[str, object]:
    """``yardstick`` and ``held``: DPO's seconds and bytes."""
    reached = sum(run.reached for run in runs)
    updates = [np.mean([run.parts[place].updates for run in runs]) for place in range(len(pipeline.stages))]
    return {
        "method": pipeline.name,
        "training stages": " + ".join(f"{name} ({count:.0f} updates)" for name, count in zip(
            pipeline.stages, updates, strict=True)),
        "models held": f"{len(pipeline.resident)}: {', '.join(pipeline.resident)}",
        "parameters trained": f"{runs[0].trained_parameters:,}",
        "tokens generated": f"{np.mean([run.total('generated_tokens') for run in runs]):,.0f}",
        "tokens trained on": f"{np.mean([run.total('trained_tokens') for run in runs]):,.0f}",
        "memory held (MB)": f"{np.mean([run.held_bytes for run in runs]) / 1e6:.1f}",
        "memory / DPO's": f"{np.mean([run.held_bytes for run in runs]) / held:.2f}",
        "time / DPO's": f"{np.mean([run.total('seconds') for run in runs]) / yardstick:.2f}",
        "judge's P(positive)": Rounded(_judged(runs), 3),
        "target reached": f"{reached} of {len(runs)} seeds",
    }  # fmt: skip


def _claims(dpo: Sequence[Run], coh: Sequence[Run], ppo: Sequence[Run], shared: Shared) -> list[Claim]:
    found, by_seed = difference_over_seeds([run.judge for run in coh], [run.judge for run in dpo])
    return [
        *_less_time(SLIDE, dpo, ppo),
        *_less_time(COH, coh, ppo),
        *_less_time(COH, coh, dpo),
        _claim(
            "PPO generates more tokens than DPO", DPO, "thousands of tokens generated, PPO minus DPO; over seeds",
            [(p.total("generated_tokens") - d.total("generated_tokens")) / 1e3 for p, d in zip(ppo, dpo, strict=True)],
            1, f"while they train; the rated samples that all learn from are {shared.tokens / 1e3:,.0f} thousand more",
        ),
        Claim(
            claim="Chain of Hindsight reaches at least DPO's score", source=COH,
            statistic="judge's P(positive) at the end of a run, Chain of Hindsight minus DPO; over seeds and openings",
            found=found, by_seed=by_seed, decimals=3,
            why="" if verdict(found, by_seed) == "holds" else "half of the outputs in its chains are the worse ones",
        ),
    ]  # fmt: skip


def _less_time(source: str, cheaper: Sequence[Run], dearer: Sequence[Run]) -> list[Claim]:
    """None where the cheaper one did not reach the target: its time is then no time to the target. Of the dearer one
    it is at least what it would have taken."""
    if not all(run.reached for run in cheaper):
        return []
    ratios = [
        math.log(one.total("seconds") / other.total("seconds")) for one, other in zip(dearer, cheaper, strict=True)
    ]
    first, second = cheaper[0].pipeline, dearer[0].pipeline
    statistic = f"log of the time to the target, {second} / {first}, in turn on one machine; over seeds"
    first_updates, second_updates = (
        np.mean([sum(part.updates for part in run.parts) for run in runs]) for runs in (cheaper, dearer)
    )
    why = f"updates of all stages: {first} {first_updates:.0f}, {second} {second_updates:.0f}"
    return [_claim(f"{first} takes less time than {second}", source, statistic, ratios, why=why)]


def _claim(claim: str, source: str, statistic: str, by_seed: list[float], decimals: int = 2, why: str = "") -> Claim:
    found = mean_over_seeds(by_seed)[0]
    return Claim(
        claim=claim, source=source, statistic=statistic, found=found, by_seed=by_seed, decimals=decimals, why=why
    )


def _judged(runs: Sequence[Run]) -> Interval:
    return evaluation.bootstrap_interval(np.mean([run.judge for run in runs], axis=0))


def _curve(
    runs: Sequence[Run], start: Sequence[float], name: Literal["seconds", "generated_tokens"], unit: float
) -> list[ScorePoint]:
    """The start, then every update at which a seed was measured."""
    before = float(np.mean(start))
    points = [
        ScorePoint(float(np.mean([run.cost_at(0, name) for run in runs])) / unit, Interval(before, before, before))
    ]
    for update in sorted({point.update for run in runs for point in run.points}):
        costs, scores = zip(*(
            (run.cost_at(update, name), point.judge)
            for run in runs for point in run.points if point.update == update
        ), strict=True)  # fmt: skip
        score = Interval(float(np.mean(scores)), min(scores), max(scores))
        points.append(ScorePoint(float(np.mean(costs)) / unit, score))
    return points


def _remarks(comparison: Comparison, of: dict[str, list[Run]], shared: Shared) -> list[str]:
    remarks = [
        "All learn from the same rated samples: DPO and the reward model from all ordered pairs of an opening's, Chain "
        f"of Hindsight from the best and the worst. Sampling and rating these {shared.samples:,} is paid once by all: "
        "a row of its own, whose time has compilation in it; no method's costs have it. PPO's time and tokens include "
        "those of its reward model.",
        "Seeds share one start model and one set of rated samples, and claims hold given these; every seed trains its "
        "own reward model.",
        "A run is stopped by the first measurement at the target; the score it is reported with is of fresh samples.",
    ]
    for name, runs in of.items():
        if missed := [str(run.seed) for run in runs if not run.reached]:
            remarks.append(
                f"{name} did not reach {comparison.target:g} with seed{'s' * (len(missed) > 1)} {', '.join(missed)}: "
                "its costs are then those of all its updates, and what it would have taken is more."
            )
    return remarks
