"""Two models' outputs before a judge: in an order drawn at random, each question once."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

from jaxalign.evaluation._comparison import Comparison, Judge, Preference, Verdict
from jaxalign.evaluation._wins import Outcome
from jaxalign.evaluation.judges._cache import VerdictCache, verdict_key
from jaxalign.evaluation.judges._endpoint import AllRefused

__all__ = ["Item", "Judged", "compare", "judged_so_far", "shown"]

_SAME = Verdict(preference="tie", text="the outputs are the same text")
_POLL = 0.25  # seconds between two looks at what another process asks


@dataclass(frozen=True, kw_only=True)
class Item:
    """Outputs of two models to one prompt."""

    prompt: str
    ours: str
    theirs: str
    names: tuple[str, str] = ("ours", "theirs")
    """Whose they are; no judge sees it, and a verdict does not depend on it."""
    axis: str = "overall"
    """What is asked about them, as in ``Comparison``."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a judge said of an item."""

    item: Item
    outcome: Outcome
    """From our side."""
    verdict: Verdict
    """Of the two as they were shown."""
    flipped: bool
    """Theirs was shown first."""


def shown(item: Item, seed: int) -> tuple[Comparison, bool]:
    """The comparison as a judge sees it, and whether theirs comes first.

    A pure function of the seed, the prompt, the axis and the two texts, whichever of them is ours: a rerun shows the
    same order, and A against B is the same question as B against A.
    """
    low, high = sorted((item.ours, item.theirs))
    digest = hashlib.sha256(json.dumps([seed, item.prompt, low, high, item.axis]).encode()).digest()
    first, second = (high, low) if digest[0] & 1 else (low, high)
    comparison = Comparison(prompt=item.prompt, first=first, second=second, axis=item.axis)
    return comparison, first != item.ours


def compare(
    judge: Judge,
    items: Sequence[Item],
    *,
    seed: int,
    cache: VerdictCache | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Judged]:
    """Have a judge compare two models' outputs; the order in which they are shown is drawn at random.

    Equal questions are asked once, and outputs that are the same text are a tie that nobody is asked about: there is no
    order to draw. With a cache every verdict is written as soon as it is there, and none that it
    holds is asked again, so that an evaluation that was killed goes on where it was; what another process on the same
    cache is asking at the moment is waited for.

        with VerdictCache("verdicts.sqlite") as cache:
            outcomes = [one.outcome for one in compare(judge, items, seed=0, cache=cache)]

    Args:
      judge: anybody who compares.
      items: the outputs.
      seed: of the order; another seed shows about half of the items the other way round.
      cache: where verdicts are kept.
      on_progress: called as ``on_progress(done, total)``, in items; from whatever thread the judge tells verdicts in.

    Returns:
      One ``Judged`` an item, in order.

    Raises:
      What the judge raises: verdicts that were given until then are in the cache.
    """
    orders = [shown(item, seed) for item in items]
    name, version = judge.name, judge.version
    keys = [verdict_key(name, version, comparison) for comparison, _ in orders]
    places: dict[str, list[int]] = {}
    for index, (item, key) in enumerate(zip(items, keys, strict=True)):
        if item.ours != item.theirs:
            places.setdefault(key, []).append(index)
    verdicts: dict[str, Verdict] = {}
    done = sum(item.ours == item.theirs for item in items)
    if done and on_progress is not None:
        on_progress(done, len(items))

    def keep(key: str, verdict: Verdict) -> None:
        nonlocal done
        verdicts[key] = verdict
        done += len(places[key])
        if on_progress is not None:
            on_progress(done, len(items))

    def ask(wanted: list[str]) -> None:
        def on_verdict(index: int, verdict: Verdict) -> None:
            _check(name, verdict)
            key = wanted[index]
            if key in verdicts:
                raise RuntimeError(f"judge {name}: told two verdicts on one comparison")
            if cache is not None:
                cache.store(name, version, orders[places[key][0]][0], verdict)
            keep(key, verdict)

        try:
            judge.judge([orders[places[key][0]][0] for key in wanted], on_verdict)
        except AllRefused as refusal:
            # The last few of an evaluation may well be refused; where none was answered ever, the settings are.
            if cache is None or not cache.has_answers(name, version):
                raise
            for index, verdict in refusal.verdicts:
                on_verdict(index, verdict)
        if missing := sum(key not in verdicts for key in wanted):
            raise RuntimeError(f"judge {name}: told no verdict on {missing} of {len(wanted)} comparisons")

    if cache is None:
        if places:
            ask(list(places))
    else:
        while waiting := [key for key in places if key not in verdicts]:
            for key, verdict in cache.find(waiting).items():
                keep(key, verdict)
            with cache.claim([key for key in waiting if key not in verdicts]) as ours:
                if ours:
                    ask(ours)
            if not ours and len(verdicts) < len(places):
                time.sleep(_POLL)
    return [
        _judged(item, verdicts.get(key, _SAME), flipped)
        for item, key, (_, flipped) in zip(items, keys, orders, strict=True)
    ]


def judged_so_far(judge: Judge, items: Sequence[Item], *, seed: int, cache: VerdictCache) -> list[Judged]:
    """What ``compare`` of the same arguments would return of the items that have a verdict already; nobody is asked."""
    orders = [shown(item, seed) for item in items]
    keys = [verdict_key(judge.name, judge.version, comparison) for comparison, _ in orders]
    verdicts = cache.find(list(dict.fromkeys(keys)))
    return [
        _judged(item, verdicts.get(key, _SAME), flipped)
        for item, key, (_, flipped) in zip(items, keys, orders, strict=True)
        if key in verdicts or item.ours == item.theirs
    ]


def _judged(item: Item, verdict: Verdict, flipped: bool) -> Judged:
    if item.ours == item.theirs:
        return Judged(item=item, outcome="tie", verdict=_SAME, flipped=False)
    return Judged(item=item, outcome=_outcome(verdict.preference, flipped), verdict=verdict, flipped=flipped)


def _outcome(preference: Preference, flipped: bool) -> Outcome:
    if preference == "first":
        return "lose" if flipped else "win"
    if preference == "second":
        return "win" if flipped else "lose"
    return preference


def _check(name: str, verdict: Verdict) -> None:
    if verdict.preference not in get_args(Preference):
        raise ValueError(f"judge {name}: {verdict.preference!r} is none of {', '.join(get_args(Preference))}")
