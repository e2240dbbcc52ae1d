"""Which number has which dtype, and updates in bfloat16 that lose nothing.

What trains               float32 (master weights) or bfloat16; norms, biases and score heads float32
Activations, products     float32 or bfloat16; products accumulate in float32
Other sums                float32: norms, softmax, losses, gradients of biases and embeddings, over micro-batches
An update's arithmetic    float32
The optimizer's state     float32 or bfloat16
What is frozen            as it was loaded, or bfloat16

A bfloat16 number keeps 8 bits: an update below 1/512 of a weight, rounded to nearest, leaves the weight as it was,
however often it comes. Rounded stochastically it moves the weight with the right probability, so the mean is exact
(Gupta et al. 2015, arXiv 1502.02551, section 3.1).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def cast_parameters(params: Any, dtype: Any) -> Any:
    """Return the tree with its matrices in ``dtype``, and norms, biases and score heads in float32.

    A model reads norms and score heads in float32 whatever it computes in, and casts every other leaf to the compute
    dtype at use. So with compute dtype bfloat16 a bfloat16 tree made here gives the very numbers of the float32 tree it
    was made of; what stays float32 is a thousandth of a model.

    Args:
        params: a parameter tree; leaves that are not floating stay as they are, leaves that fit are not copied.
        dtype: "float32" or "bfloat16".
    """

    def cast(path: Any, leaf: Any) -> Any:
        if not is_floating(leaf):
            return leaf
        names = path_names(path)
        wanted = jnp.float32 if "score" in names or is_norm_or_bias(names) else dtype
        return leaf if leaf.dtype == wanted else leaf.astype(wanted)

    return jax.tree_util.tree_map_with_path(cast, params)


def path_names(path: Any) -> list[str]:
    """The names along a leaf's path, in lower case."""
    return [str(getattr(entry, "key", getattr(entry, "name", ""))).lower() for entry in path]


def is_norm_or_bias(names: list[str]) -> bool:
    """Whether these are the names of a norm's or a bias's leaf."""
    return any("norm" in name for name in names) or (bool(names) and names[-1].endswith(("bias", "scale")))


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is an array of floating numbers, neither integers nor keys."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def widen(tree: Any) -> Any:
    """Return the tree with its floating leaves in at least float32 (float64 stays float64)."""
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) if is_floating(leaf) else leaf, tree
    )


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


def in_float32(
    rule: optax.GradientTransformation, *, state_dtype: Any = "float32"
) -> optax.GradientTransformationExtraArgs:
    """Run an update rule on float32 views, whatever dtypes parameters, gradients and the rule's state have.

    The rule's arithmetic is float32 (float64 stays float64); between updates its state is kept in ``state_dtype``. The
    update of a bfloat16 parameter comes out as the difference to where rounding puts ``parameter + update``, so that
    ``optax.apply_updates`` lands there. bfloat16 is rounded stochastically, in parameters and in state: to nearest, a
    moment of decay .99 stops up to a fifth short of its mean, and one of decay .999 never falls. With float32
    everywhere this is ``rule`` itself.

    Args:
        rule: an optax transformation.
        state_dtype: "float32" or "bfloat16": of the floating leaves of its state.

    Returns:
        An optax transformation whose ``update`` takes ``key=``, a typed key, new in every step; without one it refuses
        (``TypeError``) what it would have to round.
    """
    inner = optax.with_extra_args_support(rule)
    narrow = jnp.dtype(state_dtype) == jnp.bfloat16

    def init(params: Any) -> Any:
        state = inner.init(widen(params))
        if not narrow:
            return state
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if is_floating(leaf) else leaf, state)

    def update(grads: Any, state: Any, params: Any, *, key: jax.Array | None = None, **extra: Any) -> Any:
        updates, state = inner.update(widen(grads), widen(state), widen(params), **extra)
        leaves, structure = jax.tree.flatten(params)
        stored, state_structure = jax.tree.flatten(state)

        def rounded(index: int, x: jax.Array) -> jax.Array:
            if key is None:
                raise TypeError("an update in bfloat16 is rounded stochastically: it needs key=")
            return round_stochastically(jax.random.fold_in(key, index), x)

        def landing(index: int, leaf: jax.Array, move: jax.Array) -> jax.Array:
            if leaf.dtype != jnp.bfloat16:
                return move
            old = leaf.astype(jnp.float32)
            return rounded(index, old + move).astype(jnp.float32) - old

        moves = map(landing, range(len(leaves)), leaves, jax.tree.leaves(updates))
        updates = jax.tree.unflatten(structure, list(moves))
        if narrow:
            numbered = enumerate(stored, len(leaves))
            stored = [rounded(index, leaf) if is_floating(leaf) else leaf for index, leaf in numbered]
            state = jax.tree.unflatten(state_structure, stored)
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)
