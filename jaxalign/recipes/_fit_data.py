"""What a run reads: batches of examples, listed or drawn, with the pretraining text beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxalign import data, sharding
from jaxalign.data import Batch, BatchSource, Example, Examples
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig
from jaxalign.recipes._config import FitConfig

__all__ = ["Pretraining", "carried_extras", "check_fit", "count_tokens", "listed", "make_source"]


@dataclass(frozen=True)
class Pretraining:
    """Plain text that every step learns from beside its batch."""

    examples: Sequence[Example]
    """Windows of text (``data.text_windows``)."""
    batch_size: int
    """Rows in one update, over all devices."""
    length: int
    """Tokens of a row; windows are packed."""


def listed(examples: Examples) -> list[Example]:
    """Examples as a list: of drawn ones the first draw of each, the same at every evaluation."""
    if isinstance(examples, Sequence):
        return list(examples)
    return [examples.draw(index, 0) for index in range(len(examples))]


def make_source(
    examples: Examples,
    config: FitConfig,
    mesh: Mesh,
    pad_token: int,
    *,
    shuffle: bool,
    pretraining: Pretraining | None = None,
) -> BatchSource:
    """The batches of a run, or in order those of an evaluation; this process's rows."""
    part, parts = sharding.row_share(mesh)
    beside = None
    if pretraining is not None:
        divisor = config.accumulation * sharding.data_shards(mesh)
        if pretraining.batch_size % divisor:
            raise InputError(
                f"--pretraining-batch-size: {pretraining.batch_size} rows do not divide into {divisor} "
                "(--accumulation times the data shards of --mesh)"
            )
        beside = data.make_batches(
            pretraining.examples,
            batch_size=pretraining.batch_size,
            seed=config.seed,
            pack=True,
            max_length=pretraining.length,
            process_index=part,
            process_count=parts,
            pad_token=pad_token,
            pieces=sharding.length_shards(mesh),
        )
    return data.make_batches(
        examples,
        batch_size=config.batch_size,
        process_index=part,
        process_count=parts,
        pad_token=pad_token,
        seed=config.seed,
        shuffle=shuffle,
        num_epochs=1 if not shuffle else (config.epochs if config.max_steps is None else None),
        pack=config.packing,
        max_length=config.row_length,
        layout=config.pair_layout,
        beside=beside,
        pieces=sharding.length_shards(mesh),
    )


def count_tokens(batch: Batch) -> jax.Array:
    """Tokens of a batch, and of the text beside it."""
    own = jnp.sum(batch.example > 0)
    return own if batch.pretraining is None else own + count_tokens(batch.pretraining)


def check_fit(config: ModelConfig, examples: Examples, *, flag: str = "--max-length") -> None:
    """An index past the end of a table would be read as its last row, without a word; ``flag`` limits the length."""
    if not isinstance(examples, Sequence):
        longest = int(examples.sizes.tokens.max())
        if longest > config.max_positions:
            record = int(examples.sizes.record_ids[examples.sizes.tokens.argmax()])
            raise InputError(
                f"{flag}: record {record} becomes up to {longest} tokens, but the model has "
                f"{config.max_positions} positions"
            )
        if examples.largest_token >= config.vocab_size:
            raise InputError(
                f"--model: there is the token {examples.largest_token}, but the model's vocabulary has "
                f"{config.vocab_size}: the tokenizer is another model's"
            )
        return
    for example in examples:
        if not example.count("token"):
            continue
        if int(example.positions.max()) >= config.max_positions:
            raise InputError(
                f"{flag}: record {example.record_id} has positions up to {int(example.positions.max())}, but the "
                f"model has {config.max_positions}"
            )
        if int(example.tokens.max()) >= config.vocab_size:
            raise InputError(
                f"--model: record {example.record_id} has the token {int(example.tokens.max())}, but the model's "
                f"vocabulary has {config.vocab_size}: the tokenizer is another model's"
            )


def carried_extras(examples: Examples, eval_examples: Sequence[Example]) -> set[str]:
    """The names of what the examples carry beside their tokens."""
    listed_examples = examples if isinstance(examples, Sequence) else [examples.draw(0, 0)]
    carried, also = (
        {spec.name for spec in data.extra_specs(some)} for some in (listed_examples, eval_examples or listed_examples)
    )
    if different := sorted((carried ^ also) & {"trunk", "reference_log_probs"}):
        raise InputError(f"eval_examples: they and the examples must carry {different[0]} both, or neither")
    return carried
