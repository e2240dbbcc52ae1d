"""The genuine pairs of ``Anthropic/hh-rlhf`` (Bai et al. 2022, arXiv 2204.05862) that lie beside some checkouts.

``data.load_dataset`` reads their rows, as it does the hub's (docs/datasets.md). Of the 1,156 two have an empty chosen
answer and are left out, and four part before the last answer: those need ``on_bad_row="skip"``.

The text is deliberately offensive, for research only: errors name row and field and never quote it.
"""

from pathlib import Path

__all__ = ["packaged_sample"]

_ROOT = Path(__file__).parents[2]


def packaged_sample() -> Path | None:
    """The file of 1,156 genuine harmlessness pairs that lies beside some checkouts, or None where there is none."""
    path = _ROOT.parent / "shared" / "data" / "hh_harmless_sample.jsonl.gz"
    return path if path.is_file() else None
