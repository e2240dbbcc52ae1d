"""fused_token_log_probs under jax.shard_map on eight devices: tokens sharded, the vocabulary sharded, both."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxalign.losses import fused_token_log_probs, token_log_probs
from tests.tolerances import FLOAT32

TOKENS, WIDTH, WORDS, CHUNK = 16, 8, 40, 3
P = PartitionSpec


@pytest.fixture
def problem() -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    arrays = (rng.normal(size=(TOKENS, WIDTH)), rng.normal(size=(WORDS, WIDTH)) / 3, rng.normal(size=WORDS))
    weights = jnp.asarray(rng.normal(size=TOKENS), jnp.float32)
    targets = jnp.asarray(np.concatenate([[0, WORDS - 1], rng.integers(0, WORDS, TOKENS - 2)]))
    return tuple(jnp.asarray(x, jnp.float32) for x in arrays), targets, weights


def make_mesh(data: int, tensor: int):
    return jax.make_mesh((data, tensor), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)


def sharded(mesh, *, vocabulary_axis: str | None = None, check_vma: bool = True, **options):
    words = P(vocabulary_axis) if vocabulary_axis else P()
    return jax.shard_map(
        lambda hidden, unembedding, bias, targets: fused_token_log_probs(
            hidden, unembedding, targets, bias=bias, chunk_size=CHUNK, vocabulary_axis=vocabulary_axis, **options
        ),
        mesh=mesh,
        in_specs=(P("data"), words, words, P("data")),
        out_specs=P("data"),
        check_vma=check_vma,
    )


def dense(hidden, unembedding, bias, targets):
    return token_log_probs(hidden @ unembedding.T + bias, targets)


def gradients(form, targets, weights, which):
    return jax.jit(jax.value_and_grad(lambda *a: jnp.sum(form(*a, targets) * weights), which))


def close(actual, expected) -> None:
    for got, want in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=FLOAT32, atol=FLOAT32)


def all_reduces(compiled) -> list[str]:
    """The shapes of every all-reduce in the compiled program, one string an operation."""
    return re.findall(r"= (\S.*?) all-reduce(?:-start)?\(", compiled.as_text())


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("which", [(0, 1, 2), (0,)], ids=["head trained", "head frozen"])
def test_tokens_sharded(problem, which: tuple[int, ...], check_vma: bool) -> None:
    arguments, targets, weights = problem
    form = sharded(make_mesh(8, 1), check_vma=check_vma)
    expected = gradients(dense, targets, weights, which)(*arguments)
    close(gradients(form, targets, weights, which)(*arguments), expected)


def test_the_unembedding_gradient_is_reduced_once(problem) -> None:
    """Fourteen chunks a device, but one sum over devices, outside the loop over chunks."""
    arguments, targets, weights = problem
    compiled = gradients(sharded(make_mesh(8, 1)), targets, weights, (0, 1)).lower(*arguments).compile()
    matrices = [shape for shape in all_reduces(compiled) if f"f32[{WORDS},{WIDTH}]" in shape]
    assert len(matrices) == 1
    assert len(all_reduces(compiled)) <= 2  # with it, or beside it, the sum of the loss itself
    bodies = [part for part in compiled.as_text().split("\n\n") if part.lstrip("% \n").startswith(("region", "body"))]
    assert not any("all-reduce(" in body and "dot(" in body for body in bodies)
    assert "while(" in compiled.as_text()


def test_a_frozen_head_reduces_nothing_of_its_size(problem) -> None:
    arguments, targets, weights = problem
    compiled = gradients(sharded(make_mesh(8, 1)), targets, weights, (0,)).lower(*arguments).compile()
    assert not any(f"{WORDS},{WIDTH}" in shape for shape in all_reduces(compiled))


@pytest.mark.parametrize("which", [(0, 1, 2), (0,)], ids=["head trained", "head frozen"])
@pytest.mark.parametrize(("data", "tensor"), [(2, 4), (1, 8), (4, 2), (8, 1)])
def test_vocabulary_sharded(problem, data: int, tensor: int, which: tuple[int, ...]) -> None:
    arguments, targets, weights = problem
    form = sharded(make_mesh(data, tensor), vocabulary_axis="tensor")
    close(form(*arguments, targets), dense(*arguments, targets))
    expected = gradients(dense, targets, weights, which)(*arguments)
    close(gradients(form, targets, weights, which)(*arguments), expected)


@pytest.mark.parametrize("which", [(0, 1, 2), (0,)], ids=["head trained", "head frozen"])
def test_vocabulary_sharded_soft_cap_and_temperature(problem, which: tuple[int, ...]) -> None:
    arguments, targets, weights = problem
    options = {"soft_cap": 2.0, "temperature": 0.7}

    def capped(hidden, unembedding, bias, targets):
        logits = hidden @ unembedding.T + bias
        return token_log_probs(2 * jnp.tanh(logits / 2) / 0.7, targets)

    form = sharded(make_mesh(2, 4), vocabulary_axis="tensor", **options)
    expected = gradients(capped, targets, weights, which)(*arguments)
    close(gradients(form, targets, weights, which)(*arguments), expected)


def test_vocabulary_sharded_collectives(problem) -> None:
    """Four sums: the maximum, the sum with the target, the hidden gradient, and the head's gradient over data."""
    arguments, targets, weights = problem
    form = sharded(make_mesh(2, 4), vocabulary_axis="tensor")
    compiled = gradients(form, targets, weights, (0, 1)).lower(*arguments).compile()
    shapes = all_reduces(compiled)
    assert sum(f"f32[{WORDS // 4},{WIDTH}]" in shape for shape in shapes) == 1
    assert sum(f"f32[{TOKENS // 2},{WIDTH}]" in shape for shape in shapes) == 1
    assert not any(f"f32[{WORDS},{WIDTH}]" in shape for shape in shapes)
    assert "all-gather" not in compiled.as_text()


@pytest.mark.parametrize(("data", "tensor", "axis"), [(8, 1, None), (2, 4, "tensor")])
def test_gradient_taken_inside_the_shard_map(problem, data: int, tensor: int, axis: str | None) -> None:
    """With check_vma=True a replicated argument's gradient comes out summed, on the inside too."""
    arguments, targets, weights = problem
    words = P(axis) if axis else P()

    def local(hidden, unembedding, bias, targets, weights):
        log_probs = fused_token_log_probs(
            hidden, unembedding, targets, bias=bias, chunk_size=CHUNK, vocabulary_axis=axis
        )
        return jnp.sum(log_probs * weights)

    inside = jax.jit(
        jax.shard_map(
            jax.grad(local, (0, 1, 2)),
            mesh=make_mesh(data, tensor),
            in_specs=(P("data"), words, words, P("data"), P("data")),
            out_specs=(P("data"), words, words),
        )
    )
    expected = gradients(dense, targets, weights, (0, 1, 2))(*arguments)[1]
    close(inside(*arguments, targets, weights), expected)


def test_vocabulary_axis_needs_varying_manual_axes(problem) -> None:
    arguments, targets, _ = problem
    with pytest.raises(ValueError, match="check_vma=True"):
        sharded(make_mesh(2, 4), vocabulary_axis="tensor", check_vma=False)(*arguments, targets)
