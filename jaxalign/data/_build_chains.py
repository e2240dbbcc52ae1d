"""Records with feedback to chains: which are used, what each becomes, and how much room it takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxalign.data._chain_format import ChainFormat
from jaxalign.data._chain_writer import ChainWriter, Mark, Words
from jaxalign.data._chains import ChainExamples, Item
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
Parts = Sequence[Words | Mark]


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
    items = _within(items, writer, truncation, counters, records)
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
    prompt = _prompt(rated, writer, outputs, truncation, place, counters)
    repeated: Parts = ()
    if form.repeat_prompt:
        repeated = writer.prompt(rated.prompt, place, repeated=True)
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
) -> Parts:
    """The prompt within its limit; one of several parts (marked turns) loses whole ones from its beginning."""
    parts = writer.prompt(rated.prompt, place)
    lengths = [sum(_length(writer, part) for part in output) for output in outputs]
    ids = [token for part in parts for token in _tokens(writer, part)]
    kept = truncation.prompt_ids(ids, lengths, bos=writer.encoder.bos, place=place, counters=counters)
    if len(kept) == len(ids):
        return parts
    if len(parts) == 1:
        return [Words(tuple(kept))]
    while sum(_length(writer, part) for part in parts) > len(kept):
        parts = parts[1:]
    return parts


def _tokens(writer: ChainWriter, part: Words | Mark) -> Sequence[int]:
    return part.ids if isinstance(part, Words) else [*writer.following(f" {part.content}"), writer.end]


def _length(writer: ChainWriter, part: Words | Mark) -> int:
    return len(_tokens(writer, part))


def _within(
    items: list[Item], writer: ChainWriter, truncation: Truncation, counters: Counters, records: Sequence[Record]
) -> list[Item]:
    """The items that the limit of a whole chain leaves, by its policy."""
    if truncation.max_length is None or not items:
        return items
    limit, whole = truncation.max_length, ChainExamples(items, writer, seed=0)
    kept = []
    for item, length in zip(items, whole.sizes.tokens, strict=True):
        if length <= limit:
            kept.append(item)
            continue
        place = _place(records, item.record_id)
        message = (
            f"{place}: a chain of its prompt, feedback and outputs has up to {length} tokens, more than max_length"
        )
        if truncation.completion == "error":
            raise InputError(f"{message} {limit}; raise it or choose completion truncation 'cut' or 'drop'")
        if truncation.completion == "drop":
            counters.skipped["chain over the limit"] += 1
            continue
        if sum(_length(writer, part) for part in item.prompt) + whole.longest_marker >= limit:
            raise InputError(
                f"{place}: its prompt and the words of feedback leave no room for an output ({limit} tokens)"
            )
        counters.truncated["chain: cut"] += 1
        kept.append(item)
    return kept
