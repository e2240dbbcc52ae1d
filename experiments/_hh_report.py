"""What the dialogue study found: win rates over temperature and over training, and what the paper claims of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments import _results
from experiments._hh import Study
from experiments._hh_data import HUMAN, SHOTS, Dialogues
from experiments._hh_judge import CHOSEN, SeededPair
from experiments._results import Claim, Figure, Result, Table, Value, difference_over_seeds, verdict
from jaxalign import evaluation
from jaxalign.evaluation import Interval, Rounded, WinRatePoint

__all__ = ["BASE", "DPO", "PREFERRED_FT", "REJECTED", "Found", "best_of", "write"]

DPO, PREFERRED_FT, BASE, REJECTED = "DPO", "Preferred-FT", f"{SHOTS}-shot base", "the rejected answer"
HOLDS_WITHIN = 5.0
"""Points of win rate that the last checkpoint may lie below the best before it and still hold."""
_PAPER = "Rafailov et al. 2023"
_SCORES = {"win": 1.0, "tie": 0.5, "lose": 0.0, "invalid": np.nan}


@dataclass(frozen=True)
class Found:
    """Everything that the report is made of."""

    pairs: Sequence[SeededPair]
    dialogues: Dialogues
    reward_accuracy: Sequence[Interval]
    """Of the reward models on held-out preferences, a seed each."""
    judge: str
    """Its name."""
    seconds: float


def best_of(n: int) -> str:
    """What Best-of-N is called."""
    return PREFERRED_FT if n == 1 else f"Best of {n}"


def write(output: Path, study: Study, name: str, found: Found) -> Result:
    """``verdicts.jsonl``, figures, tables and ``result.json``."""
    output.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(pair.to_json(), ensure_ascii=False) + "\n" for pair in found.pairs]
    (output / "verdicts.jsonl").write_text("".join(lines), encoding="utf-8")
    scores = _Scores(study, found.pairs)
    points = evaluation.win_rate_points([one.pair for one in found.pairs])
    judged_at = [point for point in points if point.step is None and point.temperature is not None]
    last = best_of(study.best_of[-1])
    shown = [point for point in judged_at if point.method in (DPO, PREFERRED_FT, last, BASE)]
    trained = [point for point in points if point.step is not None]
    nested = [point for point in judged_at if point.method in map(best_of, study.best_of)]
    over = "temperature"
    figures = [
        _figure(
            output, "temperature", shown, over, "figure 3 left", "Win rate against the chosen answer.", "hh_temperature"
        ),
        _figure(output, "training", trained, "step", "figure 3 right", "Win rate of DPO over training.", "hh_training"),
        _figure(output, "best_of_n", nested, over, "figure 4", "Best-of-N, nested; of 1 it is Preferred-FT."),
    ]
    tables = [
        _table(judged_at, "figure 3 left", "Win rates against the chosen answer over sampling temperature."),
        _table(trained, "figure 3 right", "Win rates of DPO over training; step 0 is Preferred-FT."),
        Table(
            of="",
            caption=f"Answers at temperature {study.claim_temperature:g}, seed {study.seeds[0]}.",
            rows=_texts(study, found.pairs),
        ),
    ]
    if study.show:
        tables.append(Table(of="", caption="The first prompts and what is answered.", rows=_samples(study, found)))
    result = Result(
        experiment="hh_dialogue",
        preset=name,
        title="Dialogues of a single turn: win rate against the chosen answer",
        setting=_setting(study, found),
        judges={study.judge.axis: _judge(study, found)},
        seeds=len(study.seeds),
        seconds=found.seconds,
        values=_values(study, scores, found),
        claims=_claims(study, scores, found.reward_accuracy),
        figures=figures,
        tables=tables,
        remarks=_remarks(study),
    )
    _results.save(output, result)
    return result


class _Scores:
    """Win 1, tie a half, loss 0 of every answer."""

    def __init__(self, study: Study, pairs: Sequence[SeededPair]) -> None:
        self._seeds = list(study.seeds)
        self._rows: dict[Any, dict[int, list[float]]] = {}
        for one in pairs:
            key = one.pair.method, one.pair.temperature, one.pair.step
            self._rows.setdefault(key, {}).setdefault(one.seed, []).append(_SCORES[one.pair.outcome])

    def __call__(self, method: str, temperature: float | None, step: int | None = None) -> np.ndarray:
        """Percent ``[S, N]`` by seed and prompt, NaN where the judge named no winner."""
        rows = self._rows[method, temperature, step]
        return 100.0 * np.array([rows[seed] for seed in self._seeds if seed in rows])

    def steps(self, temperature: float) -> list[int]:
        """At which DPO was measured."""
        return [step for method, at, step in self._rows if step is not None and at == temperature]


def _difference(own: np.ndarray, other: np.ndarray | float, plus: float = 0.0) -> tuple[Interval, list[float]]:
    """own - other + plus, over seeds and the prompts on which nothing was invalid."""
    second = np.full(own.shape, other) if isinstance(other, float) else other
    valid = ~(np.isnan(own).any(axis=0) | np.isnan(second).any(axis=0))
    found, seeds = difference_over_seeds(own[:, valid], second[:, valid])
    return Interval(found.estimate + plus, found.low + plus, found.high + plus), [value + plus for value in seeds]


def _values(study: Study, scores: _Scores, found: Found) -> list[Value]:
    at = study.claim_temperature
    last = best_of(study.best_of[-1])
    read = {DPO: "above 50", PREFERRED_FT: "below 50", BASE: "below 50", last: "about DPO's"}
    values = [
        Value(
            what=f"win rate against the chosen answer at temperature {at:g}, {method} (%)",
            paper=f"{words} (read off figure 3)",
            ours=_difference(scores(method, at), 0.0)[0],
            seeds=len(study.seeds),
        )
        for method, words in read.items()
    ]
    values.append(
        Value(
            what=f"win rate of {REJECTED} (%): how far the judge sees what the labels say",
            ours=_difference(scores(REJECTED, None), 0.0)[0],
        )
    )
    for seed, accuracy in zip(study.seeds, found.reward_accuracy, strict=True):
        percent = Interval(100 * accuracy.estimate, 100 * accuracy.low, 100 * accuracy.high)
        values.append(
            Value(what=f"accuracy of the reward model on held-out preferences, seed {seed} (%)", ours=percent)
        )
    return values


def _claims(study: Study, scores: _Scores, reward_accuracy: Sequence[Interval]) -> list[Claim]:
    at, last = study.claim_temperature, best_of(study.best_of[-1])
    over = "95 % interval over training seeds and prompts"
    where = f"{_PAPER}, figure 3 left"
    chosen = ""
    if study.dpo_rate_chosen_on:
        chosen = f"DPO's learning rate was chosen on {100 * study.dpo_rate_chosen_on:g} % of these prompts: favours DPO"

    def claim(text: str, statistic: str, source: str, difference: tuple[Interval, list[float]], unshown: str) -> Claim:
        """``unshown``: what keeps it from holding, if it does not."""
        found, by_seed = difference
        unshown = "" if verdict(found, by_seed) == "holds" else unshown
        why = "; ".join(filter(None, (unshown, chosen if text.startswith(DPO) else "")))
        statistic = f"{statistic}, points of win rate; {over}"
        return Claim(claim=text, source=source, statistic=statistic, found=found, by_seed=by_seed, why=why)

    own = scores(DPO, at)
    fifty = np.full(own.shape, 50.0)
    level = "one that is exactly as good stands at 0"
    accuracies = sorted(accuracy.estimate for accuracy in reward_accuracy)
    ends = dict.fromkeys(f"{100 * one:.1f}" for one in (accuracies[0], accuracies[-1]))
    picks = f"the best of {study.best_of[-1]} is picked by reward models right about "
    picks += f"{' to '.join(ends)} % of held-out pairs"
    claims = [
        claim(
            "DPO improves over the chosen answers", f"DPO at temperature {at:g} minus 50", where,
            _difference(own, fifty), level,
        ),
        *(
            claim(
                f"{method} does not improve over the chosen answers", f"50 minus {method} at temperature {at:g}", where,
                _difference(fifty, scores(method, at)), level,
            )
            for method in (PREFERRED_FT, BASE)
        ),
        claim(
            "DPO is better than Preferred-FT", f"DPO minus Preferred-FT at temperature {at:g}", where,
            _difference(own, scores(PREFERRED_FT, at)), level,
        ),
        claim(
            f"DPO is as good as {last}, or better", f"DPO minus {last} at temperature {at:g}", where,
            _difference(own, scores(last, at)), f"{level}; {picks}",
        ),
    ]  # fmt: skip
    for temperature in study.training_temperatures:
        steps = scores.steps(temperature)
        curve = {step: scores(DPO, temperature, step) for step in steps if step}
        last_step = max(curve)
        earlier = [step for step in curve if step < last_step]
        if not earlier:
            continue
        best = max(earlier, key=lambda step: float(np.nanmean(curve[step])))
        # Checkpoints of one run: its seed is the same on both sides.
        change = _difference(curve[last_step] - curve[best], 0.0, plus=HOLDS_WITHIN)
        known = (change[0].high - change[0].low) / 2
        wide = f"the difference is known to {known:.1f} points, {HOLDS_WITHIN:g} are allowed"
        claims.append(
            claim(
                f"DPO's win rate holds over the course of training, at temperature {temperature:g}",
                f"the last checkpoint (step {last_step}) minus the best before it (step {best}), plus {HOLDS_WITHIN:g}",
                f"{_PAPER}, figure 3 right",
                change,
                wide,
            )
        )
    return claims


def _figure(
    output: Path, file: str, points: Sequence[WinRatePoint], over: Any, of: str, caption: str, image: str = ""
) -> Figure:
    evaluation.save_figure(evaluation.plot_win_rate(points, over=over), output / file)
    return Figure(
        of=f"{_PAPER}, {of}", caption=f"{caption} 95 % intervals over prompts.", file=f"{file}.svg",
        image=f"{image}.png" if image else "",
    )  # fmt: skip


def _table(points: Sequence[WinRatePoint], of: str, caption: str) -> Table:
    return Table(of=f"{_PAPER}, {of}", caption=caption, rows=evaluation.win_rate_rows(points))


def _texts(study: Study, pairs: Sequence[SeededPair]) -> list[Mapping[str, object]]:
    """How long answers are, and how they repeat: a judge may be fooled by either."""
    by_method: dict[str, list[str]] = {}
    for one in pairs:
        of_one = one.seed == study.seeds[0] and one.pair.step is None
        if of_one and one.pair.temperature in (study.claim_temperature, None):
            by_method.setdefault(one.pair.method, []).append(one.pair.ours)
            if one.pair.method == DPO:
                by_method.setdefault(CHOSEN, []).append(one.pair.theirs)
    return [
        {
            "answer": method,
            "words": Rounded(float(np.mean([len(text.split()) for text in texts])), 1),
            "distinct-2": evaluation.distinct_n(texts, 2),
            "empty %": evaluation.Percent(float(np.mean([not text for text in texts]))),
        }
        for method, texts in by_method.items()
    ]


def _samples(study: Study, found: Found) -> list[Mapping[str, object]]:
    first = study.seeds[0]
    rows: list[Mapping[str, object]] = []
    for dialogue in found.dialogues.held_out[: study.show]:
        prompt = dialogue.prompt.strip()
        row = {"prompt": prompt.removeprefix(HUMAN.strip()).split("\n\n")[0].strip(), CHOSEN: dialogue.chosen.strip()}
        for one in found.pairs:
            own = one.pair
            if (own.prompt, one.seed, own.temperature, own.step) == (prompt, first, study.claim_temperature, None):
                row[own.method] = " ".join(own.ours.split())
        rows.append(row)
    return rows


def _setting(study: Study, found: Found) -> str:
    parts = found.dialogues
    source = {
        "reviews": "packaged film reviews as dialogues (the human's turn is the opening words of a review; the chosen "
        "answer is a short sentence of another, positive text and the rejected one of a negative text, all written by "
        "people and by no policy here)",
        "hh-sample": "a sample of Anthropic-HH (harmlessness)",
    }.get(study.dialogues, study.dialogues)
    return (
        f"{study.model}; {source}; {len(parts.train)} preferences to train on, {len(parts.held_out)} single-turn "
        f"prompts to answer. Preferred-FT ({study.tuning.steps} updates of {study.tuning.batch_size}) is the reference "
        f"of DPO (beta {study.beta:g}, {study.dpo.steps} updates of {study.dpo.batch_size} pairs) and the start of the "
        f"reward model (Bradley-Terry, {study.reward.steps} updates of {study.reward.batch_size} of the same pairs) "
        f"by which Best-of-N picks; the base model is shown {SHOTS} dialogues."
    )


def _judge(study: Study, found: Found) -> str:
    if study.judge.kind == "sentiment":
        return (
            f"{found.judge}: naive Bayes of character 5-6-grams, of the answer alone, fitted on film reviews that "
            "nothing else reads; the likelier positive wins"
        )
    return f"{found.judge} ({study.judge.kind})"


def _remarks(study: Study) -> list[str]:
    found = [
        f"A claim is made at temperature {study.claim_temperature:g}, whatever came out at others; "
        "the base model has no training seeds, its seeds are those of its samples.",
        "Ties are half a win; comparisons that name no winner are counted and left out.",
    ]
    if study.judge.kind == "sentiment":
        found.append(
            "The judge hears sentiment alone: a policy may win by praise that says nothing, which HH's judge may see."
        )
    if study.model == "glassllm":
        found.append("A model of 0.85M parameters: its answers are garbled, and show the methods, not fluency.")
    return found
