"""A local model as a judge: how likely it finds the letter A, and how likely B."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxalign import data, models
from jaxalign.data import Batch, BatchShape, Example, Truncation
from jaxalign.errors import InputError
from jaxalign.evaluation._comparison import Comparison, Preference, Verdict
from jaxalign.evaluation.judges._answer import LABEL
from jaxalign.evaluation.judges._local import LocalModel
from jaxalign.evaluation.judges._prompts import JudgePrompts
from jaxalign.models import ModelConfig

__all__ = ["LikelihoodJudge"]

_SHORTEST = 64
_TARGETS = 8  # of both letters together: one or two tokens each


class LikelihoodJudge:
    """A language model's log-probs of the two letters where its verdict would stand.

        d = log pi("A" | question, "Preferred:") - log pi("B" | the same)

    prefers the first where d > margin, the second where d < -margin, else neither. No text is sampled, so every
    comparison has a verdict, and the same one each time. A model that favours a letter does so here: the order in
    which outputs are shown is for ``compare`` to draw.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        tokenizer: Any,
        prompts: JudgePrompts | str = "summaries",
        *,
        tie_margin: float = 0.0,
        batch_size: int = 8,
        chat: bool | None = None,
        name: str = "likelihood",
    ) -> None:
        """Make a judge of a model in memory.

        Args:
          config, params, tokenizer: the model.
          prompts: what is asked: ``load_prompts``, or what it takes; the form "direct" is used.
          tie_margin: the largest abs(d), in nats, that is a tie.
          batch_size: comparisons scored together; it changes log-probs by rounding only.
          chat: ask as a person's turn of a dialogue; None = if the tokenizer has a chat template.
          name: the model's name.

        Raises:
          InputError: a setting out of range, a tokenizer without EOS.
        """
        if not tie_margin >= 0:
            raise InputError(f"tie_margin must be at least 0 nats, is {tie_margin}")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, is {batch_size}")
        self._model = LocalModel(config, params, tokenizer, prompts, ties=False, form="direct", chat=chat)
        self._tie_margin, self._batch_size, self._name = tie_margin, batch_size, name
        self._limit = Truncation(max_length=config.max_positions, prompt="error", completion="error")

    @property
    def name(self) -> str:
        """The model's name."""
        return self._name

    @property
    def version(self) -> str:
        """Weights, prompts and margin."""
        return f"likelihood margin={self._tie_margin} {self._model.identity}"

    def judge(self, comparisons: Sequence[Comparison], on_verdict: Callable[[int, Verdict], None]) -> None:
        """As ``Judge`` has it; verdicts are told batch by batch. Raises ``InputError`` for a text that is too long."""
        model = self._model
        examples = [
            data.preference_example(
                {"prompt": model.prompt(comparison, LABEL), "chosen": " A", "rejected": " B",
                 "chosen_finished": False, "rejected_finished": False},
                model.encoder,
                truncation=self._limit,
                place=f"judge {self._name}: comparison {index}",
            )
            for index, comparison in enumerate(comparisons)
        ]  # fmt: skip
        for chosen, batch in _batches(examples, self._batch_size):
            log_probs = np.asarray(_log_probs(model.config, model.params, batch), np.float64)
            for row, index in enumerate(chosen):
                mask = batch.target_mask[row]
                of_first, of_second = np.bincount(
                    batch.target_sequence[row][mask], weights=log_probs[row][mask], minlength=2
                )
                on_verdict(
                    index,
                    Verdict(
                        preference=self._preference(of_first - of_second),
                        text=f"log-probs, nats: A {of_first:.6f}, B {of_second:.6f}",
                        prompt_tokens=int((examples[index].branch == 0).sum()),
                    ),
                )

    def _preference(self, difference: float) -> Preference:
        if not np.isfinite(difference):
            raise FloatingPointError(f"judge {self._name}: the model's log-probs are not finite")
        if abs(difference) <= self._tie_margin:
            return "tie"
        return "first" if difference > 0 else "second"


@functools.partial(jax.jit, static_argnames="config")
def _log_probs(config: ModelConfig, params: Any, batch: Batch) -> jax.Array:
    """log pi of every target, ``[B, S]``."""
    hidden = models.apply(
        config, params, batch.tokens, positions=batch.positions, example=batch.example, branch=batch.branch
    )
    return models.target_log_probs(config, params, hidden, batch.source_index, batch.targets)


def _batches(examples: Sequence[Example], batch_size: int) -> Iterator[tuple[list[int], Batch]]:
    """(indices, rows): questions of like length together, longest first; lengths are powers of two, so that they are
    few."""
    order = sorted(range(len(examples)), key=lambda index: examples[index].count("token"), reverse=True)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        shape = BatchShape(
            tokens=_power(examples[chosen[0]].count("token"), _SHORTEST),
            targets=_power(max(examples[index].count("target") for index in chosen), _TARGETS),
            pairs=1,
            sequences=2,
        )
        rows = [[examples[index]] for index in chosen]
        yield chosen, data.collate(rows + [[]] * (batch_size - len(rows)), shape)


def _power(count: int, least: int) -> int:
    """The smallest power of two that is ``least`` and ``count`` at least."""
    return max(least, 2 ** (count - 1).bit_length())
