"""Rows of examples in fixed shapes: packing, the two layouts, extras. Equal contexts = equal losses and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data import BatchShape, collate, example_sizes, extra_specs, make_batches, with_extras
from jaxalign.errors import InputError
from tests import tolerances
from tests.data import toy

EXAMPLES = st.lists(st.tuples(st.integers(2, 9), st.lists(st.integers(1, 7), max_size=3)), min_size=1, max_size=12).map(
    lambda sizes: [toy.synthetic(index, prompt, answers) for index, (prompt, answers) in enumerate(sizes)]
)

PAIR = toy.synthetic(7, 2, [3, 1])
TEXT = toy.synthetic(8, 3, [])
SHAPE = BatchShape(tokens=10, targets=8, pairs=2, sequences=4, examples=3, answers=2)


def test_a_packed_row_field_by_field():
    batch = collate([[PAIR, TEXT], []], SHAPE, pad_token=99)
    a, b = PAIR.tokens.tolist(), TEXT.tokens.tolist()
    assert batch.tokens.tolist() == [[*a, *b, 99], [99] * 10]
    assert batch.positions.tolist()[0] == [0, 1, 2, 3, 4, 2, 0, 1, 2, 0]
    assert batch.example.tolist() == [[1] * 6 + [2] * 3 + [0], [0] * 10]
    assert batch.branch.tolist()[0] == [0, 0, 1, 1, 1, 2, 0, 0, 0, 0]
    assert batch.source_index.tolist()[0] == [1, 2, 3, 1, 6, 7, 0, 0]
    assert batch.targets.tolist()[0] == [a[2], a[3], a[4], a[5], b[1], b[2], 0, 0]
    assert batch.target_mask.tolist() == [[True] * 6 + [False] * 2, [False] * 8]
    assert batch.target_sequence.tolist()[0] == [0, 0, 0, 1, 2, 2, 0, 0]
    assert batch.pairs.tolist()[0] == [[0, 1], [0, 0]]
    assert batch.pair_mask.tolist() == [[True, False], [False, False]]
    assert batch.sequence_mask.tolist() == [[True, True, True, False], [False] * 4]
    assert batch.record_ids.tolist() == [[7, 8, -1], [-1, -1, -1]]
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(batch)} == {"int32", "bool"}


def test_two_rows_field_by_field():
    shape = BatchShape(tokens=8, targets=6, pairs=1, sequences=3, examples=2, answers=2, layout="two_rows")
    batch = collate([[PAIR, TEXT]], shape)
    a, b = PAIR.tokens.tolist(), TEXT.tokens.tolist()
    assert batch.tokens.tolist() == [[[*a[:5], *b], [a[0], a[1], a[5], 0, 0, 0, 0, 0]]]
    assert batch.positions.tolist() == [[[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 0, 0, 0, 0, 0]]]
    assert batch.example.tolist() == [[[1] * 5 + [2] * 3, [1] * 3 + [0] * 5]]
    assert batch.branch.tolist() == [[[0, 0, 1, 1, 1, 0, 0, 0], [0, 0, 2, 0, 0, 0, 0, 0]]]
    assert batch.source_index.tolist() == [[[1, 2, 3, 5, 6, 0], [1, 0, 0, 0, 0, 0]]]
    assert batch.target_sequence.tolist() == [[[0, 0, 0, 2, 2, 0], [1, 0, 0, 0, 0, 0]]]
    assert batch.target_mask.sum(axis=-1).tolist() == [[5, 1]]
    assert batch.pairs.tolist() == [[[0, 1]]]
    assert batch.record_ids.tolist() == [[7, 8]]


def batches_of(examples, **options):
    source = make_batches(examples, batch_size=3, num_epochs=1, **options)
    return [source[k] for k in range(len(source))]


def contexts_of(examples, **options):
    found = {}
    for batch in batches_of(examples, **options):
        new = toy.contexts(batch)
        assert not new.keys() & found.keys()
        found |= new
    return found


@settings(max_examples=60, deadline=None)
@given(EXAMPLES, st.integers(0, 3))
def test_layouts_and_packing_do_not_change_what_a_target_is_predicted_from(examples, seed):
    plain = contexts_of(examples, seed=seed)
    assert len(plain) == sum(len(example.targets) for example in examples)
    longest = int(example_sizes(examples).tokens.max())
    assert contexts_of(examples, seed=seed, pack=True, max_length=2 * longest) == plain
    assert contexts_of(examples, seed=seed, layout="two_rows") == plain
    assert contexts_of(examples, seed=seed, layout="two_rows", pack=True, max_length=2 * longest) == plain


@jax.jit
@jax.value_and_grad
def loss_of(params, batch):
    """Per-slot log-probs of the smallest model that sees by the visibility rule, squashed slot by slot and summed."""
    flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), batch.replace(pairs=None, extras={}))
    lines = flat.tokens.shape[0] // batch.pairs.shape[0]
    seen = (
        (flat.example[:, :, None] == flat.example[:, None])
        & (flat.example[:, :, None] > 0)
        & ((flat.branch[:, None] == 0) | (flat.branch[:, :, None] == flat.branch[:, None]))
        & (flat.positions[:, :, None] >= flat.positions[:, None])
    )
    embedded = params["tokens"][flat.tokens] * jnp.cos(params["positions"] * flat.positions[..., None])
    hidden = jnp.tanh(jnp.einsum("bts,bsd->btd", seen.astype(embedded.dtype), embedded))
    hidden = jnp.take_along_axis(hidden, flat.source_index[..., None], axis=1)
    log_probs = jax.nn.log_softmax(hidden @ params["tokens"].T)
    log_probs = jnp.take_along_axis(log_probs, flat.targets[..., None], axis=-1)[..., 0]
    slots = jax.nn.one_hot(flat.target_sequence, flat.sequence_mask.shape[-1])
    per_slot = jnp.einsum("bs,bsq->bq", jnp.where(flat.target_mask, log_probs, 0.0), slots)
    per_slot = per_slot.reshape(-1, lines, per_slot.shape[-1]).sum(axis=1)
    rows = jnp.arange(per_slot.shape[0])[:, None]
    margin = per_slot[rows, batch.pairs[..., 0]] - per_slot[rows, batch.pairs[..., 1]]
    losses = jnp.where(batch.pair_mask, -jax.nn.log_sigmoid(margin), 0.0).sum()
    return losses - per_slot.sum()


def test_layouts_and_packing_have_equal_losses_and_gradients():
    examples = [toy.synthetic(i, 2 + i % 5, [1 + i % 4, 1 + (i * 3) % 5]) for i in range(12)]
    examples += [toy.synthetic(20 + i, 4, []) for i in range(3)]
    keys = jax.random.split(jax.random.key(0))
    params = {"tokens": jax.random.normal(keys[0], (50, 8)), "positions": jax.random.normal(keys[1], (8,))}
    results = [
        [
            sum(parts)
            for parts in zip(
                *(jax.tree.leaves(loss_of(params, b)) for b in batches_of(examples, **options)),
                strict=True,
            )
        ]
        for options in (
            {},
            {"pack": True, "max_length": 40},
            {"layout": "two_rows"},
            {"layout": "two_rows", "pack": True, "max_length": 30},
        )
    ]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerances.FLOAT32, atol=tolerances.FLOAT32 * float(jnp.abs(a).max()))


@pytest.mark.parametrize("layout", ["shared", "two_rows"])
def test_extras_follow_their_tokens_targets_pairs_and_sequences(layout):
    examples = [toy.synthetic(i, 2, [2, 1 + i]) for i in range(5)]
    rng = np.random.default_rng(0)
    examples = with_extras(
        examples,
        token={"trunk": [rng.normal(size=(len(e.tokens), 3)).astype(np.float32) for e in examples]},
        target={"reference_log_probs": [e.targets.astype(np.float32) for e in examples]},
        pair={"margin": [np.array([e.record_id], np.float32) for e in examples]},
        sequence={"label": [np.array([True, False]) for e in examples]},
    )
    (batch,) = batches_of(examples, layout=layout, pack=True, max_length=48)
    assert batch.extras["trunk"].shape == (*batch.tokens.shape, 3)
    np.testing.assert_array_equal(batch.extras["reference_log_probs"], batch.targets)
    assert batch.extras["margin"].shape == batch.pair_mask.shape
    assert batch.extras["margin"].sum() == 0 + 1 + 2 + 3 + 4
    assert batch.extras["label"].sum() == 5
    assert not (batch.extras["label"] & ~batch.sequence_mask).any()
    # The cached vector of a token goes where the token goes.
    by_token = {
        (e.record_id, int(b), int(p)): v
        for e in examples
        for b, p, v in zip(e.branch, e.positions, e.token_extras["trunk"], strict=True)
    }
    tokens = 0
    for index in np.argwhere(batch.example > 0):
        at = tuple(index)
        record = int(batch.record_ids[at[0], batch.example[at] - 1])
        np.testing.assert_array_equal(
            batch.extras["trunk"][at], by_token[record, int(batch.branch[at]), int(batch.positions[at])]
        )
        tokens += 1
    assert tokens >= sum(len(e.tokens) for e in examples)
    assert not batch.extras["trunk"][batch.example == 0].any()


def test_extras_of_some_records_only_are_refused():
    marked = PAIR.replace(pair_extras={"margin": np.ones(1, np.float32)})
    with pytest.raises(InputError, match="record 8: field margin must be present in every record"):
        extra_specs([marked, TEXT])
    with pytest.raises(InputError, match="record 7: one extra name is used at two levels"):
        extra_specs([marked.replace(sequence_extras={"margin": np.ones(2, np.float32)})])
    with pytest.raises(ValueError, match="1 arrays for 2 examples"):
        with_extras([PAIR, TEXT], token={"trunk": [np.zeros((6, 3))]})
    with pytest.raises(ValueError, match="token extra 'trunk' has shape"):
        with_extras([PAIR], token={"trunk": [np.zeros((5, 3))]})


@pytest.mark.parametrize("field", ["tokens", "targets", "pairs", "sequences", "examples"])
def test_a_row_that_does_not_fit_is_refused(field):
    import dataclasses

    tight = BatchShape(tokens=9, targets=6, pairs=1, sequences=3, examples=2)
    collate([[PAIR, TEXT]], tight)
    with pytest.raises(ValueError, match=r"row 0 .* does not fit"):
        collate([[PAIR, TEXT]], dataclasses.replace(tight, **{field: getattr(tight, field) - 1}))


def test_a_batch_is_a_pytree():
    batch = collate([[PAIR], [TEXT]], SHAPE)
    moved = jax.tree.map(jnp.asarray, batch)
    assert type(moved) is type(batch)
    assert jax.jit(lambda b: b.replace(tokens=b.tokens + 1))(moved).tokens.tolist() == (batch.tokens + 1).tolist()
    assert len(jax.tree.leaves(batch)) == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": np.zeros(2, np.int32)}, "tokens, positions and branch differ in length"),
        ({"targets": np.zeros(2, np.int32)}, "targets, source_index and target_sequence differ in length"),
        ({"source_index": np.full(4, 6, np.int32)}, "a source_index is outside the example"),
        ({"source_index": np.full(4, -1, np.int32)}, "a source_index is outside the example"),
        ({"target_sequence": np.full(4, 2, np.int32)}, "target_sequence names a sequence slot outside 0..1"),
        ({"pairs": np.array([[0, 2]], np.int32)}, "pairs names a sequence slot outside 0..1"),
        ({"pairs": np.zeros(2, np.int32)}, r"pairs must be \[p, 2\]"),
    ],
)
def test_an_example_that_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"example 7: {message}"):
        PAIR.replace(**changes)


def test_a_batch_knows_whether_answers_share_a_row():
    """Static, so that a kernel can be chosen by it; one value for all batches of a source."""
    for examples, layout, expected in (
        ([PAIR, TEXT], "shared", True),
        ([PAIR, TEXT], "two_rows", False),
        ([TEXT, TEXT], "shared", False),
    ):
        batch = make_batches(examples, batch_size=1, num_epochs=1, layout=layout)[0]
        assert batch.branched is expected
        assert jax.tree.map(lambda leaf: leaf, batch).branched is expected
