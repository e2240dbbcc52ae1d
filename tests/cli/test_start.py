"""``jaxalign`` alone shows where to start, in a pipe as on a terminal."""

import io
import re
import sys

import pytest

from jaxalign.cli import main
from jaxalign.cli._main import COMMANDS
from jaxalign.cli._start import FIRST, show_start


def test_it_shows_the_road_first_commands_and_every_command(shell):
    status, output, errors = shell()
    assert (status, errors) == (0, "")
    assert "\x1b" not in output
    for said in ("sft", "reward ── ppo", "dpo", "hindsight", "sample ── evaluate", "docs/", *FIRST):
        assert said in output
    for name, command in COMMANDS.items():
        assert re.search(rf"^  jaxalign {name} +{re.escape(command.summary)}$", output, re.MULTILINE)


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


@pytest.mark.parametrize("kind", [io.TextIOWrapper, Terminal])
def test_an_encoding_without_lines_gets_plain_ones(kind, monkeypatch):
    stream = kind(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    show_start({"sft": "learn"})
    stream.flush()
    assert b"--- reward -- ppo --" in re.sub(rb"\x1b\[[\d;]*m", b"", stream.buffer.getvalue()).replace(b"+-", b"--")


def test_a_terminal_has_the_same_words_in_colour(monkeypatch, shell):
    plain = shell()[1]
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr("sys.stdout", stream)
    assert main([]) == 0
    stream.flush()
    text = stream.buffer.getvalue().decode()
    assert "\x1b[" in text
    words = re.sub(r"\x1b\[[\d;]*m", "", text).split()
    assert words == plain.split()
    assert sys.stdout is stream


@pytest.mark.parametrize("command", FIRST)
def test_the_first_commands_are_ones_that_parse(command, shell, monkeypatch):
    """``doctor`` is run by its own tests, plans by theirs: here the flags."""
    from jaxalign.cli import _doctor, _plan

    called = []
    monkeypatch.setattr(_doctor, "run", lambda config: called.append(config))
    monkeypatch.setattr(_plan, "run", lambda config, kind: called.append(config))
    assert shell(*command.split()[1:])[0] == 0
    assert len(called) == 1
