"""A notebook in percent format as cells, executed one after the other; what fails names its cell and line.

python -m tests.notebook_cells notebooks/1_losses_from_scratch.py '{"STEPS": 10}'
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MARKER = re.compile(r"^# %%(?P<markdown> \[markdown\])?(?P<rest>.*)$")


@dataclass(frozen=True)
class Cell:
    """A cell and where it stands."""

    number: int
    """From 1, text cells counted, as Jupyter shows them from top to bottom."""
    line: int
    """Of the file, from 1: that of the cell's marker."""
    source: str
    """What follows the marker."""
    markdown: bool
    parameters: bool
    """Whether it is tagged "parameters": what it assigns may be assigned anew."""


def read_cells(path: Path) -> list[Cell]:
    """All cells of a file in percent format; what stands before the first marker is its header."""
    lines = path.read_text(encoding="utf-8").splitlines()
    marks = [(index, found) for index, line in enumerate(lines) if (found := _MARKER.match(line))]
    ends = [index for index, _ in marks[1:]] + [len(lines)]
    return [
        Cell(
            number=number,
            line=index + 1,
            source="\n".join(lines[index + 1 : end]),
            markdown=found["markdown"] is not None,
            parameters='"parameters"' in found["rest"],
        )
        for number, ((index, found), end) in enumerate(zip(marks, ends, strict=True), start=1)
    ]


def execute(path: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Run every code cell in one namespace, which is returned; ``parameters`` are set after the cell of that tag.

    Raises:
      ValueError: a parameter that the cell does not assign.
      Exception: whatever a cell raises, with a note that says which cell, at which line, under which heading.
    """
    namespace: dict[str, Any] = {"__name__": "__main__", "__file__": str(path)}
    heading = ""
    for cell in read_cells(path):
        if cell.markdown:
            headings = re.findall(r"^# #+ (.*)$", cell.source, re.MULTILINE)
            heading = headings[-1] if headings else heading
            continue
        # As many lines before it as in the file, so that a traceback has the file's own.
        code = compile("\n" * cell.line + cell.source, str(path), "exec")
        try:
            exec(code, namespace)
        except Exception as error:
            frame, line = error.__traceback__, cell.line
            while frame is not None:
                if frame.tb_frame.f_code.co_filename == str(path):
                    line = frame.tb_lineno
                frame = frame.tb_next
            error.add_note(f"{path.name}, cell {cell.number} ({heading!r}), line {line}")
            raise
        if cell.parameters:
            if unknown := parameters.keys() - namespace.keys():
                raise ValueError(f"{path.name}: the parameters cell does not assign {sorted(unknown)}")
            namespace |= parameters
            parameters = {}
    if parameters:
        raise ValueError(f"{path.name}: no cell is tagged parameters, but {sorted(parameters)} are given")
    return namespace


if __name__ == "__main__":
    execute(Path(sys.argv[1]), json.loads(sys.argv[2]))
