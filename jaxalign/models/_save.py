"""Weights out: a Hugging Face folder, streamed tensor by tensor, that replaces an older one only when it is whole."""

import functools
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.models._config import ModelConfig
from jaxalign.models._config_file import family_of, write_files
from jaxalign.models._decoder import Params, init
from jaxalign.models._load import get
from jaxalign.models._safetensors import INDEX, NAMES, SINGLE, TensorWriter, split_shards
from jaxalign.models._staging import Staging
from jaxalign.models.families import Weight
from jaxalign.sharding import to_host

MAX_SHARD_BYTES = 5 * 10**9
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def save_pretrained(
    folder: str | Path,
    config: ModelConfig,
    params: Params,
    tokenizer: Any = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a Hugging Face folder: safetensors, config.json, generation_config.json and the tokenizer's files.

    ``transformers`` opens it with no missing and no unexpected weight. A config with ``labels`` is written as the
    family's ``...ForSequenceClassification``. The weights are one file, or several and an index where one would pass
    ``max_shard_bytes``. The host holds one tensor of one layer at a time (the embeddings: whole). Everything is written
    under temporary names first: an older model in the folder is replaced by a whole one or stays as it is.

    In a run of several processes all must call this; the first one writes.

    Args:
        folder: made if it does not exist; files of the same names are replaced, weights of an older save removed.
        config: the model; ``config.extra`` goes back into config.json and generation_config.json.
        params: its parameters, in any stacks and any sharding; each leaf is saved in its own dtype.
        tokenizer: anything with ``save_pretrained(folder)``; its special tokens fill those the config leaves out. Where
            neither names a padding token, transformers' classifiers take one row at a time only.
        max_shard_bytes: most bytes of a weights file; a larger tensor has a file of its own.

    Raises:
        InputError: a config that no Hugging Face family can express, parameters that do not fit it, a folder that
            cannot be written.
    """
    if max_shard_bytes < 1:
        raise InputError(f"max_shard_bytes: must be at least 1, is {max_shard_bytes}")
    family = family_of(config)
    files = write_files(family, config, tokenizer, _main_dtype(params))
    _check_tree(jax.eval_shape(lambda: init(config, jax.random.key(0))), params)
    tensors = _plan(config, family.weights(config), params)
    shards = [[tensors[i] for i in indices] for indices in split_shards([t.size for t in tensors], max_shard_bytes)]
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    names = [SINGLE] if len(shards) == 1 else names

    folder = Path(folder)
    staging = Staging(folder)
    try:
        for name, shard in zip(names, shards, strict=True):
            staging.stream(name, _write_shard(shard))
            staging.agree()
        for name, content in files.items():
            staging.write_json(name, content)
        if tokenizer is not None:
            staging.do(lambda: tokenizer.save_pretrained(str(staging.partial)))
        if len(shards) > 1:
            staging.write_json(INDEX, _index(names, shards))
        stale = _weight_files(folder) - {*names, *([INDEX] if len(shards) > 1 else [])}
        staging.commit(last=INDEX if len(shards) > 1 else SINGLE, stale=sorted(stale))
    except BaseException:
        staging.discard()
        raise


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the files and how to get it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    gather: Callable[[], np.ndarray]
    """All processes together."""

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _plan(config: ModelConfig, table: tuple[Weight, ...], params: Params) -> list[_Tensor]:
    """All tensors in the order of the table, layer by layer."""
    per_layer = [weight for weight in table if weight.per_layer]
    tensors: list[_Tensor] = []
    for weight in table:
        if not weight.per_layer:
            tensors.append(_tensor(weight, weight.name, [get(params, leaf) for leaf in weight.leaves], None))
        elif weight is per_layer[0]:
            places = [(str(stack), row) for stack, length in enumerate(config.stacks) for row in range(length)]
            for layer, (stack, row) in enumerate(places):
                for each in per_layer:
                    leaves = [get(params["stacks"][stack], leaf) for leaf in each.leaves]
                    tensors.append(_tensor(each, each.name.format(layer=layer), leaves, row))
    return tensors


def _tensor(weight: Weight, name: str, leaves: list[Any], row: int | None) -> _Tensor:
    dtype = np.dtype(functools.reduce(jnp.promote_types, {np.dtype(leaf.dtype) for leaf in leaves}))
    if dtype not in NAMES:
        raise InputError(f"params: {name} is {dtype}; parameters are saved as {', '.join(map(str, NAMES))}")
    return _Tensor(name, weight.shape, dtype, functools.partial(_join, weight, leaves, row, dtype))


def _join(weight: Weight, leaves: list[Any], row: int | None, dtype: np.dtype) -> np.ndarray:
    joined = weight.join([to_host(leaf, row) for leaf in leaves])
    assert joined.shape == weight.shape, f"{weight.name}: its table joins leaves to {joined.shape}"
    return joined.astype(dtype, copy=False)


def _write_shard(tensors: list[_Tensor]) -> Iterator[Callable[[BinaryIO], None]]:
    """What ``Staging.stream`` calls: the header, then the tensors, larger dtypes first so that all are aligned."""
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    writers: list[TensorWriter] = []
    yield lambda stream: writers.append(TensorWriter(stream, [(t.name, t.dtype, t.shape) for t in ordered]))
    for tensor in ordered:
        array = tensor.gather()
        yield lambda stream, array=array: writers[0].write(array)  # type: ignore[misc]


def _index(names: list[str], shards: list[list[_Tensor]]) -> dict[str, Any]:
    """As transformers writes it."""
    tensors = [tensor for shard in shards for tensor in shard]
    return {
        "metadata": {
            "total_parameters": sum(math.prod(tensor.shape) for tensor in tensors),
            "total_size": sum(tensor.size for tensor in tensors),
        },
        "weight_map": {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
    }


def _weight_files(folder: Path) -> set[str]:
    """The weights that are in a folder: those of transformers' names, and what an index names."""
    if not folder.is_dir():
        return set()
    found = {path.name for path in folder.iterdir() if path.name in (SINGLE, INDEX) or SHARD.fullmatch(path.name)}
    if INDEX in found:
        try:
            named = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            named = set()  # a damaged index names nothing
        found |= {name for name in named if Path(name).name == name and name.endswith(".safetensors")}
    return found


def _main_dtype(params: Params) -> str:
    try:
        return str(params["embed"]["tokens"].dtype)
    except (KeyError, AttributeError):
        return "float32"  # _check_tree says what is wrong


def _check_tree(expected: Any, params: Params) -> None:
    """Parameters that do not fit their config would be saved as a folder nobody can load."""
    wanted = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(expected)}
    given = {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for path in sorted(wanted.keys() | given.keys()):
        if wanted.get(path) != given.get(path):
            advice = "; merge the adapter into the model first" if "'lora_" in path else ""
            raise InputError(f"params{path}: shape {given.get(path)}, the config asks for {wanted.get(path)}{advice}")
