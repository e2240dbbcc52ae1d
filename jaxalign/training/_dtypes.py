"""Which number has which dtype: casts of parameter trees, and updates of bfloat16 parameters that lose nothing.

A bfloat16 number keeps 8 bits: an update below 1/512 of a weight, rounded to nearest, leaves the weight as it was,
however often it comes. Rounded stochastically it is applied with the right probability, so the mean is exact.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def cast_parameters(params: Any, dtype: Any) -> Any:
    """Return the tree with its floating leaves in ``dtype``, those of norms in float32; leaves that fit are not copied.

    A model reads its norms in float32 whatever it computes in, and casts every other leaf to the compute dtype at use.
    So at compute dtype bfloat16 a bfloat16 tree made here gives the very numbers of the float32 tree it was made of.
    """

    def cast(path: Any, leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return leaf
        wanted = jnp.float32 if _is_norm(path) else dtype
        return leaf if leaf.dtype == wanted else leaf.astype(wanted)

    return jax.tree_util.tree_map_with_path(cast, params)


def _is_norm(path: Any) -> bool:
    return any("norm" in str(getattr(entry, "key", getattr(entry, "name", ""))).lower() for entry in path)


def widen(tree: Any) -> Any:
    """Return the tree with its floating leaves in at least float32 (float64 stays float64)."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree)


def round_stochastically(key: jax.Array, x: jax.Array) -> jax.Array:
    """Round float32 to bfloat16, up or down at random so that the mean is ``x``.

        P(up) = (x - down) / (up - down)

    exactly, in steps of 2^-16: the upper 16 bits of a float32 are the bfloat16 next to it towards zero, the lower 16
    the fraction that is missing; 16 random bits are added to them and carry with that probability.

    Args:
        key: a typed key. The draws belong to an element's place in the array, whatever mesh it lies on.
        x: float32, any shape; what is not finite is cast.

    Returns:
        bfloat16, the shape of ``x``; a number that bfloat16 holds exactly is returned as it is.
    """
    if x.dtype != jnp.float32:
        raise TypeError(f"stochastic rounding to bfloat16 is of float32, not {x.dtype}")
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(upper, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def in_float32(rule: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Run an update rule on float32 views, whatever dtypes parameters and gradients have.

    The rule's state, its arithmetic and its updates are float32 (float64 stays float64). The update of a bfloat16
    parameter comes out as the difference to where stochastic rounding puts ``parameter + update``, so that
    ``optax.apply_updates`` lands there. For float32 parameters this is ``rule`` itself.

    ``update`` takes ``key=``, a typed key, new in every step; without one it refuses bfloat16 parameters.
    """
    inner = optax.with_extra_args_support(rule)

    def update(grads: Any, state: Any, params: Any, *, key: jax.Array | None = None, **extra: Any) -> Any:
        wide = widen(params)
        updates, state = inner.update(widen(grads), state, wide, **extra)
        leaves, structure = jax.tree.flatten(params)
        moves = structure.flatten_up_to(updates)
        for index, (leaf, old) in enumerate(zip(leaves, structure.flatten_up_to(wide), strict=True)):
            if leaf.dtype != jnp.bfloat16:
                continue
            if key is None:
                raise TypeError("an update of bfloat16 parameters is rounded stochastically: it needs key=")
            new = round_stochastically(jax.random.fold_in(key, index), old + moves[index])
            moves[index] = new.astype(old.dtype) - old
        return structure.unflatten(moves), state

    return optax.GradientTransformationExtraArgs(lambda params: inner.init(widen(params)), update)


def stored_in(dtype: Any, field: str, rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keep one field of a rule's state in ``dtype`` between updates; it is widened before the rule reads it.

    optax's own ``mu_dtype`` multiplies in the narrow dtype, where a decay of .99 is .988.
    """

    def narrow(state: Any) -> Any:
        return state._replace(**{field: jax.tree.map(lambda leaf: leaf.astype(dtype), getattr(state, field))})

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        updates, state = rule.update(grads, state._replace(**{field: widen(getattr(state, field))}), params)
        return updates, narrow(state)

    return optax.GradientTransformation(lambda params: narrow(rule.init(params)), update)
