"""Records with feedback to chains: which are used, what each becomes, and how much room it takes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from jaxalign.data._chain_format import ChainFormat
from jaxalign.data._chain_sizes import ChainSizes
from jaxalign.data._chain_writer import ChainWriter, Mark, Words
from jaxalign.data._chains import ChainExamples, Item
from jaxalign.data._counters import Counters
from jaxalign.data._encoder import Encoder, TokenizerLike
from jaxalign.data._feedback_records import rated_outputs
from jaxalign.data._plan import Mixture
from jaxalign.data._records import Record, RecordDropped
from jaxalign.data._sources import OnBadRow, counters_of, place_of
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
    writer.choice.check_names()
    counters = counters_of(records)
    read: list[Item] = []
    for index, record in enumerate(records):
        with _counted(counters, on_bad_row):
            read.append(_item(record, writer, index, place_of(records, index)))
    ChainExamples(read, writer, seed=seed).check()  # what is wrong with the settings is of no row
    items: list[Item] = []
    bounds = ChainSizes(writer)
    for item in read:
        with _counted(counters, on_bad_row):
            place = place_of(records, item.record_id)
            items += _each(_within_prompt(item, writer, bounds, truncation, place, counters), writer.form)
    items = _within(items, bounds, truncation, counters, records, on_bad_row)
    counters.examples = len(items)
    if not items:
        raise InputError(f"{place_of(records, 0)}: nothing to train on ({counters.summary()})")
    mixture = None
    if sources is not None and weights is not None:
        kept = np.asarray(sources)[[item.record_id for item in items]]
        if lost := sorted(set(range(len(weights))) - set(kept.tolist())):
            raise InputError(f"source {lost[0] + 1} of the mixture: no record of it can be used ({counters.summary()})")
        mixture = Mixture(kept, tuple(weights))
    return ChainExamples(items, writer, seed=seed, limit=truncation.max_length, mixture=mixture), counters


@contextlib.contextmanager
def _counted(counters: Counters, on_bad_row: OnBadRow) -> Iterator[None]:
    """What is left out or cannot be used is counted, or an error."""
    try:
        yield
    except RecordDropped as dropped:
        counters.skipped[dropped.reason] += 1
    except InputError:
        if on_bad_row == "error":
            raise
        counters.skipped["unusable row"] += 1


def _item(record: Record, writer: ChainWriter, index: int, place: str) -> Item:
    """A record, whatever its length."""
    form = writer.form
    rated = rated_outputs(record, place, kind=form.kind)
    structures = tuple(form.weights)
    if rated.rated and len(rated.outputs) > 1 and len({output.rating for output in rated.outputs}) == 1:
        raise RecordDropped(f"{place}: field 'ratings': all are equal, none is better", "all ratings equal")
    if rated.rated and len(rated.outputs) == 1:
        only = {"p": 1.0, "n": 0.0}.get(structures[0]) if len(structures) == 1 else None
        if only is not None and rated.outputs[0].rating != only:
            raise RecordDropped(f"{place}: field 'label': not what --structures {structures[0]} learns", "other label")
    if len(rated.outputs) > 1 and len({output.turns for output in rated.outputs}) == 1:
        raise RecordDropped(f"{place}: all outputs are the same text", "all outputs equal")
    if not rated.rated and form.markers != "feedback":
        raise InputError(f"{place}: missing field 'ratings': --markers {form.markers} tells outputs apart by them")
    outputs = tuple(tuple(writer.output(output, place)) for output in rated.outputs)
    prompt = writer.prompt(rated.prompt, place)
    repeated = writer.prompt(rated.prompt, place, repeated=True) if form.repeats(rated.prompt) else ()
    return Item(rated, prompt, repeated, outputs, index, structures)


def _each(item: Item, form: ChainFormat) -> list[Item]:
    """What an item becomes: itself, or one for each structure; of "p" and "n" one for each output."""
    if form.emit == "one" or not item.rated.rated or len(item.outputs) == 1:
        return [item]
    found = []
    for name in item.structures:
        if name in ("p", "n"):
            chosen = [place for place in range(len(item.outputs)) if item.negative(place) is (name == "n")]
            found += [dataclasses.replace(item, structures=(name,), only=place) for place in chosen]
        else:
            found.append(dataclasses.replace(item, structures=(name,)))
    return found


def _within_prompt(
    item: Item, writer: ChainWriter, bounds: ChainSizes, truncation: Truncation, place: str, counters: Counters
) -> Item:
    """The item with its prompt within its limit, and as it is repeated; each loses its beginning.

    A prompt without a limit of its own gives way to the longest chain behind it, down to half of ``max_length``.
    """
    ids = [token for part in item.prompt for token in _ids(writer, part)]
    behind = bounds.largest(item)[0] - len(ids) if truncation.max_length is not None else 0
    kept = truncation.prompt_ids(ids, [behind], bos=writer.encoder.bos, place=place, counters=counters)
    if len(kept) == len(ids):
        return item
    bos = kept[:1] if kept[0] == writer.encoder.bos else []
    ends = _end_of(writer, item.prompt, len(kept) - len(bos))
    repeated = _end_of(writer, item.repeated, len(kept))
    return dataclasses.replace(item, prompt=[Words(tuple(bos)), *ends], repeated=repeated)


def _end_of(writer: ChainWriter, parts: Sequence[Words | Mark], room: int) -> list[Words | Mark]:
    """The end of a prompt: whole marked turns, and of a person's words what there is room for."""
    kept: list[Words | Mark] = []
    for part in reversed(parts):
        length = len(_ids(writer, part))
        if length > room:
            if isinstance(part, Words) and room:
                kept.append(dataclasses.replace(part, ids=part.ids[-room:]))
            break
        kept.append(part)
        room -= length
    return kept[::-1]


def _ids(writer: ChainWriter, part: Words | Mark) -> Sequence[int]:
    return part.ids if isinstance(part, Words) else (*part.ids, writer.end)


def _within(
    items: list[Item],
    bounds: ChainSizes,
    truncation: Truncation,
    counters: Counters,
    records: Sequence[Record],
    on_bad_row: OnBadRow,
) -> list[Item]:
    """The items that the limit of a whole chain leaves, by its policy."""
    if truncation.max_length is None or not items:
        return items
    limit, kept = truncation.max_length, []
    for item in items:
        length, _ = bounds.largest(item)
        if length <= limit:
            kept.append(item)
            continue
        place, problem = place_of(records, item.record_id), ""
        if truncation.completion == "error":
            problem = (
                f"a chain of its prompt, feedback and outputs has up to {length} tokens, more than max_length {limit}; "
                "raise it or choose completion truncation 'cut' or 'drop'"
            )
        elif truncation.completion == "cut" and bounds.opening(item) >= limit:
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
