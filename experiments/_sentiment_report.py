"""What the sentiment study writes: samples on the screen, figure, tables, and one report.md."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from experiments._sentiment import Measurement, Method, Study
from experiments._sentiment_rlhf import PPO
from experiments.assets.prompts import Prompt
from jaxalign import evaluation, sampling

__all__ = ["write"]

SHOWN = 4  # prefixes whose samples are printed and written


def write(
    output: Path,
    study: Study,
    *,
    name: str,
    start: Measurement,
    results: Mapping[Method, Sequence[Measurement]],
    held_out: Sequence[Prompt],
    accuracy: Mapping[str, Mapping[str, float]],
    reward_model: Mapping[str, Any] | None,
    console: Console,
) -> dict[str, Any]:
    """Print the samples, write ``frontier.{png,svg}``, ``frontier.{md,csv}``, ``results.json`` and ``report.md``.

    Returns what ``results.json`` holds.
    """
    output.mkdir(parents=True, exist_ok=True)
    one = _first_samples(start, study.best_of_n, study.held_out_samples)
    samples = _samples(study, start, results, held_out)
    console.print(samples, markup=False, highlight=False, soft_wrap=True)

    points = _points(study, start, one, results)
    rows = evaluation.frontier_rows(points)
    figure = evaluation.plot_frontier(
        points, reward_label="Reward, log-odds of positive (nats)", title="Controlled sentiment, held-out prefixes"
    )
    png, _ = evaluation.save_figure(figure, output / "frontier")
    table = evaluation.markdown_table(rows)
    (output / "frontier.md").write_text(table, encoding="utf-8")
    (output / "frontier.csv").write_text(evaluation.csv_table(rows), encoding="utf-8")

    gains = _gains(one, results)
    compared = _compared(study, points)
    ppo = _ppo_rows(one, results)
    summary = {
        "preset": name,
        "gains over the start model": gains,
        "differences at equal KL": [
            {
                "method": row.method,
                "baseline": row.baseline,
                "KL": row.kl,
                "difference": [row.difference.estimate, row.difference.low, row.difference.high],
                "method reached": row.method_reached,
                "baseline reached": row.baseline_reached,
            }
            for row in compared
        ],
        "largest KL of each run": {_label(method): float(np.mean(runs[-1].kl)) for method, runs in results.items()},
        "rater accuracy": accuracy,
        "reward model": reward_model,
        "PPO": ppo,
        "points": [point.to_json() for point in points],
    }
    (output / "results.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    if ppo:
        judged = evaluation.plot_frontier(
            _points(study, start, one, results, rating="judge"),
            reward_label="Independent judge's P(positive)",
            title="The same runs, by a judge that no run saw",
        )
        evaluation.save_figure(judged, output / "judge")
    report = _report(study, name, samples, table, gains, compared, accuracy, ppo, reward_model)
    (output / "report.md").write_text(report, encoding="utf-8")
    for line in _gain_lines(gains):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"figure {png}\nreport {output / 'report.md'}", markup=False, highlight=False, soft_wrap=True)
    return summary


def _label(method: Method) -> str:
    return f"{method.name} {method.setting}".strip()


def _first_samples(start: Measurement, each: int, kept: int) -> Measurement:
    """The start model with as many samples a prefix as every other policy has."""
    keep = [index for index in range(len(start.kl)) if index % each < kept]

    def pick(values: Sequence[Any]) -> list[Any]:
        return [values[index] for index in keep]

    return Measurement(
        step=0,
        prompt=pick(start.prompt),
        kl=pick(start.kl),
        reward=pick(start.reward),
        judge=pick(start.judge),
        log_perplexity=pick(start.log_perplexity),
        lengths=pick(start.lengths),
        texts=pick(start.texts),
    )


def _points(
    study: Study,
    start: Measurement,
    one: Measurement,
    results: Mapping[Method, Sequence[Measurement]],
    *,
    rating: Literal["reward", "judge"] = "reward",
) -> list[evaluation.FrontierPoint]:
    """Every curve from the start model on, and Best-of-N (chosen by the reward) at its bound, by either rating."""
    points = []
    for method, measurements in results.items():
        for measured in (one, *measurements):
            points.append(measured.point(method.name, method.setting, seed=study.seed, rating=rating))
    scores = np.asarray(start.reward).reshape(-1, study.best_of_n)
    judged = np.asarray(start.judge).reshape(scores.shape)
    best = sampling.best_of_n(scores)
    rows = np.arange(len(scores))
    for n in range(2, study.best_of_n + 1):
        chosen = best[:, n - 1]
        points.append(
            evaluation.FrontierPoint.from_samples(
                "Best-of-N",
                "",
                n,
                kl=sampling.best_of_n_kl_bound(n),
                reward=(scores if rating == "reward" else judged)[rows, chosen],
                prompt=rows,
                kl_is_bound=True,
                extras={"judge P(positive)": float(judged[rows, chosen].mean())},
                seed=study.seed,
            )
        )
    return points


def _gains(one: Measurement, results: Mapping[Method, Sequence[Measurement]]) -> dict[str, dict[str, float]]:
    """Last point of every run minus the start model, the judge's P(positive): mean and 95 % interval over prefixes."""
    gains = {}
    for method, measurements in results.items():
        gain = evaluation.paired_bootstrap_difference(measurements[-1].judged(), one.judged())
        gains[_label(method)] = {
            "judge before": float(one.judged().mean()),
            "judge after": float(measurements[-1].judged().mean()),
            "difference": gain.estimate,
            "low": gain.low,
            "high": gain.high,
        }
    return gains


def _ppo_rows(one: Measurement, results: Mapping[Method, Sequence[Measurement]]) -> list[dict[str, Any]]:
    """Every PPO run's last point against the start model, prefix by prefix."""
    rows = []
    for method, measurements in results.items():
        if not isinstance(method.objective, PPO):
            continue
        last = measurements[-1]
        reward = evaluation.paired_bootstrap_difference(last.by_prefix("reward"), one.by_prefix("reward"))
        judge = evaluation.paired_bootstrap_difference(last.judged(), one.judged())
        rows.append({
            "run": _label(method),
            "target KL": method.objective.target_kl,
            "KL": float(np.mean(last.kl)),
            "true reward gained": reward.estimate,
            "reward low": reward.low,
            "reward high": reward.high,
            "judge gained": judge.estimate,
            "judge low": judge.low,
            "judge high": judge.high,
        })  # fmt: skip
    return rows


def _compared(study: Study, points: Sequence[evaluation.FrontierPoint]) -> list[evaluation.RewardDifference]:
    names = list(dict.fromkeys(point.method for point in points))
    measured = [point for point in points if not point.kl_is_bound]
    found = []
    for baseline in ("Preferred-FT", "Unlikelihood", "PPO", "PPO-GT"):
        if "DPO" in names and baseline in names and study.compare_at:
            found += evaluation.reward_difference_at_kl(measured, "DPO", baseline, study.compare_at, seed=study.seed)
    return found


def _samples(
    study: Study,
    start: Measurement,
    results: Mapping[Method, Sequence[Measurement]],
    held_out: Sequence[Prompt],
) -> str:
    """The same prefixes before and after, as text."""
    first = next(iter(results))
    after = results[first][-1]
    lines = []
    for index in range(min(SHOWN, len(held_out))):
        opening = held_out[index].opening
        before_text = start.texts[index * study.best_of_n]
        after_text = after.texts[index * study.held_out_samples]
        lines += [
            f"prefix  {opening!r}",
            f"  start          {' '.join((opening + before_text).split())}",
            f"  {_label(first):<13}  {' '.join((opening + after_text).split())}",
        ]
    return "\n".join(lines)


def _gain_lines(gains: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [
        f"{name}: judge's P(positive) {gain['judge before']:.3f} -> {gain['judge after']:.3f}, "
        f"difference {gain['difference']:+.3f}, 95 % interval [{gain['low']:+.3f}, {gain['high']:+.3f}]"
        for name, gain in gains.items()
    ]


def _report(
    study: Study,
    name: str,
    samples: str,
    table: str,
    gains: Mapping[str, Mapping[str, float]],
    compared: Sequence[evaluation.RewardDifference],
    accuracy: Mapping[str, Mapping[str, float]],
    ppo: Sequence[Mapping[str, Any]],
    reward_model: Mapping[str, Any] | None,
) -> str:
    raters = [{"rater": rater, **values} for rater, values in accuracy.items()]
    parts = [
        f"# Controlled sentiment, preset `{name}`",
        f"Model {study.model}; {study.prompts} training prefixes x {study.samples_per_prompt} samples, "
        f"{study.steps} steps of {study.prompts_per_step} prefixes (all pairs of their samples), learning rate "
        f"{study.learning_rate:g}; measured on {study.held_out} held-out prefixes x {study.held_out_samples} samples "
        f"of at most {study.max_new_tokens} tokens at temperature {study.temperature:g} (log-probs and KL at that "
        f"temperature, too); seed {study.seed}. Intervals are 95 % bootstrap intervals over prefixes.",
        "## Samples, before and after",
        f"```\n{samples}\n```",
        "## Judge, last step minus start model",
        "\n".join(f"- {line}" for line in _gain_lines(gains)),
        "The judge is a naive Bayes model of character n-grams"
        + ("; it saw none of the reviews that the reward saw." if study.reward == "packaged" else "."),
        "## Reward against KL",
        "![frontier](frontier.png)",
        table,
        "Best-of-N is drawn at the upper bound of its KL, log N - (N - 1)/N; it trains nothing and pays N samples for "
        "every answer.",
    ]
    if compared:
        parts += [
            "## DPO against the others at equal KL",
            evaluation.markdown_table(evaluation.difference_rows(compared)),
            "A method's reward at a KL is the best any of its runs has there or below, measured or on the straight "
            "line between two measurements; one that does not reach a KL stands with the best reward it reached before "
            "it, which favours it.",
        ]
    if ppo:
        parts += [
            "## PPO",
            evaluation.markdown_table(ppo),
            "Last point of every run; gains over the start model with 95 % bootstrap intervals over held-out prefixes, "
            "each prefix paired with itself. PPO raises the learned reward, PPO-GT the true one; the columns are the "
            "true reward and a judge of another kind that neither saw: a policy that games its reward shows there.",
            "![judge](judge.png)",
        ]
    if reward_model:
        parts += [
            "## The reward model on held-out preferences",
            f"Accuracy {reward_model['accuracy']:.3f} [{reward_model['low']:.3f}, {reward_model['high']:.3f}] on "
            f"{reward_model['pairs']} pairs, log loss {reward_model['log_loss']:.3f} nats (knowing nothing: 0.693), "
            f"expected calibration error {reward_model['expected_calibration_error']:.3f}. The checkpoint was chosen "
            "by its accuracy on these pairs; intervals take pairs as independent."
            + (
                f" It learns from {study.rlhf.reward_extra_prompts} prefixes more than the other methods do."
                if study.rlhf.reward_extra_prompts
                else ""
            ),
        ]
    parts += ["## Raters on held-out text (accuracy)", evaluation.markdown_table(raters)]
    return "\n\n".join(parts) + "\n"
