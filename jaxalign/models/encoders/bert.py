"""BERT: learned positions from 0, token types, the head on the pooled first token."""

from collections.abc import Mapping
from typing import Any

from jaxalign.models.encoders._config import EncoderConfig
from jaxalign.models.encoders._family import EncoderFamily, bert_body, head, read_epsilon, refuse_unknown
from jaxalign.models.families._family import Weight, optional_int, read_activation, require_int

KNOWN = {
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
}  # fmt: skip
# The first releases' description of the pooler, which is the same in all of them.
INERT = frozenset({
    "directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head",
    "pooler_type",
})  # fmt: skip


def read_config(fields: Mapping[str, Any], path: str, labels: int) -> EncoderConfig:
    """config.json -> EncoderConfig; refuses what is not implemented."""
    refuse_unknown(fields, KNOWN, INERT, path)
    return EncoderConfig(
        family=fields["model_type"],
        vocab_size=require_int(fields, "vocab_size", path),
        width=require_int(fields, "hidden_size", path),
        layers=require_int(fields, "num_hidden_layers", path),
        heads=require_int(fields, "num_attention_heads", path),
        mlp_width=require_int(fields, "intermediate_size", path),
        max_positions=require_int(fields, "max_position_embeddings", path),
        token_types=optional_int(fields, "type_vocab_size", 2, path),
        norm_epsilon=read_epsilon(fields, path),
        activation=read_activation(fields, "hidden_act", "gelu", path),
        labels=labels,
    )


def weights(config: EncoderConfig) -> tuple[Weight, ...]:
    """The table of weight names."""
    return (*bert_body(config, "bert."), *head(config, "bert.pooler.dense", "classifier"))


FAMILY = EncoderFamily({"bert": "BertForSequenceClassification"}, read_config, weights)
