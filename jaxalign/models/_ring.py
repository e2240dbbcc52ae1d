"""Attention over rows whose tokens are split over devices: keys and values go round, softmax is accumulated.

Each device holds the queries of its piece of every row, and in turn the keys and values of every piece, which its
neighbour hands on (``ppermute``). Against one piece it attends a tile at a time: some queries and some keys make the
scores, which are folded into a running maximum, sum and mixture in float32 and forgotten. So neither ``[T, T]`` nor a
device's share of it is ever held, in the forward pass or in the backward pass. That one goes round once more: it
computes each tile again from the saved log-sum-exp, and the gradients of keys and values travel home with them.
(Ring attention: Liu, Zaharia and Abbeel 2023, arXiv 2310.01889; the tiles: Dao 2023, arXiv 2307.08691.)
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from jaxalign.models._attention import Sight, visibility
from jaxalign.models._mesh import LENGTH_AXIS, VOCABULARY_AXIS, row_axes

TILE = 1024
"""Most queries, and most keys, of one tile."""
NOTHING = float(jnp.finfo(jnp.float32).min)


class Rule(NamedTuple):
    """What does not change while the ring turns: static."""

    window: int | None
    scale: float
    soft_cap: float | None
    tile: int


def ring_attention(
    mesh: AbstractMesh,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    sight: Sight,
    *,
    window: int | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    tile: int = TILE,
) -> jax.Array:
    """softmax(cap(scale q k^T)) v under ``visibility``, as ``attention`` computes it, rows split over ``sequence``.

    A query that sees nothing gets zeros. Tiles that nobody sees (the future, other examples, what a window has passed)
    cost no product. Heads are split over ``tensor`` where it divides the key heads.

    Args:
        mesh: the ambient mesh; its sequence axis divides T.
        query: ``[B, T, H, K]``.
        key, value: ``[B, T, G, K]``; G divides H.
        sight: who sees whom.
        window: how many positions back a query sees, itself included.
        scale: None = 1 / sqrt(K).
        soft_cap: None = no cap.
        tile: most queries, and most keys, whose scores are held at once.

    Returns:
        ``[B, T, H, K]`` in the query's dtype.
    """
    rows, size = query.shape[0], query.shape[-1]
    groups = key.shape[2]
    by_row = row_axes(mesh, rows) or None
    tensor = mesh.shape.get(VOCABULARY_AXIS, 1)
    by_head = VOCABULARY_AXIS if tensor > 1 and groups % tensor == 0 else None
    rule = Rule(window, size**-0.5 if scale is None else scale, soft_cap, tile)

    def local(query: jax.Array, keys: jax.Array, own: jax.Array, whole: jax.Array, mask: jax.Array | None) -> jax.Array:
        # Heads of a group beside each other, and before the tokens.
        grouped = query.reshape(*query.shape[:2], keys.shape[3], -1, size).transpose(0, 2, 3, 1, 4)
        mixed = _around(rule, grouped, keys.transpose(0, 1, 3, 2, 4), own, whole, mask)
        return mixed.transpose(0, 3, 1, 2, 4).reshape(query.shape)

    def spec(length: str | None, *more: str | None) -> PartitionSpec:
        return PartitionSpec(None, by_row, length, *more)

    # Every device knows of every token who sees it: only keys and values travel.
    tokens = jnp.broadcast_to(sight.tokens, (3, rows, sight.tokens.shape[2]))
    mask = None if sight.mask is None else jnp.broadcast_to(sight.mask, (rows, *sight.mask.shape[1:]))
    by_query = PartitionSpec(by_row, LENGTH_AXIS, by_head)
    return jax.shard_map(
        local,
        in_specs=(
            by_query,
            spec(LENGTH_AXIS, by_head),
            spec(LENGTH_AXIS),
            spec(None),
            PartitionSpec(by_row, LENGTH_AXIS),
        ),
        out_specs=by_query,
    )(query, jnp.stack((key, value)), tokens, tokens, mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _around(
    rule: Rule, query: jax.Array, keys: jax.Array, own: jax.Array, whole: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """One device's part: its queries against the whole row.

    Args:
        rule: static.
        query: ``[B, G, H / G, L, K]``, L tokens of the row.
        keys: ``[2, B, G, L, K]``, keys and values of the same tokens.
        own: ``[3, B, L]``: example, branch and position of its tokens.
        whole: ``[3, B, T]``, of the row's.
        mask: ``[B, L, T]`` or None.
    """
    return _forward(rule, query, keys, own, whole, mask)[0]


def _forward(
    rule: Rule, query: jax.Array, keys: jax.Array, own: jax.Array, whole: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, tuple[Any, ...]]:
    see = _tiles(rule, query, own, whole, mask)

    def fold(state: tuple[jax.Array, ...], keys: jax.Array, piece: jax.Array) -> tuple[jax.Array, ...]:
        def one(at: "_Tile", state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            def seen() -> tuple[jax.Array, ...]:
                most, total, mixed = (at.queries(leaf) for leaf in state)
                scores = jnp.where(at.visible, _scores(rule, at.queries(query), at.keys(keys[0]))[0], NOTHING)
                highest = jnp.maximum(most, scores.max(-1, keepdims=True))
                weights = jnp.where(at.visible, jnp.exp(scores - highest), 0.0)
                kept = jnp.exp(most - highest)
                added = _product("bgrqs,bgsk->bgrqk", weights.astype(query.dtype), at.keys(keys[1]))
                return highest, kept * total + weights.sum(-1, keepdims=True), kept * mixed + added

            old = tuple(at.queries(leaf) for leaf in state)
            new = jax.lax.cond(at.any, seen, lambda: old)
            return tuple(at.put_queries(leaf, part) for leaf, part in zip(state, new, strict=True))

        return see.each(one, state, piece)

    single = (*query.shape[:-1], 1)
    start = tuple(
        _alike(query, jnp.full(shape, fill, jnp.float32))
        for shape, fill in ((single, NOTHING), (single, 0.0), (query.shape, 0.0))
    )

    def turn(carry: Any, step: jax.Array) -> tuple[Any, None]:
        state, keys = carry
        return (fold(state, keys, _piece(step)), _hand_on(keys)), None

    shards = jax.lax.axis_size(LENGTH_AXIS)
    (state, last), _ = jax.lax.scan(turn, (start, keys), jnp.arange(shards - 1))
    most, total, mixed = fold(state, last, _piece(jnp.int32(shards - 1)))
    some = total > 0
    out = (mixed / jnp.where(some, total, 1.0)).astype(query.dtype)
    log_sum = jnp.where(some, most + jnp.log(jnp.where(some, total, 1.0)), 0.0)
    return out, (query, keys, own, whole, mask, out, log_sum)


def _backward(rule: Rule, kept: tuple[Any, ...], cotangent: jax.Array) -> tuple[jax.Array, jax.Array, None, None, None]:
    query, keys, own, whole, mask, out, log_sum = kept
    see = _tiles(rule, cotangent, own, whole, mask)
    # sum_s p_s dp_s, which the gradient of a softmax subtracts from each dp_s.
    mean = jnp.sum(cotangent.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True)

    def fold(state: tuple[jax.Array, ...], keys: jax.Array, piece: jax.Array) -> tuple[jax.Array, ...]:
        def one(at: "_Tile", state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            to_query, to_key, to_value = state

            def seen() -> tuple[jax.Array, ...]:
                queries, slopes, (key, value) = at.queries(query), at.queries(cotangent), (at.keys(x) for x in keys)
                scores, slope = _scores(rule, queries, key)
                weights = jnp.exp(jnp.where(at.visible, scores - at.queries(log_sum), NOTHING))
                to_weights = _product("bgrqk,bgsk->bgrqs", slopes, value)
                to_scores = (weights * (to_weights - at.queries(mean)) * slope * rule.scale).astype(query.dtype)
                return (
                    at.queries(to_query) + _product("bgrqs,bgsk->bgrqk", to_scores, key),
                    at.keys(to_key) + _product("bgrqs,bgrqk->bgsk", to_scores, queries),
                    at.keys(to_value) + _product("bgrqs,bgrqk->bgsk", weights.astype(query.dtype), slopes),
                )

            old = (at.queries(to_query), at.keys(to_key), at.keys(to_value))
            new = jax.lax.cond(at.any, seen, lambda: old)
            return at.put_queries(to_query, new[0]), at.put_keys(to_key, new[1]), at.put_keys(to_value, new[2])

        return see.each(one, state, piece)

    zeros = _alike(keys, jnp.zeros(keys.shape[1:], jnp.float32))
    start = (_alike(query, jnp.zeros(query.shape, jnp.float32)), zeros, zeros)

    def turn(carry: Any, step: jax.Array) -> tuple[Any, None]:
        state, keys = carry
        to_query, *to_keys = fold(state, keys, _piece(step))
        return ((to_query, *_hand_on(tuple(to_keys))), _hand_on(keys)), None

    shards = jax.lax.axis_size(LENGTH_AXIS)
    (state, last), _ = jax.lax.scan(turn, (start, keys), jnp.arange(shards - 1))
    to_query, *to_keys = fold(state, last, _piece(jnp.int32(shards - 1)))
    home = jnp.stack(_hand_on(tuple(to_keys)))
    return to_query.astype(query.dtype), home.astype(keys.dtype), None, None, None


_around.defvjp(_forward, _backward)


def _piece(step: jax.Array) -> jax.Array:
    """Whose keys are here after so many turns."""
    return (jax.lax.axis_index(LENGTH_AXIS) - step) % jax.lax.axis_size(LENGTH_AXIS)


def _hand_on(tree: Any) -> Any:
    shards = jax.lax.axis_size(LENGTH_AXIS)
    return jax.lax.ppermute(tree, LENGTH_AXIS, [(index, (index + 1) % shards) for index in range(shards)])


def _alike(like: jax.Array, array: jax.Array) -> jax.Array:
    """The array as one that differs between the devices that ``like`` differs between: the type of a loop's carry."""
    axes = tuple(jax.typeof(like).manual_axis_type.varying)
    return jax.lax.pcast(array, axes, to="varying") if axes else array


def _product(equation: str, one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.einsum(equation, one, other.astype(one.dtype), preferred_element_type=jnp.float32)


def _scores(rule: Rule, query: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array | float]:
    """(cap(scale q k^T), the cap's slope there)."""
    scores = rule.scale * _product("bgrqk,bgsk->bgrqs", query, key)
    if rule.soft_cap is None:
        return scores, 1.0
    bent = jnp.tanh(scores / rule.soft_cap)
    return rule.soft_cap * bent, 1.0 - jnp.square(bent)


class _Tile(NamedTuple):
    """Some queries against some keys of a piece."""

    query_at: jax.Array
    key_at: jax.Array
    size: int
    visible: jax.Array
    """bool ``[B, 1, 1, size, size]``."""
    any: jax.Array

    def queries(self, array: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(array, self.query_at, self.size, axis=-2)

    def keys(self, array: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(array, self.key_at, self.size, axis=-2)

    def put_queries(self, array: jax.Array, part: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(array, part, self.query_at, axis=-2)

    def put_keys(self, array: jax.Array, part: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(array, part, self.key_at, axis=-2)


def _tiles(rule: Rule, activations: jax.Array, own: jax.Array, whole: jax.Array, mask: jax.Array | None) -> "_Tiles":
    """What is seen, made to depend on the layer's activations.

    It does not; but what is the same in every layer JAX computes before the loop over layers, once and for all tiles:
    a mask ``[T, T]``.
    """
    first, own, whole, mask, _ = jax.lax.optimization_barrier((jnp.int32(0), own, whole, mask, activations))
    return _Tiles(rule, first, own, whole, mask)


class _Tiles(NamedTuple):
    """This device's queries against a piece of the row, tile by tile."""

    rule: Rule
    first: jax.Array
    """int32 0, the number of the first tile."""
    own: jax.Array
    whole: jax.Array
    mask: jax.Array | None

    def each(self, one: Callable[[_Tile, Any], Any], state: Any, piece: jax.Array) -> Any:
        """The state after ``one(tile, state)`` for every tile of this device's queries and the keys of ``piece``."""
        length = self.own.shape[-1]
        count = -(-length // self.rule.tile)

        def step(state: Any, number: jax.Array) -> tuple[Any, None]:
            return one(self._tile(number // count, number % count, -(-length // count), piece), state), None

        return jax.lax.scan(step, state, self.first + jnp.arange(count * count))[0]

    def _tile(self, row: jax.Array, column: jax.Array, size: int, piece: jax.Array) -> _Tile:
        length = self.own.shape[-1]
        index = jnp.arange(size)
        # The last tile of a piece begins early enough to be whole; what it shares with the one before is not its own.
        query_at, key_at = (jnp.minimum(number * size, length - size) for number in (row, column))
        fresh = (index + query_at >= row * size)[:, None] & (index + key_at >= column * size)
        there = piece * length + key_at
        queries = jax.lax.dynamic_slice_in_dim(self.own, query_at, size, axis=-1)
        keys = jax.lax.dynamic_slice_in_dim(self.whole, there, size, axis=-1)
        visible = fresh & visibility(queries[0], queries[1], queries[2], keys[0], keys[1], keys[2], self.rule.window)
        if self.mask is not None:
            visible &= jax.lax.dynamic_slice(
                self.mask, (jnp.zeros_like(there), query_at, there), (len(self.mask), size, size)
            )
        return _Tile(query_at, key_at, size, visible[:, None, None], jnp.any(visible))
