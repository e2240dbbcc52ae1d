"""The sampler's programs for shapes alone: what a call of ``generate`` will run, before there are parameters."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxalign import models
from jaxalign.models import ModelConfig
from jaxalign.sampling import _engine as engine
from jaxalign.sampling._engine import Params
from jaxalign.sampling._requests import bucket, row_count

Compile = Callable[[Any], tuple[int, Any]]
"""``compile(lowered) -> (bytes a device holds beside the program's arguments, the shardings of its results)``."""

LAYERS = (2, 4)
"""Of the models whose programs are compiled in place of one of more layers."""


@dataclass(frozen=True)
class SamplerMemory:
    """Bytes that one device holds at the peak of a call, beside the parameters that it is given."""

    parameters: int
    """The layers taken apart and cast, once a call."""
    cache: int
    """Keys and values of prompts that wait and of rows under way, and what else a row carries."""
    temporary: int
    """The rest of the peak: logits, scores of the prompts' attention, weights gathered."""

    @property
    def total(self) -> int:
        return self.parameters + self.cache + self.temporary


@dataclass(frozen=True)
class _Call:
    """What a call of ``generate`` is asked for, as far as memory goes."""

    compile_program: Compile
    responses: int
    prompt_length: int
    max_new_tokens: int
    samples_per_prompt: int
    batch_size: int


def sampler_memory(
    config: ModelConfig,
    params: Params,
    compile_program: Compile,
    *,
    responses: int,
    prompt_length: int,
    max_new_tokens: int,
    samples_per_prompt: int = 1,
    batch_size: int = 64,
) -> SamplerMemory:
    """Compile what ``generate`` runs, program by program as they follow each other, and add up what is held.

    Prompts have no common prefix; the call is under the ambient mesh, as ``generate`` is. The sampler's layers are
    apart, so that a program of many takes long to compile: what each holds is a line in their number, drawn through
    two smaller models (``LAYERS``).

    Args:
      config: the model.
      params: its ``jax.ShapeDtypeStruct``, with their shardings.
      compile_program: compiles one of the programs.
      responses: how many in all.
      prompt_length: tokens of the longest prompt.
      max_new_tokens, samples_per_prompt, batch_size: as of ``generate``; without top-k, top-p and min-p.
    """
    call = _Call(compile_program, responses, prompt_length, max_new_tokens, samples_per_prompt, batch_size)
    few, more = LAYERS
    if config.layers <= more or any(leaf.sharding.spec[:1] not in ((), (None,)) for leaf in _stacked(params)):
        return _joined(call, _sizes(config, params, call))
    low, high = (_sizes(*_first_layers(config, params, layers), call) for layers in LAYERS)
    slope = (config.layers - more) / (more - few)
    return _joined(call, _Sizes(*(round(b + slope * (b - a)) for a, b in zip(low, high, strict=True))))


class _Sizes(NamedTuple):
    """Bytes of a device: trees that are held, and what each program takes beside its arguments."""

    parameters: int
    queue: int
    """Prompts that wait."""
    rows: int
    unstack: int
    stage: int
    empty: int
    refill: int
    decode: int


def _joined(call: _Call, sizes: _Sizes) -> SamplerMemory:
    """The peak of what follows each other."""
    own, queue, rows = sizes[:3]
    again = rows if call.responses > call.batch_size else 0  # under way while more prompts are staged
    peak = max(
        max(sizes.unstack, own),
        own + again + max(sizes.stage, queue),
        own + queue + max(sizes.empty, rows),
        own + queue + rows + max(sizes.refill, sizes.decode),
    )
    return SamplerMemory(own, queue + rows, peak - own - queue - rows)


def _sizes(config: ModelConfig, params: Params, call: _Call) -> _Sizes:
    plan = engine.Plan(steps=call.max_new_tokens, greedy=False, top_k=0, top_p=False, min_p=False, cache_dtype=None)
    rows, width = row_count(call.responses, call.batch_size, models.row_shards()), bucket(call.prompt_length)
    waiting = -(-rows // call.samples_per_prompt)

    def run(function: Any, *arguments: Any) -> tuple[int, Any]:
        lowered = function.lower(*arguments)
        held, layout = call.compile_program(lowered)
        return held, jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), lowered.out_info, layout
        )

    def integers(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    apart, prepared = run(engine.unstack, config, params)
    _, prefix = run(engine.prefill_prefix, config, None, prepared, integers(1, 0))
    staging, staged = run(engine.stage, config, prepared, prefix, integers(waiting, width), integers(waiting))
    making, held = run(engine.empty, plan, prefix, staged, rows)
    fresh = engine.Fresh(*(integers(rows, dtype=dtype) for dtype in ("i4", "i4", "i4", "u4", "i4")))
    refilling, held = run(engine.refill, held, staged, fresh)
    number: Any = integers(dtype=jnp.float32)
    stop_tokens: Any = integers(bucket(1))
    key: Any = jax.eval_shape(lambda: jax.random.key(0))
    controls = engine.Controls(key, number, number, number, stop_tokens)
    free, count = integers(rows, dtype=bool), integers()
    decoding, _ = run(engine.decode, config, plan, prefix.columns, prepared, held, controls, free, count, count)
    own, queue, under_way = (_bytes(tree) for tree in (prepared, staged, held))
    return _Sizes(own, queue, under_way, apart, staging, making, refilling, decoding)


def _first_layers(config: ModelConfig, params: Params, layers: int) -> tuple[ModelConfig, Params]:
    """The same model with so few layers, in one stack like its last: what trains is in it."""
    last = params["stacks"][str(len(config.stacks) - 1)]

    def cut(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((layers, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding)

    lora = None if config.lora is None else replace(config.lora, first_layer=0)
    smaller = config.replace(layers=layers, stacks=(layers,), lora=lora)
    return smaller, {**params, "stacks": {"0": jax.tree.map(cut, last)}}


def _stacked(params: Params) -> list[jax.ShapeDtypeStruct]:
    return jax.tree.leaves(params["stacks"])


def _bytes(tree: Any) -> int:
    """Of one device."""

    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
