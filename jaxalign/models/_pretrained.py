"""Weights in and out of Hugging Face folders."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.models._config import ModelConfig
from jaxalign.models._decoder import Params, init, logical_axes
from jaxalign.models._freeze import restack
from jaxalign.models._safetensors import SINGLE, TensorFolder
from jaxalign.models.families import FAMILIES, Family, Weight
from jaxalign.models.families._family import SPECIAL_TOKENS

HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def load_pretrained(
    folder_or_hub_id: str | Path, *, dtype: Any = None, mesh: jax.sharding.Mesh | None = None
) -> tuple[ModelConfig, Params]:
    """Read a Hugging Face model folder: config.json and safetensors, single or sharded.

    Tensors are read one kind at a time, stacked over layers and put on their devices before the next kind is read, so
    the host never holds much more than the largest kind.

    Args:
        folder_or_hub_id: a local folder, or an id on the Hugging Face hub (weights, configs and tokenizer files are
            then downloaded to its cache).
        dtype: of the parameters; None keeps the files'.
        mesh: shard the parameters over this mesh by the rules of ``jaxalign.sharding``.

    Returns:
        (config, params), one scanned stack.

    Raises:
        InputError: not a model, an unknown architecture, a config field that is not implemented, pickled weights,
            remote code, a missing, unexpected or misshapen tensor; the message names file and field or tensor.
    """
    folder = _folder(folder_or_hub_id)
    family, config = _read_config(folder)
    tensors = TensorFolder(folder)
    table = family.weights(config)
    names = _names_in_file(family, config, table, tensors)
    shardings = _shardings(config, mesh)

    params: Params = {}
    for weight in table:
        for path, array in _read_weight(config, weight, names[weight.name], tensors, dtype):
            sharding = None if shardings is None else _get(shardings, path)
            _set(params, path, jax.device_put(array, sharding) if sharding is not None else jnp.asarray(array))
    return config, params


def load_config(folder_or_hub_id: str | Path) -> ModelConfig:
    """The config of a model folder or hub id, its weights unread. Raises ``InputError`` as ``load_pretrained`` does."""
    return _read_config(_folder(folder_or_hub_id))[1]


def save_pretrained(folder: str | Path, config: ModelConfig, params: Params, tokenizer: Any = None) -> None:
    """Write a Hugging Face folder: model.safetensors, config.json, generation_config.json and the tokenizer's files.

    ``transformers`` opens it with no missing and no unexpected weight. In a run of several processes all must call
    this; the first one writes.

    Args:
        folder: made if it does not exist; files of the same names are replaced.
        config: the model; ``config.extra`` goes back into config.json.
        params: its parameters, in any stacks and any sharding; each leaf is saved in its own dtype.
        tokenizer: anything with ``save_pretrained(folder)``; its special tokens fill those the config leaves out.

    Raises:
        InputError: a config that no Hugging Face family can express.
    """
    if config.family not in FAMILIES:
        raise InputError(f"ModelConfig.family = {config.family!r} is unknown; known: {', '.join(FAMILIES)}")
    family = FAMILIES[config.family]
    fields = family.write_config(config)
    table = family.weights(config)
    config, params = restack(config, params, (config.layers,))
    expected = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    _check_tree(expected, params)

    tensors: dict[str, np.ndarray] = {}
    for weight in table:
        leaves = [_to_host(_get(params, _tree_path(weight, leaf))) for leaf in weight.leaves]
        if weight.per_layer:
            for layer in range(config.layers):
                joined = weight.join([leaf[layer] for leaf in leaves])
                tensors[weight.name.format(layer=layer)] = np.ascontiguousarray(joined)
        else:
            tensors[weight.name] = np.ascontiguousarray(weight.join(leaves))
    if jax.process_index() != 0:
        return

    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    special = _special_tokens(config, tokenizer)
    extra = {name: list(value) if isinstance(value, tuple) else value for name, value in config.extra}
    dtype = str(_get(params, ("embed", "tokens")).dtype)
    _write_json(folder / "config.json", {
        **extra, **fields, **special,
        "architectures": [family.architectures[0]], "model_type": family.model_type, "dtype": dtype,
    })  # fmt: skip
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **special})
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))


def _folder(name: str | Path) -> Path:
    """The local folder, downloaded first if the name is a hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{name}: a file, not a model folder")
    if isinstance(name, Path) or not HUB_ID.fullmatch(name):
        raise InputError(f"{name}: no such folder")

    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the client raises its own, requests' and OS errors; all mean "not to be had"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{name}: neither a local folder nor a model that the hub gives ({reason})") from error


def _read_config(folder: Path) -> tuple[Family, ModelConfig]:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no config.json: not a Hugging Face model folder")
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path}: must be a JSON object")
    if "auto_map" in fields:
        raise InputError(
            f"{path}: auto_map asks to run code that comes with the model, which jaxalign never does; use the model's "
            "version without remote code, or remove the field if model_type is a plain one"
        )
    model_type = fields.get("model_type")
    if model_type not in FAMILIES:
        raise InputError(f"{path}: model_type = {model_type!r} is not implemented; known: {', '.join(FAMILIES)}")
    family = FAMILIES[model_type]
    for architecture in fields.get("architectures") or ():
        if architecture not in family.architectures:
            raise InputError(
                f"{path}: architecture {architecture!r} is not a language model jaxalign knows; known for "
                f"{model_type}: {', '.join(family.architectures)}"
            )
    return family, family.read_config(fields, str(path))


def _names_in_file(
    family: Family, config: ModelConfig, table: tuple[Weight, ...], tensors: TensorFolder
) -> dict[str, str]:
    """Table name -> the name the files use (a bare model's leave out the prefix); no tensor may be left over."""
    found = tensors.names()
    bare = not any(name.startswith(family.base_prefix) for name in found)
    names = {weight.name: weight.name.removeprefix(family.base_prefix) if bare else weight.name for weight in table}
    expected = {
        names[weight.name].format(layer=layer)
        for weight in table
        for layer in range(config.layers if weight.per_layer else 1)
    }
    if config.tied_embeddings:
        expected.add("lm_head.weight")  # some files hold the tied matrix twice
    unexpected = sorted(name for name in found - expected if not name.endswith(family.ignored))
    if unexpected:
        raise InputError(f"{tensors.folder}: unexpected tensor {unexpected[0]!r} (and {len(unexpected) - 1} more)")
    return names


def _read_weight(
    config: ModelConfig, weight: Weight, name: str, tensors: TensorFolder, dtype: Any
) -> list[tuple[tuple[str, ...], np.ndarray]]:
    """(path in the tree, array) of each leaf this weight holds, layers stacked."""
    paths = [_tree_path(weight, leaf) for leaf in weight.leaves]
    if not weight.per_layer:
        parts = weight.split(tensors.read(name, weight.shape))
        return [(path, part.astype(dtype or part.dtype)) for path, part in zip(paths, parts, strict=True)]
    stacked: list[np.ndarray] = []
    for layer in range(config.layers):
        parts = weight.split(tensors.read(name.format(layer=layer), weight.shape))
        if not stacked:
            stacked = [np.empty((config.layers, *part.shape), dtype or part.dtype) for part in parts]
        for whole, part in zip(stacked, parts, strict=True):
            whole[layer] = part
    return list(zip(paths, stacked, strict=True))


def _shardings(config: ModelConfig, mesh: jax.sharding.Mesh | None) -> Params | None:
    if mesh is None:
        return None
    from jaxalign.sharding import tree_shardings

    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    return tree_shardings(logical_axes(config), shapes, mesh)


def _special_tokens(config: ModelConfig, tokenizer: Any) -> dict[str, Any]:
    """Ids of special tokens: the config's where it has them, else the tokenizer's, else null."""
    extra = dict(config.extra)
    special = {name: extra.get(name, getattr(tokenizer, name, None)) for name in SPECIAL_TOKENS}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in special.items()}


def _check_tree(expected: Any, params: Params) -> None:
    """Parameters that do not fit their config would be saved as a folder nobody can load."""
    wanted = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(expected)}
    given = {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for path in sorted(wanted.keys() | given.keys()):
        if wanted.get(path) != given.get(path):
            raise InputError(f"params{path}: shape {given.get(path)}, the config asks for {wanted.get(path)}")


def _to_host(leaf: Any) -> np.ndarray:
    """A whole numpy array, gathered where other processes hold parts of it."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def _tree_path(weight: Weight, leaf: tuple[str, ...]) -> tuple[str, ...]:
    return ("stacks", "0", *leaf) if weight.per_layer else leaf


def _get(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _set(tree: Params, path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
