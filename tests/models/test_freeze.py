"""Freezing by layer, by embedding and by name: two trees that are the model, and names that are refused."""

import jax
import pytest

from jaxalign import models
from jaxalign.errors import InputError
from tests.models.tiny import GPT2, LLAMA, hidden_states, random_params, random_tokens, relative_error
from tests.tolerances import FLOAT32


def paths(tree):
    return {"/".join(entry.key for entry in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


ALL = paths(random_params(GPT2))
EMBED = {"embed/tokens", "embed/positions"}


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({}, set()),
        ({"embeddings": True}, EMBED),
        ({"patterns": ("stacks/.*/mlp_norm/.*",)}, {"stacks/0/mlp_norm/scale", "stacks/0/mlp_norm/bias"}),
        ({"patterns": ("embed/tok.*", ".*/query/kernel|final_norm/bias")},
         {"embed/tokens", "stacks/0/query/kernel", "final_norm/bias"}),
        ({"embeddings": True, "patterns": ("embed/.*",)}, EMBED),
        ({"patterns": (".*",)}, ALL),
    ],
)  # fmt: skip
def test_what_is_named_is_frozen(choices, expected):
    params = random_params(GPT2)
    config, trainable, frozen = models.freeze(GPT2, params, **choices)
    assert config == GPT2
    assert paths(frozen) == expected
    assert paths(trainable) == ALL - expected
    whole = models.combine(trainable, frozen)
    assert jax.tree.structure(whole) == jax.tree.structure(params)
    # The very arrays: freezing copies nothing.
    assert all(a is b for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(params), strict=True))


def test_names_above_frozen_layers_are_those_of_the_second_stack():
    config, trainable, frozen = models.freeze(
        LLAMA, random_params(LLAMA), 1, patterns=("stacks/1/(gate|up|down)/.*", "unembed/.*")
    )
    assert config.stacks == (1, 2)
    assert paths(frozen["stacks"]["0"]) == paths(random_params(LLAMA)["stacks"]["0"])
    assert paths(frozen["stacks"]["1"]) == {"gate/kernel", "up/kernel", "down/kernel"}
    assert "unembed" in frozen
    assert "unembed" not in trainable
    tokens = random_tokens(2, 7)
    found = hidden_states(config, models.combine(trainable, frozen), tokens)
    assert relative_error(found, hidden_states(LLAMA, random_params(LLAMA), tokens)) <= FLOAT32


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "stacks/0/querry/.*",
            "frozen parameters: 'stacks/0/querry/.*' matches no parameter; .* such as 'unembed/kernel'",
        ),
        ("query", "'query' matches no parameter"),
        ("stacks/(", r"frozen parameters: 'stacks/\(' is not a regular expression"),
    ],
)
def test_names_that_are_not_there_are_refused(pattern, message):
    with pytest.raises(InputError, match=message):
        models.freeze(LLAMA, random_params(LLAMA), patterns=(pattern,))
