"""Markdown pages as the tests read them: fenced blocks, indented commands, links, headings; and how a block is run.

The rules, for README.md and docs/: a ``python`` block is executed (those of a page share their names, in order), a
``bash`` block is run, an indented line that begins with ``jaxalign`` is parsed by the real command line. A block that
is not run says so in the page's source, on the line above it: ``<!-- not run: WHY -->``.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
RUN = ("bash", "python")
SHOWN = ("text", "toml")
"""Languages of blocks that only show something."""

_FENCE = re.compile(r"^(```+)([^\n]*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: ([^>]+) -->\n\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None
    """Why it is not run, as the page says."""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    source = page.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(source):
        before = source[: fence.start()]
        why = _NOT_RUN.search(before)
        found.append(Block(page, before.count("\n") + 2, fence[2].strip(), fence[3], why and why[1]))
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks, whose lines stay empty."""
    return _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), page.read_text(encoding="utf-8"))


def commands(text: str) -> Iterator[str]:
    """The statements of a shell block: a line with its continuations, its here-document, its quoted lines."""
    lines = iter(text.splitlines())
    for line in lines:
        statement = line
        if not statement.strip() or statement.lstrip().startswith("#"):
            continue
        while statement.endswith("\\"):
            statement = f"{statement[:-1]} {next(lines, '').strip()}"
        if document := re.search(r"<<-?\s*'?(\w+)'?", statement):
            for line in lines:
                statement += f"\n{line}"
                if line.strip() == document[1]:
                    break
        else:
            while _quote_is_open(statement) and (line := next(lines, None)) is not None:
                statement += f"\n{line}"
        yield statement


def _quote_is_open(statement: str) -> bool:
    try:
        shlex.split(statement, comments=True)
    except ValueError:
        return True
    return False


def parsed_commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """(place, arguments) of every ``jaxalign`` command that is not run: indented, or in a block that says so."""
    texts = [(0, "\n".join(line[4:] if line.startswith("    ") else "" for line in prose(page).splitlines()))]
    texts += [(block.line - 1, block.text) for block in blocks(page) if block.not_run]
    for first, text in texts:
        lines = text.splitlines()
        for number, line in enumerate(lines):
            if line.startswith("jaxalign ") and not line.startswith("jaxalign COMMAND"):
                statement = next(commands("\n".join(lines[number:])))
                place = f"{page.relative_to(ROOT)}:{first + number + 1}"
                yield place, shlex.split(statement, comments=True)[1:]


def links(page: Path) -> list[str]:
    """Where the page's links and images lead, those within the project: ``path``, ``path#anchor``, ``#anchor``."""
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page)))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = base = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = 0
        while anchor in found:
            number += 1
            anchor = f"{base}-{number}"
        found.add(anchor)
    return found


def shell(command: list[str], folder: Path, timeout: float = 900, **variables: str) -> str:
    """Run a command as a reader would, in ``folder``; its standard output."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache")),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment | variables, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def execute(block: Block, names: dict[str, Any]) -> None:
    """Run a block in this process and the current folder: Python with ``names``, a shell's ``jaxalign`` as a call."""
    if block.language == "python":
        # Blank lines before it, so that a traceback shows the page's own line.
        exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), names)
        return
    from jaxalign.cli import main

    for statement in commands(block.text):
        if statement.startswith("jaxalign "):
            status = main(shlex.split(statement, comments=True)[1:])
            assert status == 0, f"{block.place}: status {status}: {statement}"
        else:
            print(shell(["bash", "-euo", "pipefail", "-c", statement], Path.cwd()), end="")


def experiment_commands(file: Path) -> Iterator[tuple[str, str, list[str]]]:
    """(place, module, arguments) of every ``python -m experiments.MODULE`` of a page or a module, wherever it stands.

    Such a command ends with the code mark or the line that it stands in, a remark in brackets set off from it, or a
    comment; "..." and the brackets around what may be left out are not its own.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        for found in re.finditer(r"python -m experiments\.([a-z][\w.]*)([^`\n]*)", line):
            statement, following = found[2], iter(lines[number + 1 :])
            while statement.endswith("\\"):
                statement = f"{statement[:-1]} {next(following, '').strip()}"
            statement = re.split(r"\s{2,}\(| -->|\"", statement)[0]
            words = shlex.split(re.sub(r"[][]", "", statement), comments=True)
            place = f"{file.relative_to(ROOT)}:{number + 1}"
            yield place, f"experiments.{found[1].rstrip('.')}", [word for word in words if word != "..."]
