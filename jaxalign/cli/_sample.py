"""``jaxalign sample``: completions of prompts, printed or written as records."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxalign.errors import InputError

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
    """Write ``{"prompt", "completion", "finished", "log_prob"}`` a line here; None prints the texts. ``finished``: it
    ended with its EOS (of messages: its end of turn), not with a stop string or cut; ``log_prob`` is that of all tokens
    sampled, those of a stop string too."""
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
    """Texts that end a completion, beside its EOS (of messages: its end of turn); they are left out of it."""
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

    if config.output is not None and config.output.is_dir():
        raise InputError(f"--output: {config.output} is a folder, not a file")
    records: list[Any] = [{"prompt": text} for text in config.prompt]
    places = [f"--prompt {number}" for number in range(1, len(records) + 1)]
    if config.prompts is not None:
        loaded = data.load_records(config.prompts)
        records += [dict(record) for record in loaded]
        places += [loaded.place(index) for index in range(len(loaded))]
    if not records:
        raise InputError("--prompt or --prompts: give at least one prompt")

    import jax

    from jaxalign import models, sampling
    from jaxalign.recipes import load_tokenizer

    model_config, params = models.load_pretrained(config.model)
    if config.adapter is not None:
        adapted, lora = models.load_adapter(config.adapter, model_config)
        params = models.merge_lora(adapted, params, lora, dtype="float32")
    model_config = model_config.replace(compute_dtype=config.dtype)
    tokenizer = load_tokenizer(config.model)
    encoder = data.Encoder(tokenizer)
    for record, place in zip(records, places, strict=True):
        if record.get("prompt") is None:
            raise InputError(f"{place}: missing field 'prompt'")
    ids = [data.prompt_tokens(record, encoder, place=place) for record, place in zip(records, places, strict=True)]
    rows: list[dict[str, Any]] = [{} for _ in range(len(ids) * config.samples_per_prompt)]
    for chat in (False, True):  # texts and messages end differently
        chosen = [index for index, record in enumerate(records) if isinstance(record["prompt"], str) is not chat]
        if not chosen:
            continue
        stops = _stop_tokens(records[chosen[0]]["prompt"], encoder)
        try:
            samples = sampling.generate(
                model_config,
                params,
                [ids[index] for index in chosen],
                jax.random.key(config.seed),
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                top_k=config.top_k,
                top_p=config.top_p,
                min_p=config.min_p,
                stop_tokens=stops,
                stop_strings=config.stop_strings,
                decode=encoder.decode_following,
                seeds=chosen,
                samples_per_prompt=config.samples_per_prompt,
                batch_size=config.batch_size,
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
            }
    if config.output is None:
        for row in rows:
            prompt_text = row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"])
            sys.stdout.write(f"{prompt_text}{row['completion']}\n---\n")
        return
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


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
    message = re.sub(r"^generate: (\w+)", lambda found: f"--{found[1].replace('_', '-')}", message)
    return message.replace("max_new_tokens", "--max-new-tokens")
