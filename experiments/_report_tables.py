"""What ``experiments/README.md`` shows between its marks, and what the page shares with it: a part an experiment."""

import re
import textwrap
from collections.abc import Sequence

from experiments._results import Figure, Result, Table
from jaxalign import evaluation

__all__ = [
    "VERDICTS",
    "about",
    "claim_notes",
    "claim_rows",
    "overview_rows",
    "readme_tables",
    "titled",
    "value_rows",
    "value_title",
]

VERDICTS = (
    "A statistic is positive if the claim is true. It holds where its 95 % interval and the values in all training "
    "seeds lie above 0, is reversed where all lie below, and is undecided else, as it is where a trained method has "
    "one seed, or where it is of people and none was asked. So many intervals have no joint guarantee."
)
_WIDTH = 120


def claim_rows(result: Result) -> list[dict[str, object]]:
    """The table of claims; the numbers are those of ``claim_notes``."""
    return [
        {
            "": number, "claim": claim.claim, "found": claim.shown,
            "seeds": max(len(claim.by_seed), 1), "verdict": claim.verdict,
        }
        for number, claim in enumerate(result.claims, start=1)
    ]  # fmt: skip


def claim_notes(result: Result) -> list[str]:
    """Of every claim: the statistic, where the paper says it, and why it came out so."""
    return [
        " ".join(
            f"{text[0].upper()}{_sentence(text)[1:]}."
            for text in (claim.statistic + (f" ({claim.source})" if claim.source else ""), claim.reason)
            if text
        )
        for claim in result.claims
    ]


def value_title(result: Result) -> str:
    """What the table of ``value_rows`` shows."""
    return "The paper's numbers beside ours" if _printed(result) else "Numbers, of which the paper prints none"


def value_rows(result: Result) -> list[dict[str, object]]:
    """The paper's numbers, where it prints any, beside ours."""
    return [
        {"what": value.what, **({"paper": value.paper or "-"} if _printed(result) else {}), "ours": value.shown,
         "seeds": value.seeds}
        for value in result.values
    ]  # fmt: skip


def _printed(result: Result) -> bool:
    return any(value.paper not in ("", "-") for value in result.values)


def overview_rows(results: Sequence[Result]) -> list[dict[str, object]]:
    """A row an experiment: how its claims came out, and what it took."""
    rows = []
    for result in results:
        verdicts = [claim.verdict for claim in result.claims]
        counts = {name: verdicts.count(name) for name in ("holds", "undecided", "reversed")}
        row = {"experiment": result.experiment, "preset": result.preset, **counts}
        rows.append(row | {"training seeds": result.seeds, "minutes": round(result.seconds / 60)})
    return rows


def about(result: Result) -> list[str]:
    """Paragraphs: the setting, the judges, what to know before believing it."""
    judges = "; ".join(f"{axis}: {judge}" for axis, judge in result.judges.items())
    return [
        _sentence(text) + "."
        for text in (result.setting, f"Judged by {judges}" if judges else "", *result.remarks)
        if text
    ]


def titled(shown: Figure | Table) -> str:
    """Its caption, with what it is of."""
    return f"{_sentence(shown.caption)} ({shown.of})" if shown.of else shown.caption


def readme_tables(results: Sequence[Result], images: str = "../docs/images") -> str:
    """What stands between the marks; ``images``: the figures' folder, from the file's."""
    parts = [_wrapped(VERDICTS), evaluation.markdown_table(overview_rows(results))]
    for result in results:
        parts += [f"### {result.title}", f"    python -m experiments.{result.experiment} --preset {result.preset}"]
        parts += map(_wrapped, about(result))
        if result.claims:
            notes = enumerate(claim_notes(result), start=1)
            parts.append(evaluation.markdown_table(claim_rows(result)))
            parts.append("\n".join(_wrapped(note, f"{number}. ") for number, note in notes))
        if result.values:
            parts += [f"{value_title(result)}:", evaluation.markdown_table(value_rows(result))]
        for table in result.tables:
            if table.shown:
                parts += [_wrapped(titled(table) + ":"), evaluation.markdown_table(table.rows)]
        for figure in result.figures:
            if figure.image:
                parts += [_wrapped(titled(figure) + ":"), f"![{_plain(figure.caption)}]({images}/{figure.image})"]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _sentence(text: str) -> str:
    return text.strip().removesuffix(".")


def _plain(text: str) -> str:
    """No HTML, whatever a claim compares."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _wrapped(text: str, first: str = "") -> str:
    """Lines of Markdown, none of which begins like a list, a heading or a quotation."""
    glued = re.sub(r" (?=[-+*#>]|\d+[.)]( |$))", "\0", _plain(text))
    lines = textwrap.wrap(
        glued, _WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(lines).replace("\0", " ")
