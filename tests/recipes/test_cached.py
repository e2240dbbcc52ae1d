"""What is scored once: packed rows give every example the numbers that it has alone."""

import jax
import numpy as np
import pytest

from jaxalign import models, recipes, sharding
from tests.recipes import toy
from tests.tolerances import FLOAT32


@pytest.fixture(scope="module")
def examples():
    """Twelve of three to five lengths, with one to four answers."""
    return toy.examples([*toy.pair_records(), *toy.ranked_records(), toy.pair_records()[0]])


@pytest.fixture
def plans(monkeypatch):
    """Which examples stood in which row."""
    found = []
    make = recipes._cached.data.make_batches

    def noted(*arguments, **named):
        source = make(*arguments, **named)
        found.append(source.plan)
        return source

    monkeypatch.setattr(recipes._cached.data, "make_batches", noted)
    return found


def alone(function, examples, **known):
    return [found for example in examples for found in function([example], **known)]


@pytest.mark.parametrize("mesh", ["data=1", "data=2,fsdp=2", "data=2,sequence=2"])
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_every_example_has_its_own_numbers_in_packed_rows(examples, plans, shape, mesh):
    known = {"mesh": sharding.parse_mesh(mesh), "batch_size": 2}
    config, params = toy.SHAPES[shape], toy.params(shape)
    together = recipes.example_log_probs(config, params, examples, **known)
    assert max(map(len, plans[0].epoch(0))) > 1
    assert plans[0].shape.tokens <= max(len(example.tokens) for example in examples) + 8
    assert [len(found) for found in together] == [len(example.targets) for example in examples]
    each = alone(lambda some, **more: recipes.example_log_probs(config, params, some, **more), examples, **known)
    for found, expected in zip(together, each, strict=True):
        np.testing.assert_allclose(found, expected, rtol=FLOAT32, atol=FLOAT32)


def test_scores_and_trunks_are_cut_at_their_own_axes(examples):
    known = {"mesh": sharding.parse_mesh("data=1"), "batch_size": 2}
    config = toy.SHAPES["llama"]
    labelled = config.replace(labels=1)
    params = models.init(labelled, jax.random.key(1))
    scores = recipes.example_scores(labelled, params, examples, **known)
    for found, example in zip(scores, examples, strict=True):
        (expected,) = recipes.example_scores(labelled, params, [example], **known)
        assert found.shape == (example.sequences,)
        np.testing.assert_allclose(found, expected, rtol=FLOAT32, atol=FLOAT32)
    split, _, base = models.freeze(config, toy.params("llama"), 2)
    carrying = recipes.attach_trunk(split, base, examples, **known)
    for found in carrying:
        (expected,) = recipes.attach_trunk(split, base, [found], **known)
        trunk = found.extras("token")["trunk"]
        assert trunk.shape == (len(found.tokens), config.width)
        assert trunk.base is None  # it keeps no batch alive
        np.testing.assert_allclose(trunk, expected.extras("token")["trunk"], rtol=FLOAT32, atol=FLOAT32)
