"""Rows of a batch: one number in it, another in the text beside it, both divided among devices."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxalign import sharding
from jaxalign.data import answers_example, make_batches, with_extras
from jaxalign.errors import InputError
from jaxalign.training._batches import check_rows, put_batch
from tests.data.toy import synthetic

MESH = sharding.parse_mesh("data=2")


def batch(rows):
    return make_batches([synthetic(i, 6, []) for i in range(rows)], batch_size=rows)[0]


def test_leaves_of_one_batch_have_one_number_of_rows():
    with pytest.raises(ValueError, match=r"one number of rows, not \[2, 4\]"):
        check_rows({"a": np.zeros((4, 1)), "b": np.zeros((2, 1))}, MESH)
    with pytest.raises(ValueError, match=r"one number of rows, not \[2, 4\]"):
        check_rows(dataclasses.replace(batch(4), tokens=np.zeros((2, 8), np.int32)), MESH)


def test_tokens_and_targets_lie_in_pieces_where_these_divide_them():
    mesh = sharding.parse_mesh("data=2,sequence=4")
    examples = [answers_example([1, 2], [[3] * 9, [4] * 8], record_id=i, pairs=[(0, 1)]) for i in range(4)]
    options = {"batch_size": 4, "shuffle": False}
    beside = make_batches(with_extras(examples, token={"trunk": [np.ones((19, 6))] * 4}), pieces=4, **options)[0]
    for layout, lead in (("shared", (2,)), ("two_rows", (2, 2))):
        host = make_batches(examples, pieces=4, layout=layout, **options)[0].replace(pretraining=beside)
        laid = put_batch(host, mesh)

        def size(leaf):
            return leaf.addressable_shards[0].data.shape

        tokens, targets = (host.tokens.shape[-1], host.targets.shape[-1])
        for name in ("tokens", "positions", "example", "branch"):
            assert size(getattr(laid, name)) == (*lead, tokens // 4)
        for name in ("source_index", "targets", "target_mask", "target_sequence"):
            assert size(getattr(laid, name)) == (*lead, targets // 4)
        assert size(laid.pairs) == (2, 1, 2)
        assert size(laid.record_ids) == (2, 1)
        assert size(laid.pretraining.extras["trunk"]) == (2, beside.tokens.shape[1] // 4, 6)
        for one, other in zip(*map(jax.tree.leaves, (laid, host)), strict=True):
            np.testing.assert_array_equal(one, other)
    odd = make_batches(examples, **options, pack=True, max_length=19)[0]
    assert odd.tokens.shape[1] == 19
    with pytest.raises(InputError, match="--mesh: rows of 19 tokens do not divide into sequence=4 pieces"):
        put_batch(odd, mesh)
    fewer = put_batch(host.replace(targets=host.targets[..., :5], target_mask=host.target_mask[..., :5]), mesh)
    assert fewer.targets.addressable_shards[0].data.shape == (2, 2, 5)


def test_the_text_beside_has_its_own_and_divides_too():
    check_rows(batch(4).replace(pretraining=batch(6)), MESH)
    with pytest.raises(InputError, match="3 rows do not divide"):
        check_rows(batch(4).replace(pretraining=batch(3)), MESH)
