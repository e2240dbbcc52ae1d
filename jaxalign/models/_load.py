"""Weights in: from the safetensors files of a folder straight to where the parameters lie."""

import functools
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxalign.errors import InputError
from jaxalign.models._axes import logical_axes
from jaxalign.models._config import ModelConfig
from jaxalign.models._config_file import of_fields, read_config, read_fields
from jaxalign.models._copy import copy_into, empty
from jaxalign.models._decoder import Params
from jaxalign.models._hub import local_folder
from jaxalign.models._safetensors import TensorFolder
from jaxalign.models.families import Family, Weight
from jaxalign.sharding import RULES, Rules, make_from_shards, partition_spec

THREADS = 8
CHUNK = 64 << 20  # bytes of a tensor that one thread copies at a time
# What threads may hold at a time in copies of whole tensors: a family that takes rows in another order needs one.
IN_FLIGHT = 512 << 20

Region = tuple[slice, ...]


def load_pretrained(
    folder_or_hub_id: str | Path,
    *,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
    rules: Rules = RULES,
    revision: str | None = None,
) -> tuple[ModelConfig, Params]:
    """Read a Hugging Face model folder: config.json and safetensors, single or sharded, of a language model or of a
    classifier with a score head (``...ForSequenceClassification``, ``config.labels``).

    Parameters are read shard by shard into their dtype and place: beyond the parameters themselves the host holds at
    most one device's shard of one leaf (its layers stacked) and half a gigabyte. On several processes, each reads only
    what its devices hold.

    Args:
        folder_or_hub_id: a local folder, or an id on the Hugging Face hub (weights, configs and tokenizer files are
            then downloaded to its cache; offline, the cache is what there is).
        dtype: of the parameters; None keeps the files'.
        mesh: shard the parameters over this mesh.
        rules: by this table of ``jaxalign.sharding``.
        revision: of a hub id: a branch, a tag or a commit.

    Returns:
        (config, params), one scanned stack.

    Raises:
        InputError: not a model, an unknown architecture, a config field that is not implemented, pickled or quantised
            weights, remote code, a damaged file, a missing, unexpected or misshapen tensor; the message names file and
            field or tensor.
    """
    try:
        floating = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        raise InputError(f"dtype: {dtype!r} is none; float32, bfloat16 and float16 are") from None
    if not floating:
        raise InputError(f"dtype: parameters are floating numbers, not {jnp.dtype(dtype)}")
    folder = local_folder(folder_or_hub_id, revision=revision)
    family, config = read_config(folder)
    tensors = TensorFolder(folder)
    table = family.weights(config)
    names = _names_in_file(family, config, table, tensors)
    axes = None if mesh is None else logical_axes(config)

    params: Params = {}
    for weight in table:
        files = [names[weight.name].format(layer=layer) for layer in range(config.layers if weight.per_layer else 1)]
        for part, leaf in enumerate(weight.leaves):
            path = ("stacks", "0", *leaf) if weight.per_layer else leaf
            reader = _Leaf(tensors, weight, part, files, _dtype(tensors, files, dtype))
            sharding = None
            if mesh is not None:
                sharding = NamedSharding(mesh, partition_spec(get(axes, path), reader.shape, mesh, rules))
            array = make_from_shards(reader.shape, reader.dtype, sharding, reader.read)
            _set(params, path, array)
    return config, params


def load_config(folder_or_hub_id: str | Path, *, revision: str | None = None) -> ModelConfig:
    """The config of a model folder or hub id, its weights unread. Raises ``InputError`` as ``load_pretrained`` does."""
    return read_config(local_folder(folder_or_hub_id, weights=False, revision=revision))[1]


def load_fields(folder_or_hub_id: str | Path, *, revision: str | None = None) -> dict[str, Any]:
    """config.json of a model folder or hub id, as it stands, its weights unread. Raises ``InputError``."""
    return read_fields(local_folder(folder_or_hub_id, weights=False, revision=revision))


def config_of_fields(fields: Mapping[str, Any], place: str | Path = "config.json") -> ModelConfig:
    """The config that the fields of a config.json describe; ``place`` is for messages. Raises ``InputError``."""
    return of_fields(dict(fields), Path(place))[1]


class _Leaf:
    """One parameter leaf, readable by region.

    Args:
        tensors: the files.
        weight: whose ``part``-th leaf this is.
        files: names of its tensors, one a layer.
        dtype: of the leaf.
    """

    def __init__(self, tensors: TensorFolder, weight: Weight, part: int, files: list[str], dtype: np.dtype) -> None:
        self._tensors, self._weight, self._part, self._files = tensors, weight, part, files
        self.dtype = dtype
        inner = weight.split(tensors.view(files[0], weight.shape))[part].shape
        self.shape: tuple[int, ...] = (len(files), *inner) if weight.per_layer else inner

    def read(self, region: Region) -> np.ndarray:
        """The values of a region of the leaf, layers first where it has one a layer."""
        target = empty(tuple(part.stop - part.start for part in region), self.dtype)
        jobs: list[tuple[np.ndarray, str, Region]] = []
        if self._weight.per_layer:
            first, *inner = region
            jobs = [(target[i - first.start], self._files[i], tuple(inner)) for i in range(first.start, first.stop)]
        else:
            rows, *others = region
            step = max(1, CHUNK * len(target) // max(1, target.nbytes))
            for start in range(rows.start, rows.stop, step):
                piece = slice(start, min(start + step, rows.stop))
                own = target[piece.start - rows.start : piece.stop - rows.start]
                jobs.append((own, self._files[0], (piece, *others)))
        size = int(np.prod(self._weight.shape)) * self._tensors.dtype(self._files[0]).itemsize
        workers = min(THREADS, os.cpu_count() or 1, len(jobs), max(1, IN_FLIGHT // size))
        if workers < 2 or target.nbytes < 1 << 20:
            for job in jobs:
                self._fill(*job)
        else:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(self._fill, *zip(*jobs, strict=True)))
        return target

    def _fill(self, target: np.ndarray, name: str, region: Region) -> None:
        view = self._tensors.view(name, self._weight.shape)
        source = self._weight.split(view)[self._part][region]
        copy_into(target, source)
        self._tensors.release(name, None if self._weight.per_layer else source)


def _names_in_file(
    family: Family, config: ModelConfig, table: tuple[Weight, ...], tensors: TensorFolder
) -> dict[str, str]:
    """Table name -> the name the files use (a bare model's leave out the prefix); every tensor is checked, and none may
    be left over."""
    found = {name for name in tensors.names() if not name.endswith(family.ignored)}
    names = {weight.name: weight.name for weight in table}
    if inside := _prefixes_inside(family, found):
        found = {name for name in found if not name.startswith(family.wrapper.others)}  # type: ignore[union-attr]
        for ours, theirs in inside.items():
            names |= {name: theirs + name.removeprefix(ours) for name in names if name.startswith(ours)}
    elif not any(name.startswith(family.base_prefix) for name in found):
        names = {name: name.removeprefix(family.base_prefix) for name in names}
    expected = {
        names[weight.name].format(layer=layer): weight
        for weight in table
        for layer in range(config.layers if weight.per_layer else 1)
    }
    for name in sorted(found - set(expected)):
        head = name in (inside.get("lm_head.", "lm_head.") + "weight", "embed_out.weight")
        if not (head and config.tied_embeddings and config.labels == 0):  # some files hold the tied matrix twice
            more = len(found - set(expected)) - 1
            raise InputError(f"{tensors.folder}: unexpected tensor {name!r} (and {more} more)")
        _check_tied(name, names, table, tensors)
    if extra := sorted(tensors.unlisted & found):
        raise InputError(f"{tensors.folder}: tensor {extra[0]!r} is in a file, but the index does not name it")
    for name, weight in expected.items():
        tensors.check(name, weight.shape)
    return names


def _check_tied(head: str, names: Mapping[str, str], table: tuple[Weight, ...], tensors: TensorFolder) -> None:
    """A second copy of a tied matrix must be one: another matrix would make another model."""
    embed = next(weight for weight in table if weight.leaves == (("embed", "tokens"),))
    copy, own = tensors.view(head, embed.shape), tensors.view(names[embed.name], embed.shape)
    same = all(np.array_equal(copy[i : i + 4096], own[i : i + 4096]) for i in range(0, len(own), 4096))
    for name in (head, names[embed.name]):
        tensors.release(name)
    if not same:
        raise InputError(
            f"{tensors.folder}: tensor {head!r} is another matrix than {names[embed.name]!r}, though config.json says "
            "tie_word_embeddings; set that to false if the model has an unembedding of its own"
        )


def _prefixes_inside(family: Family, found: set[str]) -> Mapping[str, str]:
    """How names begin where the files are those of a larger model around this one; empty where they are not."""
    for prefixes in family.wrapper.prefixes if family.wrapper else ():
        if any(name.startswith(prefixes[family.base_prefix]) for name in found):
            return prefixes
    return {}


def _dtype(tensors: TensorFolder, files: list[str], dtype: Any) -> np.dtype:
    """The dtype asked for, or one that holds what all layers have."""
    if dtype is None:
        dtype = functools.reduce(jnp.promote_types, {tensors.dtype(name) for name in files})
    return np.dtype(jax.dtypes.canonicalize_dtype(dtype))


def get(tree: Any, path: tuple[str, ...]) -> Any:
    """The leaf or subtree at a path."""
    for name in path:
        tree = tree[name]
    return tree


def _set(tree: Params, path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
