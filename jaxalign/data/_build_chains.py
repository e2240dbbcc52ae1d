"""Records with feedback to chains: which are used, what each becomes, and how much room it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxalign.data._chain_format import ChainFormat
from jaxalign.data._chain_writer import ChainWriter, Mark, Words
from jaxalign.data._chains import ChainExamples, Item, Parts
from jaxalign.data._counters import Counters
from jaxalign.data._encoder import Encoder, TokenizerLike
from jaxalign.data._feedback_records import RatedOutputs, rated_outputs
from jaxalign.data._plan import Mixture
from jaxalign.data._records import Record, RecordDropped
from jaxalign.data._sources import OnBadRow, Records
from jaxalign.data._templates import TemplateSet, load_templates
from jaxalign.data._truncation import Truncation
from jaxalign.errors import InputError

__all__ = ["build_chains"]

_NO_LIMIT = Truncation()


def build_chains(
    records: Sequence[Record],
    tokenizer: TokenizerLike | Encoder,
    form: ChainFormat | None = None,
    *,
    templates: TemplateSet | None = None,
    truncation: Truncation = _NO_LIMIT,
    seed: int = 0,
    on_bad_row: OnBadRow = "error",
    sources: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
) -> tuple[ChainExamples, Counters]:
    """Records with feedback as chains, and what happened to them.

    Args:
      records: of any form that ``rated_outputs`` reads.
      tokenizer: the tokenizer.
      form: what sequences look like.
      templates: the words of feedback; by default those that ``form.templates`` names.
      truncation: limits of a whole sequence, in tokens. A prompt over its limit is cut, dropped or an error by its
        policy; a chain over ``max_length`` loses its end ("cut": without EOS), or is dropped, or an error.
      seed: of all draws.
      on_bad_row: as in ``build_examples``.
      sources, weights: the source of each record and each source's weight, to mix by; by default all records weigh
        the same.

    Raises:
      InputError: naming file, row and field; also where a structure has no template, or nothing is left.
    """
    form = ChainFormat() if form is None else form
    templates = load_templates(form.templates) if templates is None else templates
    writer = ChainWriter(tokenizer, templates, form)
    counters = Counters(rows_read=len(records))
    if isinstance(records, Records):
        counters.rows_read = records.counters.rows_read
        counters.skipped.update(records.counters.skipped)
    items: list[Item] = []
    for index, record in enumerate(records):
        place = _place(records, index)
        own = Counters()
        try:
            items += _items(record, writer, truncation, index, place, own)
        except RecordDropped as dropped:
            counters.skipped[dropped.reason] += 1
            continue
        except InputError:
            if on_bad_row == "error":
                raise
            counters.skipped["unusable row"] += 1
            continue
        counters.truncated.update(own.truncated)
    items = _within(items, writer, truncation, counters, records, on_bad_row)
    counters.examples = len(items)
    if not items:
        raise InputError(f"{_place(records, 0)}: nothing to train on ({counters.summary()})")
    mixture = None
    if sources is not None and weights is not None:
        kept = np.asarray(sources)[[item.record_id for item in items]]
        if lost := sorted(set(range(len(weights))) - set(kept.tolist())):
            raise InputError(f"source {lost[0] + 1} of the mixture: no record of it can be used ({counters.summary()})")
        mixture = Mixture(kept, tuple(weights))
    chains = ChainExamples(items, writer, seed=seed, limit=truncation.max_length, mixture=mixture)
    chains.check()
    return chains, counters


def _place(records: Sequence[Record], index: int) -> str:
    return records.place(index) if isinstance(records, Records) else f"row {index + 1}"


def _items(
    record: Record, writer: ChainWriter, truncation: Truncation, index: int, place: str, counters: Counters
) -> list[Item]:
    """What a record becomes: one item, or one for each structure."""
    form = writer.form
    rated = rated_outputs(record, place, kind=form.kind)
    structures = tuple(form.weights)
    if rated.rated and len(rated.outputs) > 1 and len({output.rating for output in rated.outputs}) == 1:
        raise RecordDropped(f"{place}: field 'ratings': all are equal, none is better", "all ratings equal")
    if rated.rated and len(rated.outputs) == 1:
        only = {"p": 1.0, "n": 0.0}.get(structures[0]) if len(structures) == 1 else None
        if only is not None and rated.outputs[0].rating != only:
            raise RecordDropped(f"{place}: field 'label': not what --structures {structures[0]} learns", "other label")
    outputs = tuple(tuple(writer.output(output, place)) for output in rated.outputs)
    prompt, repeated = _prompt(rated, writer, outputs, truncation, place, counters)
    several = form.emit == "each" and rated.rated and len(rated.outputs) > 1
    return [
        Item(rated, prompt, repeated, outputs, index, chosen)
        for chosen in ([(name,) for name in structures] if several else [structures])
    ]


def _prompt(
    rated: RatedOutputs,
    writer: ChainWriter,
    outputs: Sequence[Parts],
    truncation: Truncation,
    place: str,
    counters: Counters,
) -> tuple[Parts, Parts]:
    """The prompt within its limit, and as it is repeated; each loses its beginning."""
    parts = writer.prompt(rated.prompt, place)
    repeated = writer.prompt(rated.prompt, place, repeated=True) if writer.form.repeat_prompt else []
    ids = [token for part in parts for token in _ids(writer, part)]
    lengths = [sum(len(_ids(writer, part)) for part in output) for output in outputs]
    kept = truncation.prompt_ids(ids, lengths, bos=writer.encoder.bos, place=place, counters=counters)
    if len(kept) == len(ids):
        return parts, repeated
    bos = kept[:1] if kept[0] == writer.encoder.bos else []
    ends = _end_of(writer, parts, len(kept) - len(bos))
    return [Words(tuple(bos)), *ends], _end_of(writer, repeated, len(kept))


def _end_of(writer: ChainWriter, parts: Sequence[Words | Mark], room: int) -> list[Words | Mark]:
    """The end of a prompt; one of several parts (marked turns) loses whole ones."""
    if len(parts) == 1 and isinstance(parts[0], Words):
        return [dataclasses.replace(parts[0], ids=parts[0].ids[-room:])]
    kept = list(parts)
    while kept and sum(len(_ids(writer, part)) for part in kept) > room:
        kept.pop(0)
    return kept


def _ids(writer: ChainWriter, part: Words | Mark) -> Sequence[int]:
    return part.ids if isinstance(part, Words) else (*part.ids, writer.end)


def _within(
    items: list[Item],
    writer: ChainWriter,
    truncation: Truncation,
    counters: Counters,
    records: Sequence[Record],
    on_bad_row: OnBadRow,
) -> list[Item]:
    """The items that the limit of a whole chain leaves, by its policy."""
    if truncation.max_length is None or not items:
        return items
    limit, whole = truncation.max_length, ChainExamples(items, writer, seed=0)
    kept = []
    for index, (item, length) in enumerate(zip(items, whole.sizes.tokens, strict=True)):
        if length <= limit:
            kept.append(item)
            continue
        place, problem = _place(records, item.record_id), ""
        if truncation.completion == "error":
            problem = (
                f"a chain of its prompt, feedback and outputs has up to {length} tokens, more than max_length {limit}; "
                "raise it or choose completion truncation 'cut' or 'drop'"
            )
        elif truncation.completion == "cut" and whole.opening(index) >= limit:
            problem = f"its prompt and the words of feedback leave no room for an output ({limit} tokens)"
        if problem and on_bad_row == "error":
            raise InputError(f"{place}: {problem}")
        if problem:
            counters.skipped["unusable row"] += 1
            continue
        if truncation.completion == "drop":
            counters.skipped["chain over the limit"] += 1
            continue
        counters.truncated["chain: cut"] += 1
        kept.append(item)
    return kept
