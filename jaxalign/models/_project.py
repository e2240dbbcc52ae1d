"""A linear layer: its kernel, its bias, and the low-rank adapter that may lie beside it."""

import functools
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxalign.models._config import ModelConfig

PRODUCT = "product"
# Up to so many rows a product with a (out, in) kernel is faster kernel first, on a CPU.
FEW_ROWS = 64


def project(
    config: ModelConfig,
    part: str,
    equation: str,
    x: jax.Array,
    parameters: dict[str, Any],
    dropout_keys: jax.Array | None = None,
) -> jax.Array:
    """x @ kernel + scale * (dropout(x) @ a) @ b + bias, parameters cast to x's dtype at use.

    The adapter's term (LoRA, arXiv 2106.09685, equation 3) is there where ``lora_a`` and ``lora_b`` are.

    Args:
        config: the model; ``config.lora`` holds the adapter's scale and dropout.
        part: the layer's name, from which its dropout is drawn.
        equation: of ``jnp.einsum(x, kernel)``.
        x: ``[B, T, in...]``.
        parameters: ``kernel [in..., out...]`` (or ``transposed``, from ``models.unstack``), ``bias [out...]``,
            ``lora_a [in..., r]``, ``lora_b [r, out...]``.
        dropout_keys: a typed key a token ``[B, T]``; None = no dropout.
    """
    if "transposed" in parameters:
        y = _project_transposed(x, parameters["transposed"], inputs=x.ndim - 2)
    else:
        # Named for rematerialisation, whose policies do not look into the product.
        y = checkpoint_name(_product(equation, x, parameters["kernel"]), PRODUCT)
    if "lora_a" in parameters:
        assert config.lora is not None, "an adapter lies beside the kernels, but the config has none"
        dropped = x if dropout_keys is None else _dropout(x, config.lora.dropout, part, dropout_keys)
        inputs = x.ndim - 2
        low = jnp.tensordot(dropped, parameters["lora_a"].astype(x.dtype), inputs)
        y = y + config.lora.scale * jnp.tensordot(low, parameters["lora_b"].astype(x.dtype), 1)
    return _plus_bias(y, parameters["bias"].astype(x.dtype)) if "bias" in parameters else y


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(equation: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """einsum(x, kernel in x's dtype); the kernel's gradient, a sum over all tokens and devices, is a float32 sum.

    Left to itself it would be a product in x's dtype, and on a mesh its parts would be added up in bfloat16.
    """
    return jnp.einsum(equation, x, kernel.astype(x.dtype))


def _product_forward(equation: str, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(equation, x, kernel), (x, kernel)


def _product_backward(
    equation: str, kept: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    inputs, output = equation.split("->")
    x_axes, kernel_axes = inputs.split(",")
    to_x = jnp.einsum(f"{output},{kernel_axes}->{x_axes}", cotangent, kernel.astype(x.dtype))
    wide = jnp.promote_types(x.dtype, jnp.float32)
    to_kernel = jnp.einsum(f"{x_axes},{output}->{kernel_axes}", x, cotangent, preferred_element_type=wide)
    return to_x, to_kernel.astype(kernel.dtype)


_product.defvjp(_product_forward, _product_backward)


def _plus_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y + bias, by way of float32: the gradient of the bias, a sum over all tokens, is then a float32 sum."""
    wide = jnp.promote_types(y.dtype, jnp.float32)
    return (y.astype(wide) + bias.astype(wide)).astype(y.dtype)


def _dropout(x: jax.Array, rate: float, part: str, keys: jax.Array) -> jax.Array:
    """Inverted dropout, drawn for every token from its own key: neither batch-mates nor padding change it."""
    if rate == 0:
        return x
    salt = zlib.crc32(part.encode())
    keep = jax.vmap(jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, salt), 1 - rate, x.shape[2:])))
    return jnp.where(keep(keys), x / (1 - rate), 0).astype(x.dtype)


def merge_adapter(config: ModelConfig, parameters: dict[str, Any]) -> dict[str, Any]:
    """One layer's parameters with the adapter inside the kernel: kernel + scale * a @ b, float32.

    ``lora_a`` is ``[in..., r]``, ``lora_b`` ``[r, out...]``; parameters without an adapter are returned as they are.
    """
    if "lora_a" not in parameters:
        return parameters
    assert config.lora is not None, "an adapter lies beside the kernels, but the config has none"
    rest = {name: leaf for name, leaf in parameters.items() if name not in ("lora_a", "lora_b")}
    kernel, low, high = (parameters[name].astype(jnp.float32) for name in ("kernel", "lora_a", "lora_b"))
    # "highest": accelerators' fast products would lose half of the update's bits.
    return rest | {"kernel": kernel + config.lora.scale * jnp.tensordot(low, high, 1, precision="highest")}


def transpose_kernels(config: ModelConfig, block: dict[str, Any]) -> dict[str, Any]:
    """A layer's kernels (in, out), adapters merged, as (out, in), renamed "transposed", for decoding."""
    prepared = {}
    for name, part in block.items():
        prepared[name] = dict(merge_adapter(config, part))
        if "kernel" in part:
            kernel = prepared[name].pop("kernel")
            inputs = 2 if name == "output" else 1
            axes = (*range(inputs, kernel.ndim), *range(inputs))
            prepared[name]["transposed"] = kernel.transpose(axes)
    return prepared


def _project_transposed(x: jax.Array, kernel: jax.Array, inputs: int) -> jax.Array:
    """x @ kernel^T for a kernel stored (out, in), whose last ``inputs`` axes are contracted.

    A decoding step has few rows and reads every weight: kernel first, its rows are read as they lie and nothing is
    packed, 1.7 times as fast for 16 rows on a CPU. The barrier keeps XLA from turning the product round again.
    """
    leading = x.shape[: x.ndim - inputs]
    outputs = kernel.shape[: kernel.ndim - inputs]
    matrix = kernel.reshape(math.prod(outputs), -1)
    rows = x.reshape(-1, matrix.shape[1])
    if len(rows) <= FEW_ROWS:
        y = jax.lax.optimization_barrier(jax.lax.dot_general(matrix, rows, (((1,), (1,)), ((), ())))).T
    else:
        y = rows @ matrix.T
    return y.reshape(*leading, *outputs)
