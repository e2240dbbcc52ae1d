"""From flags to a config: tyro parses, and whatever it finds wrong leaves here as one line."""

import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxalign.errors import InputError, did_you_mean, nearest

__all__ = ["parse", "with_preset", "without_aliases"]


def parse(config: type, flags: Sequence[str], *, program: str, summary: str) -> Any:
    """Make the frozen dataclass ``config`` of command-line flags.

    ``--help`` prints and raises ``SystemExit(0)``, as the parser does.

    Raises:
      InputError: an unknown flag (naming the nearest one), a missing one, a value that cannot be read, or what the
        config's own checks refuse.
    """
    import tyro

    known = dict(_names(config))
    given: list[str] = []
    for token, following in zip(flags, [*flags, "--"][1:], strict=True):
        name = token.split("=", 1)[0].replace("_", "-")
        given.append(token)
        if known.get(name) is bool and "=" not in token and following.startswith("--"):
            given.append("True")  # ``--packing`` alone means ``--packing True``
        if token.startswith("--") and len(name) > 2 and name not in known and not name.startswith(("--help", "--tyro")):
            near = nearest(name, known)
            hint = f"did you mean {near}?" if near else f"{program} --help lists them all"
            raise InputError(f"unknown flag {token.split('=', 1)[0]}; {hint}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                config,
                args=given,
                prog=program,
                description=summary,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(_one_line(said.getvalue())) from None


def without_aliases(flags: Sequence[str], aliases: Mapping[str, str]) -> list[str]:
    """The flags by their own names; ``aliases`` has these by the others."""
    parts = [token.partition("=") for token in flags]
    return [aliases.get(name, name) + mark + value for name, mark, value in parts]


def with_preset(
    flags: Sequence[str], presets: Mapping[str, Mapping[str, Any]], yields: Mapping[str, str] | None = None
) -> list[str]:
    """The flags with ``--preset NAME`` replaced by what it stands for; flags that are given as well win.

    So does a flag that says the same otherwise: ``yields`` has its name by that of the preset's setting.

    Raises:
      InputError: a preset that is not there, or none.
    """
    found, rest, waiting = None, [], False
    for token in flags:
        if waiting:
            found, waiting = token, False
        elif presets and token.split("=", 1)[0] == "--preset":
            waiting = "=" not in token
            found = None if waiting else token.split("=", 1)[1]
        else:
            rest.append(token)
    if waiting or (found is not None and found not in presets):
        got = f", got {found}; {did_you_mean(found, presets)}" if found else ""
        raise InputError(f"--preset: expected one of {', '.join(presets)}{got}")
    given = {token.split("=", 1)[0].replace("_", "-") for token in rest}
    for name, value in presets.get(found or "", {}).items():
        names = (name, (yields or {}).get(name, name))
        flag = "--" + name.replace("_", "-")
        if not given.intersection("--" + other.replace("_", "-") for other in names):
            rest += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return rest


def _names(config: type) -> Iterator[tuple[str, Any]]:
    """The flags of a config with their types; those of a config inside it stand beside its own."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _names(typing.cast(type, hints[field.name]))
        else:
            yield "--" + field.name.replace("_", "-"), hints[field.name]


def _one_line(box: str) -> str:
    """What the parser drew as a box, as one line: its words up to the first rule, below which stands where help is.

    The parser has no public way to get at its reasons, so its words are read. It draws ``╭─ title ─╮``, ``│ text │``;
    where standard output is not UTF-8, a title, a rule and indented text.
    """
    rows = [re.sub(r"\x1b\[[\d;]*m", "", row).strip() for row in box.splitlines()]
    parts: list[list[str]] = [[]]
    for row in [row.strip("│").strip() for row in rows if row and row[0] not in "╭╰"]:
        if re.fullmatch(r"[─-]{8,}", row):
            parts.append([])
        else:
            parts[-1].append(row)
    said = parts[0] if any(row.startswith("╭") for row in rows) else parts[min(1, len(parts) - 1)]
    if said and said[0].startswith("Missing from"):
        required = [found[1] for row in said if (found := re.fullmatch(r"(--[\w-]+) [A-Z]+", row))]
        return f"missing: {', '.join(required)}"
    # A config's own check names the flag itself; the parser puts the config's name before it.
    line = re.sub(r"^Error parsing \w+: ", "", " ".join(said).strip())
    return _choice(line)


def _choice(line: str) -> str:
    """The parser's refusal of a choice in our words, with the nearest one; any other line as it is."""
    found = re.fullmatch(r"invalid choice '(.*)' for argument '(--[\w-]+)'\. Expected one of \((.*)\)\.", line)
    if found is None:
        return line
    value, flag, listed = found.groups()
    known = re.findall(r"'([^']*)'", listed)
    if "None" in known:  # the parser has the choices of an optional flag in the order of a set
        known = sorted(known, key=lambda choice: (choice == "None", choice))
    near = nearest(value, known)
    hint = f"; did you mean {near!r}?" if near else ""
    return f"{flag}: expected one of {', '.join(known)}, got {value!r}{hint}"
