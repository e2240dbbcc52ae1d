"""RoBERTa and the models in its shape (XLM-RoBERTa, CamemBERT): BERT's layers, positions numbered from padding id + 1.

The position of a token counts the tokens before it that are not the padding token, even where the padding token stands
inside a text: it is a published model's numbering, so ours too.
"""

from collections.abc import Mapping
from typing import Any

from jaxalign.errors import InputError
from jaxalign.models.encoders import bert
from jaxalign.models.encoders._config import EncoderConfig
from jaxalign.models.encoders._family import EncoderFamily, bert_body, head, read_epsilon, refuse_unknown
from jaxalign.models.families._family import Weight, optional_int, read_activation, require_int


def read_config(fields: Mapping[str, Any], path: str, labels: int) -> EncoderConfig:
    """config.json -> EncoderConfig; refuses what is not implemented."""
    refuse_unknown(fields, bert.KNOWN, frozenset(), path)
    padding = fields.get("pad_token_id", 1)
    if not isinstance(padding, int) or isinstance(padding, bool) or padding < 0:
        raise InputError(f"{path}: field 'pad_token_id' must be a token id, is {padding!r}: positions start behind it")
    rows = require_int(fields, "max_position_embeddings", path)
    if rows <= padding + 1:
        raise InputError(f"{path}: max_position_embeddings = {rows} leaves no position behind pad_token_id = {padding}")
    return EncoderConfig(
        family=fields["model_type"],
        vocab_size=require_int(fields, "vocab_size", path),
        width=require_int(fields, "hidden_size", path),
        layers=require_int(fields, "num_hidden_layers", path),
        heads=require_int(fields, "num_attention_heads", path),
        mlp_width=require_int(fields, "intermediate_size", path),
        max_positions=rows - padding - 1,
        position_offset=padding + 1,
        uncounted_token=padding,
        token_types=optional_int(fields, "type_vocab_size", 2, path),
        norm_epsilon=read_epsilon(fields, path),
        activation=read_activation(fields, "hidden_act", "gelu", path),
        labels=labels,
    )


def weights(config: EncoderConfig) -> tuple[Weight, ...]:
    """The table of weight names."""
    return (*bert_body(config, "roberta."), *head(config, "classifier.dense", "classifier.out_proj"))


FAMILY = EncoderFamily(
    {
        "roberta": "RobertaForSequenceClassification",
        "xlm-roberta": "XLMRobertaForSequenceClassification",
        "camembert": "CamembertForSequenceClassification",
    },
    read_config,
    weights,
    # Files converted from another framework keep a pooler that this head does not read.
    ignored=(*EncoderFamily.ignored, "roberta.pooler.dense.weight", "roberta.pooler.dense.bias"),
)
