"""How far a command is: a bar on a terminal, a line now and then in a log."""

import io

from rich.console import Console

from jaxalign.cli import _progress


def test_a_log_has_a_line_at_the_beginning_and_then_one_every_half_a_minute(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=10)
    with _progress.progress("sampling", 8, "completions", console) as report:
        for done in range(1, 9):
            now[0] += 13.0
            report(done, 8)
    assert console.file.getvalue().splitlines() == [
        "sampling: 8 completions",
        "sampling: 3 of 8 completions",
        "sampling: 6 of 8 completions",
    ]


def test_a_terminal_has_a_bar_that_goes_away():
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=80, _environ={})
    with _progress.progress("judging", 4, "comparisons", console) as report:
        report(3, 5)  # a further round may be of more
    shown = console.file.getvalue()
    assert "judging" in shown
    assert "3/5 comparisons" in shown
    assert shown.endswith("\x1b[2K")  # the line is cleared
