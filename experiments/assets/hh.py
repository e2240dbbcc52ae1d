"""Pairs of the schema of ``Anthropic/hh-rlhf`` (Bai et al. 2022, arXiv 2204.05862), from a hub or from a file.

A row has two fields, ``chosen`` and ``rejected``: each a whole dialogue in one string of turns that begin with
"\\n\\nHuman:" and "\\n\\nAssistant:". The two share their beginning, the prompt, which ``jaxalign.data`` splits off.
A few answers are empty (2 of the sample's 1,156 chosen ones): build examples with ``on_bad_row="skip"``.

The text is deliberately offensive, for research only: errors here name row and field and never quote it.
"""

from pathlib import Path

from jaxalign import data
from jaxalign.errors import InputError

__all__ = ["load_hh", "packaged_sample"]

_ROOT = Path(__file__).parents[2]
_TURNS = ("\n\nHuman:", "\n\nAssistant:")


def load_hh(path_or_hub_id: str, split: str = "train") -> data.Records:
    """Rows of a source of this schema, each checked.

    Args:
        path_or_hub_id: as ``data.load_records`` has it.
        split: of a hub id or a saved folder; a single file has only "train".

    Raises:
        InputError: no such source, or a row whose ``chosen`` or ``rejected`` is not a dialogue.
    """
    records = data.load_records(path_or_hub_id, split)
    for index, record in enumerate(records):
        for field in ("chosen", "rejected"):
            dialogue = record.get(field)
            if not isinstance(dialogue, str) or not all(turn in dialogue for turn in _TURNS):
                raise InputError(
                    f"{records.place(index)}: field {field!r}: needs a dialogue, "
                    f"a string with turns {_TURNS[0]!r} and {_TURNS[1]!r}"
                )
    return records


def packaged_sample() -> Path | None:
    """The file of 1,156 genuine harmlessness pairs that lies beside some checkouts, or None where there is none."""
    path = _ROOT.parent / "shared" / "data" / "hh_harmless_sample.jsonl.gz"
    return path if path.is_file() else None
