"""Pairwise judges: any ``f(prompts, first, second) -> verdicts``, called and checked."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxalign.sampling._asking import Defect, ask, check_lengths, excerpt

TextJudge = Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], Any]
"""``f(prompts, first, second) -> verdicts``, each "first", "second" or "tie"."""

VERDICTS = ("first", "second", "tie")
INVALID = "invalid"


def compare_texts(
    judge: TextJudge,
    prompts: Sequence[Any],
    first: Sequence[Any],
    second: Sequence[Any],
    *,
    names: Sequence[str] | None = None,
) -> list[str]:
    """Ask a judge, any ``f(prompts, first, second) -> verdicts``, which completion of each prompt is better.

    Judges favour the one shown first, or second: flip the order at random. A verdict that is none of the three words
    (an answer that cannot be read, None) is "invalid", for the caller to count; of a judge that raises or answers too
    few, the text that it fails on is found as ``score_texts`` finds it.

    Args:
        judge: the function.
        prompts, first, second: n each.
        names: what errors call the n prompts.

    Returns:
        n of "first", "second", "tie" and "invalid".

    Raises:
        InputError: the lists differ in length; or the judge raises, or does not return n verdicts: one line that names
            the prompt and quotes it.
    """
    count = len(prompts)
    check_lengths("judge", count, first=first, second=second, names=names)

    def named(index: int) -> str:
        return f"prompt {index}" if names is None else names[index]

    def quoted(index: int) -> str:
        return f"prompt {excerpt(prompts[index])}, first {excerpt(first[index])}, second {excerpt(second[index])}"

    def call(start: int, stop: int) -> list[str]:
        verdicts = judge(list(prompts[start:stop]), list(first[start:stop]), list(second[start:stop]))
        if isinstance(verdicts, str) or not hasattr(verdicts, "__len__") or not hasattr(verdicts, "__getitem__"):
            raise Defect(f"expected a list of verdicts, got {verdicts!r:.60}")
        if len(verdicts) != stop - start:
            raise Defect(f"expected {stop - start} verdicts, one a prompt, got {len(verdicts)}")
        return [_read(verdict) for verdict in verdicts]

    return ask("judge", call, count, named, quoted) if count else []


def _read(verdict: Any) -> str:
    word = verdict.strip().casefold() if isinstance(verdict, str) else ""
    return word if word in VERDICTS else INVALID
