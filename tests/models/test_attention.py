"""Attention in every form against a loop in numpy, the table of kernels, and patterns of windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import InputError
from jaxalign.models._attention import View, attention
from jaxalign.models._kernels import attend, choose
from jaxalign.models._stack import plan
from tests.models.tiny import LLAMA, hidden_states, random_params, random_tokens, relative_error
from tests.tolerances import FLOAT32

HEADS, GROUPS, SIZE = 4, 2, 8


def loop(query, key, value, visible, *, scale=None, soft_cap=None):
    """One query at a time, float64. [B, T, H, K], [B, S, G, K], [B, T, S]."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out = np.full(query.shape, np.nan)
    share = query.shape[2] // key.shape[2]
    for row, t, head in np.ndindex(query.shape[:3]):
        seen = np.flatnonzero(np.broadcast_to(visible, (len(query), *visible.shape[1:]))[row, t])
        if len(seen):
            scores = scale * key[row, seen, head // share] @ query[row, t, head]
            scores = scores if soft_cap is None else soft_cap * np.tanh(scores / soft_cap)
            weights = np.exp(scores - scores.max())
            out[row, t, head] = weights @ value[row, seen, head // share] / weights.sum()
    return out


def inputs(length, *, rows=2, size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(rows, length, n, size)), jnp.float32) for n in (HEADS, GROUPS, GROUPS))


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("soft_cap", [None, 1.5])
def test_attention_equals_the_loop(scale, soft_cap):
    query, key, value = inputs(9)
    visible = np.tril(np.random.default_rng(1).random((2, 9, 9)) < 0.6)
    visible[0, 2] = False  # a query that sees nothing
    out = np.array(attention(query, key.swapaxes(1, 2), value.swapaxes(1, 2), visible, scale=scale, soft_cap=soft_cap))
    assert np.isfinite(out).all()
    expected = loop(query, key, value, visible, scale=scale, soft_cap=soft_cap)
    seen = visible.any(-1)
    assert relative_error(out[seen], expected[seen]) <= FLOAT32


def view(length, *, window=None, example=None, ordered=True):
    index = np.arange(length)
    ids = np.ones((1, length), np.int32) if example is None else example
    visible = (ids[:, :, None] == ids[:, None, :]) & (index[:, None] >= index)
    if window is not None:
        visible &= index[:, None] - index < window
    return View(None, jnp.asarray(visible), window, None if example is None else jnp.asarray(example), ordered)


@pytest.mark.parametrize(
    ("window", "soft_cap", "packed"), [(None, None, False), (None, None, True), (40, None, True), (40, 2.0, False)]
)
def test_splash_equals_the_loop_and_its_gradient_the_plain_one(window, soft_cap, packed):
    length = 256
    query, key, value = inputs(length, size=16)
    example = np.repeat([[1, 2, 3], [1, 1, 2]], [100, 60, 96], axis=1).astype(np.int32) if packed else None
    seen = view(length, window=window, example=example)
    config = LLAMA.replace(head_dim=16, attention_soft_cap=soft_cap, attention_scale=0.3)

    def total(attention, inputs):
        out = attend(config.replace(attention=attention), *inputs, seen)
        return jnp.sum(out * jnp.sin(jnp.arange(out.size).reshape(out.shape))), out

    run = jax.jit(jax.grad(total, argnums=1, has_aux=True), static_argnums=0)
    gradient, out = run("splash", (query, key, value))
    plain_gradient, plain = run("xla", (query, key, value))
    expected = loop(query, key, value, np.asarray(seen.visible), scale=0.3, soft_cap=soft_cap)
    assert relative_error(plain, expected) <= FLOAT32
    assert relative_error(out, expected) <= FLOAT32
    for ours, theirs in zip(gradient, plain_gradient, strict=True):
        assert relative_error(ours, theirs) <= FLOAT32


def test_splash_on_a_mesh():
    from jaxalign.sharding import batch_sharding, make_mesh

    query, key, value = inputs(128, rows=4, size=16)
    config = LLAMA.replace(head_dim=16, attention="splash")
    seen = view(128, example=np.repeat([[1, 2]], [50, 78], axis=1).repeat(4, 0).astype(np.int32))
    expected = attend(config, query, key, value, seen)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        rows = jax.device_put((query, key, value), batch_sharding(mesh))
        out = jax.jit(lambda q, k, v: attend(config, q, k, v, seen))(*rows)
    assert relative_error(out, expected) <= FLOAT32


BF16 = jnp.dtype(jnp.bfloat16)
PLAIN = view(128)
PACKED = view(128, example=np.ones((1, 128), np.int32))
BRANCHED = view(128, ordered=False)


@pytest.mark.parametrize(
    ("platform", "dtype", "changes", "length", "seen", "kernel"),
    [
        ("cpu", BF16, {}, 128, PLAIN, "xla"),
        ("gpu", BF16, {}, 128, PLAIN, "cudnn"),
        ("gpu", jnp.dtype(jnp.float32), {}, 128, PLAIN, "xla"),
        ("gpu", BF16, {"attention_soft_cap": 5.0}, 128, PLAIN, "xla"),
        ("gpu", BF16, {"head_dim": 12}, 128, PLAIN, "xla"),
        ("gpu", BF16, {"head_dim": 512}, 128, PLAIN, "xla"),
        ("gpu", BF16, {}, 128, PACKED, "xla"),
        ("gpu", BF16, {}, 128, BRANCHED, "xla"),
        ("gpu", BF16, {"attention": "cudnn"}, 128, BRANCHED, "cudnn"),
        ("tpu", BF16, {}, 128, PACKED, "splash"),
        ("tpu", BF16, {"attention_soft_cap": 5.0}, 128, PLAIN, "splash"),
        ("tpu", BF16, {}, 100, PLAIN, "xla"),
        ("tpu", BF16, {}, 128, BRANCHED, "xla"),
        ("tpu", BF16, {"attention": "xla"}, 128, PLAIN, "xla"),
    ],
)
def test_the_table(platform, dtype, changes, length, seen, kernel):
    config = LLAMA.replace(**{"head_dim": 64, **changes})
    assert choose(config, dtype, length, seen, platform) == kernel


@pytest.mark.parametrize(
    ("name", "seen", "length", "message"),
    [
        ("cudnn", PLAIN, 128, "there is no NVIDIA GPU here, but cpu"),
        ("splash", BRANCHED, 128, "more than causal by index"),
        ("splash", PLAIN, 96, "not a multiple of 128"),
    ],
)
def test_a_kernel_asked_for_that_cannot(name, seen, length, message):
    with pytest.raises(InputError, match=message):
        choose(LLAMA.replace(attention=name), BF16, length, seen, "cpu")


def test_the_choice_is_logged_once(caplog):
    config = LLAMA.replace(head_dim=248)
    with caplog.at_level("INFO", logger="jaxalign.models._kernels"):
        for _ in range(3):
            choose(config, BF16, 128, PLAIN, "gpu")
    assert [record.getMessage() for record in caplog.records] == [
        "attention: xla (heads have 248 dimensions, it takes multiples of 8 up to 128)"
    ]


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ((None,) * 5, [(0, 5, 1)]),
        ((4, None, 4, None, 4), [(0, 2, 2), (4, 1, 1)]),
        ((1, 1, None, 1, 1, None, 1), [(0, 2, 3), (6, 1, 1)]),
        ((None, None, 4, 4, 4), [(0, 2, 1), (2, 3, 1)]),
        ((4,), [(0, 1, 1)]),
        ((4, None), [(0, 1, 1), (1, 1, 1)]),
    ],
)
def test_the_plan_of_a_stack(windows, expected):
    assert plan(windows) == expected
    covered = [i for first, groups, period in plan(windows) for i in range(first, first + groups * period)]
    assert covered == list(range(len(windows)))


PATTERN = LLAMA.replace(layers=5, windows=(3, None), local_rope_theta=20.0)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("stacks", [(1, 4), (2, 3), (3, 2), (1, 1, 3)])
def test_a_pattern_of_windows_may_be_cut_anywhere(stacks, remat):
    params, tokens = random_params(PATTERN), random_tokens(2, 11)
    config, split = models.restack(PATTERN.replace(remat=remat), params, stacks)
    assert relative_error(hidden_states(config, split, tokens), hidden_states(PATTERN, params, tokens)) <= FLOAT32


def test_windows_hide_what_is_past_them():
    """With a window of 2 in each of 2 layers a token depends on its last 3 and on no other."""
    config = LLAMA.replace(layers=2, windows=(2,))
    params, tokens = random_params(config), random_tokens(1, 8)
    changed = tokens.at[0, 2].add(1)
    difference = np.abs(hidden_states(config, params, tokens) - hidden_states(config, params, changed)).max(-1)[0]
    assert (difference > 0).tolist() == [False, False, True, True, True, False, False, False]
