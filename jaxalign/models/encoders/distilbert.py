"""DistilBERT: BERT's layers under names of its own, no token types, a ReLU in the head."""

from collections.abc import Mapping
from typing import Any

from jaxalign.models.encoders._config import EncoderConfig
from jaxalign.models.encoders._family import EncoderFamily, head, norm, refuse_unknown
from jaxalign.models.families._family import Weight, linear, plain, read_activation, require_int

KNOWN = {"vocab_size", "dim", "n_layers", "n_heads", "hidden_dim", "max_position_embeddings", "activation"}
# Positions are a table in the file, whether they were learned or set to sines.
INERT = frozenset({"dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds"})


def read_config(fields: Mapping[str, Any], path: str, labels: int) -> EncoderConfig:
    """config.json -> EncoderConfig; refuses what is not implemented."""
    refuse_unknown(fields, KNOWN, INERT, path)
    return EncoderConfig(
        family=fields["model_type"],
        vocab_size=require_int(fields, "vocab_size", path),
        width=require_int(fields, "dim", path),
        layers=require_int(fields, "n_layers", path),
        heads=require_int(fields, "n_heads", path),
        mlp_width=require_int(fields, "hidden_dim", path),
        max_positions=require_int(fields, "max_position_embeddings", path),
        activation=read_activation(fields, "activation", "gelu", path),
        head_activation="relu",
        labels=labels,
    )


def weights(config: EncoderConfig) -> tuple[Weight, ...]:
    """The table of weight names."""
    d, f, heads = (config.width,), (config.mlp_width,), (config.heads, config.head_dim)
    embeddings, layer = "distilbert.embeddings.", "distilbert.transformer.layer.{layer}."
    return (
        plain(f"{embeddings}word_embeddings.weight", ("embed", "tokens"), (config.vocab_size, *d)),
        plain(f"{embeddings}position_embeddings.weight", ("embed", "positions"), (config.max_positions, *d)),
        *norm(f"{embeddings}LayerNorm", ("embed", "norm"), config),
        *linear(f"{layer}attention.q_lin", "query", d, heads, bias=True),
        *linear(f"{layer}attention.k_lin", "key", d, heads, bias=True),
        *linear(f"{layer}attention.v_lin", "value", d, heads, bias=True),
        *linear(f"{layer}attention.out_lin", "output", heads, d, bias=True),
        *norm(f"{layer}sa_layer_norm", ("attention_norm",), config),
        *linear(f"{layer}ffn.lin1", "up", d, f, bias=True),
        *linear(f"{layer}ffn.lin2", "down", f, d, bias=True),
        *norm(f"{layer}output_layer_norm", ("mlp_norm",), config),
        *head(config, "pre_classifier", "classifier"),
    )


FAMILY = EncoderFamily({"distilbert": "DistilBertForSequenceClassification"}, read_config, weights)
