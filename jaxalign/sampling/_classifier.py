"""A text classifier as a text reward: ``f(prompts, completions) -> scores``."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from jaxalign import data, models
from jaxalign.errors import InputError
from jaxalign.sampling._requests import bucket

TruncationPolicy = Literal["error", "keep_start", "keep_end"]

_classify = jax.jit(models.classify, static_argnames="config")


class ClassifierReward:
    """A classifier's opinion of prompt + completion, in nats: a text reward.

    Of labels that exclude each other, the log-odds of one against the rest:

        reward = z_label - log sum_{j != label} exp z_j = log P(label) / (1 - P(label))

    which for two labels is logit_positive - logit_negative, the reward of Rafailov et al. 2023 (2305.18290), section
    6.1. Of a model with one output (a reward model), or whose outputs each stand for themselves, the output.
    """

    name: str
    """What tables call it."""
    truncated: int
    """How many texts have been cut so far."""

    def __init__(
        self,
        config: models.EncoderConfig | models.ModelConfig,
        params: Any,
        tokenizer: Any,
        labels: models.Labels,
        *,
        label: str | Sequence[str] | None = None,
        batch_size: int = 32,
        truncation: TruncationPolicy = "error",
        name: str = "classifier",
    ) -> None:
        """Make a reward of a classifier in memory.

        Args:
            config: of an encoder, or of a decoder with a score head.
            params: its parameters.
            tokenizer: of transformers; texts get its special tokens.
            labels: what the outputs stand for.
            label: the name of the label that is wanted, in any case, or several names it may have; None where there
                is only one.
            batch_size: texts scored together; it changes scores by rounding only.
            truncation: what happens to a text with more tokens than the model has positions: "error", or "keep_start"
                or "keep_end" of it, special tokens kept, counted in ``truncated``.
            name: what tables and errors call it.

        Raises:
            InputError: a label that is not there or not the only one of its name, a flag out of range.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, must be 1 or more")
        if truncation not in get_args(TruncationPolicy):
            raise InputError(f"truncation is {truncation!r}, must be one of {', '.join(get_args(TruncationPolicy))}")
        if len(labels.names) != config.labels:
            raise InputError(f"{name}: {len(labels.names)} names for the model's {config.labels} labels")
        self.name = name
        self.truncated = 0
        self._config, self._params, self._tokenizer = config, params, tokenizer
        self._batch_size, self._truncation = batch_size, truncation
        self._label = _find(label, labels.names, name)
        self._exclusive = labels.exclusive and len(labels.names) > 1
        self._longest = min(config.max_positions, tokenizer.model_max_length)

    @property
    def params(self) -> Any:
        """The classifier's parameters."""
        return self._params

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        """Score prompt + completion, joined as text: float64 ``[N]``, in nats.

        Raises:
            InputError: the lists differ in length, or as ``score`` does.
        """
        if len(prompts) != len(completions):
            raise InputError(f"{self.name}: {len(prompts)} prompts but {len(completions)} completions")
        for index, parts in enumerate(zip(prompts, completions, strict=True)):
            if not all(isinstance(part, str) for part in parts):
                raise InputError(f"{self.name}: prompt and completion {index} must be strings; render messages first")
        return self.score([prompt + completion for prompt, completion in zip(prompts, completions, strict=True)])

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Score whole texts: float64 ``[N]``, in nats.

        Raises:
            InputError: a text without tokens, of too many tokens under truncation "error", or with a token that the
                model does not know; the message gives its index.
        """
        rows = self._tokenise(list(texts))
        scores = np.zeros(len(rows), np.float64)
        for chosen, tokens, mask in _batches(rows, self._batch_size):
            logits = np.asarray(_classify(self._config, self._params, tokens, mask), np.float64)[: len(chosen)]
            wanted = logits[:, self._label]
            if self._exclusive:
                wanted = wanted - np.logaddexp.reduce(np.delete(logits, self._label, axis=1), axis=1)
            scores[chosen] = wanted
        return scores

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        rows = self._tokenizer(texts, verbose=False)["input_ids"]
        for index, row in enumerate(rows):
            if not row:
                raise InputError(f"{self.name}: text {index} has no tokens")
            if max(row) >= self._config.vocab_size:
                raise InputError(
                    f"{self.name}: text {index} has token {max(row)}, outside the model's vocabulary of "
                    f"{self._config.vocab_size}: the tokenizer is another model's"
                )
            if len(row) > self._longest:
                rows[index] = self._cut(index, texts[index], len(row))
        return rows

    def _cut(self, index: int, text: str, length: int) -> list[int]:
        if self._truncation == "error":
            raise InputError(
                f"{self.name}: text {index} has {length} tokens, room is for {self._longest}; shorten it or choose "
                "truncation 'keep_start' or 'keep_end'"
            )
        self.truncated += 1
        self._tokenizer.truncation_side = "right" if self._truncation == "keep_start" else "left"
        return self._tokenizer(text, truncation=True, max_length=self._longest)["input_ids"]


def classifier_reward(
    folder_or_hub_id: str | Path,
    *,
    label: str | Sequence[str] | None = None,
    batch_size: int = 32,
    truncation: TruncationPolicy = "error",
    dtype: Any = "float32",
) -> ClassifierReward:
    """A classifier or reward model of a Hugging Face folder as a text reward, ``f(prompts, completions) -> scores``.

        reward = classifier_reward("siebert/sentiment-roberta-large-english", label="positive")
        scores = reward(["The film was"], [" a delight."])

    Args:
        folder_or_hub_id: an encoder (RoBERTa, BERT, DistilBERT) or decoder ``...ForSequenceClassification`` with its
            tokenizer, as safetensors.
        label, batch_size, truncation: as in ``ClassifierReward``.
        dtype: of the parameters.

    Raises:
        InputError: as ``models.load_classifier`` and ``ClassifierReward`` do, or no tokenizer.
    """
    name = str(folder_or_hub_id)
    tokenizer = data.load_tokenizer(name)
    labels = models.load_labels(folder_or_hub_id)
    _find(label, labels.names, name)  # before gigabytes are read
    config, params = models.load_classifier(folder_or_hub_id, dtype=dtype)
    return ClassifierReward(
        config, params, tokenizer, labels, label=label, batch_size=batch_size, truncation=truncation, name=name
    )


def _find(label: str | Sequence[str] | None, names: Sequence[str], source: str) -> int:
    """The index of the one label with a wanted name."""
    listed = ", ".join(f"{index}: {name!r}" for index, name in enumerate(names))
    if label is None:
        if len(names) > 1:
            raise InputError(f"{source}: label: say which one of {{{listed}}} is wanted")
        return 0
    wanted = (label,) if isinstance(label, str) else tuple(label)
    folded = {name.casefold() for name in wanted}
    found = [index for index, name in enumerate(names) if name.casefold() in folded]
    if len(found) != 1:
        raise InputError(
            f"{source}: label: {len(found) or 'none'} of the model's labels {{{listed}}} "
            f"{'are' if len(found) > 1 else 'is'} called {' or '.join(map(repr, wanted))}"
        )
    return found[0]


def _batches(rows: list[list[int]], batch_size: int) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """(indices, tokens ``[B, T]``, mask ``[B, T]``): texts of like length together, longest first, few shapes.

    T is a bucket's length. Of several batches each has the full size, a single one a power of two; the rows that fill
    it up are padding and come last.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
    size = batch_size if len(rows) > batch_size else min(batch_size, 2 ** (len(rows) - 1).bit_length())
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        tokens = np.zeros((size, bucket(len(rows[chosen[0]]))), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row, index in enumerate(chosen):
            tokens[row, : len(rows[index])] = rows[index]
            mask[row, : len(rows[index])] = True
        yield chosen, tokens, mask
