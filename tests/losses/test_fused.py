"""fused_token_log_probs against the dense form: values and every gradient, at any chunk, under every transformation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign.losses import fused_token_log_probs, token_log_probs
from tests.tolerances import BFLOAT16, CHECK_GRADS_FLOAT64, FLOAT32, FLOAT64

ROWS, TOKENS, WIDTH, WORDS = 2, 5, 8, 37
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "soft_cap": {"soft_cap": 2.5},
    "temperature": {"temperature": 0.6},
    "both": {"soft_cap": 4.0, "temperature": 1.7},
}
by_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def dense(hidden, unembedding, bias, targets, *, soft_cap=None, temperature=1.0):
    logits = jnp.einsum("...d,vd->...v", hidden, unembedding)
    if bias is not None:
        logits = logits + bias
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    return token_log_probs(logits / temperature, targets)


def problem(dtype: Any = np.float32, seed: int = 0) -> tuple[Any, ...]:
    """(hidden, unembedding, bias), targets, weights: logits of order 1."""
    rng = np.random.default_rng(seed)
    arrays = (rng.normal(size=(ROWS, TOKENS, WIDTH)), rng.normal(size=(WORDS, WIDTH)) / 3, rng.normal(size=WORDS))
    targets = rng.integers(0, WORDS, (ROWS, TOKENS))
    targets[0, 0], targets[0, 1] = 0, WORDS - 1
    return (
        tuple(jnp.asarray(x, dtype) for x in arrays),
        jnp.asarray(targets),
        jnp.asarray(rng.normal(size=targets.shape)),
    )


def gradients(form, arguments, targets, weights, which=(0, 1, 2)):
    """Value and gradients of a weighted sum of log-probabilities."""

    def total(*arguments):
        log_probs = form(*arguments, targets)
        return jnp.sum(log_probs * weights.astype(log_probs.dtype))

    return jax.value_and_grad(total, which)(*arguments)


def fused(**options):
    return lambda hidden, unembedding, bias, targets: fused_token_log_probs(
        hidden, unembedding, targets, bias=bias, **options
    )


def close(actual, expected, tolerance: float = FLOAT32) -> None:
    for got, want in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(want).max())))


@pytest.mark.parametrize(
    ("form", "chunk_size"),
    [(form, 12) for form in FORMS.values()] + [(FORMS["both"], size) for size in (1, 18, 36, 37, 4096)],
    ids=str,
)
def test_equals_dense_in_float64(form, chunk_size: int) -> None:
    with jax.enable_x64(True):
        arguments, targets, weights = problem(np.float64)
        close(fused(chunk_size=chunk_size, **form)(*arguments, targets), dense(*arguments, targets, **form), FLOAT64)
        expected = gradients(lambda *a: dense(*a, **form), arguments, targets, weights)
        close(gradients(fused(chunk_size=chunk_size, **form), arguments, targets, weights), expected, FLOAT64)


@by_form
def test_equals_dense_in_float32(form) -> None:
    arguments, targets, weights = problem()
    expected = gradients(lambda *a: dense(*a, **form), arguments, targets, weights)
    close(gradients(fused(chunk_size=12, **form), arguments, targets, weights), expected)


@by_form
@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
def test_any_subset_of_arguments_may_be_trained(form, which: tuple[int, ...]) -> None:
    """A frozen unembedding takes another path through the backward pass."""
    with jax.enable_x64(True):
        arguments, targets, weights = problem(np.float64)
        expected = gradients(lambda *a: dense(*a, **form), arguments, targets, weights, which)
        close(gradients(fused(chunk_size=12, **form), arguments, targets, weights, which), expected, FLOAT64)


@pytest.mark.parametrize("frozen", [False, True])
def test_without_bias(frozen: bool) -> None:
    with jax.enable_x64(True):
        (hidden, unembedding, _), targets, weights = problem(np.float64)
        which = (0,) if frozen else (0, 1)
        expected = gradients(lambda h, e, t: dense(h, e, None, t), (hidden, unembedding), targets, weights, which)
        form = fused(chunk_size=12)
        actual = gradients(lambda h, e, t: form(h, e, None, t), (hidden, unembedding), targets, weights, which)
        close(actual, expected, FLOAT64)


@pytest.mark.parametrize("which", ["all", "hidden"])
@by_form
def test_check_grads(form, which: str) -> None:
    with jax.enable_x64(True):
        (hidden, unembedding, bias), targets, _ = problem(np.float64)
        form = fused(chunk_size=12, **form)
        tolerance = {"atol": CHECK_GRADS_FLOAT64, "rtol": CHECK_GRADS_FLOAT64}
        if which == "all":
            check_grads(lambda *a: form(*a, targets), (hidden, unembedding, bias), 1, modes=["rev"], **tolerance)
        else:
            check_grads(lambda h: form(h, unembedding, bias, targets), (hidden,), 1, modes=["rev"], **tolerance)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31), st.booleans())
@settings(max_examples=6, deadline=None)
def test_sizes_that_do_not_divide(words: int, chunk_size: int, seed: int, frozen: bool) -> None:
    rng = np.random.default_rng(seed)
    arguments = tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 4), (words, 4), (words,)))
    targets, weights = jnp.asarray(rng.integers(0, words, 3)), jnp.asarray(rng.normal(size=3))
    which = (0,) if frozen else (0, 1, 2)
    expected = gradients(dense, arguments, targets, weights, which)
    close(gradients(fused(chunk_size=chunk_size), arguments, targets, weights, which), expected)


def test_tied_to_the_embedding() -> None:
    """One matrix embeds and unembeds: its gradient is the sum of both uses."""
    with jax.enable_x64(True):
        (_, embedding, _), targets, weights = problem(np.float64)

        def total(embedding, head):
            hidden = jnp.tanh(embedding[(targets + 1) % WORDS])
            return jnp.sum(head(hidden, embedding) * weights)

        actual = jax.grad(total)(embedding, lambda h, e: fused_token_log_probs(h, e, targets, chunk_size=12))
        close(actual, jax.grad(total)(embedding, lambda h, e: dense(h, e, None, targets)), FLOAT64)


@pytest.mark.parametrize("which", [(0, 1, 2), (0,)], ids=str)
@pytest.mark.parametrize("transformation", ["jit", "vmap", "scan", "remat", "jit of scan of remat"])
def test_transformations(transformation: str, which: tuple[int, ...]) -> None:
    arguments, targets, weights = problem()
    options = {"chunk_size": 12, "soft_cap": 4.0, "temperature": 0.7}
    form = fused(**options)
    by_row = {
        "jit": jax.jit(form),
        "vmap": jax.vmap(form, in_axes=(0, None, None, 0)),
        "scan": lambda h, e, b, t: jax.lax.scan(lambda c, x: (c, form(x[0], e, b, x[1])), 0, (h, t))[1],
        "remat": jax.checkpoint(form),
        "jit of scan of remat": jax.jit(
            lambda h, e, b, t: jax.lax.scan(lambda c, x: (c, jax.checkpoint(form)(x[0], e, b, x[1])), 0, (h, t))[1]
        ),
    }[transformation]
    expected = gradients(lambda *a: dense(*a, soft_cap=4.0, temperature=0.7), arguments, targets, weights, which)
    close(gradients(by_row, arguments, targets, weights, which), expected)


def test_one_traced_call_differentiated_both_ways() -> None:
    """JAX keeps the trace of a jitted call; training the head and freezing it must not share a backward pass."""
    arguments, targets, weights = problem()
    form = jax.jit(fused(chunk_size=12))
    for which in ((0, 1, 2), (0,), (0, 1, 2), (1,), (0,)):
        expected = gradients(dense, arguments, targets, weights, which)
        close(gradients(form, arguments, targets, weights, which), expected)


def test_map_of_gradients() -> None:
    arguments, targets, weights = problem()
    per_row = [gradients(dense, (arguments[0][i], *arguments[1:]), targets[i], weights[i]) for i in range(ROWS)]
    mapped = jax.vmap(
        lambda h, e, b, t, w: gradients(fused(chunk_size=12), (h, e, b), t, w), in_axes=(0, None, None, 0, 0)
    )(*arguments, targets, weights)
    for i in range(ROWS):
        close(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), per_row[i])


@pytest.mark.parametrize("which", [(0, 1, 2), (0,)], ids=str)
def test_bfloat16_inputs_accumulate_in_float32(which: tuple[int, ...]) -> None:
    arguments, targets, weights = problem(jnp.bfloat16)
    value, result = gradients(fused(chunk_size=12), arguments, targets, weights, which)
    assert value.dtype == jnp.float32
    assert [leaf.dtype for leaf in result] == [jnp.bfloat16] * len(which)
    wide = tuple(x.astype(jnp.float32) for x in arguments)
    exact_value, exact = gradients(dense, wide, targets, weights, which)
    # The products of bfloat16 numbers are exact in float32, so the value itself is float32-accurate.
    close(value, exact_value)
    close(result, exact, BFLOAT16)


def test_mixed_dtypes() -> None:
    arguments, targets, weights = problem()
    mixed = (arguments[0].astype(jnp.bfloat16), *arguments[1:])
    _, result = gradients(fused(chunk_size=12), mixed, targets, weights)
    assert [leaf.dtype for leaf in result] == [jnp.bfloat16, jnp.float32, jnp.float32]
    wide = (mixed[0].astype(jnp.float32), *arguments[1:])
    _, exact = gradients(dense, wide, targets, weights)
    close(result[1:], exact[1:])


def test_almost_certain_tokens_keep_their_gradient() -> None:
    """With p = 1 - 1e-12 the target's own weight 1 - p is lost in float32; the frozen path sums the others instead."""
    unembedding = jnp.eye(3, dtype=jnp.float32)
    hidden, targets = jnp.asarray([[28.0, 0.0, 0.0]]), jnp.asarray([0])
    gradient = jax.grad(lambda h: fused_token_log_probs(h, unembedding, targets, chunk_size=2).sum())(hidden)
    other = np.exp(-28.0)
    np.testing.assert_allclose(gradient[0], [2 * other, -other, -other], rtol=FLOAT32)


@pytest.mark.parametrize("which", [(0, 1, 2), (0,)], ids=str)
@by_form
def test_extreme_inputs_are_finite(form, which: tuple[int, ...]) -> None:
    arguments, targets, weights = problem()
    for scale in (1e4, -1e4):
        extreme = (arguments[0] * scale, arguments[1], arguments[2] * -scale)
        result = gradients(fused(chunk_size=12, **form), extreme, targets, weights, which)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(result))


@pytest.mark.parametrize("which", [(0, 1), (0,)], ids=str)
def test_words_masked_by_an_infinite_bias_do_not_exist(which: tuple[int, ...]) -> None:
    """The padding of a vocabulary: a whole chunk of -inf, first and last."""
    arguments, targets, weights = problem()
    hidden, unembedding, bias = arguments
    targets = jnp.clip(targets, 8, 20)
    padded = jnp.where((jnp.arange(WORDS) >= 8) & (jnp.arange(WORDS) < 21), bias, -jnp.inf)
    value, result = gradients(fused(chunk_size=4), (hidden, unembedding, padded), targets, weights, which)
    part = slice(8, 21)
    expected = gradients(dense, (hidden, unembedding[part], bias[part]), targets - 8, weights, which)
    close(value, expected[0])
    close(result[0], expected[1][0])
    if len(which) > 1:
        close(result[1][part], expected[1][1])
        assert not result[1][:8].any()
        assert not result[1][21:].any()


def test_masked_tokens_have_no_gradient() -> None:
    arguments, targets, weights = problem()
    weights = weights.at[:, 2:].set(0)
    _, (hidden, unembedding, _) = gradients(fused(chunk_size=12), arguments, targets, weights)
    assert not hidden[:, 2:].any()
    cut = (arguments[0][:, :2], *arguments[1:])
    close(unembedding, gradients(dense, cut, targets[:, :2], weights[:, :2])[1][1])


def test_no_tokens() -> None:
    (hidden, unembedding, bias), targets, _ = problem()
    assert fused_token_log_probs(hidden[:, :0], unembedding, targets[:, :0], bias=bias).shape == (ROWS, 0)


def test_never_holds_all_logits() -> None:
    """No array of the program, forward or backward, is as large as [T, V]."""
    tokens, width, words, chunk = 64, 8, 1000, 100
    arguments = jnp.ones((tokens, width)), jnp.ones((words, width))
    targets = jnp.zeros(tokens, jnp.int32)

    def sizes(jaxpr) -> list[int]:
        found = []
        for equation in jaxpr.eqns:
            found += [int(np.prod(v.aval.shape)) for v in equation.outvars]
            for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(parameter, "jaxpr", parameter)
                if hasattr(inner, "eqns"):
                    found += sizes(inner)
        return found

    for which in ((0, 1), (0,)):
        form = jax.grad(lambda h, e: fused_token_log_probs(h, e, targets, chunk_size=chunk).sum(), which)
        found = sizes(jax.make_jaxpr(form)(*arguments).jaxpr)
        assert tokens * chunk in found
        assert max(found) < tokens * words / 4
    dense_sizes = sizes(jax.make_jaxpr(jax.grad(lambda h, e: dense(h, e, None, targets).sum()))(*arguments).jaxpr)
    assert max(dense_sizes) >= tokens * words


def test_temporary_memory() -> None:
    tokens, width, words = 256, 16, 8000
    arguments = jnp.ones((tokens, width)), jnp.ones((words, width))
    targets = jnp.zeros(tokens, jnp.int32)

    def temporary(form) -> int:
        gradient = jax.jit(jax.grad(lambda h, e: form(h, e).sum(), (0, 1)))
        return gradient.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    chunked = temporary(lambda h, e: fused_token_log_probs(h, e, targets, chunk_size=256))
    assert chunked <= temporary(lambda h, e: dense(h, e, None, targets)) / 5


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"targets": jnp.zeros((ROWS, TOKENS + 1), jnp.int32)}, AssertionError),
        ({"targets": jnp.zeros((ROWS, TOKENS))}, AssertionError),
        ({"unembedding": jnp.zeros((WORDS, WIDTH + 1))}, AssertionError),
        ({"hidden": jnp.zeros((ROWS, TOKENS, WIDTH), jnp.int32)}, AssertionError),
        ({"bias": jnp.zeros(WORDS + 1)}, AssertionError),
        ({"chunk_size": 0}, ValueError),
        ({"temperature": 0.0}, ValueError),
        ({"soft_cap": -1.0}, ValueError),
        ({"vocabulary_axis": "tensor"}, ValueError),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments(change, error) -> None:
    (hidden, unembedding, bias), targets, _ = problem()
    arguments = {"hidden": hidden, "unembedding": unembedding, "targets": targets, "bias": bias, **change}
    with pytest.raises(error):
        fused_token_log_probs(**arguments)
