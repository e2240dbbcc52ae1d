"""The one rule of visibility and its consequences: what a token may not see changes nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.models._attention import default_positions
from tests.models.tiny import CONFIGS, LLAMA, hidden_states, random_params, random_tokens, relative_error
from tests.tolerances import FLOAT32


def test_the_rule_by_hand():
    # prompt p0 p1 | first answer a2 | second answer b2, then another example, then padding
    example = jnp.array([1, 1, 1, 1, 2, 0])
    branch = jnp.array([0, 0, 1, 2, 0, 0])
    position = jnp.array([0, 1, 2, 2, 0, 0])
    expected = np.array(
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 0, 1, 0, 0],
            [0, 0, 0, 0, 1, 0],
            [0, 0, 0, 0, 0, 0],
        ],
        bool,
    )
    visible = models.visibility(example, branch, position, example, branch, position)
    np.testing.assert_array_equal(visible, expected)
    np.testing.assert_array_equal(default_positions(example, branch), position)


def test_a_window_counts_positions():
    ones, position = jnp.ones(5, int), jnp.arange(5)
    visible = models.visibility(ones, 0 * ones, position, ones, 0 * ones, position, window=2)
    np.testing.assert_array_equal(visible, np.tril(np.ones((5, 5))) - np.tril(np.ones((5, 5)), -2) > 0)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_batch_mates_change_nothing(name, side):
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    lengths, width = (7, 4), 9
    rows = [random_tokens(n, seed=n) for n in lengths]
    pad = [(width - n, 0) if side == "left" else (0, width - n) for n in lengths]
    for filler in (0, 11):
        tokens = jnp.stack([jnp.pad(row, p, constant_values=filler) for row, p in zip(rows, pad, strict=True)])
        example = jnp.stack([jnp.pad(jnp.ones_like(row), p) for row, p in zip(rows, pad, strict=True)])
        batch = hidden_states(config, params, tokens, example=example)
        assert np.isfinite(batch).all()
        for i, row in enumerate(rows):
            alone = hidden_states(config, params, row[None])[0]
            assert relative_error(batch[i][example[i] == 1], alone) <= FLOAT32


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_examples_equal_separate_rows(name):
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    first, second = random_tokens(5, seed=1), random_tokens(6, seed=2)
    tokens = jnp.concatenate([first, second, jnp.array([3, 3])])
    example = jnp.array([1] * 5 + [2] * 6 + [0] * 2)
    packed = hidden_states(config, params, tokens[None], example=example[None])[0]
    assert relative_error(packed[:5], hidden_states(config, params, first[None])[0]) <= FLOAT32
    assert relative_error(packed[5:11], hidden_states(config, params, second[None])[0]) <= FLOAT32


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shared_prompt_equals_two_rows(name):
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    prompt, chosen, rejected = (random_tokens(n, seed=n) for n in (4, 3, 5))
    shared = jnp.concatenate([prompt, chosen, rejected])
    branch = jnp.array([0] * 4 + [1] * 3 + [2] * 5)
    positions = jnp.concatenate([jnp.arange(7), 4 + jnp.arange(5)])
    for explicit in (None, positions[None]):
        row = hidden_states(config, params, shared[None], branch=branch[None], positions=explicit)[0]
        for answer, part in ((chosen, row[4:7]), (rejected, row[7:])):
            alone = hidden_states(config, params, jnp.concatenate([prompt, answer])[None])[0]
            assert relative_error(row[:4], alone[:4]) <= FLOAT32
            assert relative_error(part, alone[4:]) <= FLOAT32


def test_an_extra_mask_is_anded():
    params = random_params(LLAMA)
    tokens = random_tokens(1, 6)
    forgotten = jnp.ones((1, 6, 6), bool).at[:, 3:, 1].set(False)
    masked = hidden_states(LLAMA, params, tokens, attention_mask=forgotten)
    whole = hidden_states(LLAMA, params, tokens)
    assert relative_error(masked[:, :3], whole[:, :3]) <= FLOAT32
    assert relative_error(masked[:, 3:], whole[:, 3:]) > 1e-3
    # Everything past it forgets token 1: its identity no longer matters there.
    other = hidden_states(LLAMA, params, tokens.at[0, 1].add(1), attention_mask=forgotten.at[:, 2, 1].set(False))
    same = hidden_states(LLAMA, params, tokens, attention_mask=forgotten.at[:, 2, 1].set(False))
    assert relative_error(other[:, 2:], same[:, 2:]) <= FLOAT32


def test_leading_axes_are_free():
    params = random_params(LLAMA)
    tokens = random_tokens(2, 3, 5)
    example = jnp.ones_like(tokens).at[..., -1].set(0)
    nested = hidden_states(LLAMA, params, tokens, example=example)
    flat = hidden_states(LLAMA, params, tokens.reshape(6, 5), example=example.reshape(6, 5))
    np.testing.assert_array_equal(nested.reshape(flat.shape), flat)
