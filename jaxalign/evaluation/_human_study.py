"""People against judges: win rates by each, and how often each agrees with people (the DPO paper's table 2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jaxalign.errors import InputError
from jaxalign.evaluation._agreement import agreement_between, agreement_within
from jaxalign.evaluation._bootstrap import Interval
from jaxalign.evaluation._judged import JudgedPair
from jaxalign.evaluation._tables import Percent
from jaxalign.evaluation._wins import Outcome, TieRule, win_rate

__all__ = ["HumanStudy", "human_studies", "human_study", "human_study_rows"]


@dataclass(frozen=True)
class HumanStudy:
    """One method against the reference, by judges and by people: a column of the table."""

    method: str
    judges: Mapping[str, Interval]
    """Win rate by each judge, such as "S" and "C"."""
    human: Interval
    """Win rate by people, items resampled where several were asked about one."""
    judge_human: Mapping[str, Interval]
    """Agreement of each judge with the people asked about the same item."""
    human_human: Interval | None
    """Agreement of people asked about the same item; None where none had two."""
    respondents: int
    """N as the DPO paper counts it: valid ratings, a person once for every comparison."""
    raters: int | None = None
    """How many people gave them; None where it is not known."""


def human_study(
    method: str,
    *,
    judges: Mapping[str, Sequence[Outcome]],
    humans: Sequence[Sequence[Outcome]],
    raters: int | None = None,
    ties: TieRule = "half",
    level: float = 0.95,
    seed: int = 0,
) -> HumanStudy:
    """The column of one method.

    Agreement is of outcomes as they are ("tie" agrees with "tie" alone); those that are invalid are missing.

    Args:
        method: its name.
        judges: of each judge ``[N]`` outcomes, one an item.
        humans: ``[N]`` of each item what people said, as many as were asked.
        raters: how many people took part, where it is known.
        ties: in the win rates.
        level, seed: of the intervals.

    Raises:
        InputError: a judge with another number of items, fewer than two items that a judge and people share, or nobody
            who named a winner.
    """
    for name, outcomes in judges.items():
        if len(outcomes) != len(humans):
            raise InputError(f"human_study: judge {name} has {len(outcomes)} items, people have {len(humans)}")

    said = [(index, outcome) for index, item in enumerate(humans) for outcome in item]
    people = [[None if outcome == "invalid" else outcome for outcome in item] for item in humans]
    two = sum(sum(outcome is not None for outcome in item) > 1 for item in people)
    return HumanStudy(
        method=method,
        judges={name: win_rate(found, ties=ties, level=level, seed=seed).interval for name, found in judges.items()},
        human=win_rate(
            [outcome for _, outcome in said],
            ties=ties,
            groups=[index for index, _ in said],
            level=level,
            seed=seed,
        ).interval,
        judge_human={
            name: agreement_between(
                [None if outcome == "invalid" else outcome for outcome in found], people, level=level, seed=seed
            )
            for name, found in judges.items()
        },
        human_human=agreement_within(people, level=level, seed=seed) if two > 1 else None,
        respondents=sum(outcome != "invalid" for _, outcome in said),
        raters=raters,
    )


def human_studies(pairs: Sequence[JudgedPair], *, ties: TieRule = "half", seed: int = 0) -> list[HumanStudy]:
    """The columns of judged pairs: a verdict that names its ``rater`` is a person's.

    A comparison that a judge did not see is missing for it. A judge that shares fewer than two valid comparisons with
    people has no cells in a column, and there is none of which people said nothing valid. Opponents and axes have
    columns of their own.
    """
    judges = list(dict.fromkeys(pair.judge for pair in pairs if not pair.rater))
    judged = [pair for pair in pairs if pair.rater]
    several = {name: len({getattr(pair, name) for pair in judged}) > 1 for name in ("against", "axis")}
    studies = []
    for method, against, axis in dict.fromkeys((pair.method, pair.against, pair.axis) for pair in judged):
        own = [pair for pair in pairs if (pair.method, pair.against, pair.axis) == (method, against, axis)]
        label = method + f" against {against}" * several["against"] + f", {axis}" * several["axis"]
        said: dict[object, list[Outcome]] = {}
        machine: dict[str, dict[object, Outcome]] = {name: {} for name in judges}
        for pair in own:
            item = replace(pair, judge="", rater="", outcome="invalid")
            if pair.rater:
                said.setdefault(item, []).append(pair.outcome)
            else:
                machine[pair.judge].setdefault(item, pair.outcome)
        columns = {name: [found.get(item, "invalid") for item in said] for name, found in machine.items()}
        humans = list(said.values())
        if not any(_counts(outcome, ties) for item in humans for outcome in item):
            continue
        studies.append(
            human_study(
                label,
                judges={name: column for name, column in columns.items() if _comparable(column, humans, ties)},
                humans=humans,
                raters=len({pair.rater for pair in own if pair.rater}),
                ties=ties,
                seed=seed,
            )
        )
    return studies


def _counts(outcome: Outcome, ties: TieRule) -> bool:
    return outcome in ("win", "lose") or (outcome == "tie" and ties != "exclude")


def _comparable(column: Sequence[Outcome], humans: Sequence[Sequence[Outcome]], ties: TieRule) -> bool:
    """Whether a judge has a win rate, and two items that it and people gave a valid verdict on."""
    shared = sum(
        own != "invalid" and any(outcome != "invalid" for outcome in item)
        for own, item in zip(column, humans, strict=True)
    )
    return shared > 1 and any(_counts(own, ties) for own in column)


def human_study_rows(studies: Sequence[HumanStudy], *, intervals: bool = True) -> list[dict[str, object]]:
    """The table, a column a method: N, who gave them, win % by judges and people, agreement %.

    A cell of human-human agreement stays empty where no item had two people. ``intervals=False`` prints whole
    percentages alone, as the paper does.
    """
    names = list(dict.fromkeys(name for study in studies for name in study.judges))

    def shown(value: Interval | None) -> Percent | None:
        if value is None:
            return None
        return Percent(value) if intervals else Percent(value.estimate, decimals=0)

    def row(label: str, values: Sequence[Interval | None]) -> dict[str, object]:
        return {"": label} | {study.method: shown(value) for study, value in zip(studies, values, strict=True)}

    rows: list[dict[str, object]] = [{"": "N respondents"} | {study.method: study.respondents for study in studies}]
    if any(study.raters is not None for study in studies):
        rows.append({"": "raters"} | {study.method: study.raters for study in studies})
    rows += [row(f"judge ({name}) win %", [study.judges.get(name) for study in studies]) for name in names]
    rows.append(row("human win %", [study.human for study in studies]))
    rows += [row(f"judge ({name})-human agree", [study.judge_human.get(name) for study in studies]) for name in names]
    rows.append(row("human-human agree", [study.human_human for study in studies]))
    return rows
