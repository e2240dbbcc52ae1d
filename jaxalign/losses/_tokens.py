"""Token log-probabilities, the token losses made of them, and their sums over sequences."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses._checks import as_mask, as_scores, in_range

Array = jax.Array

# -log p is kept above this, so that 1 - p stays above 0 (about 8 float32 roundings of 1).
SMALLEST_SURPRISAL = 1e-6


def token_log_probs(logits: Array, targets: Array) -> Array:
    """Log-probability of each target token under the softmax of its logits.

        log p_t = logits[t, targets_t] - logsumexp_v logits[t, v]

    This form holds the logits; :func:`fused_token_log_probs` makes the same numbers from hidden states without them.

    Args:
      logits: floating ``[..., T, V]``.
      targets: integer ``[..., T]``, in [0, V): an id outside is clipped into it, so mask it.

    Returns:
      Natural logarithms (nats) ``[..., T]``, at least float32.

    Raises:
      AssertionError: logits not floating, targets not integer, or shapes that do not match.
    """
    (logits,) = as_scores(logits)
    targets = jnp.asarray(targets)
    chex.assert_type(targets, int)
    chex.assert_shape(targets, logits.shape[:-1])
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1, mode="clip")[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def sequence_log_prob(token_log_probs: Array, mask: Array, *, average: bool = False) -> Array:
    """Log-probability of each sequence: the sum over its tokens.

        log pi(y|x) = sum_t mask_t log pi(y_t | x, y_<t)        divided by sum_t mask_t with ``average=True``

    The sum is what DPO and IPO are derived with; the average is what SimPO and ORPO take, and what IPO takes in TRL.

    Args:
      token_log_probs: floating ``[..., T]``, nats.
      mask: bool ``[..., T]``, True on the tokens of the answer, its EOS included.
      average: divides by the number of tokens.

    Returns:
      ``[...]``, at least float32; 0 for a sequence without tokens.
    """
    (token_log_probs,) = as_scores(token_log_probs)
    mask = as_mask(mask, token_log_probs)
    total = jnp.sum(jnp.where(mask, token_log_probs, 0), axis=-1)
    if not average:
        return total
    return total / jnp.maximum(jnp.sum(mask, axis=-1, dtype=total.dtype), 1)


def cross_entropy(token_log_probs: Array) -> Array:
    """Negative log-likelihood of each token: -log p, in nats.

    Args:
      token_log_probs: floating, any shape.

    Returns:
      The same shape, at least float32. The sum over the supervised tokens divided by their number over the whole
      global batch is the SFT loss.
    """
    (token_log_probs,) = as_scores(token_log_probs)
    return -token_log_probs


def unlikelihood(token_log_probs: Array) -> Array:
    """Pushes each token's probability down (Welleck et al. 2020, arXiv 1908.04319, equation 4).

        -log(1 - p),    -log p kept above 1e-6

    A token more certain than that has no gradient, instead of an infinite one.

    Args:
      token_log_probs: floating, any shape, nats.

    Returns:
      The same shape, at least float32, in [0, 13.9].
    """
    (token_log_probs,) = as_scores(token_log_probs)
    return -jax.nn.log1mexp(jnp.maximum(-token_log_probs, SMALLEST_SURPRISAL))


def kl_estimate(log_probs: Array, reference_log_probs: Array, *, estimator: Literal["k1", "k2", "k3"] = "k1") -> Array:
    """Estimates KL(policy || reference) from samples of the policy, one value per sample or token.

        k1 = log pi - log ref            unbiased, may be negative
        k2 = k1^2 / 2                    biased, >= 0
        k3 = exp(-k1) - 1 + k1           unbiased, >= 0

    (Schulman, "Approximating KL divergence", 2020.) Below |k1| = 0.1 k3 is summed as a series, where the closed form
    cancels; its exponent is kept within +-20.

    Args:
      log_probs: floating, any shape, nats: the policy's, of tokens that the policy drew.
      reference_log_probs: the same shape, of the same tokens.
      estimator: "k1", "k2" or "k3".

    Returns:
      The same shape, nats, at least float32.

    Raises:
      ValueError: an estimator of another name.
    """
    log_probs, reference_log_probs = as_scores(log_probs, reference_log_probs)
    k1 = log_probs - reference_log_probs
    if estimator == "k1":
        return k1
    if estimator == "k2":
        return jnp.square(k1) / 2
    if estimator != "k3":
        raise ValueError(f"estimator must be 'k1', 'k2' or 'k3', not {estimator!r}")
    near = jnp.abs(k1) < 0.1
    x = jnp.where(near, k1, 0)
    series = jnp.polyval(jnp.asarray([1 / 40320, -1 / 5040, 1 / 720, -1 / 120, 1 / 24, -1 / 6, 1 / 2], x.dtype), x)
    far = jnp.maximum(jnp.where(near, 1, k1), -20)
    return jnp.where(near, jnp.square(x) * series, jnp.expm1(-jnp.minimum(far, 20)) + far)


def length_desensitised_weights(token_index: Array, shorter_length: Array, *, alpha: float) -> Array:
    """Token weights of LD-DPO: full weight up to the length that both answers reach, ``alpha`` beyond it.

        log pi_LD(y) = sum_{t < l} log pi(y_t) + alpha * sum_{t >= l} log pi(y_t),    l = min(|y_w|, |y_l|)

    (Liu et al. 2024, arXiv 2409.06411.) Multiply the policy's and the reference's token log-probabilities
    by the weights before :func:`sequence_log_prob`. ``alpha=1`` is DPO.

    Args:
      token_index: integer ``[..., T]``, each token's place in its own answer from 0 (``cumsum(mask, -1) - 1``).
      shorter_length: integer, broadcastable to ``[..., T]``: the length of the pair's shorter answer.
      alpha: in [0, 1].

    Returns:
      float32 ``[..., T]``.
    """
    in_range(0, 1, alpha=alpha)
    chex.assert_type((token_index, shorter_length), int)
    return jnp.where(token_index < shorter_length, 1.0, jnp.asarray(alpha, jnp.float32))
