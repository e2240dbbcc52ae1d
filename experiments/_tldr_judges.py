"""Judges (S) and (C) of summaries: who they are, and what they say of what methods wrote."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from experiments._content_words import ContentWords, content_word_judges
from experiments._stages import Report
from experiments._tldr import CONTENT_WORDS, Judging
from jaxalign.evaluation import JudgedPair
from jaxalign.evaluation.judges import EndpointConfig, Item, Judge, OpenAIJudge, VerdictCache, compare

__all__ = ["described", "judge_pairs", "judges_of"]

_PROMPTS = {"S": "summaries", "C": "summaries-concise"}


def judges_of(judging: Judging, words: ContentWords | None) -> dict[str, Judge]:
    """Judges by the names of their questions. ``words`` say what is important, where no endpoint is asked."""
    if judging.model == CONTENT_WORDS:
        assert words is not None
        return content_word_judges(words)
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
    judges: Mapping[str, Judge],
    pairs: Sequence[JudgedPair],
    judging: Judging,
    cache: Path,
    on_judge: Callable[[str], Report],
) -> list[JudgedPair]:
    """Every pair by every judge, in the order of judges; the outcomes they come with are not read.

    What has a verdict in ``cache`` is not asked again.
    """
    items = [Item(prompt=one.prompt, ours=one.ours, theirs=one.theirs) for one in pairs]
    found: list[JudgedPair] = []
    with VerdictCache(cache) as verdicts:
        for name, judge in judges.items():
            report = on_judge(name)
            judged = compare(judge, items, seed=judging.order_seed, cache=verdicts, on_progress=report)
            found += [
                JudgedPair(**asdict(pair) | {"judge": name, "outcome": one.outcome})
                for pair, one in zip(pairs, judged, strict=True)
            ]
    return found
