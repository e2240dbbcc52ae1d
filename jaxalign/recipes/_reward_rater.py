"""A reward model as a text reward: texts laid out as it was trained to read them."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxalign import data
from jaxalign.data import Batch, BatchShape, Example, Truncation
from jaxalign.errors import InputError
from jaxalign.models import RewardModel
from jaxalign.recipes._scores import sequence_scores

__all__ = ["RewardModelReward"]

_SHORTEST = 16


class RewardModelReward:
    """A reward model's opinion of texts: ``f(prompts, completions, *, finished) -> rewards``.

    It reads a text as it was trained on records of the same text: messages through its tokenizer's chat template, the
    EOS after a finished completion, the score at the last token. reward = (score - mean) / std.
    """

    def __init__(self, model: RewardModel, tokenizer: Any, *, batch_size: int = 32, name: str = "reward model") -> None:
        """Make a text reward of a reward model in memory.

        Args:
            model: the reward model.
            tokenizer: its own, which need not be the policy's.
            batch_size: texts scored together; it changes rewards by rounding only.
            name: what errors call it.

        Raises:
            InputError: ``batch_size`` below 1, a tokenizer without EOS.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, must be 1 or more")
        self._model, self._name, self._batch_size = model, name, batch_size
        self._encoder = data.Encoder(tokenizer)
        self._limit = Truncation(max_length=model.config.max_positions, prompt="error", completion="error")

    @property
    def model(self) -> RewardModel:
        """The reward model."""
        return self._model

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[str], *, finished: Sequence[bool] | None = None
    ) -> np.ndarray:
        """Rewards of completions, float64 ``[N]``.

        Args:
            prompts: strings or lists of messages.
            completions: strings.
            finished: which of them ended by themselves; all by default.

        Raises:
            InputError: a text that is longer than the model's positions, or no text; the message gives its index.
        """
        finished = [True] * len(prompts) if finished is None else finished
        examples = [
            data.response_example(
                prompt, completion, self._encoder, finished=whole, truncation=self._limit, record_id=index,
                place=f"{self._name}: text {index}",
            )
            for index, (prompt, completion, whole) in enumerate(zip(prompts, completions, finished, strict=True))
        ]  # fmt: skip
        scores = np.zeros(len(examples))
        for chosen, batch in _batches(examples, self._batch_size):
            scores[chosen] = np.asarray(_scores(self._model.config, self._model.params, batch)[: len(chosen), 0])
        return (scores - self._model.mean) / self._model.std


_scores = jax.jit(sequence_scores, static_argnames="config")


def _batches(examples: Sequence[Example], batch_size: int) -> Iterator[tuple[list[int], Batch]]:
    """(indices, rows): texts of like length together, longest first; shapes are powers of two, so that they are few."""
    order = sorted(range(len(examples)), key=lambda index: examples[index].count("token"), reverse=True)
    size = batch_size if len(examples) > batch_size else min(batch_size, _power(len(examples), 1))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        shape = BatchShape(
            tokens=_power(examples[chosen[0]].count("token"), _SHORTEST),
            targets=_power(max(examples[index].count("target") for index in chosen), _SHORTEST),
            branched=False,
        )
        rows = [[examples[index]] for index in chosen]
        yield chosen, data.collate(rows + [[]] * (size - len(rows)), shape)


def _power(count: int, least: int) -> int:
    """The smallest power of two that is ``least`` and ``count`` at least."""
    return max(least, 2 ** (count - 1).bit_length())
