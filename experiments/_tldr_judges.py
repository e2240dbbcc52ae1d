"""Judges (S) and (C) of summaries: who they are, and what they say of what methods wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from experiments._content_words import ContentWords, content_word_judges
from experiments._stages import JSON_LINES, Report, Stages, digest
from experiments._tldr import CONTENT_WORDS, Judging
from jaxalign.evaluation import JudgedPair, read_judged
from jaxalign.evaluation.judges import EndpointConfig, Item, Judge, OpenAIJudge, VerdictCache, compare

__all__ = ["check_judges", "described", "judge_pairs", "judges_of"]

_PROMPTS = {"S": "summaries", "C": "summaries-concise"}


def judges_of(judging: Judging, words: ContentWords | None) -> dict[str, Judge]:
    """Judges by the names of their questions. ``words`` say what is important, where no endpoint is asked."""
    if judging.model == CONTENT_WORDS:
        assert words is not None
        return content_word_judges(words)
    return dict(_endpoints(judging))


def check_judges(judging: Judging) -> None:
    """Say before training what an endpoint would miss after it; it is asked nothing.

    Raises:
      InputError: no client, no key in the environment.
    """
    if judging.model != CONTENT_WORDS:
        for judge in _endpoints(judging).values():
            judge.check()


def _endpoints(judging: Judging) -> dict[str, OpenAIJudge]:
    values = {field.name: getattr(judging, field.name) for field in fields(EndpointConfig)}
    return {name: OpenAIJudge(EndpointConfig(**values), prompts) for name, prompts in _PROMPTS.items()}


def described(judging: Judging) -> dict[str, str]:
    """What judges "S" and "C" are, in words."""
    if judging.model == CONTENT_WORDS:
        return {
            "S": "share of the document's content words, weighted by rarity, that the summary has",
            "C": "the same as an F-measure, which charges words that are unimportant, repeated or not in the document",
        }
    return {name: f"{judging.model}, prompt '{prompts}'" for name, prompts in _PROMPTS.items()}


def judge_pairs(
    judges: Mapping[str, Judge], pairs: Sequence[JudgedPair], judging: Judging, output: Path, stages: Stages
) -> list[JudgedPair]:
    """Every pair by every judge, in the order of judges; the outcomes they come with are not read.

    They are a stage, and what has a verdict in ``output``/verdicts.sqlite is not asked again.
    """
    items = [Item(prompt=one.prompt, ours=one.ours, theirs=one.theirs) for one in pairs]

    def verdicts(report: Report) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        with VerdictCache(output / "verdicts.sqlite") as cache:
            for name, judge in judges.items():

                def on_progress(done: int, total: int, name: str = name) -> None:
                    report(done, total, f"judge ({name})")

                judged = compare(judge, items, seed=judging.order_seed, cache=cache, on_progress=on_progress)
                found += [
                    asdict(pair) | {"judge": name, "outcome": one.outcome}
                    for pair, one in zip(pairs, judged, strict=True)
                ]
        return found

    known = {
        "judges": {name: [judge.name, judge.version] for name, judge in judges.items()},
        "order seed": judging.order_seed, "pairs": digest([asdict(pair) for pair in pairs]),
    }  # fmt: skip
    return read_judged(stages.stage("verdicts", known, verdicts, *JSON_LINES))
