"""Reviews and a sentiment classifier from a hub, or from a local file and folder in their place.

``load_reviews`` reads rows of ``stanfordnlp/imdb``'s schema; ``SentimentClassifier`` runs a sequence classifier such as
``siebert/sentiment-roberta-large-english``, the reward of the DPO paper.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from experiments.assets.movie_reviews import MovieReviews, split_reviews
from jaxalign import data, sampling
from jaxalign.errors import InputError

__all__ = ["SentimentClassifier", "load_reviews"]

MINIMUM_REVIEWS = 200
"""Of both labels together, after cleaning: with fewer, the parts are too small to fit anything on."""


def load_reviews(source: str, seed: int) -> MovieReviews:
    """Read, clean, shuffle and split labelled reviews as ``load_movie_reviews`` does; the parts of sentences are empty.

    Args:
        source: a hub id, a file (JSONL, JSON, CSV, Parquet) or a saved folder of rows with the fields ``text`` and
            ``label`` (1 positive, 0 negative); of a data set with splits, "train".
        seed: decides which review is in which part.

    Raises:
        InputError: no such source, a row of another form, or too few reviews of a label.
    """
    reviews = split_reviews(_rows(data.load_records(source)), seed)
    count = sum(len(part) for part in (reviews.sft, reviews.reward, reviews.judge, reviews.prompts))
    if count < MINIMUM_REVIEWS:
        raise InputError(
            f"{source}: {count} reviews after balancing the labels and dropping repeated texts, "
            f"at least {MINIMUM_REVIEWS} are needed"
        )
    return reviews


def _rows(records: data.Records) -> Iterator[tuple[str, int, bool]]:
    for index, record in enumerate(records):
        text, label = record.get("text"), record.get("label")
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{records.place(index)}: field 'text': needs a review, a string that is not empty")
        if not isinstance(label, int) or label not in (0, 1):
            raise InputError(
                f"{records.place(index)}: field 'label': needs 0 (negative) or 1 (positive), got {label!r:.40}"
            )
        yield text, int(label), False


class SentimentClassifier:
    """A sequence classifier with a label named positive as a text reward, in nats:

        reward = log P(positive) / P(not positive)

    With two labels logit_positive - logit_negative, the reward of Rafailov et al. 2023, section 6.1.
    """

    def __init__(self, source: str, *, batch_size: int = 32) -> None:
        """Load the classifier and its tokenizer.

        Args:
            source: a model folder or hub id.
            batch_size: texts scored together; it changes scores by rounding only.

        Raises:
            InputError: no such classifier, or not one label is named positive (or pos).
        """
        self.name = source
        """What tables call it."""
        # Whole reviews are only scored to measure its accuracy; what is sampled is short.
        self._reward = sampling.classifier_reward(
            source, label=("positive", "pos"), batch_size=batch_size, truncation="keep_start"
        )

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        """Score prompt + completion: log-odds of positive, float64 ``[N]``, in nats."""
        return self._reward(prompts, completions)

    def log_odds(self, texts: Iterable[str]) -> np.ndarray:
        """Log-odds of positive of each text, float64 ``[N]``, in nats; a text is cut to the model's positions."""
        return self._reward.score(list(texts))
