"""Two judges of sentiment of different kinds, fitted on disjoint reviews: one is the reward, the other checks it.

``TfidfReward``: word 1-2-grams, TF-IDF, logistic regression: a discriminative model of words.
``CharacterJudge``: character 5-6-grams, TF-IDF, multinomial naive Bayes: a generative model of spellings.

A policy that learns the quirks of the first finds no help in them with the second. Both return the log-odds of
"positive" (natural logarithm) of prompt + completion, as float64, and both see whole reviews, their first 40 words
and single sentences when fitted, because what they will read is short.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from experiments._stages import Stages, digest
from experiments.assets.movie_reviews import Reviews
from jaxalign.errors import InputError

__all__ = ["CharacterJudge", "SentimentModel", "TfidfReward", "accuracies", "fit_or_load"]

PREFIX_WORDS = 40
"""Whole reviews are also seen cut to this many words: about the length of a prompt with its completion."""

_FILES = ("model.json", "weights.npz")
Model = TypeVar("Model", bound="SentimentModel")


class Scorer(Protocol):
    """Anything that gives texts their log-odds of positive."""

    def log_odds(self, texts: Iterable[str]) -> np.ndarray: ...


class SentimentModel(ABC):
    """A linear sentiment model: score = features . weights + intercept, in nats of log-odds.

    Instances come from ``fit`` or ``load``; both hold nothing but arrays and settings and score through the same
    code, so a model that was saved and loaded gives the same scores bit for bit.
    """

    name: ClassVar[str]
    settings: ClassVar[dict[str, Any]]
    """What decides the fit besides the data: part of the key under which a fitted model is kept."""

    def __init__(self, arrays: Mapping[str, np.ndarray], vocabulary: Sequence[str] = ()) -> None:
        self.arrays = dict(arrays)
        self.vocabulary = tuple(vocabulary)

    @classmethod
    @abstractmethod
    def fit(cls: type[Model], reviews: Reviews, sentences: Reviews) -> Model:
        """Fit on reviews, their first words, and sentences (there may be none); deterministic."""

    @abstractmethod
    def log_odds(self, texts: Iterable[str]) -> np.ndarray:
        """Log-odds of positive of each text, float64 ``[N]``, in nats."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        """Score prompt + completion: log-odds of positive, float64 ``[N]``, in nats."""
        return self.log_odds([prompt + text for prompt, text in zip(prompts, completions, strict=True)])

    def probability(self, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        """Probability of positive of prompt + completion, float64 ``[N]``."""
        return 0.5 * (1.0 + np.tanh(0.5 * self(prompts, completions)))

    def save(self, folder: Path) -> None:
        """Write ``model.json`` (name, settings, vocabulary) and ``weights.npz`` into an existing folder."""
        meta = {"name": self.name, "settings": self.settings, "vocabulary": self.vocabulary}
        (folder / _FILES[0]).write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")
        np.savez_compressed(folder / _FILES[1], allow_pickle=False, **self.arrays)

    @classmethod
    def load(cls: type[Model], folder: Path) -> Model:
        """Read what ``save`` wrote. Raises ``InputError`` where the folder holds no model of this class."""
        try:
            meta = json.loads((folder / _FILES[0]).read_text(encoding="utf-8"))
            with np.load(folder / _FILES[1], allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError) as error:
            raise InputError(f"{folder.name}: no readable {cls.name} ({error})") from error
        if (meta.get("name"), meta.get("settings")) != (cls.name, cls.settings):
            raise InputError(f"{folder.name}: holds {meta.get('name')!r} with other settings, not this {cls.name}")
        return cls(arrays, meta["vocabulary"])


def accuracies(model: Scorer, reviews: Reviews, sentences: Reviews) -> dict[str, float]:
    """Accuracy on held-out reviews, on their first 40 words, and on held-out sentences; where there are none, none."""
    parts = {
        "full reviews": reviews,
        f"{PREFIX_WORDS}-word prefixes": reviews.prefixes(PREFIX_WORDS),
        "sentences": sentences,
    }
    return {
        name: float(np.mean((model.log_odds(part.texts) > 0) == (part.labels == 1)))
        for name, part in parts.items()
        if len(part)
    }


def fit_or_load(kind: type[Model], reviews: Reviews, sentences: Reviews, stages: Stages) -> Model:
    """A fitted model, kept under ``stages`` by the content of its data and its settings: fitted once."""
    data = digest(reviews.texts, reviews.labels, sentences.texts, sentences.labels)
    return stages.stage(
        kind.name,
        {"settings": kind.settings, "data": data},
        lambda report: kind.fit(reviews, sentences),
        lambda folder, model: model.save(folder),
        kind.load,
    )


class TfidfReward(SentimentModel):
    """TF-IDF of word 1-2-grams (tf = 1 + ln count, rows of unit length) and logistic regression."""

    name = "tfidf-reward"
    settings: ClassVar[dict[str, Any]] = {
        "words": [1, 2],
        "min_documents": 3,
        "inverse_regularisation": 4.0,
        "iterations": 200,
        "prefix_words": PREFIX_WORDS,
    }

    @classmethod
    def fit(cls, reviews: Reviews, sentences: Reviews) -> "TfidfReward":
        text_features, linear = _sklearn("feature_extraction.text"), _sklearn("linear_model")
        texts, labels = _with_prefixes(reviews, sentences)
        counter = text_features.CountVectorizer(
            ngram_range=tuple(cls.settings["words"]), min_df=cls.settings["min_documents"]
        )
        counts = counter.fit_transform(texts)
        inverse_frequency = _inverse_document_frequency(counts)
        regression = linear.LogisticRegression(
            C=cls.settings["inverse_regularisation"], max_iter=cls.settings["iterations"]
        ).fit(_tfidf(counts, inverse_frequency), labels)
        return cls(
            {
                "inverse_frequency": inverse_frequency,
                "weights": regression.coef_[0],
                "intercept": regression.intercept_,
            },
            [str(term) for term in counter.get_feature_names_out()],
        )

    def log_odds(self, texts: Iterable[str]) -> np.ndarray:
        counter = _sklearn("feature_extraction.text").CountVectorizer(
            ngram_range=tuple(self.settings["words"]), vocabulary=self.vocabulary
        )
        features = _tfidf(counter.transform(texts), self.arrays["inverse_frequency"])
        return np.asarray(features @ self.arrays["weights"] + self.arrays["intercept"], np.float64)


class CharacterJudge(SentimentModel):
    """TF-IDF of hashed character 5-6-grams (presence only, rows of unit length) and multinomial naive Bayes.

    Naive Bayes counts overlapping n-grams as independent witnesses, so its raw log-odds are far too sure. A slope and
    an offset (Platt scaling) are fitted on the 40-word prefixes of a tenth of the reviews, which naive Bayes did not
    see: the returned log-odds mean what they say on texts of that length.
    """

    name = "character-judge"
    settings: ClassVar[dict[str, Any]] = {
        "characters": [5, 6],
        "hash_bits": 20,
        "smoothing": 0.1,
        "calibration_part": 10,
        "prefix_words": PREFIX_WORDS,
    }

    @classmethod
    def fit(cls, reviews: Reviews, sentences: Reviews) -> "CharacterJudge":
        bayes, linear = _sklearn("naive_bayes"), _sklearn("linear_model")
        held = max(len(reviews) // cls.settings["calibration_part"], 2)
        calibration = reviews.take(held).prefixes(PREFIX_WORDS)
        if len(set(calibration.labels.tolist())) < 2:
            raise InputError(
                f"{cls.name}: {len(reviews)} reviews are too few: the {held} to calibrate on have one label"
            )
        texts, labels = _with_prefixes(Reviews(reviews.texts[held:], reviews.labels[held:]), sentences)
        presence = cls._hashed(texts)
        inverse_frequency = _inverse_document_frequency(presence)
        model = bayes.MultinomialNB(alpha=cls.settings["smoothing"]).fit(_tfidf(presence, inverse_frequency), labels)
        weights = model.feature_log_prob_[1] - model.feature_log_prob_[0]
        offset = model.class_log_prior_[1] - model.class_log_prior_[0]
        raw = _tfidf(cls._hashed(calibration.texts), inverse_frequency) @ weights + offset
        platt = linear.LogisticRegression(C=1e6).fit(raw[:, None], calibration.labels)
        slope = platt.coef_[0, 0]
        return cls(
            {
                "inverse_frequency": inverse_frequency,
                "weights": slope * weights,
                "intercept": slope * offset + platt.intercept_,
            }
        )

    def log_odds(self, texts: Iterable[str]) -> np.ndarray:
        features = _tfidf(self._hashed(texts), self.arrays["inverse_frequency"])
        return np.asarray(features @ self.arrays["weights"] + self.arrays["intercept"], np.float64)

    @classmethod
    def _hashed(cls, texts: Iterable[str]) -> Any:
        return (
            _sklearn("feature_extraction.text")
            .HashingVectorizer(
                analyzer="char",
                ngram_range=tuple(cls.settings["characters"]),
                n_features=2 ** cls.settings["hash_bits"],
                binary=True,
                alternate_sign=False,
                norm=None,
            )
            .transform(texts)
        )


def _with_prefixes(reviews: Reviews, sentences: Reviews) -> tuple[list[str], np.ndarray]:
    texts = [*reviews.texts, *reviews.prefixes(PREFIX_WORDS).texts, *sentences.texts]
    return texts, np.concatenate([reviews.labels, reviews.labels, sentences.labels])


def _inverse_document_frequency(counts: Any) -> np.ndarray:
    """ln((1 + n) / (1 + documents with the term)) + 1, float64."""
    documents = np.bincount(counts.indices[counts.data > 0], minlength=counts.shape[1])
    return np.log((1.0 + counts.shape[0]) / (1.0 + documents)) + 1.0


def _tfidf(counts: Any, inverse_frequency: np.ndarray) -> Any:
    """(1 + ln count) * inverse document frequency, each row scaled to unit length; an empty row stays zero."""
    features = counts.astype(np.float64)
    features.data = (1.0 + np.log(features.data)) * inverse_frequency[features.indices]
    return _sklearn("preprocessing").normalize(features, norm="l2", copy=False)


def _sklearn(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"sklearn.{module}")
    except ModuleNotFoundError as error:
        raise InputError("scikit-learn is not installed; run: pip install 'jaxalign[demo]'") from error
