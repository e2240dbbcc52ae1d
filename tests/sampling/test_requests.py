"""The host side: buckets, common prefixes, chunks."""

import numpy as np
import pytest

from jaxalign.sampling._requests import bucket, chunks, common_prefix, group_size, prefix_bucket


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


@pytest.mark.parametrize(("samples", "batch"), [(1, 4), (3, 8), (4, 4), (5, 4), (128, 64), (7, 1), (2, 3)])
@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_chunks_cover_every_sample_once_with_one_shape_of_rows(samples, batch, count):
    prompts = arrays(*([index] * (1 + (index * 7) % 20) for index in range(count)))
    seen, rows = [], set()
    for chunk in chunks(prompts, samples, batch):
        group = group_size(samples, batch)
        rows.add(chunk.live.size)
        assert chunk.live.size <= batch
        assert chunk.live.size == len(chunk.lengths) * group
        seen += list(zip(chunk.prompt_index[chunk.live], chunk.sample_index[chunk.live], strict=True))
        for row, (tokens, length) in enumerate(zip(chunk.tokens, chunk.lengths, strict=True)):
            if chunk.live.reshape(-1, group)[row].any():
                assert tokens[:length].tolist() == prompts[chunk.prompt_index[row * group]].tolist()
    assert len(rows) == 1
    assert sorted(seen) == [(prompt, sample) for prompt in range(count) for sample in range(samples)]
