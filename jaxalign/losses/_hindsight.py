"""Chain of Hindsight: the loss on outputs alone, and the attention mask that forgets."""

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses._checks import as_mask, as_scores, in_range

Array = jax.Array


def chain_of_hindsight(token_log_probs: Array, output_mask: Array) -> Array:
    """Negative log-likelihood of the model's outputs in a chain of feedback and outputs, one value a token.

        L_t = -log p(x_t | x_<t) where x_t is a token of an output (its EOS included), 0 elsewhere

    Prompts and feedback words are read, never learnt. (Liu, Sferrazza and Abbeel 2023, arXiv 2302.02676, equation 1:
    the mask 1_O(x).) A recipe divides by the outputs' tokens of the whole batch and adds the pretraining term.

    Args:
      token_log_probs: floating ``[..., T]``, nats.
      output_mask: bool ``[..., T]``, True on tokens of outputs.

    Returns:
      Nats ``[..., T]``, at least float32; what stands where the mask is False reaches neither value nor gradient.

    Raises:
      AssertionError: log-probs not floating, a mask not boolean, or shapes that do not match.
    """
    (token_log_probs,) = as_scores(token_log_probs)
    mask = as_mask(output_mask, token_log_probs)
    return jnp.where(mask, -jnp.where(mask, token_log_probs, 0), 0)


def forgetful_causal_mask(
    key: Array,
    batch: int,
    length: int,
    *,
    min_ratio: float,
    max_ratio: float,
    example_ids: Array | None = None,
    segment_ids: Array | None = None,
) -> Array:
    """A causal attention mask that hides some of the past, anew for every example: a regulariser for training.

        r ~ U[min_ratio, max_ratio] of each example
        visible(q, k) = k < q in one segment, and not dropped (with probability r, each pair for itself);
                        always: k = q, and the segment's first token

    One mask for all heads and layers. (Liu et al. 2022, arXiv 2210.13432, whose masks hide whole tokens; Liu, Sferrazza
    and Abbeel 2023, arXiv 2302.02676, section 2.2.) What is drawn for a pair is a function of (key, example id, places
    in the segment), so that packing, padding and micro-batches change nothing. The diagonal stays visible, which the
    paper's released code does not promise.

    Args:
      key: a PRNG key, new in every step.
      batch: B.
      length: T.
      min_ratio, max_ratio: of the pairs dropped, in [0, 1]; the paper takes 0 and 0.05.
      example_ids: integer ``[B]``, or ``[B, T]`` where a row holds several examples; None = the row's number, which a
        micro-batch does not keep.
      segment_ids: integer ``[B, T]``, equal within an example of a packed row, whose tokens stand together; None = a
        row is an example.

    Returns:
      bool ``[B, T, T]``, (query, key): True may be attended to; to be and-ed with what a model sees otherwise.

    Raises:
      ValueError: a ratio outside [0, 1], or ``min_ratio`` above ``max_ratio``.
      AssertionError: ids that are no integers, or of another shape.
    """
    in_range(0, 1, min_ratio=min_ratio, max_ratio=max_ratio)
    if min_ratio > max_ratio:
        raise ValueError(f"min_ratio {min_ratio} is above max_ratio {max_ratio}")
    shape = (batch, length)
    segments = jnp.zeros(shape, jnp.int32) if segment_ids is None else jnp.asarray(segment_ids)
    ids = jnp.arange(batch) if example_ids is None else jnp.asarray(example_ids)
    chex.assert_type([segments, ids], int)
    chex.assert_shape(segments, shape)
    chex.assert_shape(ids, (batch,) if ids.ndim == 1 else shape)
    ids = jnp.broadcast_to(ids[:, None], shape) if ids.ndim == 1 else ids

    index = jnp.arange(length)
    same = segments[:, :, None] == segments[:, None, :]
    first = jnp.argmax(same, axis=-1)  # where each token's segment begins
    place = index - first

    def visible(example: Array, query: Array, places: Array) -> Array:
        """One query's row: places ``[T]`` of the keys in their segments."""
        own = jax.random.fold_in(key, example)
        ratio = jax.random.uniform(own, minval=min_ratio, maxval=max_ratio)
        of_query = jax.random.fold_in(jax.random.fold_in(own, 1), query)
        drawn = jax.vmap(lambda at: jax.random.uniform(jax.random.fold_in(of_query, at)))(places)
        return drawn >= ratio

    kept = jax.vmap(jax.vmap(visible, in_axes=(0, 0, None)))(ids, place, place)
    always = (index[:, None] == index) | (place[:, None, :] == 0)
    return same & (index[:, None] >= index) & (kept | always)
