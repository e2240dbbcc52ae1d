"""Which kernel attends, by platform: one table.

    xla     everywhere, any mask, soft-caps: ``_attention.attention``
    cudnn   NVIDIA GPUs, bfloat16 or float16, head size a multiple of 8 up to 128 (256 on Hopper and later), no
            soft-cap; causal and windowed masks natively, any other as an additive bias
    splash  TPUs (Pallas), masks that are causal by index within an example, rows a multiple of 128 tokens
    ring    everywhere, any mask, soft-caps, where the mesh splits rows of tokens (its axis sequence): ``_ring``

``auto`` takes the ring where rows are split, elsewhere a platform's own kernel where it makes the mask natively, and
XLA; naming a kernel that cannot do what is asked is an error. The choice is logged once for each reason.
"""

import functools
import logging

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxalign.errors import InputError
from jaxalign.models._attention import View, attention
from jaxalign.models._config import ModelConfig
from jaxalign.models._mesh import VOCABULARY_AXIS, ambient_mesh, row_axes
from jaxalign.models._ring import ring_attention

logger = logging.getLogger(__name__)

SPLASH_BLOCK = 128
BIG_HEAD_DEVICES = ("H100", "H200", "H20", "GH200", "B100", "B200", "B300", "GB200", "GB300")


def attend(config: ModelConfig, query: jax.Array, key: jax.Array, value: jax.Array, view: View) -> jax.Array:
    """Attention of whole rows under ``view``, by the kernel of the table.

    Args:
        config: the model; ``config.attention`` names a kernel or leaves it to the table.
        query: ``[B, T, H, K]``.
        key, value: ``[B, T, G, K]``.
        view: who sees whom.

    Returns:
        ``[B, T, H, K]`` in the query's dtype.

    Raises:
        InputError: a kernel asked for by name that cannot do this.
    """
    kernel = choose(config, query.dtype, query.shape[1], view, jax.default_backend())
    if kernel == "ring":
        mesh = ambient_mesh()
        assert mesh is not None
        assert view.sight is not None
        return ring_attention(
            mesh,
            query,
            key,
            value,
            view.sight,
            window=view.window,
            scale=config.attention_scale,
            soft_cap=config.attention_soft_cap,
        )
    assert view.visible is not None
    if kernel == "cudnn":
        return _cudnn(config, query, key, value, view)
    if kernel == "splash":
        return _splash(config, query, key, value, view)
    return attention(
        query,
        key.swapaxes(1, 2),
        value.swapaxes(1, 2),
        view.visible,
        scale=config.attention_scale,
        soft_cap=config.attention_soft_cap,
    )


def choose(
    config: ModelConfig, dtype: jnp.dtype, length: int, view: View, platform: str, device_kind: str | None = None
) -> str:
    """The kernel's name. ``platform`` is what ``jax.default_backend`` says, cpu, gpu or tpu; ``device_kind`` as the
    device itself says it, None = the one that is here.

    Raises:
        InputError: ``config.attention`` names a kernel that cannot do this; the message says why.
    """
    split = "rows of tokens are split by --mesh sequence=N, where ring attends" if view.sight else None
    obstacles = {
        "cudnn": split or _cudnn_obstacle(config, dtype, platform, device_kind),
        "splash": split or _splash_obstacle(length, view),
        "ring": None if split else "rows of tokens are whole; it needs --mesh sequence=N, N dividing them",
    }
    if config.attention in obstacles:
        obstacle = obstacles[config.attention]
        if obstacle is not None:
            raise InputError(f"--attention {config.attention}: {obstacle}")
        return config.attention
    kernel, reason = "xla", f"on {platform}"
    if split:
        kernel, reason = "ring", "rows of tokens are split"
    elif config.attention == "xla":
        reason = "asked for"
    elif platform == "gpu":
        native = None if view.ordered and view.example is None else "the mask is more than causal"
        obstacle = obstacles["cudnn"] or native
        kernel, reason = ("cudnn", "causal, on gpu") if obstacle is None else ("xla", obstacle)
    elif platform == "tpu":
        obstacle = obstacles["splash"]
        kernel, reason = ("splash", "causal by index, on tpu") if obstacle is None else ("xla", obstacle)
    _log_once(f"attention: {kernel} ({reason})")
    return kernel


def causal_kernel(
    config: ModelConfig,
    dtype: jnp.dtype,
    length: int,
    *,
    platform: str | None = None,
    device_kind: str | None = None,
    packed: bool = False,
    masked: bool = False,
) -> str:
    """The kernel that attends where whole rows of ``length`` tokens are causal, and nothing else but what is said.

    Args:
        config: the model.
        dtype: of its activations.
        length: T.
        platform: gpu, tpu or cpu; None = the one that is here.
        device_kind: of the device ("NVIDIA H100 ..."); None = the one that is here.
        packed: whether the rows carry ids of examples, as those that are trained on do.
        masked: whether branches, or a mask of their own, hide more of them.

    Raises:
        InputError: ``config.attention`` names a kernel that cannot do this.
    """
    example = jax.ShapeDtypeStruct((1, length), jnp.int32) if packed else None
    view = View(tables=None, visible=None, example=example, ordered=not masked)  # type: ignore[arg-type]
    return choose(config, jnp.dtype(dtype), length, view, platform or jax.default_backend(), device_kind)


def _cudnn_obstacle(config: ModelConfig, dtype: jnp.dtype, platform: str, device_kind: str | None) -> str | None:
    if platform != "gpu":
        return f"there is no NVIDIA GPU here, but {platform}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"activations are {dtype}, it takes bfloat16 and float16"
    if config.attention_soft_cap is not None:
        return "it knows no soft-cap"
    kind = device_kind or jax.devices()[0].device_kind
    big = any(name in kind for name in BIG_HEAD_DEVICES)
    limit = 256 if big else 128
    if config.head_dim % 8 or config.head_dim > limit:
        return f"heads have {config.head_dim} dimensions, it takes multiples of 8 up to {limit}"
    return None


def _splash_obstacle(length: int, view: View) -> str | None:
    if not view.ordered:
        return "branches or a mask of the caller's are more than causal by index"
    if length % SPLASH_BLOCK:
        return f"rows have {length} tokens, not a multiple of {SPLASH_BLOCK}"
    return None


def _cudnn(config: ModelConfig, query: jax.Array, key: jax.Array, value: jax.Array, view: View) -> jax.Array:
    native = view.ordered and view.example is None
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=None if native or view.visible is None else view.visible[:, None],
        scale=config.attention_scale,
        is_causal=native,
        local_window_size=None if view.window is None or not native else (view.window - 1, 0),
        implementation="cudnn",
    )


def _splash(config: ModelConfig, query: jax.Array, key: jax.Array, value: jax.Array, view: View) -> jax.Array:
    """Splash attention, a row at a time; on a mesh each device runs it on its rows and heads."""
    scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
    query = (query * scale).astype(query.dtype)  # the kernel has no scale of its own
    query, key, value = (array.swapaxes(1, 2) for array in (query, key, value))
    example = jnp.ones((1, query.shape[2]), jnp.int32) if view.example is None else view.example
    example = jnp.broadcast_to(example, (query.shape[0], query.shape[2]))
    run = functools.partial(_splash_rows, view.window, config.attention_soft_cap)
    mesh = ambient_mesh()
    if mesh is not None:
        rows = row_axes(mesh, query.shape[0]) or None
        tensor = mesh.shape.get(VOCABULARY_AXIS, 1)
        heads = VOCABULARY_AXIS if tensor > 1 and key.shape[1] % tensor == 0 else None
        spec = PartitionSpec(rows, heads)
        run = jax.shard_map(run, in_specs=(spec, spec, spec, PartitionSpec(rows)), out_specs=spec, check_vma=False)
    return run(query, key, value, example).swapaxes(1, 2)


def _splash_rows(
    window: int | None,
    soft_cap: float | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    example: jax.Array,
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    heads, length = query.shape[1:3]
    one = (
        masks.CausalMask((length, length))
        if window is None
        else masks.LocalMask((length, length), window_size=(window - 1, 0), offset=0)
    )
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([one] * heads),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=soft_cap,
        # Off a TPU the kernel is interpreted: slow, and the same numbers.
        interpret=jax.default_backend() != "tpu",
    )
    return jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids=kernels.SegmentIds(ids, ids)))(
        query, key, value, example
    )


@functools.cache
def _log_once(message: str) -> None:
    logger.info(message)
