"""From the config and the safetensors files of a folder to an encoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.models._safetensors import TensorFolder
from jaxalign.models.encoders._config import EncoderConfig
from jaxalign.models.encoders._encoder import Params
from jaxalign.models.encoders._family import EncoderFamily
from jaxalign.models.families._family import Weight


def load_encoder(
    family: EncoderFamily, folder: Path, fields: Mapping[str, Any], labels: int, dtype: Any
) -> tuple[EncoderConfig, Params]:
    """Read an encoder classifier.

    Args:
        family: of ``fields["model_type"]``.
        folder: with config.json and safetensors.
        fields: config.json.
        labels: outputs of the head.
        dtype: of the parameters; None keeps the files'.

    Raises:
        InputError: another kind of model, a field that is not implemented, a missing, unexpected or misshapen tensor.
    """
    path = str(folder / "config.json")
    classifier = family.architectures[fields["model_type"]]
    for architecture in fields.get("architectures") or ():
        if architecture != classifier:
            raise InputError(f"{path}: architecture {architecture!r} is not a classifier; a classifier is {classifier}")
    config = family.read_config(fields, path, labels)
    table = family.weights(config)
    tensors = TensorFolder(folder)
    names = _names_in_file(config, family, table, tensors)

    params: Params = {}
    for weight in table:
        parts = [
            np.asarray(weight.split(tensors.read(names[name], weight.shape))[0], dtype)
            for name in _names(config, weight)
        ]
        *parents, leaf = ("stacks", "0", *weight.leaves[0]) if weight.per_layer else weight.leaves[0]
        tree = params
        for parent in parents:
            tree = tree.setdefault(parent, {})
        tree[leaf] = jnp.asarray(np.stack(parts) if weight.per_layer else parts[0])
    return config, params


def _names(config: EncoderConfig, weight: Weight) -> list[str]:
    return [weight.name.format(layer=layer) for layer in range(config.layers if weight.per_layer else 1)]


def _names_in_file(
    config: EncoderConfig, family: EncoderFamily, table: tuple[Weight, ...], tensors: TensorFolder
) -> dict[str, str]:
    """Table name -> the name the files use: the first BERTs call a norm's scale gamma and its bias beta."""
    found = tensors.names()
    names = {name: name for weight in table for name in _names(config, weight)}
    for name in names:
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        if name not in found and old in found:
            names[name] = old
    missing = [name for name, in_file in names.items() if in_file not in found]
    if missing:
        raise InputError(
            f"{tensors.folder}: not a trained classifier: {len(missing)} of its {len(names)} tensors are missing, "
            f"first {missing[0]!r}"
        )
    unexpected = sorted(name for name in found - set(names.values()) if not name.endswith(family.ignored))
    if unexpected:
        raise InputError(f"{tensors.folder}: unexpected tensor {unexpected[0]!r} (and {len(unexpected) - 1} more)")
    return names
