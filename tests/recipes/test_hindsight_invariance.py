"""What must not change Chain of Hindsight: everything is on: drawn chains, forgetful masks, pretraining text."""

import functools

import pytest

from jaxalign import data, recipes
from tests.recipes import toy
from tests.recipes.test_invariance import assert_only_the_top_moved
from tests.recipes.toy import STEPS, Run, assert_same_run
from tests.tolerances import FLOAT32

FORGET = {"forget_min_ratio": 0.1, "forget_max_ratio": 0.3}


def objective(config, **options):
    return recipes.hindsight_objective(config, recipes.HindsightObjective(**FORGET | options))


def listed_draws():
    chains = toy.chains()
    return [chains.draw(index, 0) for index in range(len(chains))]


@functools.cache
def run(unlikelihood: float | None = None, listed: bool = False, **options) -> Run:
    """Eight records a step, each drawn anew, and sixteen rows of text; ``listed``: always the same draws."""
    return toy.train(
        "llama",
        listed_draws() if listed else toy.chains(),
        functools.partial(objective, unlikelihood_weight=unlikelihood),
        pretraining=toy.pretraining(),
        **options,
    )


# Meshes alone: test_matrix.py. All three axes and micro-batches at once: XLA's virtual devices then wait for each
# other for ever, every other time.
VARIANTS = {
    "one row a micro-batch": {"accumulation": 8},
    "micro-batches on a mesh": {"mesh": "data=2,tensor=2", "accumulation": 2},
    "recomputed activations": {"remat": "full"},
    "sequence 4": {"mesh": "sequence=4"},
    "data 2, sequence 2, tensor 2": {"mesh": "data=2,sequence=2,tensor=2"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_does_not_depend_on(variant):
    assert_same_run(run(**VARIANTS[variant]), run())


def test_what_is_on_is_on():
    """Nothing above would notice an option that does nothing."""
    plain = toy.train("llama", toy.chains(), functools.partial(objective, forget_min_ratio=0.0, forget_max_ratio=0.0))
    assert {"loss/feedback", "loss/pretraining"} <= run().metrics[0].keys()
    assert abs(run().metrics[0]["loss/feedback"] / plain.losses[0] - 1) > 0.001
    assert run().metrics[0]["loss"] == pytest.approx(
        run().metrics[0]["loss/feedback"] + 1.5 * run().metrics[0]["loss/pretraining"], rel=FLOAT32
    )
    draws = [toy.chains().draw(0, used).tokens.tolist() for used in range(STEPS)]
    assert len({tuple(draw) for draw in draws}) > 1


def test_unlikelihood_does_not_depend_on_micro_batches():
    assert_same_run(run(unlikelihood=0.5, accumulation=8), run(unlikelihood=0.5))


def packed(examples, rows):
    """Options that pack all examples into so many rows, in every epoch that will be seen."""

    def plan(**options):
        return data.make_batches(examples, batch_size=rows, **options).plan

    longest = plan().shape.tokens
    length = next(
        length
        for length in range(longest, 8 * longest)
        if all(len(plan(pack=True, max_length=length).epoch(epoch)) == rows for epoch in range(STEPS))
    )
    return {"packing": True, "row_length": length, "batch_size": rows}


@pytest.mark.parametrize("listed", [False, True])
def test_packed_is_unpacked(listed):
    """The rows of an epoch hold the same draws, packed by their own sizes."""
    options = packed(listed_draws() if listed else toy.chains(), 2)
    assert_same_run(run(listed=listed, **options), run(listed=listed))


ABOVE = {"frozen layers": {"frozen_layers": 1}, "an adapter": {"lora_rank": 2, "lora_alpha": 8.0}}


@pytest.mark.parametrize("kind", ABOVE)
def test_what_trains_in_part_does_not_depend_on_micro_batches_and_the_mesh(kind):
    options = ABOVE[kind]
    found, expected = run(mesh="data=2,tensor=2", accumulation=2, **options), run(**options)
    assert_same_run(found, expected)
    if "frozen_layers" in options:
        assert_only_the_top_moved(found)
