"""People against judges on summaries (Rafailov et al. 2023, arXiv 2305.18290, section 6.4, table 2): do they agree?

Summaries of ``experiments.tldr_summarization``: DPO and SFT at temperature 0.25 and PPO at temperature 1 ("PPO-1"),
each against PPO at temperature 0. Judges (S) and (C) compare them, and people. The table has win rates by both, how
often a judge agrees with people, and people with one another; pairs of SFT have one rater each, so that cell is empty.

    python -m experiments.human_vs_judge --preset mini --summaries runs/tldr --output-dir runs/human-vs-judge
        The summaries and judges of tldr_summarization's preset mini; half a minute. People are simulated, by a model
        that the table states.
    python -m experiments.human_vs_judge --preset gpu --summaries runs/tldr-gpu --output-dir runs/human-gpu
        The same, of its preset gpu. It has not been run.
    python -m experiments.human_vs_judge --preset paper --summaries runs/tldr-paper --output-dir runs/human-paper
        Judged by a model behind an OpenAI-compatible endpoint. Its first run writes the pairs and the commands that
        have people rate them; with --ratings VERDICTS... it makes the table. Published, for DPO / SFT / PPO-1: people
        58 / 43 / 17 win %, judge (S)-human agreement 70 / 77 / 86, (C)-human 67 / 79 / 85, human-human 65 / - / 87,
        of 272 / 122 / 199 ratings. It has not been run.

With people, in any preset (docs/human-study.md); SFT's pairs are a study of their own because each has one rater:

    jaxalign judge serve --pairs OUT/pairs-2.jsonl --store OUT/two.sqlite --axes overall --ratings-per-item 2
    jaxalign judge serve --pairs OUT/pairs-1.jsonl --store OUT/one.sqlite --axes overall --ratings-per-item 1
    jaxalign judge export --store OUT/two.sqlite --output-dir OUT/two        (and one.sqlite to OUT/one)
    python -m experiments.human_vs_judge ... --people asked --ratings OUT/two/verdicts.jsonl OUT/one/verdicts.jsonl

Every verdict of a judge is kept in OUTPUT_DIR/verdicts.sqlite: nothing is asked twice. The time in the result is that
of the verdicts.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from experiments import _results
from experiments._command import Command, FirstBatch
from experiments._content_words import ContentWords
from experiments._human_ratings import SimulatedPeople, read_ratings, simulated_ratings
from experiments._results import Claim, Result, Table, Value
from experiments._stages import Stages
from experiments._tldr import CONTENT_WORDS, Judging
from experiments._tldr_judges import described, judge_pairs, judges_of
from jaxalign import data, evaluation
from jaxalign.errors import InputError
from jaxalign.evaluation import HumanStudy, Interval, JudgedPair

SOURCE = "Rafailov et al. 2023, table 2"
AGAINST = ("PPO", 0.0)
"""Method and temperature that everything is compared with."""
COMPARED = {"DPO": ("DPO", 0.25), "SFT": ("SFT", 0.25), "PPO-1": ("PPO", 1.0)}
"""Column -> method and temperature."""
RATERS = {"DPO": 2, "SFT": 1, "PPO-1": 2}
"""Of each pair."""
PAPER = {
    "N respondents": ("272", "122", "199"),
    "human win %": ("58", "43", "17"),
    "judge (S)-human agree": ("70", "77", "86"),
    "judge (C)-human agree": ("67", "79", "85"),
    "human-human agree": ("65", "", "87"),
}
"""Published, in the order of ``COMPARED``."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers of one preset."""

    summaries: Path = Path("runs/tldr-summarization-mini")
    """Output folder of ``experiments.tldr_summarization``; its first training seed's summaries are compared."""
    pairs: int = 128
    """Posts of each comparison."""
    judging: Judging = field(default_factory=Judging)
    """Judges (S) and (C)."""
    people: Literal["simulated", "asked"] = "simulated"
    """Where people's ratings come from."""
    ratings: tuple[Path, ...] = ()
    """With ``people asked``: files verdicts.jsonl of ``jaxalign judge export``."""
    simulated: SimulatedPeople = field(default_factory=SimulatedPeople)
    """With ``people simulated``: their model."""

    def __post_init__(self) -> None:
        if self.ratings and self.people == "simulated":
            raise InputError("--ratings: people are simulated; add --people asked")


PRESETS = {
    "mini": Settings(),
    "gpu": Settings(summaries=Path("runs/tldr-summarization-gpu"), pairs=256),
    "paper": Settings(summaries=Path("runs/tldr-summarization-paper"), judging=Judging(model="gpt-4o"), people="asked"),
}


@dataclass(frozen=True)
class _Compared:
    """A pair before anybody judged it, with the post's reference and how many people are asked."""

    pair: JudgedPair
    reference: str
    raters: int


def run(settings: Settings, output: Path, name: str) -> Result | None:
    """Write the pairs, have them judged, and with ratings make the table; None where people have still to be asked."""
    console = Console()
    compared = _compared(settings)
    output.mkdir(parents=True, exist_ok=True)
    _write_pairs(compared, output)
    if settings.people == "asked" and not settings.ratings:
        console.print(
            f"{output}: pairs-2.jsonl, pairs-1.jsonl. Have people rate them (--help), then: --ratings VERDICTS...",
            highlight=False,
        )
        return None
    pairs = [one.pair for one in compared]
    if settings.people == "asked":
        rated = read_ratings(settings.ratings, pairs)
    else:
        rated = simulated_ratings(
            pairs, [one.reference for one in compared], [one.raters for one in compared], settings.simulated
        )
    words = None
    if settings.judging.model == CONTENT_WORDS:
        words = ContentWords.load(settings.summaries / "content_words.json")
    judges = judges_of(settings.judging, words)
    stages = Stages(output / "stages", total=1, console=console)
    judged = judge_pairs(judges, pairs, settings.judging, output, stages)
    for file, rows in (("verdicts", judged), ("ratings", rated)):
        _write(output / f"{file}.jsonl", [asdict(pair) for pair in rows])
    result = _result(settings, judged, rated, preset=name, seconds=stages.seconds)
    evaluation.save_table(result.tables[0].rows, output / "human_study", caption=result.tables[0].caption)
    console.print(evaluation.markdown_table(result.tables[0].rows), highlight=False)
    console.print(f"{_results.save(output, result)}", highlight=False)
    return result


def first_batch(settings: Settings) -> FirstBatch:
    """Nothing is trained here: the first pairs that judges and people are given."""
    shown = [
        f"{one.pair.prompt}\n  {one.pair.method}: {one.pair.ours}\n  {one.pair.against}: {one.pair.theirs}"
        for one in _compared(settings)[:3]
    ]
    return FirstBatch(note="\n\n".join(shown))


def _compared(settings: Settings) -> list[_Compared]:
    """The pairs, by column, in the order of the posts. Raises ``InputError`` where a summary is missing."""
    path = settings.summaries / "summaries.jsonl"
    if not path.is_file():
        raise InputError(f"--summaries: there is no {path}; experiments.tldr_summarization writes it")
    written: dict[tuple[Any, Any], dict[str, tuple[str, str]]] = {}
    records = data.load_records(path)
    for index, record in enumerate(records):
        texts = [record.get(name) for name in ("prompt", "summary", "reference")]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{records.place(index)}: needs the texts 'prompt', 'summary' and 'reference'")
        if record.get("seed") == 0:
            own = written.setdefault((record.get("method"), record.get("temperature")), {})
            own.setdefault(str(texts[0]), (str(texts[1]), str(texts[2])))
    name, temperature = AGAINST
    found = []
    for column, key in COMPARED.items():
        for needed in (key, AGAINST):
            if needed not in written:
                raise InputError(f"{path}: no summaries of {needed[0]} at temperature {needed[1]:g}")
        ours, theirs = written[key], written[AGAINST]
        for prompt in list(ours)[: settings.pairs]:
            if prompt not in theirs:
                raise InputError(f"{path}: {name} has no summary at temperature {temperature:g} of {prompt!r:.60}")
            pair = JudgedPair(
                prompt=prompt, ours=ours[prompt][0], theirs=theirs[prompt][0], outcome="invalid", method=column,
                against=name,
            )  # fmt: skip
            if (
                pair.ours.strip() and pair.theirs.strip() and pair.ours != pair.theirs
            ):  # people are asked about no other
                found.append(_Compared(pair, ours[prompt][1], RATERS[column]))
    return found


def _write_pairs(compared: Sequence[_Compared], output: Path) -> None:
    """What ``jaxalign judge serve --pairs`` opens: a file for each number of raters."""
    for raters in sorted(set(RATERS.values())):
        rows = [
            {
                "prompt": one.pair.prompt,
                "outputs": {one.pair.method: one.pair.ours, one.pair.against: one.pair.theirs},
            }
            for one in compared
            if one.raters == raters
        ]
        _write(output / f"pairs-{raters}.jsonl", rows)


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _result(
    settings: Settings, judged: Sequence[JudgedPair], rated: Sequence[JudgedPair], *, preset: str, seconds: float
) -> Result:
    studies = evaluation.human_studies([*judged, *rated])
    studies.sort(key=lambda study: list(COMPARED).index(study.method))
    people = settings.simulated.described if settings.people == "simulated" else "asked"
    note = " (simulated)" if settings.people == "simulated" else ""
    rows = [
        row | {"": f"{row['']}{note}" if "human" in str(row[""]) else row[""]}
        for row in evaluation.human_study_rows(studies)
    ]
    return Result(
        experiment="human_vs_judge",
        preset=preset,
        title="People against judges on summaries",
        setting=f"Summaries of tldr_summarization, {len(judged) // 2} pairs, each against PPO at temperature 0: DPO "
        "and SFT at 0.25, PPO-1 is PPO at 1.",
        judges=described(settings.judging) | {"human": people},
        seeds=1,
        seconds=seconds,
        values=_values(studies, people),
        claims=[_claim(name, judged, rated, people) for name in described(settings.judging)],
        tables=[
            Table(
                of=SOURCE,
                caption="Win rates against PPO at temperature 0 and agreement (%), 95 % intervals over pairs. N counts "
                f"ratings, as the paper's does. People: {people}.",
                rows=rows,
                shown=True,
            )
        ],
    )


def _values(studies: Sequence[HumanStudy], people: str) -> list[Value]:
    note = "" if people == "asked" else " (people simulated)"
    found = []
    for study in studies:

        def value(what: str, ours: Interval, decimals: int = 1, study: HumanStudy = study) -> Value:
            paper = PAPER[what][list(COMPARED).index(study.method)]
            return Value(what=f"{what}, {study.method}{note}", paper=paper, ours=ours, decimals=decimals)

        shares = {
            "human win %": study.human,
            **{f"judge ({name})-human agree": interval for name, interval in study.judge_human.items()},
        }
        if study.human_human is not None:
            shares["human-human agree"] = study.human_human
        found.append(value("N respondents", Interval(*[float(study.respondents)] * 3), 0))
        found += [
            value(what, Interval(*(100 * share for share in (own.estimate, own.low, own.high))))
            for what, own in shares.items()
        ]
    return found


def _claim(judge: str, judged: Sequence[JudgedPair], rated: Sequence[JudgedPair], people: str) -> Claim:
    """Over the pairs with two valid ratings: agreement of judge and person - that of person and person."""
    said: dict[tuple[str, str], list[str]] = {}
    for pair in rated:
        if pair.outcome != "invalid":
            said.setdefault((pair.method, pair.prompt), []).append(pair.outcome)
    with_judge, among, prompts, ties = [], [], [], []
    for pair in judged:
        own = said.get((pair.method, pair.prompt), [])
        if pair.judge != judge or pair.outcome == "invalid" or len(own) < 2:
            continue
        with_judge.append(float(np.mean([one == pair.outcome for one in own])))
        together = [one == other for place, one in enumerate(own) for other in own[:place]]
        among.append(float(np.mean(together)))
        prompts.append(pair.prompt)
        ties.append((pair.outcome == "tie", float(np.mean([one == "tie" for one in own]))))
    if len(set(prompts)) < 2:
        raise InputError(f"fewer than two posts have two people's ratings and a verdict of judge ({judge})")
    found = evaluation.bootstrap_interval(100 * (np.array(with_judge) - np.array(among)), groups=prompts)
    simulated = "" if people == "asked" else "; people simulated"
    by_judge, by_people = 100 * np.mean(ties, axis=0)
    return Claim(
        claim=f"Judge ({judge}) agrees with people at least as often as people with one another",
        source=SOURCE,
        statistic=f"judge-human minus human-human agreement, points of %, over {len(prompts)} pairs{simulated}",
        found=found,
        why=f"the judge sees no difference in {by_judge:.0f} % of these pairs, people in {by_people:.0f} %",
        undecidable="" if people == "asked" else "no person was asked",
    )


main = Command(__doc__, "human_vs_judge", PRESETS, run, first_batch)

if __name__ == "__main__":
    main()
