"""check_loss catches deliberately broken losses, and names what is broken."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses
from jaxalign.testing import check_loss

LN2 = math.log(2)


def margin(pc, pr, rc, rr):
    return 0.3 * (pc - pr - rc + rr)


def good(pc, pr, rc, rr):
    x = [jnp.asarray(array).astype(jnp.promote_types(array.dtype, jnp.float32)) for array in (pc, pr, rc, rr)]
    return -jax.nn.log_sigmoid(margin(*x))


def test_one_line_is_enough() -> None:
    check_loss(partial(losses.dpo, beta=0.1), shifts=[(0, 1), (2, 3)], at_reference=LN2)
    check_loss(good)


@jax.custom_vjp
def wrong_gradient(pc, pr, rc, rr):
    return good(pc, pr, rc, rr)


# The sigmoid's weight forgotten: the sign is right, the size is not.
wrong_gradient.defvjp(
    lambda *x: (good(*x), None),
    lambda _, cotangent: tuple(sign * 0.3 * cotangent for sign in (-1, 1, 1, -1)),
)


def overflow(pc, pr, rc, rr):
    """log(1 + exp(-x)) as it is written."""
    x = [array.astype(jnp.promote_types(array.dtype, jnp.float32)) for array in (pc, pr, rc, rr)]
    return jnp.log1p(jnp.exp(-margin(*x)))


BROKEN = {
    "mean": (lambda *x: jnp.mean(good(*x)), "unreduced"),
    "column": (lambda *x: good(*x)[:, None], "unreduced"),
    "nan": (lambda *x: good(*x) * jnp.nan, "unreduced"),
    "integer": (lambda *x: good(*x).astype(jnp.int32), "floating"),
    "bfloat16": (lambda *x: -jax.nn.log_sigmoid(margin(*x)), "floating"),
    "always float32": (lambda *x: good(*x).astype(jnp.float32), "floating"),
    "overflow": (overflow, "extreme"),
    "infinite gradient": (
        lambda *x: jnp.where(good(*x) > 1e3, good(*x), good(*x) + 0 * jnp.sqrt(jnp.maximum(1e3 - good(*x), 0))),
        "extreme",
    ),
    "gradient": (wrong_gradient, "gradients"),
    "stopped gradient": (lambda *x: jax.lax.stop_gradient(good(*x)), "gradients"),
    "centred": (lambda *x: good(*x) - jnp.mean(good(*x)), "rows"),
    "sorted": (lambda *x: jnp.sort(good(*x)), "rows"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_losses_are_caught(name: str) -> None:
    loss, broken = BROKEN[name]
    with pytest.raises(AssertionError, match=f"fails '{broken}"):
        check_loss(loss)


def test_jit_that_differs() -> None:
    def depends_on_tracing(*x):
        return good(*x) * (1.0 if isinstance(x[0], jax.core.Tracer) else 2.0)

    with pytest.raises(AssertionError, match="fails 'jit'"):
        check_loss(depends_on_tracing)


def test_coupled_losses_are_allowed_when_said() -> None:
    check_loss(lambda *x: jnp.sort(good(*x)), coupled=True)
    with pytest.raises(AssertionError, match="fails 'rows'"):
        check_loss(lambda *x: good(*x) * jnp.arange(1.0, 7.0, dtype=good(*x).dtype), coupled=True)


def test_mask() -> None:
    inputs = [np.random.default_rng(0).normal(size=(4, 5)), np.arange(20).reshape(4, 5) % 3 > 0]

    def total(x, mask):
        return losses.masked_sum(x, mask, axis=-1)

    check_loss(total, inputs=inputs, reduced_axes=1, mask=1)
    check_loss(lambda x, mask: losses.masked_mean(x, mask, axis=-1), inputs=inputs, reduced_axes=1, mask=1)

    def subtracted(x, mask):
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jnp.sum(x - jnp.where(mask, 0, x), axis=-1)

    with pytest.raises(AssertionError, match="fails 'mask': NaN"):
        check_loss(subtracted, inputs=inputs, reduced_axes=1, mask=1)

    def unguarded(x, mask):
        return total(x, mask) / jnp.sum(mask, axis=-1)

    with pytest.raises(AssertionError, match="fails 'mask': an empty mask"):
        check_loss(unguarded, inputs=inputs, reduced_axes=1, mask=1)


def test_shift_and_reference() -> None:
    with pytest.raises(AssertionError, match="fails 'shift'"):
        check_loss(partial(losses.nca, beta=0.3), shifts=[(0, 1)])
    with pytest.raises(AssertionError, match="fails 'reference'"):
        check_loss(partial(losses.ipo, beta=0.3), at_reference=LN2)


def test_the_message_names_the_loss() -> None:
    def my_loss(*x):
        return jnp.mean(good(*x))

    with pytest.raises(AssertionError, match=r"my_loss fails 'unreduced'.*\(6,\), not \(\)"):
        check_loss(my_loss)
    with pytest.raises(AssertionError, match="ipo fails"):
        check_loss(partial(losses.ipo, beta=0.3), at_reference=0.0)


def test_custom_gradients_that_are_right_pass() -> None:
    @jax.custom_vjp
    def loss(*x):
        return good(*x)

    loss.defvjp(lambda *x: (good(*x), x), lambda x, cotangent: jax.vjp(good, *x)[1](cotangent))
    check_loss(loss)
