"""Rows of a batch: one number in it, another in the text beside it, both divided among devices."""

import dataclasses

import numpy as np
import pytest

from jaxalign import sharding
from jaxalign.data import make_batches
from jaxalign.errors import InputError
from jaxalign.training._batches import check_rows
from tests.data.toy import synthetic

MESH = sharding.parse_mesh("data=2")


def batch(rows):
    return make_batches([synthetic(i, 6, []) for i in range(rows)], batch_size=rows)[0]


def test_leaves_of_one_batch_have_one_number_of_rows():
    with pytest.raises(ValueError, match=r"one number of rows, not \[2, 4\]"):
        check_rows({"a": np.zeros((4, 1)), "b": np.zeros((2, 1))}, MESH)
    with pytest.raises(ValueError, match=r"one number of rows, not \[2, 4\]"):
        check_rows(dataclasses.replace(batch(4), tokens=np.zeros((2, 8), np.int32)), MESH)


def test_the_text_beside_has_its_own_and_divides_too():
    check_rows(batch(4).replace(pretraining=batch(6)), MESH)
    with pytest.raises(InputError, match="3 rows do not divide"):
        check_rows(batch(4).replace(pretraining=batch(3)), MESH)
