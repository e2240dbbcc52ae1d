"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors.

A module of PEFT is a tensor of the family's weight table; there W (out, in) gets scale * B A with A ``[r, in]`` and
B ``[out, r]``. Where one tensor holds several of our parts (GPT-2's c_attn, GPT-NeoX's query_key_value, Phi-3's
qkv_proj and gate_up_proj) PEFT has one A and one B for all of them. Read, B is split as the weight is and every part
gets A. Written, parts of one A make that form again; parts of different A's are written with the A's stacked, the B's
block-diagonal, and in ``rank_pattern`` and ``alpha_pattern`` a rank and an alpha that leave the scale what it was: the
same function, number for number. Such blocks are read back as the parts they came from.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.models._adapter import INPUT_AXES
from jaxalign.models._config import ModelConfig
from jaxalign.models._decoder import Params
from jaxalign.models._hub import local_folder
from jaxalign.models._lora import PARTS
from jaxalign.models._peft_config import AdapterConfig, read_adapter_config, write_adapter_config
from jaxalign.models.families import FAMILIES, Weight
from jaxalign.sharding import to_host

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


def load_adapter(folder_or_hub_id: str | Path, config: ModelConfig, *, dtype: Any = None) -> tuple[ModelConfig, Params]:
    """Read an adapter in PEFT's format for a model.

    A layer or part that the file leaves out while it adapts the same part elsewhere gets zeros, which neither change
    the model nor ever learn. A scale of its own (``alpha_pattern``) goes into B.

    Args:
        folder_or_hub_id: a local folder, or an id on the Hugging Face hub.
        config: the model the adapter is for.
        dtype: of the leaves; None keeps the file's.

    Returns:
        (config with ``lora``, the tree beside the model's parameters, for ``combine`` or ``merge_lora``).

    Raises:
        InputError: not an adapter, a choice of PEFT's that is not implemented, pickled weights, a tensor that is
            missing, unexpected or misshapen; the message names file and field or tensor.
    """
    folder = local_folder(folder_or_hub_id)
    fields = read_adapter_config(folder)
    tensors = _Tensors(folder)
    modules = _modules(config)
    found = _by_module(tensors, modules, config)
    _check_complete(found, modules, fields, config, tensors.path)
    lora = fields.lora
    read: dict[str, list[_Leaves | None]] = {}
    for module in modules:
        names = [found.get(module.name.format(layer=layer)) for layer in range(config.layers)]
        if any(names):
            pairs = [_read_pair(tensors, own, module, fields) if own else None for own in names]
            read |= _read_module(module, pairs, lora.rank)
    lowest = min(layer for layers in read.values() for layer, leaves in enumerate(layers) if leaves is not None)
    starts = [sum(config.stacks[:index]) for index in range(len(config.stacks))]
    lora = replace(
        lora,
        targets=tuple(part for part in PARTS if part in read),
        first_layer=max(start for start in starts if start <= lowest),
    )
    kinds = {part: module for module in modules for part in module.parts}
    some = next(leaves[0] for layers in read.values() for leaves in layers if leaves is not None)
    tree: Params = {}
    for index, (start, length) in enumerate(zip(starts, config.stacks, strict=True)):
        if start >= lora.first_layer:
            tree[str(index)] = {
                part: _stack(layers[start : start + length], kinds[part].parts[part], dtype or some.dtype)
                for part, layers in sorted(read.items())
            }
    return config.replace(lora=lora), {"stacks": tree}


def save_adapter(folder: str | Path, config: ModelConfig, lora: Params, *, base_name: str | None = None) -> None:
    """Write an adapter as PEFT does: ``PeftModel.from_pretrained(base, folder)`` is then the adapted model.

    In a run of several processes all must call this; the first one writes.

    Args:
        folder: made if it does not exist.
        config: the model, with ``config.lora``.
        lora: the adapter, as ``init_lora`` lays it out, each leaf saved in its own dtype.
        base_name: folder or hub id of the model it belongs to, for adapter_config.json.

    Raises:
        InputError: no ``config.lora``.
    """
    if config.lora is None:
        raise InputError("ModelConfig.lora: there is no adapter to save without it")
    scale, stabilised = config.lora.scale, config.lora.rank_stabilised
    stacks = {name: jax.tree.map(to_host, stack) for name, stack in lora["stacks"].items()}
    starts = [sum(config.stacks[:index]) for index in range(len(config.stacks))]
    tensors: dict[str, np.ndarray] = {}
    written: dict[str, int] = {}  # suffix of a module's name -> its rank
    transposed = False
    for module in _modules(config):
        parts = [part for part in module.parts if any(part in stack for stack in stacks.values())]
        if not parts:
            continue
        transposed |= module.transposed
        shared = list(parts) == list(module.parts) and _one_a(module, stacks)
        for name, stack in stacks.items():
            for at in range(config.stacks[int(name)]):
                pairs = {part: (stack[part]["lora_a"][at], stack[part]["lora_b"][at]) for part in parts}
                a, b = _join(module, pairs, shared=shared)
                key = PREFIX + module.name.format(layer=starts[int(name)] + at)
                tensors[f"{key}.lora_A.weight"] = np.ascontiguousarray(a)
                tensors[f"{key}.lora_B.weight"] = np.ascontiguousarray(b)
                written[module.suffix] = len(a)
    if jax.process_index() != 0:
        return

    from safetensors.numpy import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    own = {suffix: rank for suffix, rank in written.items() if rank != config.lora.rank}
    write_adapter_config(folder, AdapterConfig(
        lora=config.lora,
        targets=sorted(written),
        ranks=own,
        alphas={suffix: scale * (math.sqrt(rank) if stabilised else rank) for suffix, rank in own.items()},
        layers=list(range(config.lora.first_layer, config.layers)) if config.lora.first_layer else None,
    ), base_name=base_name, transposed=transposed, classifier=config.labels > 0)  # fmt: skip
    # Not save_file: what it writes only its owner may read.
    (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))


@dataclass(frozen=True)
class _Part:
    """Where a part's axes lie in a file's tensor."""

    inputs: tuple[int, ...]
    """Sizes, heads apart."""
    outputs: tuple[int, ...]
    from_inputs: np.ndarray
    """The file's input index of each of ours, ours flattened."""
    from_outputs: np.ndarray


@dataclass(frozen=True)
class _Module:
    """One tensor of the weight table that can be adapted."""

    name: str
    """Without ``.weight``; ``{layer}`` stands for the layer."""
    inputs: int
    outputs: int
    transposed: bool
    """The file's tensor is (in, out), as GPT-2's Conv1D, not (out, in)."""
    parts: dict[str, _Part]

    @property
    def suffix(self) -> str:
        """What follows the layer's number: how adapter_config.json names it."""
        return self.name.split("{layer}.", 1)[1]


_Leaves = tuple[np.ndarray, np.ndarray]
"""A ``[in, r]`` and B ``[r, out]`` of one layer, our axes flattened."""


def _modules(config: ModelConfig) -> list[_Module]:
    """Everything of the model's family that can be adapted, in the order of its weight table."""
    table = FAMILIES[config.family].weights(config)
    return [
        _module(weight)
        for weight in table
        if weight.per_layer and all(leaf[-1] == "kernel" and leaf[0] in PARTS for leaf in weight.leaves)
    ]


def _module(weight: Weight) -> _Module:
    """Which row and column of the file each number of ours comes from, found by splitting rows' and columns' indices.

    So whatever a family's ``split`` does (heads apart, parts side by side or interleaved, another order within heads),
    an adapter follows it.
    """
    rows, columns = (np.arange(size, dtype=np.int32) for size in weight.shape)
    split_rows = weight.split(np.broadcast_to(rows[:, None], weight.shape))
    split_columns = weight.split(np.broadcast_to(columns[None, :], weight.shape))
    parts, transposed = {}, False
    for (part, _), of_rows, of_columns in zip(weight.leaves, split_rows, split_columns, strict=True):
        shape, axes = of_rows.shape, INPUT_AXES[part]
        of_rows, of_columns = (ids.reshape(math.prod(shape[:axes]), -1) for ids in (of_rows, of_columns))
        transposed = bool(np.any(of_rows[:, 0] != of_rows[0, 0]))  # the file's row changes with our input
        by_input, by_output = (of_rows, of_columns) if transposed else (of_columns, of_rows)
        if np.any(by_input != by_input[:, :1]) or np.any(by_output != by_output[:1]):
            raise InputError(f"{weight.name}: inputs and outputs are mixed in this tensor; it cannot have an adapter")
        parts[part] = _Part(shape[:axes], shape[axes:], by_input[:, 0], by_output[0])
    size_in, size_out = weight.shape if transposed else weight.shape[::-1]
    return _Module(weight.name.removesuffix(".weight"), size_in, size_out, transposed, parts)


class _Tensors:
    """The adapter's weights file, read tensor by tensor."""

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = folder / WEIGHTS
        if not self.path.is_file():
            if (folder / "adapter_model.bin").is_file():
                raise InputError(
                    f"{folder / 'adapter_model.bin'}: pickled weights can run code and are not read; load the adapter "
                    "once with PEFT and save it with save_pretrained, which writes safetensors"
                )
            raise InputError(f"{self.path}: missing: this folder holds no adapter's weights")
        try:
            self._handle: Any = safe_open(self.path, framework="np")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.path}: damaged safetensors file ({error})") from None
        self.names = sorted(self._handle.keys())

    def read(self, name: str) -> np.ndarray:
        """One matrix of floats."""
        array = self._handle.get_tensor(name)
        if array.ndim != 2 or array.dtype.kind in "iub":
            raise InputError(f"{self.path}: tensor {name!r} is {array.dtype} {array.shape}, not a matrix of floats")
        return array


def _by_module(tensors: _Tensors, modules: Sequence[_Module], config: ModelConfig) -> dict[str, dict[str, str]]:
    """Module of the model -> {"A": tensor name, "B": tensor name}; every tensor must belong to one."""
    known = {module.name.format(layer=layer) for module in modules for layer in range(config.layers)}
    prefix = FAMILIES[config.family].base_prefix
    bare = not any(name.startswith(PREFIX + prefix) for name in tensors.names)
    found: dict[str, dict[str, str]] = {}
    for name in tensors.names:
        match = KEY.fullmatch(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
        module = None if match is None else (prefix if bare else "") + match["module"]
        if match is None or module not in known:
            raise InputError(
                f"{tensors.path}: tensor {name!r} adapts nothing that can be adapted here: the projections of a "
                f"{config.family} model's {config.layers} layers (not its embeddings, norms or heads)"
            )
        found.setdefault(str(module), {})[match["side"]] = name
    if not found:
        raise InputError(f"{tensors.path}: holds no tensor")
    for names in found.values():
        if len(names) == 1:
            side, name = next(iter(names.items()))
            raise InputError(f"{tensors.path}: {name!r} has no lora_{'B' if side == 'A' else 'A'} beside it")
    return found


def _check_complete(
    found: Mapping[str, Any], modules: Sequence[_Module], fields: AdapterConfig, config: ModelConfig, path: Path
) -> None:
    """A file that holds less than adapter_config.json says is damaged."""
    for layer in range(config.layers):
        for module in modules:
            name = module.name.format(layer=layer)
            if name not in found and fields.selects(name, layer):
                key = f"{PREFIX}{name}.lora_A.weight"
                raise InputError(f"{path}: tensor {key!r} is missing, though adapter_config.json asks for it")


def _read_pair(tensors: _Tensors, names: Mapping[str, str], module: _Module, fields: AdapterConfig) -> _Leaves:
    """A ``[in, r]`` and B ``[r, out]`` of one module, its own scale (against the adapter's) taken into B."""
    a, b = tensors.read(names["A"]).T, tensors.read(names["B"]).T
    rank, alpha = fields.rank_and_alpha(names["A"].removeprefix(PREFIX).removesuffix(".lora_A.weight"))
    for name, array, shape in ((names["A"], a, (module.inputs, rank)), (names["B"], b, (rank, module.outputs))):
        if array.shape != shape:
            raise InputError(
                f"{tensors.path}: tensor {name!r} has shape {array.shape[::-1]}, the model and adapter_config.json say "
                f"{shape[::-1]}"
            )
    own = alpha / (math.sqrt(rank) if fields.lora.rank_stabilised else rank)
    ratio = np.float32(own / fields.lora.scale)
    return a, b if ratio == 1 else (b * ratio).astype(b.dtype)


def _read_module(module: _Module, layers: Sequence[_Leaves | None], rank: int) -> dict[str, list[_Leaves | None]]:
    """Part -> its A and B in every layer; a fused module's B is split as its weight is."""
    blocks = _blocks(module, layers, rank)
    read: dict[str, list[_Leaves | None]] = {}
    for name, part in module.parts.items():
        if blocks is None or name in blocks:
            ranks = slice(None) if blocks is None else blocks[name]
            read[name] = [
                None if pair is None else (pair[0][part.from_inputs, ranks], pair[1][ranks, part.from_outputs])
                for pair in layers
            ]
    return read


def _blocks(module: _Module, layers: Sequence[_Leaves | None], rank: int) -> dict[str, slice] | None:
    """Which ranks belong to which part, where every part's B stands in a block of ``rank`` of its own; else None."""
    pairs = [pair for pair in layers if pair is not None]
    count, rest = divmod(pairs[0][0].shape[1], rank)
    if len(module.parts) == 1 or count < 1 or rest or any(pair[0].shape != pairs[0][0].shape for pair in pairs):
        return None
    blocks: dict[str, slice] = {}
    for index in range(count):
        ranks = slice(index * rank, (index + 1) * rank)
        owners = [
            name for name, part in module.parts.items() if any(np.any(b[ranks, part.from_outputs]) for _, b in pairs)
        ]
        if len(owners) != 1 or owners[0] in blocks:
            return None
        blocks[owners[0]] = ranks
    return blocks


def _stack(layers: Sequence[_Leaves | None], part: _Part, dtype: Any) -> dict[str, jax.Array]:
    """The leaves of one part, layers stacked; zeros where a layer has none or a lower rank than another."""
    present = [pair for pair in layers if pair is not None]
    rank = max((pair[0].shape[1] for pair in present), default=1)
    a = np.zeros((len(layers), len(part.from_inputs), rank), dtype)
    b = np.zeros((len(layers), rank, len(part.from_outputs)), dtype)
    for layer, pair in enumerate(layers):
        if pair is not None:
            a[layer, :, : pair[0].shape[1]], b[layer, : pair[1].shape[0]] = pair
    return {
        "lora_a": jnp.asarray(a.reshape(len(layers), *part.inputs, rank)),
        "lora_b": jnp.asarray(b.reshape(len(layers), rank, *part.outputs)),
    }


def _one_a(module: _Module, stacks: Mapping[str, Params]) -> bool:
    """Whether the parts of a module have the same A in every layer."""
    first, *others = module.parts
    return all(
        np.array_equal(stack[first]["lora_a"], stack[other]["lora_a"]) for stack in stacks.values() for other in others
    )


def _join(module: _Module, pairs: Mapping[str, _Leaves], *, shared: bool) -> _Leaves:
    """The file's A ``[r, in]`` and B ``[out, r]`` of one layer's parts, as one A or in blocks."""
    ranks = [a.shape[-1] for a, _ in pairs.values()]
    rank = ranks[0] if shared else sum(ranks)
    some = next(iter(pairs.values()))
    joined_a = np.zeros((rank, module.inputs), some[0].dtype)
    joined_b = np.zeros((module.outputs, rank), some[1].dtype)
    start = 0
    for (name, (a, b)), own in zip(pairs.items(), ranks, strict=True):
        part, block = module.parts[name], slice(start, start + own)
        joined_a[block, part.from_inputs] = a.reshape(-1, own).T
        joined_b[part.from_outputs, block] = b.reshape(own, -1).T
        start += 0 if shared else own
    return joined_a, joined_b
