"""A local model as a judge by what it writes: sampled text, read as an endpoint's answers are."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxalign import data, sampling
from jaxalign.errors import InputError
from jaxalign.evaluation._comparison import Comparison, Verdict
from jaxalign.evaluation.judges._answer import read_answer
from jaxalign.evaluation.judges._local import LocalModel
from jaxalign.evaluation.judges._prompts import AnswerForm, JudgePrompts
from jaxalign.models import ModelConfig

__all__ = ["SampledJudge"]


class SampledJudge:
    """A language model's own words: a sentence of comparison and a verdict; what names none is invalid.

    An answer depends on the model, the seed and the comparison alone (but for float rounding), not on what is judged
    beside it.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        tokenizer: Any,
        prompts: JudgePrompts | str = "summaries",
        *,
        ties: bool = False,
        form: AnswerForm = "explained",
        temperature: float = 0.0,
        max_new_tokens: int = 128,
        seed: int = 0,
        batch_size: int = 16,
        chat: bool | None = None,
        name: str = "sampled",
    ) -> None:
        """Make a judge of a model in memory.

        Args:
          config, params, tokenizer: the model.
          prompts: what is asked: ``load_prompts``, or what it takes.
          ties: whether "tie" is offered.
          form: with a sentence of comparison, or the verdict alone.
          temperature: 0 is greedy.
          max_new_tokens: most tokens of an answer; one that is cut is invalid.
          seed: of sampling.
          batch_size: rows decoded together. Verdicts are told after each four times as many.
          chat: ask as a person's turn of a dialogue; None = if the tokenizer has a chat template.
          name: the model's name.

        Raises:
          InputError: ``batch_size`` below 1, a tokenizer without EOS.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, is {batch_size}")
        self._model = LocalModel(config, params, tokenizer, prompts, ties=ties, form=form, chat=chat)
        self._ties, self._name, self._batch_size = ties, name, batch_size
        self._temperature, self._max_new_tokens, self._seed = temperature, max_new_tokens, seed
        self._settings = f"{form} ties={ties} temperature={temperature} max_new_tokens={max_new_tokens} seed={seed}"

    @property
    def name(self) -> str:
        """The model's name."""
        return self._name

    @property
    def version(self) -> str:
        """Weights, prompts and sampling settings."""
        return f"sampled {self._settings} {self._model.identity}"

    def judge(self, comparisons: Sequence[Comparison], on_verdict: Callable[[int, Verdict], None]) -> None:
        """As ``Judge`` has it. Raises ``InputError`` as ``sampling.generate`` does, for a text that is too long."""
        together = 4 * self._batch_size
        for start in range(0, len(comparisons), together):
            part = comparisons[start : start + together]
            for offset, verdict in enumerate(self._verdicts(part, start)):
                on_verdict(start + offset, verdict)

    def _verdicts(self, comparisons: Sequence[Comparison], start: int) -> list[Verdict]:
        model = self._model
        places = [f"judge {self._name}: comparison {start + index}" for index in range(len(comparisons))]
        questions = [model.tokens(one, place) for one, place in zip(comparisons, places, strict=True)]
        for tokens, place in zip(questions, places, strict=True):
            if len(tokens) + self._max_new_tokens > model.config.max_positions:
                raise InputError(
                    f"{place}: {len(tokens)} tokens and an answer of {self._max_new_tokens} are more than the model's "
                    f"{model.config.max_positions} positions"
                )
        stops = data.stop_tokens(model.prompt(comparisons[0]), model.encoder, place=places[0])
        samples = sampling.generate(
            model.config,
            model.params,
            questions,
            jax.random.key(self._seed),
            max_new_tokens=self._max_new_tokens,
            temperature=self._temperature,
            stop_tokens=stops,
            seeds=[_seed(comparison) for comparison in comparisons],
            batch_size=self._batch_size,
        )
        verdicts = []
        for question, tokens, finished in zip(questions, samples.responses(), samples.finished, strict=True):
            text = model.encoder.decode_following(tokens[:-1] if finished else tokens)
            preference = read_answer(text, ties=self._ties, finished=bool(finished))
            verdicts.append(
                Verdict(preference=preference, text=text, prompt_tokens=len(question), completion_tokens=len(tokens))
            )
        return verdicts


def _seed(comparison: Comparison) -> int:
    parts = [comparison.prompt, comparison.first, comparison.second, comparison.axis]
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4])
