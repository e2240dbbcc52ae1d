"""Attention over rows that are split over devices: the plain one's numbers, without its memory."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from jaxalign import data, models, recipes, sharding, training
from jaxalign.errors import InputError
from jaxalign.models._attention import Sight, attention, views, visibility
from jaxalign.models._kernels import choose
from jaxalign.models._ring import ring_attention
from jaxalign.training import OptimizerConfig
from tests.models.tiny import LLAMA, assert_trees_close, random_params, random_tokens, relative_error
from tests.tolerances import BFLOAT16, FLOAT32

MESHES = ["sequence=4", "data=2,sequence=2,tensor=2", "fsdp=2,sequence=4", "sequence=8"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Queries, keys, values and who sees whom."""

    arrays: tuple[jax.Array, jax.Array, jax.Array]
    sight: Sight
    visible: jax.Array
    options: dict

    def total(self, out: jax.Array) -> jax.Array:
        """A number that depends on what every query that sees something got, each with another weight."""
        seen = jnp.broadcast_to(self.visible.any(-1), out.shape[:2])[..., None, None]
        return jnp.sum(jnp.where(seen, out, 0) * jnp.sin(jnp.arange(out.size)).reshape(out.shape))

    def plain(self, query, key, value):
        out = attention(query, key.swapaxes(1, 2), value.swapaxes(1, 2), self.visible, **self.options)
        return self.total(out), out


def problem(seed, *, rows=4, length=16, groups=2, share=2, window=None, masked=False, alone=False, **options):
    """Random examples (the last of a row is padding) and branches; ``alone``: one example in all rows alike."""
    rng = np.random.default_rng(seed)
    heads = groups * share
    arrays = tuple(jnp.asarray(rng.normal(size=(rows, length, n, 8)), jnp.float32) for n in (heads, groups, groups))
    if alone:
        example, branch = np.ones((1, length)), np.zeros((1, length))
    else:
        example, branch = -np.sort(-rng.integers(0, 4, (rows, length))), rng.integers(0, 3, (rows, length))
    position = np.broadcast_to(np.arange(length), example.shape)
    ids = [jnp.asarray(x, jnp.int32) for x in (example, branch, position)]
    visible = visibility(*ids, *ids, window)
    mask = None
    if masked:
        mask = jnp.asarray(rng.random((rows, length, length)) < 0.7)
        visible = visible & mask
    return Problem(arrays, Sight(jnp.stack(ids), mask), visible, options)


def check(found: Problem, mesh: str, *, window=None, tile=1024):
    expected, plain = jax.jit(jax.grad(found.plain, (0, 1, 2), has_aux=True))(*found.arrays)
    laid = sharding.parse_mesh(mesh)

    def ring(query, key, value):
        out = ring_attention(
            laid.abstract_mesh, query, key, value, found.sight, window=window, tile=tile, **found.options
        )
        return found.total(out), out

    with jax.set_mesh(laid):
        gradient, out = jax.jit(jax.grad(ring, (0, 1, 2), has_aux=True))(*found.arrays)
    seen = np.broadcast_to(found.visible.any(-1), out.shape[:2])
    assert relative_error(np.asarray(out)[seen], np.asarray(plain)[seen]) <= FLOAT32
    assert not np.asarray(out)[~seen].any()
    assert_trees_close(gradient, expected, FLOAT32)


# Every example compiles two programs: to shrink one that fails would take hours.
@settings(max_examples=8, deadline=None, derandomize=True, phases=(Phase.generate,))
@given(
    seed=st.integers(0, 9),
    mesh=st.sampled_from(MESHES),
    pieces=st.integers(1, 5),
    groups=st.sampled_from([1, 2, 3]),
    share=st.integers(1, 2),
    window=st.sampled_from([None, 1, 3, 11]),
    tile=st.sampled_from([1, 2, 3, 1024]),
    masked=st.booleans(),
    alone=st.booleans(),
    scale=st.sampled_from([None, 0.7]),
    soft_cap=st.sampled_from([None, 1.5]),
)
def test_the_ring_is_plain_attention_and_so_is_its_gradient(
    seed, mesh, pieces, groups, share, window, tile, masked, alone, scale, soft_cap
):
    length = pieces * sharding.length_shards(sharding.parse_mesh(mesh))
    found = problem(
        seed, length=length, groups=groups, share=share, window=window, masked=masked, alone=alone, scale=scale,
        soft_cap=soft_cap,
    )  # fmt: skip
    check(found, mesh, window=window, tile=tile)


def test_rows_that_do_not_divide_are_on_every_device():
    check(problem(0, rows=3), "data=2,sequence=4")


def test_bfloat16_is_rounded_to_bfloat16():
    """What is accumulated round the ring is float32: many small tiles round no more than one."""
    found = problem(0, length=32)
    exact = found.plain(*found.arrays)[1]
    narrow = tuple(array.astype(jnp.bfloat16) for array in found.arrays)
    laid = sharding.parse_mesh("sequence=4")
    with jax.set_mesh(laid):
        out = jax.jit(lambda *arrays: ring_attention(laid.abstract_mesh, *arrays, found.sight, tile=3))(*narrow)
    assert out.dtype == jnp.bfloat16
    seen = np.broadcast_to(found.visible.any(-1), out.shape[:2])
    assert relative_error(np.asarray(out, np.float32)[seen], np.asarray(exact)[seen]) <= BFLOAT16


@pytest.mark.parametrize(
    ("mesh", "remat"), [("sequence=4", "none"), ("sequence=4", "dots"), ("data=2,sequence=2,tensor=2", "full")]
)
def test_a_model_gives_the_same_hidden_states_and_gradients(mesh, remat):
    """Windows that alternate, both soft-caps, packed examples with branches, a mask beside them."""
    config = LLAMA.replace(
        windows=(3, None), attention_soft_cap=2.0, logit_soft_cap=3.0, block="sandwich_norm", qk_norm=True, remat=remat
    )
    params, tokens = random_params(config), random_tokens(4, 16)
    rng = np.random.default_rng(0)
    example = jnp.asarray(np.repeat([[1, 2]], [9, 7], axis=1).repeat(4, 0), jnp.int32)
    branch = jnp.asarray(np.repeat([[0, 1, 2, 0]], [3, 3, 3, 7], axis=1).repeat(4, 0), jnp.int32)
    mask = jnp.asarray(rng.random((4, 16, 16)) < 0.8) | jnp.eye(16, dtype=bool)
    source = jnp.asarray(rng.integers(0, 16, (4, 6)))

    def loss(params):
        hidden = models.apply(config, params, tokens, example=example, branch=branch, attention_mask=mask)
        return models.target_log_probs(config, params, hidden, source, source).sum(), hidden

    run = jax.value_and_grad(loss, has_aux=True)
    (_, hidden), gradient = jax.jit(run)(params)
    laid = sharding.parse_mesh(mesh)
    layout = sharding.tree_shardings(models.logical_axes(config), params, laid)
    with jax.set_mesh(laid):
        (_, split), ours = jax.jit(run)(sharding.shard_tree(params, layout))
    assert relative_error(split, hidden) <= FLOAT32
    assert_trees_close(ours, gradient, FLOAT32)


def test_the_table_takes_the_ring_where_rows_are_split():
    positions = jnp.arange(16)[None]
    with jax.set_mesh(sharding.parse_mesh("sequence=4")):
        split = views(LLAMA, positions, None, None, None)[None]
        plain = views(LLAMA.replace(attention="xla"), positions, None, None, None)[None]
        odd = views(LLAMA, positions[:, :13], None, None, None)[None]
    assert split.visible is None
    assert plain.visible is not None
    assert odd.visible is not None
    dtype = jnp.dtype(jnp.bfloat16)
    for platform in ("cpu", "gpu", "tpu"):
        assert choose(LLAMA, dtype, 16, split, platform) == "ring"
        assert choose(LLAMA.replace(attention="ring"), dtype, 16, split, platform) == "ring"
    assert choose(LLAMA.replace(attention="xla"), dtype, 16, plain, "gpu") == "xla"
    for kernel, view in (("cudnn", split), ("splash", split), ("ring", plain), ("ring", odd)):
        with pytest.raises(InputError, match=f"--attention {kernel}: rows of tokens are"):
            choose(LLAMA.replace(attention=kernel), dtype, 16, view, "gpu")


def compiled(mesh: str, length: int, rows: int = 1, remat: str = "full"):
    """The compiled SFT step of a model of three layers on rows of so many tokens."""
    laid = sharding.parse_mesh(mesh)
    config = LLAMA.replace(vocab_size=40, width=16, head_dim=8, max_positions=length, remat=remat)
    params = jax.eval_shape(lambda: models.init(config, jax.random.key(0)))
    optimizer, _ = training.make_optimizer(OptimizerConfig(optimizer="sgd"), 1)
    layout = sharding.tree_shardings(models.logical_axes(config), params, laid)
    step = training.make_train_step(
        recipes.likelihood_objective(config).loss,
        optimizer,
        mesh=laid,
        state_shardings=training.state_shardings(params, optimizer, mesh=laid, shardings=layout),
    )
    examples = [data.answers_example([1], [[2] * (length - 1)], record_id=row) for row in range(rows)]
    batch = data.make_batches(examples, batch_size=rows, pieces=sharding.length_shards(laid))[0]
    assert batch.tokens.shape == (rows, length)
    return step.lower(training.state_shapes(params, optimizer), {"base": {}}, batch).compile()


def largest(program: str) -> int:
    """Elements of the largest array of a compiled program."""
    shapes = re.findall(r"\b(?:f32|bf16|pred|s32|u32)\[([\d,]+)\]", program)
    return max(int(np.prod([int(size) for size in shape.split(",")])) for shape in set(shapes))


def test_memory_falls_with_the_axis_and_holds_no_square():
    """Twice the devices for twice the tokens is the same memory on each: with [T, T] it would be four times, with a
    device's share [T, T / N] twice."""
    two, four, eight = (compiled(*case) for case in (("sequence=2", 2048), ("sequence=4", 2048), ("sequence=8", 4096)))
    memory = [one.memory_analysis().temp_size_in_bytes for one in (two, four, eight)]
    assert memory[1] < 0.5 * memory[0]
    assert memory[2] < 1.1 * memory[1]
    assert largest(four.as_text()) < 2048 * 2048 / 2
    assert largest(eight.as_text()) < 4096 * 4096 / 8


def collectives(program: str) -> list[tuple[str, str, str]]:
    """(kind, type of what it makes, name) of every collective instruction."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    found = re.findall(rf'= (\(.*?\)|\S+) ({kinds})(?:-start)?\(.*?op_name="([^"]*)"', program)
    return [(kind, made, name) for made, kind, name in found]


def test_what_travels_in_a_layer():
    found = collectives(compiled("data=2,sequence=4", 64, rows=2, remat="none").as_text())
    in_layers = [(kind, made) for kind, made, name in found if "Block" in name]
    moved = [made for kind, made in in_layers if kind == "collective-permute"]
    # Forward: keys and values. Backward: these, and the gradients of both, which once more go home at the end.
    assert len(moved) == 1 + 1 + 2 + 2, moved
    assert {kind for kind, _, _ in found} <= {"collective-permute", "all-gather", "all-reduce"}
    # Nobody gathers activations or weights: only what tokens are (example, branch, position) is known everywhere.
    assert all(made.startswith("s32[3,1,64]") for kind, made, _ in found if kind == "all-gather"), found
    # What is added up over devices is of the size of weights and statistics, never of tokens.
    assert not [made for kind, made in in_layers if kind == "all-reduce" and re.search(r"\[1,16,", made)]
    # Beside the layers hidden states go round once to be scored, and their gradients back.
    assert len([kind for kind, _, _ in found if kind == "collective-permute"]) == len(moved) + 2 * 3
