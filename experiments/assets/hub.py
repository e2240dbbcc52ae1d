"""Reviews and a sentiment classifier from a hub, or from a local file and folder in their place.

``load_reviews`` reads rows of ``stanfordnlp/imdb``'s schema; ``ClassifierReward`` runs a sequence classifier such as
``siebert/sentiment-roberta-large-english``, the reward of the DPO paper. The classifier is the only part of the
experiments that needs torch (extra ``parity``).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from experiments.assets.movie_reviews import MovieReviews, split_reviews
from jaxalign import data, recipes
from jaxalign.errors import InputError

__all__ = ["ClassifierReward", "load_reviews"]

MINIMUM_REVIEWS = 200
"""Of both labels together, after cleaning: with fewer, the parts are too small to fit anything on."""

_NAMES = {"positive": ("positive", "pos"), "negative": ("negative", "neg")}


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


class ClassifierReward:
    """A sequence classifier with the labels negative and positive as a text reward, in nats:

        reward = logit_positive - logit_negative = log P(positive) / P(negative)

    The reward of Rafailov et al. 2023, section 6.1. Weights are read as float32 from safetensors only, and no code that
    comes with a model is run. The model is on a GPU where torch sees one.
    """

    def __init__(self, source: str, *, batch_size: int = 32) -> None:
        """Load the classifier and its tokenizer.

        Args:
            source: a model folder or hub id.
            batch_size: texts scored together; it changes scores by rounding only.

        Raises:
            InputError: torch is not installed, no such model, weights are missing, or the labels are not two of which
                one is named positive (or pos) and one negative (or neg).
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, must be 1 or more")
        self.name = source
        """What tables call it."""
        self.batch_size = batch_size
        torch = _torch(source)
        self._tokenizer = recipes.load_tokenizer(source)
        if self._tokenizer.pad_token_id is None:
            raise InputError(f"{source}: its tokenizer has no padding token")
        self._model = _load(source, torch).to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._positive, self._negative = _label_indices(source, self._model.config.id2label)
        self._max_length = min(_positions(self._model, torch), self._tokenizer.model_max_length)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        """Score prompt + completion: log-odds of positive, float64 ``[N]``, in nats."""
        return self.log_odds([prompt + text for prompt, text in zip(prompts, completions, strict=True)])

    def log_odds(self, texts: Iterable[str]) -> np.ndarray:
        """Log-odds of positive of each text, float64 ``[N]``, in nats; a text is cut to the model's positions."""
        import torch

        texts = list(texts)
        scores = np.zeros(len(texts), np.float64)
        if not texts:
            return scores
        rows = self._tokenizer(texts, truncation=True, max_length=self._max_length)["input_ids"]
        # Texts of like length go together: the least padding.
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            batch = self._tokenizer.pad({"input_ids": [rows[index] for index in chosen]}, return_tensors="pt")
            with torch.inference_mode():
                logits = self._model(**batch.to(self._model.device)).logits.double().cpu().numpy()
            scores[chosen] = logits[:, self._positive] - logits[:, self._negative]
        return scores


def _torch(source: str) -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise InputError(
            f"{source}: a classifier of transformers needs torch; run: pip install 'jaxalign[parity]'"
        ) from error
    return torch


def _load(source: str, torch: Any) -> Any:
    import transformers

    try:
        model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, safetensors errors: all "no model"
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{source}: no classifier that can be read ({reason})") from None
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would leave them random
        raise InputError(
            f"{source}: not a trained classifier: {len(missing)} weights are missing, first {missing[0]!r}"
        )
    return model


def _label_indices(source: str, id2label: dict[int, str]) -> tuple[int, int]:
    """(positive, negative)."""
    found = [
        [index for index, label in id2label.items() if str(label).casefold() in names] for names in _NAMES.values()
    ]
    if len(id2label) != 2 or any(len(indices) != 1 for indices in found):
        labels = ", ".join(f"{index}: {label!r}" for index, label in sorted(id2label.items()))
        raise InputError(
            f"{source}: cannot tell which label is positive; its config's id2label is {{{labels}}}, "
            "needs one 'positive' and one 'negative'"
        )
    (positive,), (negative,) = found
    return positive, negative


def _positions(model: Any, torch: Any) -> int:
    """Tokens that the model's learned positions reach (RoBERTa's are numbered from its padding id + 1).

    Without learned positions, what the config says, or else 512.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return int(getattr(model.config, "max_position_embeddings", None) or 512)
