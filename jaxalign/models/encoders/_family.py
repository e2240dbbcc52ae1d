"""What a family of encoders says about itself: its config fields and its weight names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxalign.errors import InputError
from jaxalign.models.encoders._config import EncoderConfig
from jaxalign.models.families._family import LeafPath, Weight, linear, plain, read_extra

# Fields that other libraries' and older versions' files carry, without effect on a classifier's logits: dropouts,
# sampling defaults, and how the file was made.
INERT = frozenset({
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "gradient_checkpointing",
    "tie_word_embeddings", "tie_weights_", "output_past", "_num_labels", "length_penalty", "diversity_penalty",
    "num_beam_groups", "num_return_sequences", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "typical_p",
})  # fmt: skip
ALLOWED: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
}


@dataclass(frozen=True)
class EncoderFamily:
    """One file of this package: how config and weights of a family are read."""

    architectures: Mapping[str, str]
    """``model_type`` in config.json -> the name of its classifier."""
    read_config: Callable[[Mapping[str, Any], str, int], EncoderConfig]
    """(fields of config.json, its path for messages, number of labels) -> config."""
    weights: Callable[[EncoderConfig], tuple[Weight, ...]]
    """The table of weight names; layers lie in the scanned stack."""
    ignored: tuple[str, ...] = ("embeddings.position_ids", "embeddings.token_type_ids")
    """Endings of tensors that are constants in old files, or of parts that a classifier does not use."""


def refuse_unknown(fields: Mapping[str, Any], known: set[str], inert: frozenset[str], path: str) -> None:
    """Raise ``InputError`` for a field of config.json that is not implemented and could change the logits."""
    read_extra(fields, known, ALLOWED, INERT | inert, path)


def read_epsilon(fields: Mapping[str, Any], path: str) -> float:
    """The layer norms' epsilon."""
    value = fields.get("layer_norm_eps", 1e-12)
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise InputError(f"{path}: field 'layer_norm_eps' must be a positive number, is {value!r}")
    return float(value)


def norm(name: str, leaf: LeafPath, config: EncoderConfig) -> list[Weight]:
    """A layer norm's scale and bias."""
    shape = (config.width,)
    return [plain(f"{name}.weight", (*leaf, "scale"), shape), plain(f"{name}.bias", (*leaf, "bias"), shape)]


def bert_body(config: EncoderConfig, prefix: str) -> list[Weight]:
    """The names BERT gave to embeddings and layers, and RoBERTa kept."""
    d, f, heads = (config.width,), (config.mlp_width,), (config.heads, config.head_dim)
    embeddings, layer = f"{prefix}embeddings.", f"{prefix}encoder.layer.{{layer}}."
    positions = config.max_positions + config.position_offset
    return [
        plain(f"{embeddings}word_embeddings.weight", ("embed", "tokens"), (config.vocab_size, *d)),
        plain(f"{embeddings}position_embeddings.weight", ("embed", "positions"), (positions, *d)),
        plain(f"{embeddings}token_type_embeddings.weight", ("embed", "types"), (config.token_types, *d)),
        *norm(f"{embeddings}LayerNorm", ("embed", "norm"), config),
        *(
            row
            for part in ("query", "key", "value")
            for row in linear(f"{layer}attention.self.{part}", part, d, heads, bias=True)
        ),
        *linear(f"{layer}attention.output.dense", "output", heads, d, bias=True),
        *norm(f"{layer}attention.output.LayerNorm", ("attention_norm",), config),
        *linear(f"{layer}intermediate.dense", "up", d, f, bias=True),
        *linear(f"{layer}output.dense", "down", f, d, bias=True),
        *norm(f"{layer}output.LayerNorm", ("mlp_norm",), config),
    ]


def head(config: EncoderConfig, dense: str, output: str) -> list[Weight]:
    """The head's two linear layers."""
    d, labels = (config.width,), (config.labels,)
    return [
        *linear(dense, "dense", d, d, bias=True, prefix=("head",)),
        *linear(output, "output", d, labels, bias=True, prefix=("head",)),
    ]
