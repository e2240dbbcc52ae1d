"""The suite that every loss here is held to, for losses of your own: one call, :func:`check_loss`.

Here live checks, made of jax alone; nothing that trains or reads files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

__all__ = ["check_loss"]

Array = jax.Array

# Two float32 evaluations of one formula, fused or not, in one order or another.
_FLOAT32 = 1e-5
# Central differences in float64.
_FINITE_DIFFERENCES = 1e-6
_ROWS = 6


def check_loss(
    loss: Callable[..., Array],
    *,
    inputs: int | Sequence[Any] = 4,
    domain: tuple[float, float] = (-3.0, 3.0),
    extreme: float = 1e4,
    reduced_axes: int = 0,
    coupled: bool = False,
    mask: int | None = None,
    shifts: Sequence[Sequence[int]] = (),
    at_reference: float | None = None,
    modes: Sequence[str] = ("rev",),
    seed: int = 0,
) -> None:
    """Holds a loss to the numerical contract of :mod:`jaxalign.losses`.

        check_loss(functools.partial(my_loss, beta=0.1), shifts=[(0, 1)], at_reference=math.log(2))

    Checked, in this order:

    - *unreduced*: one finite value a row (or a token), of the rows' shape;
    - *floating*: float32 out of float32, float64 out of float64, at least float32 out of bfloat16;
    - *jit*: the compiled loss gives the eager one's values and gradients, to 1e-5;
    - *extreme inputs*: value and gradient finite with every argument at +-``extreme``, in all combinations of signs;
    - *gradients*: float64 derivatives equal finite differences, to 1e-6;
    - *rows*: a permutation of the rows permutes the values; two halves give the whole's values and gradients. With
      ``coupled`` only: a permutation leaves the sum alone;
    - *mask*: what a False entry hides, NaN included, reaches neither value nor gradient; an empty mask gives 0 and
      gradients of 0;
    - *shift*: adding one number a row to the arguments of a group changes nothing;
    - *reference*: the value where the first half of the arguments (the policy) equals the second (the reference).

    Args:
      loss: arrays in, one array out. Hyper-parameters are bound (``functools.partial``).
      inputs: how many ``[6]`` floating arguments the loss takes, drawn from ``domain``; or the arguments themselves,
        rows first (at least two rows), of which the floating ones are differentiated and the others held.
      domain: the interval that drawn arguments and shifts come from.
      extreme: see above.
      reduced_axes: how many trailing axes of the first argument the loss sums over (1 for rankings ``[B, K]``).
      coupled: a row's value depends on other rows (a sort, a batch statistic).
      mask: the position of a boolean mask among the arguments, if there is one, shaped like the first.
      shifts: groups of argument positions that may be shifted together.
      at_reference: the value at policy = reference.
      modes: of differentiation: "rev", and "fwd" for a loss without a custom VJP.
      seed: of the drawn numbers.

    Raises:
      AssertionError: names the property that fails, and shows how.
    """
    if isinstance(inputs, int):
        rng = np.random.default_rng(seed)
        arguments: tuple[Any, ...] = tuple(rng.uniform(*domain, size=_ROWS) for _ in range(inputs))
    else:
        arguments = tuple(np.asarray(argument) for argument in inputs)
    suite = _Suite(loss, arguments, reduced_axes, seed)
    suite.unreduced()
    suite.floating()
    suite.jit()
    suite.extreme(extreme)
    suite.gradients(tuple(modes))
    if coupled:
        suite.coupled_rows()
    else:
        suite.rows()
    if mask is not None:
        suite.mask(mask)
    for group in shifts:
        suite.shift(tuple(group), domain)
    if at_reference is not None:
        suite.reference(at_reference)


@dataclass(frozen=True)
class _Suite:
    """A loss, its arguments in numpy (floating ones in float64 or as given), and one method a property."""

    loss: Callable[..., Array]
    arguments: tuple[Any, ...]
    reduced_axes: int
    seed: int

    # -- helpers

    def differentiated(self) -> tuple[int, ...]:
        return tuple(i for i, a in enumerate(self.arguments) if np.issubdtype(a.dtype, np.floating))

    def cast(self, dtype: Any, arguments: tuple[Any, ...] | None = None) -> tuple[Array, ...]:
        """The arguments on the device, floating ones in ``dtype``."""
        given = self.arguments if arguments is None else arguments
        floating = self.differentiated()
        return tuple(jnp.asarray(a, dtype if i in floating else None) for i, a in enumerate(given))

    def value_and_gradient(self, arguments: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        """The loss, and the gradients of its sum with respect to the floating arguments."""
        value = self.loss(*arguments)
        return value, jax.grad(lambda *a: jnp.sum(self.loss(*a)), self.differentiated())(*arguments)

    def fail(self, property_: str, message: str) -> None:
        name = getattr(self.loss, "__name__", None) or getattr(getattr(self.loss, "func", None), "__name__", "loss")
        raise AssertionError(f"{name} fails '{property_}': {message}")

    def require_close(self, property_: str, message: str, actual: Any, expected: Any) -> None:
        for got, want in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
            if not np.allclose(got, want, rtol=_FLOAT32, atol=_FLOAT32):
                worst = np.argmax(np.nan_to_num(np.abs(got - want), nan=np.inf))
                where = np.unravel_index(worst, got.shape)
                self.fail(property_, f"{message}: {got[where]} against {want[where]} at {tuple(map(int, where))}")

    def require_finite(self, property_: str, message: str, tree: Any) -> None:
        if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree)):
            self.fail(property_, message)

    # -- properties

    def unreduced(self) -> None:
        first = self.arguments[0].shape
        expected = first[: len(first) - self.reduced_axes]
        value = jnp.asarray(self.loss(*self.cast(jnp.float32)))
        if value.shape != expected:
            self.fail("unreduced", f"arguments {first} must give one value a row, {expected}, not {value.shape}")
        self.require_finite("unreduced", f"the value is not finite: {value}", value)

    def floating(self) -> None:
        value = self.loss(*self.cast(jnp.float32))
        if value.dtype != jnp.float32:
            self.fail("floating", f"float32 arguments must give float32, not {value.dtype}")
        value = self.loss(*self.cast(jnp.bfloat16))
        if not jnp.issubdtype(value.dtype, jnp.floating) or jnp.finfo(value.dtype).bits < 32:
            self.fail(
                "floating",
                f"bfloat16 arguments must give float32 or more, not {value.dtype}: use promote_types(x.dtype, float32)",
            )
        with jax.enable_x64(True):
            value = self.loss(*self.cast(jnp.float64))
            if value.dtype != jnp.float64:
                self.fail("floating", f"float64 arguments must give float64, not {value.dtype}")

    def jit(self) -> None:
        arguments = self.cast(jnp.float32)
        compiled = jax.jit(self.value_and_gradient)(arguments)
        self.require_close("jit", "compiled against eager", compiled, self.value_and_gradient(arguments))

    def extreme(self, size: float) -> None:
        floating = self.differentiated()
        rng = np.random.default_rng(self.seed + 1)
        compiled = jax.jit(self.value_and_gradient)
        for signs in np.ndindex(*(2,) * min(len(floating), 5)):
            arguments = list(self.arguments)
            for place, i in enumerate(floating):
                sign = 1 - 2 * signs[place] if place < len(signs) else rng.choice([-1, 1])
                arguments[i] = np.full(self.arguments[i].shape, sign * size)
            self._require_extreme(compiled, arguments)
        # Both signs within one argument: what a row of tokens or a ranking meets.
        for _ in range(4):
            arguments = list(self.arguments)
            for i in floating:
                arguments[i] = rng.choice([-size, 0.0, size], size=self.arguments[i].shape)
            self._require_extreme(compiled, arguments)

    def _require_extreme(self, compiled: Callable[..., Any], arguments: list[Any]) -> None:
        value, gradient = compiled(self.cast(jnp.float32, tuple(arguments)))
        shown = [arguments[i].ravel()[:3].tolist() for i in self.differentiated()]
        self.require_finite("extreme inputs", f"the value is not finite where the arguments begin {shown}", value)
        self.require_finite("extreme inputs", f"the gradient is not finite where the arguments begin {shown}", gradient)

    def gradients(self, modes: tuple[str, ...]) -> None:
        floating = self.differentiated()
        with jax.enable_x64(True):
            arguments = self.cast(jnp.float64)

            def of_floating(*given: Array) -> Array:
                full = list(arguments)
                for i, array in zip(floating, given, strict=True):
                    full[i] = array
                return self.loss(*full)

            try:
                check_grads(
                    of_floating,
                    [arguments[i] for i in floating],
                    order=1,
                    modes=list(modes),
                    atol=_FINITE_DIFFERENCES,
                    rtol=_FINITE_DIFFERENCES,
                )
            except AssertionError as error:
                lines = " ".join(str(error).split())
                self.fail("gradients", f"the derivative is not that of finite differences: {lines}")

    def rows(self) -> None:
        arguments = self.cast(jnp.float32)
        count = arguments[0].shape[0]
        whole = self.value_and_gradient(arguments)
        order = np.random.default_rng(self.seed + 2).permutation(count)
        permuted = self.value_and_gradient(tuple(a[order] for a in arguments))
        expected = jax.tree.map(lambda leaf: leaf[order], whole)
        self.require_close("rows", "permuted rows against permuted values", permuted, expected)
        half = count // 2
        parts = [
            self.value_and_gradient(tuple(a[part] for a in arguments)) for part in (slice(half), slice(half, None))
        ]
        joined = jax.tree.map(lambda first, second: jnp.concatenate([first, second]), *parts)
        self.require_close("rows", "two halves against the whole: a row's value depends on other rows", joined, whole)

    def coupled_rows(self) -> None:
        arguments = self.cast(jnp.float32)
        order = np.random.default_rng(self.seed + 2).permutation(arguments[0].shape[0])
        permuted = jnp.sum(self.loss(*(a[order] for a in arguments)))
        self.require_close("rows", "sum over permuted rows", permuted, jnp.sum(self.loss(*arguments)))

    def mask(self, position: int) -> None:
        kept = self.arguments[position]
        hidden = list(self.arguments)
        for i in self.differentiated():
            if hidden[i].shape == kept.shape:
                hidden[i] = np.where(kept, hidden[i], np.nan)
        plain = self.value_and_gradient(self.cast(jnp.float32))
        poisoned = self.value_and_gradient(self.cast(jnp.float32, tuple(hidden)))
        self.require_finite("mask", "NaN under the mask reaches the value", poisoned[0])
        self.require_finite("mask", "NaN under the mask reaches the gradient", poisoned[1])
        self.require_close("mask", "what the mask hides changes the result", poisoned, plain)
        empty = list(self.arguments)
        empty[position] = np.zeros_like(kept)
        result = self.value_and_gradient(self.cast(jnp.float32, tuple(empty)))
        self.require_close("mask", "an empty mask must give 0", result, jax.tree.map(jnp.zeros_like, result))

    def shift(self, group: tuple[int, ...], domain: tuple[float, float]) -> None:
        rng = np.random.default_rng(self.seed + 3)
        shape = self.arguments[group[0]].shape
        offset = rng.uniform(*domain, size=shape[:1] + (1,) * (len(shape) - 1))
        shifted = tuple(a + offset if i in group else a for i, a in enumerate(self.arguments))
        with jax.enable_x64(True):
            actual, expected = self.loss(*self.cast(jnp.float64, shifted)), self.loss(*self.cast(jnp.float64))
        self.require_close("shift", f"arguments {group} shifted together", actual, expected)

    def reference(self, expected: float) -> None:
        policy = self.arguments[: len(self.arguments) // 2]
        value = self.loss(*self.cast(jnp.float32, policy + policy))
        self.require_close("reference", "at policy = reference", value, jnp.full(value.shape, expected))
