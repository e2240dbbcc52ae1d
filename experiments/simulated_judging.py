"""What the papers' judging comes out as, on simulated verdicts: nobody judged anything here.

    python -m experiments.simulated_judging --output-dir runs/judging        # half a minute on one CPU core

Outcomes are drawn from a logistic model whose win rates at equal length are given below, with ties, invalid answers and
a judge's liking for length. Only the two rates at temperature 0, DPO 61 % and PPO 57 %, and the shares of Chain of
Hindsight against its base model are those published; the rest is invented. It writes, and evaluates as
``jaxalign evaluate`` does:

    temperature/   TL;DR: win rate against the reference summary over temperature, by judges (S) and (C)
    training/      dialogue: win rate against the chosen answer over training
    axes/          Chain of Hindsight: win, tie, lose by axis
    human_study    people against judges: the layout of the DPO paper's table 2
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from jaxalign import evaluation
from jaxalign.cli._evaluate import EvaluateConfig
from jaxalign.cli._evaluate import run as evaluate
from jaxalign.evaluation import Outcome

__all__ = ["main"]

WORDS = (
    "post",
    "asks",
    "about",
    "the",
    "job",
    "and",
    "family",
    "of",
    "a",
    "friend",
    "who",
    "wants",
    "help",
    "with",
    "money",
)
TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Win rates at equal length, one a temperature.
TLDR = {
    "DPO": (0.61, 0.60, 0.58, 0.55, 0.50),
    "PPO": (0.57, 0.54, 0.47, 0.36, 0.24),
    "SFT": (0.43, 0.42, 0.38, 0.31, 0.22),
}
TRAINING = {"DPO": (0.38, 0.50, 0.56, 0.60, 0.61), "Preferred-FT": (0.38, 0.41, 0.42, 0.42, 0.43)}
# Liu et al. (2023), table 1: win and tie shares of Chain of Hindsight against the base model.
AXES = {"accuracy": (0.487, 0.268), "coherence": (0.659, 0.185), "coverage": (0.580, 0.224)}
LENGTHS = {"DPO": 34, "PPO": 31, "SFT": 27, "Preferred-FT": 29}
TIES, INVALID, LENGTH_EFFECT = 0.06, 0.01, 0.6


@dataclass(frozen=True)
class Config:
    """What to simulate."""

    output_dir: Path = Path("runs/judging")
    """Where everything goes."""
    prompts: int = 256
    """Prompts judged in each setting."""
    seed: int = 0
    """Of the simulation."""


def main(config: Config) -> None:
    """Simulate, write the verdicts, evaluate them."""
    generator = np.random.default_rng(config.seed)
    studies = {
        "temperature": list(_over_temperature(generator, config.prompts)),
        "training": list(_over_training(generator, config.prompts)),
        "axes": list(_by_axis(generator, config.prompts)),
    }
    for name, rows in studies.items():
        folder = config.output_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "verdicts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        evaluate(EvaluateConfig(output_dir=folder, verdicts=(str(path),), title=f"Simulated verdicts: {name}"))
    rows = evaluation.human_study_rows(_human_study(generator))
    evaluation.save_table(rows, config.output_dir / "human_study", caption="People against judges (simulated).")
    print(evaluation.markdown_table(rows))


def _over_temperature(generator: np.random.Generator, prompts: int) -> Iterator[dict[str, Any]]:
    for method, rates in TLDR.items():
        for temperature, rate in zip(TEMPERATURES, rates, strict=True):
            for index in range(prompts):
                ours, theirs, shared = _text(generator, LENGTHS[method]), _text(generator, 28), generator.random()
                for judge, liking in (("S", 1.5 * LENGTH_EFFECT), ("C", 0.5 * LENGTH_EFFECT)):
                    yield {
                        "prompt": f"post {index}", "ours": ours, "theirs": theirs, "judge": judge, "method": method,
                        "against": "reference", "temperature": temperature,
                        "outcome": _judged(generator, rate, ours, theirs, liking, shared),
                    }  # fmt: skip


def _over_training(generator: np.random.Generator, prompts: int) -> Iterator[dict[str, Any]]:
    for method, rates in TRAINING.items():
        for step, rate in zip(range(0, 1001, 250), rates, strict=True):
            for index in range(prompts):
                ours, theirs = _text(generator, LENGTHS[method]), _text(generator, 30)
                yield {
                    "prompt": f"dialogue {index}", "ours": ours, "theirs": theirs, "method": method,
                    "against": "chosen", "step": step,
                    "outcome": _judged(generator, rate, ours, theirs, LENGTH_EFFECT),
                }  # fmt: skip


def _by_axis(generator: np.random.Generator, prompts: int) -> Iterator[dict[str, Any]]:
    for index in range(prompts):
        ours, theirs = _text(generator, 30), _text(generator, 30)
        for axis, (win, tie) in AXES.items():
            yield {
                "prompt": f"document {index}", "ours": ours, "theirs": theirs, "method": "CoH", "against": "Base",
                "axis": axis, "outcome": str(generator.choice(("win", "tie", "lose"), p=(win, tie, 1 - win - tie))),
            }  # fmt: skip


def _human_study(generator: np.random.Generator) -> list[evaluation.HumanStudy]:
    """Every item has a better side, which each rater sees with its own probability; half the items have two people."""
    studies = []
    for method, rate, items, two in (("DPO", 0.62, 272, True), ("SFT", 0.42, 122, False), ("PPO-1", 0.12, 199, True)):
        better = generator.random(items) < rate

        def seen(right: float, better: np.ndarray = better) -> list[Outcome]:
            kept = generator.random(len(better)) < right
            return ["win" if won == keep else "lose" for won, keep in zip(better, kept, strict=True)]

        people: list[Sequence[Outcome]] = [
            pair if two and index % 2 else pair[:1]
            for index, pair in enumerate(zip(seen(0.85), seen(0.85), strict=True))
        ]
        judges: Mapping[str, Sequence[Outcome]] = {"S": seen(0.8), "C": seen(0.82)}
        studies.append(evaluation.human_study(method, judges=judges, humans=people, respondents=sum(map(len, people))))
    return studies


def _text(generator: np.random.Generator, length: int) -> str:
    return " ".join(generator.choice(WORDS, max(int(generator.normal(length, 6)), 3)))


def _judged(
    generator: np.random.Generator, rate: float, ours: str, theirs: str, liking: float, shared: float | None = None
) -> str:
    """``shared``: what the judges of one pair have in common, three times in four."""
    if generator.random() < INVALID:
        return "invalid"
    if generator.random() < TIES:
        return "tie"
    difference = np.tanh((len(ours.split()) - len(theirs.split())) / 8.5)  # two lengths of deviation 6 each
    odds = rate / (1 - rate) * np.exp(liking * difference)
    drawn = shared if shared is not None and generator.random() < 0.75 else generator.random()
    return "win" if drawn < odds / (1 + odds) else "lose"


if __name__ == "__main__":
    main(tyro.cli(Config))
