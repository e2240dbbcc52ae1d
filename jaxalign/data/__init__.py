"""Records -> tokens + masks + positions: examples, rows, batches, packing, resumable iterators.

Everything here is NumPy: no model, no parameters, no device placement. Masks are made here, where the tokens are made,
and nowhere else.

    records = load_records("pairs.jsonl")
    examples, counters = build_examples(records, tokenizer, truncation=Truncation(max_length=512))
    batches = make_iterator(make_batches(examples, batch_size=64, seed=0, pack=True, max_length=1024))
"""

from jaxalign.data._answers import answers_example
from jaxalign.data._batch import Batch, BatchShape, PairLayout, collate
from jaxalign.data._builders import (
    AnswerField,
    ExampleKind,
    build_examples,
    completion_example,
    preference_example,
    prompt_tokens,
    ranked_example,
    text_example,
    unpaired_example,
)
from jaxalign.data._counters import Counters
from jaxalign.data._encoder import Encoder, TokenizerLike
from jaxalign.data._example import Example, ExtraSpec, extra_specs, unshare, with_extras
from jaxalign.data._fingerprint import fingerprint
from jaxalign.data._iterator import BatchIterator, BatchSource, make_batches, make_iterator
from jaxalign.data._plan import BatchPlan, Sizes, example_sizes
from jaxalign.data._records import Kind, Record, RecordDropped, record_kind
from jaxalign.data._responses import response_example, stop_tokens
from jaxalign.data._rollout import Prompt, build_prompts, response_batch
from jaxalign.data._sources import OnBadRow, Records, load_records
from jaxalign.data._tokenizer import load_tokenizer
from jaxalign.data._truncation import CompletionPolicy, PromptPolicy, Truncation

__all__ = [
    "AnswerField",
    "Batch",
    "BatchIterator",
    "BatchPlan",
    "BatchShape",
    "BatchSource",
    "CompletionPolicy",
    "Counters",
    "Encoder",
    "Example",
    "ExampleKind",
    "ExtraSpec",
    "Kind",
    "OnBadRow",
    "PairLayout",
    "Prompt",
    "PromptPolicy",
    "Record",
    "RecordDropped",
    "Records",
    "Sizes",
    "TokenizerLike",
    "Truncation",
    "answers_example",
    "build_examples",
    "build_prompts",
    "collate",
    "completion_example",
    "example_sizes",
    "extra_specs",
    "fingerprint",
    "load_records",
    "load_tokenizer",
    "make_batches",
    "make_iterator",
    "preference_example",
    "prompt_tokens",
    "ranked_example",
    "record_kind",
    "response_batch",
    "response_example",
    "stop_tokens",
    "text_example",
    "unpaired_example",
    "unshare",
    "with_extras",
]
