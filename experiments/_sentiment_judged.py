"""Who continues reviews more positively, by the judge that no run saw: over the temperature, and every two methods."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments._sentiment import Measurement, Method, Study, sample
from experiments._sentiment_runs import SWEPT, Run, seeded
from experiments._sentiment_start import Assets
from experiments._stages import JSON, Report, Stages
from jaxalign import sampling
from jaxalign.evaluation import JudgedPair, Outcome

__all__ = ["START", "pairwise", "representatives", "sweep", "write_verdicts"]

START = "start model"
OPPONENT = "the start model at temperature 1"


def sweep(study: Study, stages: Stages, assets: Assets, results: Mapping[Method, Run]) -> list[JudgedPair]:
    """Each policy at every temperature against the start model at temperature 1, a sample of each held-out prefix."""
    runs = {name: results[found[0]] for name in SWEPT if (found := seeded(list(results), name))}
    inputs = {name: dict(run.inputs) for name, run in runs.items()} | {START: assets.sampled}
    temperatures = [*study.sweep.temperatures, 1.0]  # the last is what the start model plays with, drawn anew

    def compute(name: str, report: Report) -> list[dict[str, list[Any]]]:
        params = jax.tree.map(np.asarray, assets.start) if name == START else runs[name].policy()
        rows = []
        for place, temperature in enumerate(temperatures if name == START else temperatures[:-1]):
            seed = study.seed + 10 + (place == len(temperatures) - 1)
            rows.append(_sampled(study, assets, params, temperature, seed))
            report(place + 1, len(temperatures))
        return rows

    kept: dict[str, list[dict[str, list[Any]]]] = {}
    for name, own in inputs.items():

        def of_policy(report: Report, name: str = name) -> list[dict[str, list[Any]]]:
            return compute(name, report)

        label = f"sweep-{name.replace(' ', '-').lower()}"
        kept[name] = stages.stage(label, own | {"temperatures": temperatures}, of_policy, *JSON)
    theirs = kept[START].pop()
    return [
        pair
        for name, rows in kept.items()
        for temperature, ours in zip(study.sweep.temperatures, rows, strict=True)
        for pair in _pairs(study, assets, name, OPPONENT, ours, theirs, temperature=temperature)
    ]


def _sampled(study: Study, assets: Assets, params: Any, temperature: float, seed: int) -> dict[str, list[Any]]:
    """A sample of every held-out prefix, and the judge's P(positive)."""
    prompts = assets.held_out
    _, texts = sample(
        assets.config, params, assets.tokenizer, prompts, dataclasses.replace(study, temperature=temperature), each=1,
        seed=seed, report=lambda done, total, note="": None,
    )  # fmt: skip
    judged = sampling.score_texts(assets.raters.judge, [prompt.opening for prompt in prompts], texts)
    return {"texts": texts, "judge": judged.tolist()}


def representatives(results: Mapping[Method, Run]) -> dict[str, Method]:
    """One run of each method: of the setting with most seeds; among equals, that of the highest reward at its end."""

    def rank(method: Method) -> tuple[int, float]:
        group = [other for other in results if (other.name, other.objective) == (method.name, method.objective)]
        return len(group), float(np.mean(results[group[0]].last.reward))

    own = [method for method in results if not method.repeat]
    names = dict.fromkeys(method.name for method in own)
    return {name: max((method for method in own if method.name == name), key=rank) for name in names}


def pairwise(study: Study, assets: Assets, start: Measurement, policies: Mapping[str, Measurement]) -> list[JudgedPair]:
    """Every two policies, the start model and Best-of-N on the first sample that each has of every held-out prefix."""
    shown = {name: _first(measured) for name, measured in policies.items()}
    scores = np.asarray(start.reward).reshape(len(assets.held_out), -1)
    if study.best_of_n > 1:
        places = np.arange(len(scores)) * scores.shape[1] + scores[:, : study.best_of_n].argmax(axis=1)
        shown[f"Best-of-{study.best_of_n}"] = _first(start, places.tolist())
    shown[START] = _first(start)
    return [
        pair
        for one, two in itertools.combinations(shown, 2)
        for pair in _pairs(study, assets, one, two, shown[one], shown[two])
    ]


def _first(measured: Measurement, places: Sequence[int] | None = None) -> dict[str, list[Any]]:
    """One sample of each prefix: the first, or those at ``places``."""
    if places is None:
        places = np.unique(measured.prompt, return_index=True)[1].tolist()
    return {"texts": [measured.texts[i] for i in places], "judge": [measured.judge[i] for i in places]}


def _pairs(
    study: Study,
    assets: Assets,
    method: str,
    against: str,
    ours: Mapping[str, Sequence[Any]],
    theirs: Mapping[str, Sequence[Any]],
    *,
    temperature: float | None = None,
) -> list[JudgedPair]:
    def outcome(difference: float) -> Outcome:
        if abs(difference) < study.sweep.tie:
            return "tie"
        return "win" if difference > 0 else "lose"

    return [
        JudgedPair(
            prompt=f"prefix {index}: {prompt.opening}",  # several reviews may open alike
            ours=ours["texts"][index],
            theirs=theirs["texts"][index],
            outcome=outcome(ours["judge"][index] - theirs["judge"][index]),
            method=method,
            against=against,
            judge="character judge",
            temperature=temperature,
        )
        for index, prompt in enumerate(assets.held_out)
    ]


def write_verdicts(pairs: Sequence[JudgedPair], path: Path) -> None:
    """JSON lines that ``jaxalign evaluate --verdicts`` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{name: value for name, value in vars(pair).items() if value not in (None, "")} for pair in pairs]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
