"""The host side: buckets, common prefixes, rows."""

import numpy as np
import pytest

from jaxalign.sampling._requests import bucket, common_prefix, prefix_bucket, row_count


def arrays(*prompts):
    return [np.asarray(prompt, np.int32) for prompt in prompts]


def test_buckets_hold_every_length_and_waste_at_most_half():
    sizes = {bucket(length) for length in range(1, 1025)}
    assert sizes == {8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024}
    for length in range(1, 1025):
        assert length <= bucket(length) <= max(16, 1.5 * length)


def test_prefix_buckets_lie_within_the_prefix():
    for length in range(1, 2000):
        used = prefix_bucket(length)
        assert used == 0 if length < 8 else 7 / 8 * length - 8 < used <= length
    assert prefix_bucket(40) == 40
    assert len({prefix_bucket(length) for length in range(2000)}) < 50


@pytest.mark.parametrize(
    ("prompts", "length"),
    [
        (([1, 2, 3, 4], [1, 2, 3, 5]), 3),
        (([1, 2, 3], [1, 2, 3]), 2),  # one token of its own is left
        (([1, 2], [1, 2, 3, 4]), 1),
        (([1, 2, 3, 4], [1, 9, 3, 4], [1, 2, 3, 4]), 1),
        (([5], [5, 6]), 0),
        (([1, 2], [2, 2]), 0),
    ],
)
def test_common_prefix(prompts, length):
    assert common_prefix(arrays(*prompts)) == length


@pytest.mark.parametrize(
    ("responses", "batch", "rows"), [(1, 64, 1), (3, 64, 4), (64, 64, 64), (65, 64, 64), (5, 6, 6)]
)
def test_few_responses_take_few_rows(responses, batch, rows):
    assert row_count(responses, batch) == rows


def test_rows_divide_into_their_shards():
    assert [row_count(responses, 6, shards=4) for responses in (1, 2, 5, 100)] == [4, 4, 8, 8]
