"""How far a command is, on standard error: a bar on a terminal, a line now and then in a log."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["OnProgress", "progress"]

OnProgress = Callable[[int, int], None]

SECONDS_BETWEEN_LINES = 30.0


@contextlib.contextmanager
def progress(title: str, total: int, unit: str, console: "Console | None" = None) -> Iterator[OnProgress]:
    """Show what is done of ``total``; yields what is to be called as ``(done, total)``.

    A log has one line at the beginning and then one every half a minute at most, whatever is called how often.

    Args:
        title: what is being done, "sampling".
        total: of it, before anything else is known.
        unit: what is counted, "completions".
        console: a ``rich.console.Console``; standard error if None.
    """
    from rich import progress as bars

    if console is None:
        from rich.console import Console

        console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn(unit, markup=False),
            bars.TimeElapsedColumn(),
        )
        with bars.Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last = time.monotonic()

    def say(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            console.print(f"{title}: {done} of {total} {unit}", highlight=False, markup=False, soft_wrap=True)

    console.print(f"{title}: {total} {unit}", highlight=False, markup=False, soft_wrap=True)
    yield say
