"""``jaxalign sample``: completions of prompts, printed or written as records."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxalign.cli._progress import OnProgress, progress
from jaxalign.errors import InputError

if TYPE_CHECKING:
    from jaxalign.data import FeedbackPrompts

__all__ = ["SampleConfig", "run"]


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Write completions of prompts."""

    model: str
    """Folder in Hugging Face format, or a hub id."""
    adapter: str | None = None
    """Folder or hub id of a LoRA adapter in PEFT's format, for this model."""
    prompt: tuple[str, ...] = ()
    """One or more prompts."""
    prompts: Path | None = None
    """A file of records with a field ``prompt`` (text or messages), beside or instead of ``prompt``."""
    output: Path | None = None
    """Write ``{"prompt", "completion", "finished", "log_prob", "token_log_probs"}`` a line here; None prints the texts.
    ``finished``: it ended with its EOS (of messages: its end of turn), not with a stop string or cut; ``log_prob`` is
    that of all tokens sampled, those of a stop string too. With ``feedback`` a line has ``feedback`` and neither, its
    ``finished`` may also be at the next words of feedback, and with ``improvements`` it has ``drafts``, all texts in
    turn, the last being ``completion``."""
    max_new_tokens: int = 64
    """Most tokens of a completion."""
    samples_per_prompt: int = 1
    """Completions of each prompt."""
    temperature: float = 1.0
    """Softmax temperature; 0 takes the likeliest token."""
    top_k: int = 0
    """Keep the K likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that hold this much probability; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this likely against the likeliest; 0 keeps all."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end a completion, beside its EOS (of messages: its end of turn); they are left out of it. Not with
    ``feedback``, whose outputs end as they did in training."""
    feedback: Literal["positive", "negative"] | None = None
    """Of a folder that ``jaxalign hindsight`` wrote: ask for a good (or bad) output by the words that stood before such
    ones in training (a baseline without feedback: its neutral words). None = continue the prompt alone."""
    kind: Literal["answer", "summary", "dialogue"] | None = None
    """With ``feedback``: what is asked for, where a record of ``prompts`` does not say; None = what was trained on."""
    template: str | None = None
    """With ``feedback``: the template whose first words are used; None = the first that suits."""
    improvements: int = 0
    """With ``feedback``: give the output back as the worse one and ask for a better, so many times."""
    better_template: str | None = None
    """With ``improvements``: the template whose words ask for a better output; None = the first that suits."""
    batch_size: int = 32
    """Completions computed at a time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations."""
    seed: int = 0
    """The same seed, prompt and place in the list give the same completion, whatever is sampled beside it (but for
    float rounding, where the number of rows differs)."""


def run(config: SampleConfig) -> None:
    """Load the model, sample, print or write. Raises ``InputError`` for no prompt or an unusable one."""
    from jaxalign import data

    _check(config)
    records: list[Any] = [{"prompt": text} for text in config.prompt]
    places = [f"--prompt {number}" for number in range(1, len(records) + 1)]
    if config.prompts is not None:
        loaded = data.load_records(config.prompts)
        records += [dict(record) for record in loaded]
        places += [loaded.place(index) for index in range(len(loaded))]
    if not records:
        raise InputError("--prompt or --prompts: give at least one prompt")
    for record, place in zip(records, places, strict=True):
        if record.get("prompt") is None:
            raise InputError(f"{place}: missing field 'prompt'")

    import jax

    from jaxalign import models
    from jaxalign.recipes import load_tokenizer

    asked = None
    if config.feedback:  # before the weights: what is wrong is said in a second
        asked = _asked(config, records[0].get("kind") or config.kind, places[0])
    model_config, params = models.load_pretrained(config.model)
    if config.adapter is not None:
        adapted, lora = models.load_adapter(config.adapter, model_config)
        params = models.merge_lora(adapted, params, lora, dtype="float32")
    model_config = model_config.replace(compute_dtype=config.dtype)
    model = (model_config, params, jax.random.key(config.seed))
    with progress("sampling", len(records) * config.samples_per_prompt, "completions") as on_progress:
        if asked is not None:
            rows = _after_feedback(config, model, asked, records, places, on_progress)
        else:
            encoder = data.Encoder(load_tokenizer(config.model))
            rows = _completions(config, model, encoder, records, places, on_progress)
    if config.output is None:
        sys.stdout.write("".join(map(_printed, rows)))
        return
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _check(config: SampleConfig) -> None:
    if config.output is not None and config.output.is_dir():
        raise InputError(f"--output: {config.output} is a folder, not a file")
    if config.improvements < 0:
        raise InputError(f"--improvements: must be at least 0, is {config.improvements}")
    if config.feedback is None:
        for name in ("kind", "template", "improvements", "better_template"):
            if getattr(config, name):
                raise InputError(f"--{name.replace('_', '-')}: there are no words of feedback without --feedback")
    elif config.stop_strings:
        raise InputError("--stop-strings: with --feedback outputs end as in training: their EOS or the next words")
    if config.better_template is not None and not config.improvements:
        raise InputError("--better-template: nothing is bettered without --improvements")


def _settings(config: SampleConfig) -> dict[str, Any]:
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "samples_per_prompt", "batch_size")
    return {name: getattr(config, name) for name in names}


def _completions(
    config: SampleConfig,
    model: tuple[Any, Any, Any],
    encoder: Any,
    records: list[Any],
    places: list[str],
    on_progress: OnProgress,
) -> list[dict[str, Any]]:
    """Prompts continued as they are."""
    from jaxalign import data, sampling

    ids = [data.prompt_tokens(record, encoder, place=place) for record, place in zip(records, places, strict=True)]
    rows: list[dict[str, Any]] = [{} for _ in range(len(ids) * config.samples_per_prompt)]
    for chat in (False, True):  # texts and messages end differently
        chosen = [index for index, record in enumerate(records) if isinstance(record["prompt"], str) is not chat]
        if not chosen:
            continue
        stops = _stop_tokens(records[chosen[0]]["prompt"], encoder)
        try:
            samples = sampling.generate(
                *model[:2],
                [ids[index] for index in chosen],
                model[2],
                stop_tokens=stops,
                stop_strings=config.stop_strings,
                decode=encoder.decode_following,
                seeds=chosen,
                on_progress=on_progress,
                **_settings(config),
            )
        except InputError as error:
            raise InputError(_as_flags(str(error), [places[index] for index in chosen])) from None
        texts = _texts(samples, encoder, stops, config.stop_strings)
        ended = [tokens[-1] in stops for tokens in samples.responses()]
        for at, text in enumerate(texts):
            prompt, sample = divmod(at, config.samples_per_prompt)
            index = chosen[prompt]
            rows[index * config.samples_per_prompt + sample] = {
                "prompt": records[index]["prompt"],
                "completion": text,
                "finished": ended[at],
                "log_prob": float((samples.log_probs[at] * samples.mask[at]).sum()),
                "token_log_probs": samples.log_probs[at][samples.mask[at]].tolist(),
            }
    return rows


def _asked(config: SampleConfig, kind: Any, place: str) -> "FeedbackPrompts":
    """How the model is asked, once it is known that it can be asked so for outputs of a kind."""
    from jaxalign import data
    from jaxalign.recipes import load_tokenizer

    tokenizer = load_tokenizer(config.model)
    flag = "--feedback"
    try:
        asked = data.load_feedback_prompts(config.model, tokenizer)
        markers = asked.writer.form.markers
        if markers != "feedback" and config.feedback == "negative":
            raise InputError(
                f"{config.model} was trained without feedback (--markers {markers}): it knows no bad words"
            )
        if config.template is not None:
            flag = "--template"
            if markers != "feedback":
                raise InputError(f"{config.model} was trained without feedback (--markers {markers})")
        asked.tokens("a", config.feedback or "positive", kind=kind, template=config.template, place=place)
        if config.improvements:
            flag = "--improvements" if config.better_template is None else "--better-template"
            asked.better("a", "a", kind=kind, template=config.better_template)
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(place) else f"{flag}: {error}") from None
    return asked


def _after_feedback(
    config: SampleConfig,
    model: tuple[Any, Any, Any],
    asked: "FeedbackPrompts",
    records: list[Any],
    places: list[str],
    on_progress: OnProgress,
) -> list[dict[str, Any]]:
    """Outputs after words of feedback."""
    from jaxalign.recipes import sample_with_feedback

    kinds: dict[str, list[int]] = {}  # a record may say what its outputs are, as in training
    for index, record in enumerate(records):
        kinds.setdefault(repr(record.get("kind")), []).append(index)
    rows: list[dict[str, Any]] = [{} for _ in range(len(records) * config.samples_per_prompt)]
    for chosen in kinds.values():
        named = [places[index] for index in chosen]
        try:
            found = sample_with_feedback(
                *model[:2],
                asked,
                [records[index]["prompt"] for index in chosen],
                model[2],
                polarity=config.feedback or "positive",
                template=config.template,
                better_template=config.better_template,
                kind=records[chosen[0]].get("kind") or config.kind,
                improvements=config.improvements,
                places=named,
                seeds=chosen,
                on_progress=on_progress,
                **_settings(config),
            )
        except InputError as error:
            raise InputError(_as_flags(str(error), named)) from None
        for at, drafts in enumerate(found):
            prompt, sample = divmod(at, config.samples_per_prompt)
            row = {
                "prompt": records[chosen[prompt]]["prompt"],
                "completion": drafts.texts[-1],
                "finished": drafts.finished,
                "feedback": config.feedback,
            }
            more = {"drafts": list(drafts.texts)} if config.improvements else {}
            rows[chosen[prompt] * config.samples_per_prompt + sample] = row | more
    return rows


def _printed(row: dict[str, Any]) -> str:
    """A row for people: what continues its prompt right behind it, outputs of feedback on lines of their own."""
    prompt = row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"])
    if "feedback" not in row:
        return f"{prompt}{row['completion']}\n---\n"
    drafts = [f"[draft {number}] {text}" for number, text in enumerate(row.get("drafts", []), start=1)]
    return "\n".join([prompt, *(drafts or [row["completion"]]), "---\n"])


def _stop_tokens(prompt: Any, encoder: Any) -> tuple[int, ...]:
    """What ends a completion; a chat template that training refuses can still be sampled from, up to the EOS."""
    from jaxalign import data

    try:
        return data.stop_tokens(prompt, encoder)
    except InputError:
        return (encoder.eos,)


def _texts(samples: Any, encoder: Any, stop_tokens: tuple[int, ...], stop_strings: tuple[str, ...]) -> list[str]:
    """Completions without what ended them: the stop token, or a stop string and what follows it in its token."""
    texts = []
    for tokens in samples.responses():
        text = encoder.decode_following(tokens[:-1] if tokens[-1] in stop_tokens else tokens)
        texts.append(text[: min([text.index(string) for string in stop_strings if string in text], default=len(text))])
    return texts


def _as_flags(message: str, places: list[str]) -> str:
    """The sampler's words about its arguments, as words about what was typed."""
    message = re.sub(r"^generate: prompts\[(\d+)\](\[\d+\])?", lambda found: places[int(found[1])], message)
    message = re.sub(
        r"^(?:generate: |(?=improvements: ))(\w+)", lambda found: f"--{found[1].replace('_', '-')}", message
    )
    return message.replace("max_new_tokens", "--max-new-tokens")
