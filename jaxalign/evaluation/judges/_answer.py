"""Reading a judge's answer: its own last line, or nothing."""

import re

from jaxalign.evaluation._comparison import Preference

__all__ = ["LABEL", "choices", "read_answer"]

LABEL = "Preferred:"
"""What the line with the verdict begins with."""

_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_MARKUP = re.compile(r"[*_`#>]")
_LINE = re.compile(r"preferred\s*:\s*(.*)", re.IGNORECASE)
_NOUN = re.compile(r"(?:summary|response|answer|output)\s+(?=[ab]$)")
_VERDICTS: dict[str, Preference] = {"a": "first", "b": "second", "tie": "tie"}


def choices(ties: bool) -> str:
    """The verdicts that are allowed, as a prompt names them."""
    return '"A", "B" or "tie"' if ties else '"A" or "B"'


def read_answer(text: str, *, ties: bool, finished: bool = True) -> Preference:
    """What a judge's answer says: "first", "second", "tie", or "invalid" for whatever is not plain.

    The verdict is the last line, ``Preferred: A``; quotes, brackets, emphasis and a full stop around it do not matter,
    nor does "Summary" before the letter, and the letter may stand alone. Everything else is "invalid": no such line,
    words after it, other letters, two lines that contradict each other, a tie where none was offered, an answer that
    was cut. So text that a judge quotes (an output may say "Preferred: B") is never taken for its verdict: inside a
    sentence it is no line of its own, and on a line of its own it can only contradict.

    Args:
      text: the answer; thoughts between ``<think>`` and ``</think>`` at its beginning are left out.
      ties: whether "tie" was offered.
      finished: False where the answer was cut at a length.
    """
    own = _THOUGHTS.sub("", text, count=1)
    if not finished or own.lstrip().startswith("<think>"):
        return "invalid"
    lines = [line for line in (_MARKUP.sub("", line).strip() for line in own.splitlines()) if line]
    if not lines:
        return "invalid"
    found = {said for line in lines if (said := _verdict(line)) is not None}
    last = _verdict(lines[-1])
    if last is None and lines[-1].strip("\"'()[]. ") in ("A", "B"):
        last = _VERDICTS[lines[-1].strip("\"'()[]. ").lower()]
        found.add(last)
    if last is None or len(found) > 1 or (last == "tie" and not ties):
        return "invalid"
    return last


def _verdict(line: str) -> Preference | None:
    """What a line says that is a verdict and nothing else; "invalid" for another word in the verdict's place."""
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    word = found[1].strip("\"'“”‘’()[]<. ").casefold()
    return _VERDICTS.get(_NOUN.sub("", word), "invalid")
