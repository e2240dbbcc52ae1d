"""Records -> tokens + masks + positions: examples, rows, batches, packing, resumable iterators.

Everything here is NumPy: no model, no parameters, no device placement. Masks are made here, where the tokens are made,
and nowhere else.

    records = load_dataset("pairs.jsonl")
    examples, counters = build_examples(records, tokenizer, truncation=Truncation(max_length=512))
    batches = make_iterator(make_batches(examples, batch_size=64, seed=0, pack=True, max_length=1024))
"""

from jaxalign.data._answers import answers_example
from jaxalign.data._batch import Batch, BatchShape, PairLayout, collate
from jaxalign.data._build_chains import build_chains
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
from jaxalign.data._chain_format import ChainFormat, Structure
from jaxalign.data._chain_prompts import FeedbackPrompts, load_feedback_prompts
from jaxalign.data._chain_writer import ChainWriter
from jaxalign.data._chains import ChainExamples
from jaxalign.data._counters import Counters
from jaxalign.data._drawn import DrawnExamples, Examples
from jaxalign.data._encoder import Encoder, TokenizerLike
from jaxalign.data._example import Example, ExtraSpec, extra_specs, unshare, with_extras
from jaxalign.data._feedback_records import Output, RatedOutputs, Turn, rated_outputs
from jaxalign.data._fingerprint import fingerprint
from jaxalign.data._hub import parse_source
from jaxalign.data._iterator import BatchIterator, BatchSource, make_batches, make_iterator
from jaxalign.data._outputs import named_outputs
from jaxalign.data._plan import BatchPlan, Mixture, Sizes, example_sizes
from jaxalign.data._published import PUBLISHED, feedback_records, load_dataset, load_feedback, training_records
from jaxalign.data._records import Kind, Record, RecordDropped, record_kind
from jaxalign.data._responses import response_example, stop_tokens
from jaxalign.data._rollout import Prompt, build_prompts, response_batch
from jaxalign.data._sources import OnBadRow, Records, load_records
from jaxalign.data._templates import (
    BUILT_IN_TEMPLATES,
    FeedbackKind,
    GradedTemplate,
    Marker,
    PairTemplate,
    Polarity,
    TemplateSet,
    load_templates,
)
from jaxalign.data._tokenizer import load_tokenizer
from jaxalign.data._truncation import CompletionPolicy, PromptPolicy, Truncation
from jaxalign.data._windows import text_windows

__all__ = [
    "BUILT_IN_TEMPLATES",
    "PUBLISHED",
    "AnswerField",
    "Batch",
    "BatchIterator",
    "BatchPlan",
    "BatchShape",
    "BatchSource",
    "ChainExamples",
    "ChainFormat",
    "ChainWriter",
    "CompletionPolicy",
    "Counters",
    "DrawnExamples",
    "Encoder",
    "Example",
    "ExampleKind",
    "Examples",
    "ExtraSpec",
    "FeedbackKind",
    "FeedbackPrompts",
    "GradedTemplate",
    "Kind",
    "Marker",
    "Mixture",
    "OnBadRow",
    "Output",
    "PairLayout",
    "PairTemplate",
    "Polarity",
    "Prompt",
    "PromptPolicy",
    "RatedOutputs",
    "Record",
    "RecordDropped",
    "Records",
    "Sizes",
    "Structure",
    "TemplateSet",
    "TokenizerLike",
    "Truncation",
    "Turn",
    "answers_example",
    "build_chains",
    "build_examples",
    "build_prompts",
    "collate",
    "completion_example",
    "example_sizes",
    "extra_specs",
    "feedback_records",
    "fingerprint",
    "load_dataset",
    "load_feedback",
    "load_feedback_prompts",
    "load_records",
    "load_templates",
    "load_tokenizer",
    "make_batches",
    "make_iterator",
    "named_outputs",
    "parse_source",
    "preference_example",
    "prompt_tokens",
    "ranked_example",
    "rated_outputs",
    "record_kind",
    "response_batch",
    "response_example",
    "stop_tokens",
    "text_example",
    "text_windows",
    "training_records",
    "unpaired_example",
    "unshare",
    "with_extras",
]
