"""What the sentiment study writes: samples on the screen, figures, tables, verdicts, and one report.md of all."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from experiments import _sentiment_claims as found_claims
from experiments import _sentiment_judged as judged
from experiments._results import Claim, Figure, Result, Table, save
from experiments._sentiment import OTHER_PAIRS, UNWEIGHTED, Measurement, Method, Study
from experiments._sentiment_runs import Run
from experiments._sentiment_start import Assets
from experiments._stages import Stages
from experiments.assets.prompts import Prompt
from jaxalign import evaluation, sampling
from jaxalign.evaluation import FrontierPoint, Interval, Rounded

__all__ = ["write"]

SHOWN = 4  # prefixes whose samples are printed and written
FIGURE = found_claims.FIGURE
REWARD_LABEL = "Reward, log-odds of positive (nats)"
_NATS = frozenset((
    "KL (nats/sequence)", "by k3", "reward", "mean best reward", "difference", "true reward gained",
    "reference nats/token", "log loss (nats; knowing nothing: 0.693)",
))  # fmt: skip


def write(
    output: Path,
    study: Study,
    assets: Assets,
    stages: Stages,
    preset: str,
    *,
    start: Measurement,
    results: Mapping[Method, Run],
    console: Console,
) -> Result:
    """Print the samples; write figures, ``verdicts/*.jsonl``, ``frontier.csv``, ``results.json`` (what ``jaxalign
    evaluate --run`` reads), ``result.json`` and ``report.md``."""
    output.mkdir(parents=True, exist_ok=True)
    one = _first_samples(start, study.held_out_samples)
    samples = _samples(one, results, assets.held_out)
    console.print(samples, markup=False, highlight=False, soft_wrap=True)
    parts = _Parts(output)

    own = {method: run for method, run in results.items() if method.name not in (UNWEIGHTED, OTHER_PAIRS)}
    shown = {method: run for method, run in own.items() if not method.repeat}
    points = _points(study, start, one, shown)
    areas = _frontier(parts, study, start, one, own, shown, points)
    parts.table("Last point of every run minus the start model, prefix by prefix", _gain_rows(one, results))
    wins = _wins(parts, study, assets, stages, start, shown, results) if study.sweep.temperatures else []
    if len(rows := found_claims.ablation_rows(results)) and {UNWEIGHTED, OTHER_PAIRS} & {m.name for m in results}:
        caption = f"DPO at beta {study.dpo_seeds_at:g}, without the weight of its gradient, and on other pairs"
        parts.figure(
            "ablation", f"{caption}: over training, seeds averaged", "Rafailov et al. 2023, section 4",
            evaluation.plot_curves(found_claims.ablation_curves(one, results)), "imdb_ablation.png",
        )  # fmt: skip
        parts.table(caption, rows, "Rafailov et al. 2023, section 4")
    if assets.calibration:
        parts.table("The reward model on held-out preferences", [found_claims.calibration_row(assets.calibration)])
    accuracy = [{"rater": rater, **values} for rater, values in assets.accuracy.items()]
    parts.table("Raters on held-out text (accuracy)", accuracy)

    claims = []
    if study.compare_at:
        best = [point for point in points if point.kl_is_bound]
        claims = found_claims.claims(study, one, results, best_of_n=best, calibration=assets.calibration)
    result = Result(
        experiment="imdb_sentiment",
        preset=preset,
        title="Controlled sentiment on film reviews",
        setting=_setting(study),
        judges={
            "reward": "the true reward, " + ("TF-IDF and logistic regression" if packaged(study) else study.reward),
            "judge": "naive Bayes of character n-grams, fitted on reviews that the reward never saw",
        },
        seeds=len(study.dpo_seeds),
        seconds=stages.seconds,
        values=found_claims.values(study, one, results, areas, wins),
        claims=claims,
        figures=parts.figures,
        tables=parts.tables,
        remarks=_remarks(study, own),
    )
    save(output, result)
    summary = {
        "preset": preset,
        "largest KL of each run": {method.label: float(np.mean(run.last.kl)) for method, run in results.items()},
        "points": [point.to_json() for point in points],
    }
    (output / "results.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (output / "report.md").write_text(_report(result, samples), encoding="utf-8")
    _link(output / "model", next(iter(results.values())).folder / "model")
    for row in _gain_rows(one, results):
        line = f"{row['run']}: judge's P(positive) {np.mean(one.judge):.3f} -> {row['judge after']:.3f}, difference "
        console.print(line + f"{row['judge gained']}", markup=False, highlight=False, soft_wrap=True)
    for claim in claims:
        console.print(f"{claim.claim}: {claim.verdict}, {claim.shown}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"report {output / 'report.md'}", markup=False, highlight=False, soft_wrap=True)
    return result


class _Parts:
    """Figures and tables, written as they come."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.figures: list[Figure] = []
        self.tables: list[Table] = []

    def figure(self, name: str, caption: str, of: str, figure: Any, image: str = "") -> None:
        evaluation.save_figure(figure, self.output / name)
        self.figures.append(Figure(of=of, caption=caption, file=f"{name}.svg", image=image))

    def table(self, caption: str, rows: Sequence[Mapping[str, object]], of: str = "", *, shown: bool = False) -> None:
        if rows:
            self.tables.append(Table(of=of, caption=caption, rows=[_in_nats(row) for row in rows], shown=shown))


def _frontier(
    parts: _Parts,
    study: Study,
    start: Measurement,
    one: Measurement,
    own: Mapping[Method, Run],
    shown: Mapping[Method, Run],
    points: Sequence[FrontierPoint],
) -> list[evaluation.FrontierArea]:
    """Figure 2 left by the reward and by the judge; points with both estimates of KL, fronts, areas, differences."""
    title = "Controlled sentiment, held-out prefixes"
    figure = evaluation.plot_frontier(points, reward_label=REWARD_LABEL, title=title)
    parts.figure(
        "frontier", "Reward against sequence-level KL (k1); one seed of every setting", FIGURE, figure, "frontier.png"
    )
    by_judge = evaluation.plot_frontier(
        _points(study, start, one, shown, rating="judge"), reward_label="Independent judge's P(positive)",
        title="The same runs, by a judge that no run saw",
    )  # fmt: skip
    parts.figure("judge", "The same runs by the independent judge", FIGURE, by_judge, "judge.png")
    rows = [
        row
        for method, run in own.items()
        for place, measured in enumerate((one, *run.points))
        if place or not method.repeat
        for row in _point_rows(study, method, measured)
    ]
    rows += evaluation.frontier_rows([point for point in points if point.kl_is_bound])
    (parts.output / "frontier.csv").write_text(evaluation.csv_table(rows), encoding="utf-8")
    parts.table("Every measurement of every run of the figure, and of its further seeds", rows, FIGURE)

    measured = [point for point in points if not point.kl_is_bound]
    parts.table("Which points no other point of the same method beats", _front_rows(measured, points), FIGURE)
    if not study.compare_at or not measured:
        return []
    budgets = (0.0, study.compare_at[-1])
    areas = evaluation.frontier_area([measured], kl_range=budgets, seed=study.seed)
    parts.table(
        "Area under each method's frontier: its mean best reward over KL budgets, all settings together",
        evaluation.frontier_area_rows(areas), FIGURE,
    )  # fmt: skip
    names = [area.method for area in areas]
    compared = [
        row
        for baseline in found_claims.BASELINES
        if baseline in names and "DPO" in names
        for row in evaluation.reward_difference_at_kl(measured, "DPO", baseline, study.compare_at, seed=study.seed)
    ]
    caption = "DPO against the others at equal KL; one seed, intervals over prefixes"
    parts.table(caption, evaluation.difference_rows(compared), FIGURE, shown=True)
    return areas


def _wins(
    parts: _Parts,
    study: Study,
    assets: Assets,
    stages: Stages,
    start: Measurement,
    shown: Mapping[Method, Run],
    results: Mapping[Method, Run],
) -> list[evaluation.WinRatePoint]:
    """Win rates over the temperature and between the methods, as verdicts, tables and figures."""
    pairs = judged.sweep(study, stages, assets, results)
    judged.write_verdicts(pairs, parts.output / "verdicts" / "temperature.jsonl")
    wins = evaluation.win_rate_points(pairs, seed=study.seed)
    of = "as Rafailov et al. 2023, figure 2 right, has it for summaries"
    caption = f"Win rate over the sampling temperature against {judged.OPPONENT}, by the independent judge"
    parts.figure("temperature", caption, of, evaluation.plot_win_rate(wins, over="temperature"), "imdb_temperature.png")
    parts.table(caption, evaluation.win_rate_rows(wins), of)

    chosen = judged.representatives(shown)
    policies = {name: shown[method].last for name, method in chosen.items()}
    pairs = judged.pairwise(study, assets, start, policies)
    judged.write_verdicts(pairs, parts.output / "verdicts" / "pairwise.jsonl")
    rows = evaluation.pairwise_rows(pairs, seed=study.seed)
    settings = "; ".join(method.label for method in chosen.values())
    caption = f"Last policies against each other ({settings}): win, tie, lose in %, by the independent judge"
    parts.figure("pairwise", caption, "", evaluation.plot_pairwise(rows))
    parts.table(caption, rows)
    against_start = [pair for pair in pairs if pair.against == judged.START]
    tests = evaluation.paired_test_rows(against_start, seed=study.seed)
    parts.table("Paired tests between the methods, each judged against the start model", tests)
    return wins


def _in_nats(row: Mapping[str, object]) -> dict[str, object]:
    """Nats to two decimals; shares keep three."""
    return {
        name: Rounded(value, 2) if name in _NATS and isinstance(value, float | Interval) else value
        for name, value in row.items()
    }


def packaged(study: Study) -> bool:
    """Whether the reward is the one fitted here."""
    return study.reward == "packaged"


def _first_samples(start: Measurement, kept: int) -> Measurement:
    """The start model with as many samples a prefix as every other policy has."""
    order = np.asarray(start.prompt)
    each = int(np.bincount(order).max())
    keep = [index for index in range(len(order)) if index % each < kept]
    lists: dict[str, Any] = {
        name: [values[i] for i in keep] for name, values in vars(start).items() if isinstance(values, list)
    }
    return dataclasses.replace(start, **lists)


def _points(
    study: Study,
    start: Measurement,
    one: Measurement,
    results: Mapping[Method, Run],
    *,
    rating: Literal["reward", "judge"] = "reward",
) -> list[FrontierPoint]:
    """Every curve from the start model on, and Best-of-N (chosen by the reward) at its bound, by either rating."""
    points = []
    for method, run in results.items():
        for measured in (one, *run.points):
            points.append(measured.point(method.name, method.setting, seed=study.seed, rating=rating))
    prefixes = len(set(start.prompt))
    scores = np.asarray(start.reward).reshape(prefixes, -1)[:, : study.best_of_n]
    rated = np.asarray(start.judge).reshape(prefixes, -1)[:, : study.best_of_n]
    best = sampling.best_of_n(scores)
    rows = np.arange(len(scores))
    for n in range(2, study.best_of_n + 1):
        chosen = best[:, n - 1]
        points.append(
            FrontierPoint.from_samples(
                found_claims.BEST_OF_N,
                "",
                n,
                kl=sampling.best_of_n_kl_bound(n),
                reward=(scores if rating == "reward" else rated)[rows, chosen],
                prompt=rows,
                kl_is_bound=True,
                extras={"judge P(positive)": float(rated[rows, chosen].mean())},
                seed=study.seed,
            )
        )
    return points


def _point_rows(study: Study, method: Method, measured: Measurement) -> list[dict[str, object]]:
    """The row of a measurement, k3 with its interval beside k1."""
    rows = []
    for row in evaluation.frontier_rows([measured.point(method.name, method.setting, seed=study.seed)]):
        k1 = row.pop("KL (nats/sequence)")
        k3 = evaluation.bootstrap_interval(measured.by_prefix("kl_k3"), seed=study.seed)
        named = {name: row.pop(name) for name in ("method", "setting", "step")}
        rows.append(named | {"KL (nats/sequence)": k1, "by k3": k3} | row)
    return rows


def _front_rows(measured: Sequence[FrontierPoint], points: Sequence[FrontierPoint]) -> list[dict[str, object]]:
    """Each method's Pareto front, and which of it stands on the front of all (Best-of-N at its bound among them)."""
    joint = {id(point) for point in evaluation.pareto_front(points)}
    first: dict[tuple[str, float, float], FrontierPoint] = {}
    for point in measured:  # all settings start at one point, and a target that never binds repeats another's run
        first.setdefault((point.method, point.kl.estimate, point.reward.estimate), point)
    return [
        {
            "method": point.method, "setting": point.setting, "step": point.step, "KL (nats/sequence)": point.kl,
            "reward": point.reward, "on the front of all": "yes" if id(point) in joint else "no",
        }
        for name in dict.fromkeys(point.method for point in measured)
        for point in evaluation.pareto_front([point for point in first.values() if point.method == name])
    ]  # fmt: skip


def _gain_rows(one: Measurement, results: Mapping[Method, Run]) -> list[dict[str, Any]]:
    """Last point of every run minus the start model: mean and 95 % interval over prefixes."""

    def gain(run: Run, name: str) -> Interval:
        return evaluation.paired_bootstrap_difference(run.last.by_prefix(name), one.by_prefix(name))

    return [
        {
            "run": method.label, "KL (nats/sequence)": float(np.mean(run.last.kl)),
            "true reward gained": gain(run, "reward"), "judge after": float(np.mean(run.last.judge)),
            "judge gained": gain(run, "judge"),
        }
        for method, run in results.items()
    ]  # fmt: skip


def _samples(one: Measurement, results: Mapping[Method, Run], held_out: Sequence[Prompt]) -> str:
    """The same prefixes before and after, as text."""
    first, run = next(iter(results.items()))
    each = len(one.texts) // len(held_out)
    lines = []
    for index, prompt in enumerate(held_out[:SHOWN]):
        before, after = (prompt.opening + measured.texts[index * each] for measured in (one, run.last))
        lines += [
            f"prefix  {prompt.opening!r}",
            f"  start          {' '.join(before.split())}",
            f"  {first.label:<13}  {' '.join(after.split())}",
        ]
    return "\n".join(lines)


def _setting(study: Study) -> str:
    rule = f" ({study.optimizer})" if study.optimizer_inputs else ""
    return (
        f"Model {study.model}; {study.prompts} training prefixes x {study.samples_per_prompt} samples, {study.steps} "
        f"steps of {study.prompts_per_step} prefixes (all pairs of their samples), learning rate "
        f"{study.learning_rate:g}{rule}; measured on {study.held_out} held-out prefixes x {study.held_out_samples} "
        f"samples of at most {study.max_new_tokens} tokens at temperature {study.temperature:g} (log-probs and KL at "
        f"that temperature, too); seed {study.seed}. Intervals are 95 % bootstrap intervals over prefixes."
    )


def _remarks(study: Study, own: Mapping[Method, Run]) -> list[str]:
    """What to know of these runs, from their numbers."""
    remarks = [
        "A method's reward at a KL is the best that any of its runs has there or below; one that does not reach a KL "
        "stands with the best reward it reached before it, which favours it. Best-of-N is drawn at the upper bound of "
        "its KL, log N - (N - 1)/N; it trains nothing and pays N samples for every answer.",
        "Runs of all seeds share one start model and one set of preferences, PPO's one reward model: claims hold given "
        "these.",
    ]
    if rlhf := {method: run for method, run in own.items() if method.name in ("PPO", "PPO-GT")}:
        far = max(float(np.mean(point.kl)) for run in rlhf.values() for point in run.points)
        short = [f"{target:g}" for target in study.rlhf.targets if target > far]
        remarks.append(
            "PPO raises the learned reward, PPO-GT the true one; the tables show the true reward and a judge that "
            "neither saw, where a policy that games its reward shows."
            + (f" No PPO run went beyond {far:.1f} nats in {study.rlhf.updates} updates (not reached: KL "
               f"{', '.join(short)})." if short else "")
            + _alike(rlhf)
        )  # fmt: skip
        if study.rlhf.reward_extra_prompts:
            remarks.append(
                f"The reward model learns from {study.rlhf.reward_extra_prompts} prefixes more than the other methods."
            )
    if study.model == "glassllm":
        remarks.append("Text of a model of 0.85M parameters is garbled: this shows the methods, not fluency.")
    return remarks


def _alike(runs: Mapping[Method, Run]) -> str:
    """Says which runs came out the same: their coefficient never differed."""
    ends: dict[tuple[float, ...], list[str]] = {}
    for method, run in runs.items():
        ends.setdefault(tuple(run.last.kl), []).append(method.label)
    same = ["; ".join(labels) for labels in ends.values() if len(labels) > 1]
    return f" The same run under several targets, which never bound: {' / '.join(same)}." if same else ""


def _report(result: Result, samples: str) -> str:
    """The result as Markdown."""
    parts = [f"# {result.title}, preset `{result.preset}`", result.setting, *result.remarks]
    if result.claims:
        parts += ["## Claims", evaluation.markdown_table([_claim_row(claim) for claim in result.claims])]
    parts += ["## Samples, before and after", f"```\n{samples}\n```"]
    for figure in result.figures:
        parts += [f"## {figure.caption}", f"![{Path(figure.file).stem}]({Path(figure.file).stem}.png)"]
    for table in result.tables:
        parts += [f"## {table.caption}", evaluation.markdown_table(table.rows)]
    return "\n\n".join(parts) + "\n"


def _claim_row(claim: Claim) -> dict[str, object]:
    by_seed = ", ".join(f"{value:+z.{claim.decimals}f}" for value in claim.by_seed)
    return {
        "claim": claim.claim, "statistic": claim.statistic, "found": claim.shown, "by seed": by_seed,
        "verdict": claim.verdict, "why": claim.reason,
    }  # fmt: skip


def _link(link: Path, target: Path) -> None:
    """``link`` leads to ``target``, wherever the output folder is moved to."""
    if link.is_symlink():
        link.unlink()
    if not link.exists():
        link.symlink_to(target.relative_to(link.parent), target_is_directory=True)
