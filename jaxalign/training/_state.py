"""The training state: one pytree that holds everything a run needs to go on."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from jaxalign.sharding import replicated, shard_tree
from jaxalign.training._dtypes import cast_parameters


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "optimizer_state", "step", "key", "extra"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes while training; frozen trees are not here, they are arguments of the step.

    Attributes:
        params: the trainable parameters.
        optimizer_state: the state of the optax transformation.
        step: number of updates applied, int32 [].
        key: a typed PRNG key; constant, the step folds its own number in.
        extra: what a method carries from step to step (a moving reference, a running shift, a controller).
    """

    params: Any
    optimizer_state: Any
    step: Any
    key: Any
    extra: dict[str, Any]


def copy_tree(tree: Any, shardings: Any = None, *, like: Any = None) -> Any:
    """Return a tree of new buffers, laid out as ``shardings`` says (None: where each leaf lies now).

    ``like`` is a tree (of arrays or shapes) whose dtypes the copies take; None keeps each leaf's own.

    A step donates its state, which deletes the state's buffers. A frozen tree that shares buffers with the state (a
    reference model that starts as the policy) must therefore be a copy: this function makes it.
    """
    if shardings is not None:
        tree = shard_tree(tree, shardings)  # may alias the input, hence the copy below
    if like is None:
        return jax.tree.map(jnp.copy, tree)
    return jax.tree.map(lambda leaf, as_: jnp.array(leaf, dtype=as_.dtype, copy=True), tree, like)


def state_shapes(
    params: Any, optimizer: optax.GradientTransformation, *, dtype: Any = None, extra: dict[str, Any] | None = None
) -> TrainState:
    """Return a ``TrainState`` of ``jax.ShapeDtypeStruct``, to restore into or to plan with; no array is made.

    Args:
        params: the trainable parameters, or their shapes.
        optimizer: the optax transformation.
        dtype: of the parameters in the state (norms: ``cast_parameters``); None keeps their own.
        extra: the state's ``extra``, or its shapes.
    """

    def build(params: Any, extra: dict[str, Any]) -> TrainState:
        params = params if dtype is None else cast_parameters(params, dtype)
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), jax.random.key(0), extra)

    return jax.eval_shape(build, params, extra or {})


def state_shardings(
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh | AbstractMesh,
    shardings: Any,
    extra: dict[str, Any] | None = None,
) -> TrainState:
    """Return the shardings of a state, as a ``TrainState`` of ``NamedSharding``.

    A leaf of the optimizer state that mirrors a parameter (a moment of the same shape) lies as the parameter lies;
    so does an entry of ``extra`` whose tree and shapes are those of ``params``. Everything else is replicated.

    Args:
        params: the trainable parameters, or their ``jax.ShapeDtypeStruct``.
        optimizer: the optax transformation.
        mesh: the mesh; an abstract one is enough for planning.
        shardings: a tree like ``params`` of ``NamedSharding``.
        extra: the state's ``extra``, or its shapes.
    """
    whole = replicated(mesh)

    def mirrored(leaf: Any, sharding: NamedSharding, param: Any) -> NamedSharding:
        return sharding if jnp.shape(leaf) == jnp.shape(param) else whole

    optimizer_shardings = optax.tree_map_params(
        optimizer,
        mirrored,
        jax.eval_shape(optimizer.init, params),
        shardings,
        params,
        transform_non_params=lambda _: whole,
    )
    signature = (jax.tree.structure(params), [jnp.shape(leaf) for leaf in jax.tree.leaves(params)])

    def entry(value: Any) -> Any:
        if (jax.tree.structure(value), [jnp.shape(leaf) for leaf in jax.tree.leaves(value)]) == signature:
            return shardings
        return jax.tree.map(lambda _: whole, value)

    return TrainState(
        params=shardings,
        optimizer_state=optimizer_shardings,
        step=whole,
        key=whole,
        extra={name: entry(value) for name, value in (extra or {}).items()},
    )


def create_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    *,
    mesh: Mesh,
    shardings: Any,
    dtype: Any = None,
    extra: dict[str, Any] | None = None,
) -> TrainState:
    """Return the state before the first update, laid out on the mesh.

    ``params``, ``key`` and ``extra`` are copied: the step may donate the state without deleting the caller's arrays.

    Args:
        params: the trainable parameters (host or device arrays).
        optimizer: the optax transformation.
        key: a typed key, ``jax.random.key(seed)``.
        mesh: the mesh.
        shardings: a tree like ``params`` of ``NamedSharding`` (``jaxalign.sharding.tree_shardings``).
        dtype: of the parameters in the state (norms: ``cast_parameters``); None keeps their own.
        extra: initial values of what the method carries.

    Raises:
        TypeError: if ``key`` is not a typed key.
    """
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError("key must be a typed key, jax.random.key(seed)")
    layout = state_shardings(params, optimizer, mesh=mesh, shardings=shardings, extra=extra)
    like = None if dtype is None else jax.eval_shape(lambda tree: cast_parameters(tree, dtype), params)
    params = copy_tree(params, layout.params, like=like)
    return TrainState(
        params=params,
        optimizer_state=jax.jit(optimizer.init, out_shardings=layout.optimizer_state)(params),
        step=shard_tree(np.zeros((), np.int32), layout.step),
        key=copy_tree(key, layout.key),
        extra=copy_tree(extra or {}, layout.extra),
    )
