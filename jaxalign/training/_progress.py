"""What a person sees while a run trains: a bar on a terminal, plain lines in a log."""

import collections
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import jax

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = ("loss", "margin", "reward_margin", "accuracy")
"""Metrics shown beside the speed, where a run has them."""


class Progress:
    """Shows steps, loss, reward margin, tokens/s and time left. Use as a context manager.

    On a terminal it is a bar that refreshes in place; elsewhere it is one line every ``every`` steps, and one for the
    last step; where it begins later than at step 0 it says so first. The first step is left out of the speed, because
    it waits for the compiler. Only process 0 shows anything.

    Args:
        total: number of steps of the whole run.
        start: number of steps done before (a resumed run).
        title: the word in front.
        every: steps between lines in a log.
        shown: names of the metrics to show, where present.
        console: a ``rich.console.Console``; standard error if None.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        title: str = "train",
        every: int = 10,
        shown: tuple[str, ...] = SHOWN,
        console: "Console | None" = None,
    ) -> None:
        if console is None:
            from rich.console import Console

            console = Console(stderr=True)
        self.total, self.start, self.title, self.every, self.shown = total, start, title, max(every, 1), shown
        self._console = console
        self._active = jax.process_index() == 0
        self._times: collections.deque[tuple[int, float, int]] = collections.deque(maxlen=50)
        self._tokens = 0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if self._active and self.start:
            self.say(f"{self.title} continues from step {self.start} of {self.total}")
        if self._active and self._console.is_terminal:
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[values]}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.start, values="compiling")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, values: Mapping[str, float], tokens: int = 0) -> None:
        """Show that ``step`` updates are done.

        Args:
            step: number of updates done.
            values: this step's metrics.
            tokens: number of tokens of this step.
        """
        self._tokens += tokens
        self._times.append((step, time.monotonic(), self._tokens))
        parts = [f"{name.replace('_', ' ')} {values[name]:.4g}" for name in self.shown if name in values]
        (first, begin, before), (last, end, after) = self._times[0], self._times[-1]
        if last > first and end > begin:
            if after > before:
                parts.append(f"{(after - before) / (end - begin):,.0f} tokens/s")
            parts.append(f"{_clock((self.total - step) * (end - begin) / (last - first))} left")
        text = "  ".join(parts)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, values=text)
        elif self._active and (step % self.every == 0 or step in (self.total, self.start + 1)):
            self.say(f"{self.title} {step}/{self.total}  {text}")

    def say(self, line: str) -> None:
        """Print one plain line (above the bar, on a terminal)."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
