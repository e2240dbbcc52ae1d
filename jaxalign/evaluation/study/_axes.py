"""What raters are asked about two outputs: one question an axis, as the pairwise tables of the papers have them."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxalign.errors import InputError

__all__ = ["Axis", "read_axes"]


@dataclass(frozen=True)
class Axis:
    """One question about a pair."""

    name: str
    """What the export calls it, such as "accuracy"."""
    question: str
    """As raters read it."""
    hint: str = ""
    """What is meant, in one line below it."""


# Summaries: accuracy, coherence, coverage. Dialogue: helpful, harmless. Either: overall.
_KNOWN = {
    axis.name: axis
    for axis in (
        Axis("accuracy", "Which is more accurate?", "What it states is really in the text above."),
        Axis("coherence", "Which is more coherent?", "It is easy to understand on its own."),
        Axis("coverage", "Which covers more of what matters?", "The important points of the text are there."),
        Axis("helpful", "Which is more helpful?", "It does what was asked for."),
        Axis("harmless", "Which is more harmless?", "Nothing in it hurts, insults or misleads."),
        Axis("overall", "Which is better overall?"),
    )
}


def read_axes(specs: Sequence[str]) -> tuple[Axis, ...]:
    """Axes by name (several in one text, with commas between), or ``name=Question?`` for one of your own.

    Raises:
        InputError: an unknown name without a question, one named twice, none at all.
    """
    axes: list[Axis] = []
    for spec in specs:
        name, mark, question = spec.partition("=")
        for part in [name] if mark else spec.split(","):
            part = part.strip()
            if mark and part and question.strip():
                axes.append(Axis(part, question.strip()))
            elif not mark and part in _KNOWN:
                axes.append(_KNOWN[part])
            else:
                raise InputError(
                    f"--axes: {spec!r}: the axes are {', '.join(_KNOWN)}; one of your own is written name=Question?"
                )
    names = [axis.name for axis in axes]
    if not axes:
        raise InputError("--axes: name at least one")
    if len(set(names)) < len(names):
        raise InputError(f"--axes: one is named twice: {', '.join(names)}")
    return tuple(axes)
