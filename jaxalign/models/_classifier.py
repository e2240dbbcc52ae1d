"""Any text classifier of a Hugging Face folder: an encoder with a head, or a decoder with a score head."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.errors import InputError
from jaxalign.models._config import ModelConfig
from jaxalign.models._config_file import read_fields
from jaxalign.models._decoder import Params, apply, init, score
from jaxalign.models._hub import local_folder
from jaxalign.models._load import load_config, load_pretrained
from jaxalign.models._take import take_tokens
from jaxalign.models.encoders import ENCODERS, EncoderConfig, encoder_logits
from jaxalign.models.encoders._load import load_encoder
from jaxalign.models.families import FAMILIES


@dataclass(frozen=True)
class Labels:
    """What a classifier's outputs stand for."""

    names: tuple[str, ...]
    """One a label, in the order of the logits."""
    exclusive: bool
    """Exactly one label is true of a text, P = softmax of the logits. Otherwise each output stands for itself."""


def load_classifier(
    folder_or_hub_id: str | Path, *, dtype: Any = "float32"
) -> tuple[EncoderConfig | ModelConfig, Params]:
    """Read a ``...ForSequenceClassification`` folder: RoBERTa, BERT and DistilBERT, or any decoder with a score head.

    Args:
        folder_or_hub_id: a local folder, or an id on the Hugging Face hub.
        dtype: of the parameters, and of an encoder's activations; None keeps the files'.

    Returns:
        (config, params) for ``classify``.

    Raises:
        InputError: not a classifier, an unknown architecture, a config field that is not implemented, pickled weights,
            remote code, a missing, unexpected or misshapen tensor; the message names file and field or tensor.
    """
    folder = local_folder(folder_or_hub_id)
    fields = _read_fields(folder)
    if fields["model_type"] in ENCODERS:
        family = ENCODERS[fields["model_type"]]
        return load_encoder(family, folder, fields, len(_read_labels(folder, fields).names), dtype)
    _require_score_head(folder)
    return load_pretrained(folder, dtype=dtype)


def classifier_size(folder_or_hub_id: str | Path) -> int:
    """Numbers of the parameters that ``load_classifier`` would read, from config.json alone. Raises ``InputError``."""
    folder = local_folder(folder_or_hub_id, weights=False)
    fields = _read_fields(folder)
    if fields["model_type"] in ENCODERS:
        labels = len(_read_labels(folder, fields).names)
        family = ENCODERS[fields["model_type"]]
        encoder = family.read_config(fields, str(folder / "config.json"), labels)
        return sum(
            math.prod(weight.shape) * (encoder.layers if weight.per_layer else 1) for weight in family.weights(encoder)
        )
    _require_score_head(folder)
    config = load_config(folder)
    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def load_labels(folder_or_hub_id: str | Path) -> Labels:
    """The labels of a classifier's folder or hub id, as its config.json names them, its weights unread.

    Raises:
        InputError: no such folder, a language model, or labels that are not numbered 0, 1, 2 ...
    """
    folder = local_folder(folder_or_hub_id, weights=False)
    fields = _read_fields(folder)
    if fields["model_type"] not in ENCODERS:
        _require_score_head(folder)
    return _read_labels(folder, fields)


def classify(config: EncoderConfig | ModelConfig, params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Logits of a classifier's labels: of an encoder at the first real token, of a decoder at the last.

    Padding may lie on either side and changes nothing, nor do other rows.

    Args:
        config: from ``load_classifier`` (static under ``jax.jit``).
        params: its parameters.
        tokens: int ``[B, T]``, a text a row, special tokens included.
        mask: bool ``[B, T]``, False = padding.

    Returns:
        float32 ``[B, labels]``.
    """
    if isinstance(config, EncoderConfig):
        return encoder_logits(config, params, tokens, mask)
    hidden = apply(config, params, tokens, example=mask.astype(jnp.int32))
    last = mask.shape[-1] - 1 - jnp.argmax(mask[:, ::-1].astype(bool), axis=-1)
    return score(config, params, take_tokens(hidden, last[:, None])[:, 0])


def _read_fields(folder: Path) -> dict[str, Any]:
    fields = read_fields(folder)
    model_type = fields.get("model_type")
    if model_type not in ENCODERS and model_type not in FAMILIES:
        raise InputError(
            f"{folder / 'config.json'}: model_type = {model_type!r} is not implemented as a classifier; known: "
            f"{', '.join((*ENCODERS, *FAMILIES))}"
        )
    return fields


def _require_score_head(folder: Path) -> None:
    if load_config(folder).labels == 0:
        raise InputError(f"{folder}: not a classifier: a language model without a score head")


def _read_labels(folder: Path, fields: dict[str, Any]) -> Labels:
    """Two labels where the file names none: transformers leaves its default out."""
    path = folder / "config.json"
    named = fields.get("id2label")
    if named is None:
        count = fields.get("num_labels", 2)
        if not isinstance(count, int) or count < 1:
            raise InputError(f"{path}: field 'num_labels' must be a positive integer, is {count!r}")
        named = {str(index): f"LABEL_{index}" for index in range(count)}
    if not isinstance(named, dict) or not named or sorted(named) != sorted(map(str, range(len(named)))):
        raise InputError(f"{path}: field 'id2label' must name the labels 0, 1, 2 ..., is {json.dumps(named):.80}")
    names = tuple(str(named[str(index)]) for index in range(len(named)))
    exclusive = len(names) > 1 and fields.get("problem_type") in (None, "single_label_classification")
    return Labels(names, exclusive)
