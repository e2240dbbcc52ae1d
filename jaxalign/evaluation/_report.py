"""One self-contained page: text, tables, figures and samples side by side, with everything that is shown escaped."""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxalign.errors import InputError
from jaxalign.evaluation._plot import STYLE, load_matplotlib
from jaxalign.evaluation._tables import cell_text, table_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ReportFigure", "ReportPart", "ReportSamples", "ReportTable", "ReportText", "html_report"]


@dataclass(frozen=True)
class ReportText:
    """A heading, and paragraphs under it, parted by empty lines; plain text."""

    heading: str
    text: str = ""


@dataclass(frozen=True)
class ReportTable:
    """Rows, as ``markdown_table`` has them, under a caption."""

    caption: str
    rows: Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class ReportFigure:
    """A figure above its caption, which is also what is read out in place of it."""

    caption: str
    figure: "Figure | Path"
    """Or an SVG or PNG file of one."""


@dataclass(frozen=True)
class ReportSamples:
    """What several models wrote for the same prompts: a column a model."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    """(prompt, a text a column)."""


_PICTURES = {".svg": "image/svg+xml", ".png": "image/png"}
_LONG = 60  # characters of a cell that may be broken into lines

ReportPart = ReportText | ReportTable | ReportFigure | ReportSamples

# Nothing is fetched and no script runs, even if an escape were missing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p { max-width: 44rem; white-space: pre-line; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.85rem; border-top: 2px solid; border-bottom: 2px solid; }
th, td { padding: 0.3rem 0.7rem; text-align: left; vertical-align: top; }
thead th { border-bottom: 1px solid; }
td { white-space: nowrap; } td.long { white-space: normal; overflow-wrap: anywhere; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
caption, figcaption { text-align: left; font-size: 0.85rem; color: #555; padding: 0.4rem 0; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
.samples { width: 100%; table-layout: fixed; }
.samples td, .samples th { white-space: pre-wrap; overflow-wrap: anywhere; }
.samples .prompt { background: #f2f4f7; font-weight: 400; border-top: 1px solid #ccc; }
@media print { body { max-width: none; margin: 0; } h2, figure, tr { break-inside: avoid; } }
"""
# Control characters, those that turn the direction of what follows, and those without width: a text could else look
# like another. U+200C and U+200D stay: scripts and emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def html_report(title: str, parts: Sequence[ReportPart]) -> str:
    """The page as text, to be written as UTF-8: inline style, images as data URIs, no script.

    All text is escaped, characters that cannot be seen are written as [U+202E]: what a model wrote is shown, never run.

    Raises:
        InputError: samples whose rows have other numbers of texts than there are columns, or figures without matplotlib
            (the ``eval`` extra), or files that are no pictures.
    """
    body = "\n".join(map(_part, parts))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{_escaped(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _part(part: ReportPart) -> str:
    if isinstance(part, ReportText):
        paragraphs = [text.strip() for text in re.split(r"\n\s*\n", part.text) if text.strip()]
        return "\n".join([f"<h2>{_escaped(part.heading)}</h2>", *(f"<p>{_escaped(text)}</p>" for text in paragraphs)])
    if isinstance(part, ReportTable):
        return _table(part)
    if isinstance(part, ReportFigure):
        return _figure(part)
    return _samples(part)


def _table(part: ReportTable) -> str:
    columns, numeric = table_columns(part.rows)

    def line(cells: Sequence[str], tag: str) -> str:
        row = ""
        for name, cell in zip(columns, cells, strict=True):
            kind = ' class="number"' if name in numeric else ' class="long"' if len(cell) > _LONG else ""
            row += f"<{tag}{kind}>{_escaped(cell)}</{tag}>"
        return f"<tr>{row}</tr>"

    head = line(columns, "th")
    rows = "\n".join(line([cell_text(row.get(name)) for name in columns], "td") for row in part.rows)
    return (
        f'<div class="wide"><table>\n<caption>{_escaped(part.caption)}</caption>\n<thead>{head}</thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _figure(part: ReportFigure) -> str:
    if isinstance(part.figure, Path):
        kind, drawn = _PICTURES.get(part.figure.suffix.lower(), ""), part.figure.read_bytes()
        if not kind:
            raise InputError(f"html_report: {part.figure} is neither an SVG nor a PNG file")
    else:
        kind, buffer = _PICTURES[".svg"], io.BytesIO()
        with load_matplotlib().rc_context(STYLE):
            part.figure.savefig(buffer, format="svg", metadata={"Date": None})
        drawn = buffer.getvalue()
    # As an image, not as markup: nothing in it could run or restyle the page.
    data = base64.b64encode(drawn).decode("ascii")
    caption = _escaped(part.caption)
    return f'<figure><img alt="{caption}" src="data:{kind};base64,{data}">\n<figcaption>{caption}</figcaption></figure>'


def _samples(part: ReportSamples) -> str:
    lines = []
    for number, (prompt, texts) in enumerate(part.rows, start=1):
        if len(texts) != len(part.columns):
            raise InputError(f"html_report: sample {number} has {len(texts)} texts for {len(part.columns)} columns")
        lines.append(f'<tr><th class="prompt" colspan="{len(part.columns)}" dir="auto">{_escaped(prompt)}</th></tr>')
        lines.append("<tr>" + "".join(f'<td dir="auto">{_escaped(text)}</td>' for text in texts) + "</tr>")
    head = "".join(f"<th>{_escaped(name)}</th>" for name in part.columns)
    rows = "\n".join(lines)
    return (
        f'<div class="wide"><table class="samples">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _escaped(text: str) -> str:
    shown = text.replace("\r\n", "\n").replace("\r", "\n")
    shown = _HIDDEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", shown)
    return html.escape(shown, quote=True)
