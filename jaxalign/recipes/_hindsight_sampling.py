"""Samples of a model that was trained in hindsight: after the words of a good output, and bettered again and again."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from jaxalign import sampling
from jaxalign.data import FeedbackKind, FeedbackPrompts, Polarity, rated_outputs
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig
from jaxalign.recipes._objective import Params

__all__ = ["Drafts", "sample_with_feedback"]

# Folded into the key for each round of improvement.
ROUND = 0x1A7


@dataclasses.dataclass(frozen=True)
class Drafts:
    """What was sampled to one prompt, in turn: the last text is the answer."""

    texts: tuple[str, ...]
    finished: bool
    """Whether the last ended by itself: with its EOS, or at the next marker."""
    tokens: tuple[int, ...]
    """The last text's ids as sampled."""


def sample_with_feedback(
    config: ModelConfig,
    params: Params,
    prompts: FeedbackPrompts,
    contents: Sequence[Any],
    key: jax.Array,
    *,
    max_new_tokens: int,
    polarity: Polarity = "positive",
    template: str | None = None,
    better_template: str | None = None,
    kind: FeedbackKind | None = None,
    improvements: int = 0,
    places: Sequence[str] | None = None,
    **settings: Any,
) -> list[Drafts]:
    """Sample outputs to prompts under words of feedback, as training had them.

    Each output is sampled after the words of a good (or bad) one. With ``improvements`` it is then given back as the
    worse output, the words of a better one behind it, and the model writes another: so again and again. A draft that
    says nothing, or leaves no room to be bettered, stays.

    Args:
      config, params: the model.
      prompts: how it is asked (``data.load_feedback_prompts`` of its folder).
      contents: P prompts, texts or lists of messages.
      key: a PRNG key.
      max_new_tokens: of each output.
      polarity, template: of the first words; ``better_template`` of those that ask for a better output.
      kind: of the outputs; by default the one trained on, or that of a dialogue.
      improvements: how often each output is bettered.
      places: P names by which errors call the prompts.
      settings: of ``sampling.generate``: temperature, top_k, top_p, min_p, batch_size, samples_per_prompt, seeds.

    Returns:
      P x samples_per_prompt drafts, prompt-major.

    Raises:
      InputError: a prompt that cannot be read, or for which no template is; what ``generate`` refuses.
    """
    names = [f"prompt {number}" for number in range(len(contents))] if places is None else list(places)
    encoder = prompts.writer.encoder
    stops = tuple(sorted({encoder.eos, prompts.writer.end}))
    kinds = [kind] if kind else [_kind(prompts, content, name) for content, name in zip(contents, names, strict=True)]
    strings = sorted({string for one in set(kinds) for string in prompts.stop_strings(one)})

    def generate(asked: Sequence[Sequence[int]], key: jax.Array, **more: Any) -> list[Drafts]:
        samples = sampling.generate(
            config,
            params,
            asked,
            key,
            max_new_tokens=max_new_tokens,
            stop_tokens=stops,
            stop_strings=strings,
            decode=encoder.decode_following,
            **more,
        )
        found = []
        for ids in samples.responses():
            ended = bool(ids) and ids[-1] in stops
            text = encoder.decode_following(ids[:-1] if ended else ids)
            cut = min((text.index(string) for string in strings if string in text), default=None)
            said = (text if cut is None else text[:cut]).strip()
            found.append(Drafts((said,), ended or cut is not None, tuple(map(int, ids))))
        return found

    asked = [
        prompts.tokens(content, polarity, template=template, kind=kind, place=name)
        for content, name in zip(contents, names, strict=True)
    ]
    drafts = generate(asked, key, **settings)
    each = settings.pop("samples_per_prompt", 1)
    chosen = settings.pop("seeds", None)
    chosen = range(len(contents)) if chosen is None else chosen
    seeds = [(int(seed) * each + sample) % 2**32 for seed in chosen for sample in range(each)]
    for number in range(improvements):
        again: dict[int, list[int]] = {}
        for row, draft in enumerate(drafts):
            content, name = contents[row // each], names[row // each]
            if draft.texts[-1]:
                ids = prompts.better(content, draft.texts[-1], template=better_template, kind=kind, place=name)
                if len(ids) + max_new_tokens <= config.max_positions:
                    again[row] = ids
        if not again and number == 0 and any(draft.texts[-1] for draft in drafts):
            raise InputError(f"improvements: no output leaves room for a better one ({config.max_positions} positions)")
        if not again:
            break
        own = [seeds[row] for row in again]
        better = generate(list(again.values()), jax.random.fold_in(key, ROUND + number), seeds=own, **settings)
        for row, new in zip(again, better, strict=True):
            drafts[row] = dataclasses.replace(new, texts=(*drafts[row].texts, *new.texts))
    return drafts


def _kind(prompts: FeedbackPrompts, content: Any, name: str) -> FeedbackKind:
    """What the outputs to a prompt are: those trained on, or a dialogue's."""
    record = {"prompt": content, "completion": "a", "label": True}
    return rated_outputs(record, name, kind=prompts.writer.form.kind).kind
