"""The one exception that means "the input is wrong, not the program", and what was probably meant instead."""

import difflib
from collections.abc import Collection, Iterable
from pathlib import Path

__all__ = ["InputError", "did_you_mean", "nearest", "nearest_path"]

# Entries of a folder that are looked at for a name near the one that is missing.
MOST_ENTRIES = 10_000


class InputError(ValueError):
    """Bad input from the user: a file, row, field, flag or folder.

    The message is one line that names what is wrong and where. The command line prints it without a traceback and
    exits with status 2; in a notebook it is an ordinary ``ValueError``.
    """


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Which of the known names was probably meant, whatever its case; None where none is near."""
    own = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), own, n=1)
    return own[near[0]] if near else None


def did_you_mean(name: str, known: Collection[str], *, what: str = "known:", quoted: bool = True) -> str:
    """The end of a message that refuses a name: the nearest of the known ones, or (``what`` and ...) all of them."""
    near = nearest(name, known)
    if near is None:
        return f"{what} {', '.join(known)}"
    return f"did you mean {near!r}?" if quoted else f"did you mean {near}?"


def nearest_path(path: str | Path) -> str:
    """``"; did you mean FILE?"`` for what is missing, where its folder has something of a name near it; else ``""``."""
    missing = Path(path).expanduser()
    try:
        entries = [entry.name for entry, _ in zip(missing.parent.iterdir(), range(MOST_ENTRIES), strict=False)]
    except (OSError, ValueError):  # no such folder, no permission, a name no system takes
        return ""
    kind = missing.suffix.lower()  # verdicts.sqlite is not meant by verdicts.jsonl, verdicts.json may be
    entries = [name for name in entries if not kind or difflib.get_close_matches(kind, [Path(name).suffix.lower()])]
    near = nearest(missing.name, sorted(name for name in entries if not name.startswith(".")))
    return "" if near is None or not missing.name else f"; did you mean {Path(path).parent / near}?"
