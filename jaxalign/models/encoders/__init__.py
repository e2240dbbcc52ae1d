"""Bidirectional encoders with a classification head, read from Hugging Face folders: foreign judges and rewards.

One small encoder as pure functions over a parameter tree, and one file a family: config.json -> ``EncoderConfig`` and a
table of weight names. Reading only: encoders are neither trained nor saved here.
"""

from jaxalign.models.encoders import bert, distilbert, roberta
from jaxalign.models.encoders._config import EncoderConfig
from jaxalign.models.encoders._encoder import encode, encoder_logits
from jaxalign.models.encoders._family import EncoderFamily

ENCODERS: dict[str, EncoderFamily] = {
    model_type: family
    for family in (roberta.FAMILY, bert.FAMILY, distilbert.FAMILY)
    for model_type in family.architectures
}
"""By ``model_type`` in config.json."""

__all__ = ["ENCODERS", "EncoderConfig", "EncoderFamily", "encode", "encoder_logits"]
