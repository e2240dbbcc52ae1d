"""People's ratings of pairs of summaries: those that the study's page exported, or simulated ones of a stated model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jaxalign import data, evaluation
from jaxalign.errors import InputError
from jaxalign.evaluation import JudgedPair, Outcome

__all__ = ["SimulatedPeople", "read_ratings", "simulated_ratings"]

_MIRRORED: dict[Outcome, Outcome] = {"win": "lose", "lose": "win", "tie": "tie", "invalid": "invalid"}


@dataclass(frozen=True, kw_only=True)
class SimulatedPeople:
    """People who want what the reference says, each with an error of his own."""

    raters: int = 8
    """How many there are; each pair goes to as many of them as its comparison asks for, drawn at random."""
    certainty: float = 2.0
    """k of P(a person prefers ours) = 1 / (1 + exp(-k d)), d the difference in ROUGE-1 F to the reference, in standard
    deviations over all pairs."""
    ties: float = 0.1
    """How often a person sees no difference."""
    seed: int = 0
    """Of whom is asked, and what is said."""

    @property
    def described(self) -> str:
        """The model, in words."""
        return (
            f"simulated: no person was asked. Each of {self.raters} raters prefers ours with probability "
            f"1 / (1 + exp(-{self.certainty:g} d)), d the difference in ROUGE-1 F to the reference in standard "
            f"deviations, and sees no difference in {100 * self.ties:g} % of pairs"
        )


def simulated_ratings(
    pairs: Sequence[JudgedPair], references: Sequence[str], each: Sequence[int], people: SimulatedPeople
) -> list[JudgedPair]:
    """``each[i]`` different raters' verdicts on pair i, as they would be read from an export."""
    ours, theirs = (
        evaluation.rouge([getattr(pair, side) for pair in pairs], references, kinds=("rouge1",))["rouge1"]
        for side in ("ours", "theirs")
    )
    difference = ours - theirs
    spread = float(difference.std()) or 1.0
    preferred = 1 / (1 + np.exp(-people.certainty * difference / spread))
    random = np.random.default_rng(people.seed)
    found = []
    for pair, probability, count in zip(pairs, preferred, each, strict=True):
        for rater in sorted(random.choice(people.raters, min(count, people.raters), replace=False).tolist()):
            tie, win = random.random() < people.ties, random.random() < probability
            outcome: Outcome = "tie" if tie else "win" if win else "lose"
            found.append(replace(pair, outcome=outcome, judge="people", rater=f"simulated {rater + 1}"))
    return found


def read_ratings(paths: Sequence[Path], pairs: Sequence[JudgedPair]) -> list[JudgedPair]:
    """Ratings of these pairs as ``jaxalign judge export`` writes them (``verdicts.jsonl``), from our side.

    The page names the systems of a pair in an order of its own: a verdict on the same two texts the other way round is
    turned. Of verdicts on several axes those on "overall" count.

    Raises:
      InputError: a verdict without a rater, or on texts that are none of these pairs.
    """
    known = {(pair.prompt, pair.ours, pair.theirs, pair.method, pair.against): pair for pair in pairs}
    found = []
    for path in paths:
        records = data.load_records(path)
        judged = evaluation.read_judged(records)
        several = len({one.axis for one in judged}) > 1
        for index, one in enumerate(judged):
            if several and one.axis != "overall":
                continue
            if not one.rater:
                raise InputError(f"{records.place(index)}: field 'rater' is missing: a person's verdict names one")
            straight = known.get((one.prompt, one.ours, one.theirs, one.method, one.against))
            turned = known.get((one.prompt, one.theirs, one.ours, one.against, one.method))
            if straight is not None:
                found.append(replace(straight, outcome=one.outcome, judge="people", rater=one.rater))
            elif turned is not None:
                found.append(replace(turned, outcome=_MIRRORED[one.outcome], judge="people", rater=one.rater))
            else:
                raise InputError(f"{records.place(index)}: {one.method} against {one.against}: none of these pairs")
    return found
