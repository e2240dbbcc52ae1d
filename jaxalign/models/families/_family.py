"""What a model family says about itself: its config fields and its weight names, readable both ways."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.errors import InputError
from jaxalign.models._config import ModelConfig
from jaxalign.models._json import freeze

LeafPath = tuple[str, ...]

# Fields of any config.json that do not change the numbers: kept in ModelConfig.extra for the way back.
INERT_FIELDS = frozenset({
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "initializer_range", "use_cache",
    "is_encoder_decoder", "is_decoder", "problem_type", "output_attentions", "output_hidden_states", "return_dict",
    "torchscript", "chunk_size_feed_forward", "id2label", "label2id", "num_labels", "task_specific_params",
    "finetuning_task", "tokenizer_class", "prefix", "transformers.js_config", "unsloth_version", "unsloth_fixed",
    "use_bfloat16", "tf_legacy_loss", "max_length", "min_length", "do_sample", "temperature", "top_k", "top_p",
    "num_beams", "early_stopping", "repetition_penalty",
})  # fmt: skip
# Fields about the file, not the model: dropped here, written afresh on save.
FILE_FIELDS = frozenset({
    "model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "_name_or_path", "_commit_hash",
    "_attn_implementation", "_attn_implementation_autoset", "attn_implementation",
})  # fmt: skip
# Special tokens are written even where unset: Transformers' own defaults would fill them with another model's ids.
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")

# Hugging Face's name of an activation -> ours.
ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True)
class Weight:
    """One tensor of a Hugging Face file and the parameter leaves it holds.

    ``name`` may contain ``{layer}``: then there is one tensor a layer and the leaves lie in the scanned stacks, their
    path given inside a stack; otherwise the path is given inside the whole tree.
    """

    name: str
    leaves: tuple[LeafPath, ...]
    shape: tuple[int, ...]
    """In the file."""
    split: Callable[[np.ndarray], Sequence[np.ndarray]]
    """File tensor -> one array a leaf."""
    join: Callable[[Sequence[np.ndarray]], np.ndarray]
    """The inverse."""

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.name


@dataclass(frozen=True)
class Wrapper:
    """A larger model with one of a family inside: its language model alone is read, and written as the family's."""

    model_type: str
    architectures: tuple[str, ...]
    read_fields: Callable[[Mapping[str, Any], str], dict[str, Any]]
    """(fields of config.json, its path for messages) -> the fields of the language model."""
    prefixes: tuple[Mapping[str, str], ...]
    """How a name of the family's table begins -> how it begins in the larger model; one mapping a form of files."""
    others: tuple[str, ...]
    """How the names of the other parts' tensors begin."""


@dataclass(frozen=True)
class Family:
    """One file of this package: how config and weights of a family are read and written."""

    model_type: str
    architectures: tuple[str, ...]
    """Names accepted in ``config.json``; the first one is written."""
    read_config: Callable[[Mapping[str, Any], str], ModelConfig]
    """(fields of config.json, its path for messages) -> config."""
    write_config: Callable[[ModelConfig], dict[str, Any]]
    """config -> the family's own fields of config.json."""
    weights: Callable[[ModelConfig], tuple[Weight, ...]]
    """The table of weight names."""
    base_prefix: str
    """What a file of the bare model (no head) leaves out in front of its names."""
    classifier: str | None = None
    """The architecture of the same model with a linear score head, ``...ForSequenceClassification``."""
    covers: tuple[str, ...] = ()
    """Published models of this form, for the documentation."""
    features: tuple[str, ...] = ()
    """What of the family's options is implemented and held to transformers, for the documentation."""
    ignored: tuple[str, ...] = ()
    """Endings of tensors that are constants in old files (masks, rotary tables)."""
    wrapper: Wrapper | None = None
    """A larger model (with eyes, say) that holds one of this family."""
    merged_code: frozenset[str] = frozenset()
    """Classes of code that came with the model before transformers had them: named in ``auto_map``, never run."""


def same(array: np.ndarray) -> list[np.ndarray]:
    return [array]


def first(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0]


def plain(name: str, leaf: LeafPath, shape: tuple[int, ...]) -> Weight:
    """A tensor that is a leaf as it stands."""
    return Weight(name, (leaf,), shape, same, first)


def reshaped(name: str, leaf: LeafPath, shape: tuple[int, ...], leaf_shape: tuple[int, ...]) -> Weight:
    """A tensor that is a leaf up to a reshape (heads kept apart)."""
    return Weight(name, (leaf,), shape, lambda x: [x.reshape(leaf_shape)], lambda xs: xs[0].reshape(shape))


def transposed(name: str, leaf: LeafPath, shape: tuple[int, ...], leaf_shape: tuple[int, ...]) -> Weight:
    """A torch Linear, (out, in), that is a leaf (in, out) up to a reshape of heads."""
    return Weight(
        name, (leaf,), shape, lambda x: [x.T.reshape(leaf_shape)], lambda xs: xs[0].reshape(shape[1], shape[0]).T
    )


def permuted(
    name: str, leaf: LeafPath, shape: tuple[int, ...], leaf_shape: tuple[int, ...], order: np.ndarray
) -> Weight:
    """A torch Linear, (heads * size, in), its heads' rows taken in another order: ``(in, heads, size[order])``."""
    back = np.argsort(order)

    def split(array: np.ndarray) -> list[np.ndarray]:
        return [array.T.reshape(leaf_shape)[..., order]]

    def join(arrays: Sequence[np.ndarray]) -> np.ndarray:
        return arrays[0][..., back].reshape(shape[1], shape[0]).T

    return Weight(name, (leaf,), shape, split, join)


def norms(config: ModelConfig, table: Mapping[str, str]) -> list[Weight]:
    """The norms of a family: ``{our path, "/" between: name without .weight}``; biases too where norms have them.

    Paths as in ``Weight.leaves``; the query and key norms have the size of a head and no bias.
    """
    rows = []
    for ours, theirs in table.items():
        path = tuple(ours.split("/"))
        of_heads = ours in ("query_norm", "key_norm")
        shape = (config.head_dim if of_heads else config.width,)
        rows.append(plain(f"{theirs}.weight", (*path, "scale"), shape))
        if config.norm == "layer" and not of_heads:
            rows.append(plain(f"{theirs}.bias", (*path, "bias"), shape))
    return rows


def linear(
    name: str, part: str, inputs: tuple[int, ...], outputs: tuple[int, ...], *, bias: bool, prefix: LeafPath = ()
) -> list[Weight]:
    """A torch Linear ``name.weight`` (out, in), and ``name.bias``, as the leaves kernel (in, out) and bias of ``part``.

    ``inputs`` and ``outputs`` are the leaf's axes, heads apart: ``(D,), (H, K)`` for a query, ``(H, K), (D,)`` for the
    attention's output.
    """
    size_in, size_out = math.prod(inputs), math.prod(outputs)
    path = (*prefix, part)
    rows = [transposed(f"{name}.weight", (*path, "kernel"), (size_out, size_in), (*inputs, *outputs))]
    if bias:
        rows.append(reshaped(f"{name}.bias", (*path, "bias"), (size_out,), outputs))
    return rows


def head(config: ModelConfig, name: str = "lm_head") -> list[Weight]:
    """What reads the hidden states: the unembedding where it is not tied, or the score head of a classifier."""
    if config.labels:
        return [plain("score.weight", ("score", "kernel"), (config.labels, config.hidden_width))]
    rows = []
    if not config.tied_embeddings:
        rows.append(plain(f"{name}.weight", ("unembed", "kernel"), (config.vocab_size, config.hidden_width)))
    if config.unembedding_bias:
        rows.append(plain(f"{name}.bias", ("unembed", "bias"), (config.vocab_size,)))
    return rows


def require_int(fields: Mapping[str, Any], name: str, path: str) -> int:
    """A field that must be there and be a positive integer."""
    if name not in fields:
        raise InputError(f"{path}: field {name!r} is missing")
    value = fields[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{path}: field {name!r} must be a positive integer, is {value!r}")
    return value


def optional_int(fields: Mapping[str, Any], name: str, default: int, path: str) -> int:
    """A positive integer, or the default where the field is absent or null."""
    return default if fields.get(name) is None else require_int(fields, name, path)


def read_activation(fields: Mapping[str, Any], name: str, default: str, path: str) -> Any:
    """The activation, ours for Hugging Face's name."""
    value = fields.get(name, default)
    if value not in ACTIVATION_NAMES:
        raise InputError(f"{path}: {name} = {value!r} is not implemented; known: {', '.join(ACTIVATION_NAMES)}")
    return ACTIVATION_NAMES[value]


def read_extra(
    fields: Mapping[str, Any], known: set[str], allowed: Mapping[str, tuple[Any, ...]], inert: frozenset[str], path: str
) -> tuple[tuple[str, Any], ...]:
    """Everything in config.json that the family did not read: kept if inert, refused if it could change the model.

    Args:
        fields: config.json.
        known: fields the family has turned into the ModelConfig.
        allowed: fields of which only these values are implemented.
        inert: further fields of this family that change nothing.
        path: for messages.

    Raises:
        InputError: a field that is not implemented; ignoring it would give another model than the one published.
    """
    extra = {}
    for name, value in sorted(fields.items()):
        if name in known or name in FILE_FIELDS:
            continue
        if name in allowed:
            if value not in allowed[name]:
                raise InputError(f"{path}: {name} = {json.dumps(value)} is not implemented")
            extra[name] = freeze(value)
        elif name in INERT_FIELDS or name in inert:
            extra[name] = freeze(value)
        elif value is not None and value is not False:
            raise InputError(
                f"{path}: field {name!r} = {json.dumps(value)} is unknown to jaxalign and might change the model; "
                "remove it if it does not"
            )
    return tuple(extra.items())
