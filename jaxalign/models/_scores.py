"""From hidden states to log-probabilities of given targets, on one device or sharded."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from jaxalign import losses
from jaxalign.models._config import ModelConfig
from jaxalign.models._decoder import Params, unembedding
from jaxalign.models._mesh import (
    LENGTH_AXIS,
    VOCABULARY_AXIS,
    WEIGHT_AXIS,
    ambient_mesh,
    length_axis,
    length_shards,
    row_axes,
)
from jaxalign.models._take import pad_to, take_around


def target_log_probs(
    config: ModelConfig,
    params: Params,
    hidden: jax.Array,
    source_index: jax.Array,
    targets: jax.Array,
    *,
    temperature: float = 1.0,
) -> jax.Array:
    """log softmax(z / temperature)[targets], z = ``unembed(hidden[source_index])``, never holding ``[S, V]``.

    Only supervised positions reach the vocabulary product: their hidden states are gathered first.

    Under an ambient mesh (``jax.set_mesh``) of several devices this is a ``shard_map``: rows over ("data", "fsdp"),
    the vocabulary over "tensor" where that divides it. Each device walks its own slices, and the unembedding gradient
    is reduced once, in the parameters' dtype, after the walk. Rows that do not divide are scored by every device.
    Over "sequence" the targets are shared out: each device multiplies its share of a row's with the vocabulary, and
    the hidden states go round until every source has come by.

    Args:
        config: the model (static).
        params: holding the unembedding, or the embedding where the two are tied.
        hidden: ``[..., T, D]``, from ``apply``.
        source_index: int ``[..., S]``, the column of ``hidden`` that predicts each target.
        targets: int ``[..., S]`` token ids. Padding targets give some finite number: mask them.
        temperature: logits are divided by it.

    Returns:
        float32 ``[..., S]``, natural logarithms (nats).
    """
    return _at_sources(config, params, hidden, source_index, targets, temperature)


def target_entropy(
    config: ModelConfig,
    params: Params,
    hidden: jax.Array,
    source_index: jax.Array,
    *,
    temperature: float = 1.0,
) -> jax.Array:
    """Entropy of softmax(z / temperature), z = ``unembed(hidden[source_index])``, never holding ``[S, V]``.

    Arguments, sharding and padding as in :func:`target_log_probs`.

    Returns:
        float32 ``[..., S]``, nats.
    """
    return _at_sources(config, params, hidden, source_index, None, temperature)


def _at_sources(
    config: ModelConfig,
    params: Params,
    hidden: jax.Array,
    source_index: jax.Array,
    targets: jax.Array | None,
    temperature: float,
) -> jax.Array:
    """Log-probs of ``targets`` at the sources or, without targets, the entropy there."""
    matrix = unembedding(config, params)
    bias = params["unembed"]["bias"] if config.unembedding_bias else None
    hidden = hidden.reshape(-1, *hidden.shape[-2:])
    index = source_index.reshape(-1, source_index.shape[-1])
    ids = None if targets is None else targets.reshape(index.shape)
    mesh = ambient_mesh()
    with jax.named_scope("unembedding"):
        if mesh is None:
            scores = _score(config, hidden, index, ids, matrix, bias, temperature, None)
        else:
            scores = _sharded(config, mesh, hidden, index, ids, matrix, bias, temperature)
    return scores.reshape(source_index.shape)


def _score(
    config: ModelConfig,
    hidden: jax.Array,
    index: jax.Array,
    ids: jax.Array | None,
    matrix: jax.Array,
    bias: jax.Array | None,
    temperature: float,
    vocabulary_axis: str | None,
    around: bool = False,
) -> jax.Array:
    # By way of float32: where several targets have one source, its gradient is a sum.
    wide = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
    taken = take_around(wide, index) if around else jnp.take_along_axis(wide, index[..., None], axis=1)
    sources = taken.astype(hidden.dtype)
    options: dict[str, Any] = {
        "bias": bias,
        "soft_cap": config.logit_soft_cap,
        "temperature": temperature,
        "vocabulary_axis": vocabulary_axis,
    }
    if ids is None:
        return losses.fused_token_entropy(sources, matrix.astype(hidden.dtype), **options)
    return losses.fused_token_log_probs(sources, matrix.astype(hidden.dtype), ids, **options)


def _sharded(
    config: ModelConfig,
    mesh: AbstractMesh,
    hidden: jax.Array,
    index: jax.Array,
    ids: jax.Array | None,
    matrix: jax.Array,
    bias: jax.Array | None,
    temperature: float,
) -> jax.Array:
    rows = row_axes(mesh, hidden.shape[0])
    tensor = mesh.shape.get(VOCABULARY_AXIS, 1)
    vocabulary_axis = VOCABULARY_AXIS if tensor > 1 and matrix.shape[0] % tensor == 0 else None
    # The matrix arrives as its shards and is gathered here, so that its gradient leaves by one reduce-scatter.
    gathered = WEIGHT_AXIS in rows and matrix.shape[1] % mesh.shape[WEIGHT_AXIS] == 0
    length = length_axis(mesh, hidden.shape[1])
    shares = length_shards(mesh)
    # What tells devices apart that compute from the same matrix.
    among = rows if shares == 1 else (*rows, LENGTH_AXIS)
    by_row = PartitionSpec(rows or None, LENGTH_AXIS if shares > 1 else None)
    by_piece = PartitionSpec(rows or None, length)

    def local(
        hidden: jax.Array, index: jax.Array, ids: jax.Array | None, matrix: jax.Array, bias: jax.Array | None
    ) -> jax.Array:
        if gathered:
            matrix = jax.lax.all_gather(matrix, WEIGHT_AXIS, axis=1, tiled=True)
        # Cast to varying before the cast to the compute dtype: the gradient's sum over devices is then in the
        # parameters' dtype, not in bfloat16.
        missing = tuple(axis for axis in among if not (gathered and axis == WEIGHT_AXIS))
        if missing:
            matrix = jax.lax.pcast(matrix, missing, to="varying")
        if among and bias is not None:
            bias = jax.lax.pcast(bias, among, to="varying")
        return _score(config, hidden, index, ids, matrix, bias, temperature, vocabulary_axis, length is not None)

    matrix_spec = PartitionSpec(vocabulary_axis, WEIGHT_AXIS if gathered else None)
    shared = pad_to(shares, index), None if ids is None else pad_to(shares, ids)
    scores = jax.shard_map(
        local,
        in_specs=(by_piece, by_row, by_row, matrix_spec, PartitionSpec(vocabulary_axis)),
        out_specs=by_row,
    )(hidden, *shared, matrix, bias)
    return scores[:, : index.shape[1]]
