"""A training run of the sentiment study that is killed goes on from its checkpoint, and ends as if it had not been."""

import dataclasses
import io
import types

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import _sentiment_runs
from experiments._hindsight import Scale
from experiments._sentiment import Measurement, Method, Raters, Study
from experiments._sentiment_rlhf import PPO, RLHF
from experiments._sentiment_runs import _train
from experiments._sentiment_start import _study_inputs
from experiments._sentiment_training import fine_tune, train
from experiments.assets.prompts import Prompt
from experiments.imdb_sentiment import PRESETS
from experiments.rlhf_without_rl import PRESETS as COSTS
from jaxalign import data
from jaxalign.recipes import PreferenceObjective
from tests.models.tiny import uncompiled_params
from tests.tiny_reviews import CONFIG, one_device, plain_tokenizer  # noqa: F401

KEPT = Scale(checkpoints=True)
STUDY = Study(
    model="tiny", steps=4, prompts_per_step=2, learning_rate=1e-2, warmup_steps=1, measure_every=2, max_new_tokens=3,
    sft_steps=4, sft_batch=2, sft_length=24, sampling_batch=4, scale=KEPT,
    rlhf=RLHF(updates=4, episodes=4, ppo_epochs=1, minibatches=1, learning_rate=1e-2, points=2, early=(1,), scale=KEPT),
)  # fmt: skip
PROMPTS = [Prompt((place, place + 1, place + 2), "w1", "w1") for place in range(10, 18)]
METHODS = {
    "DPO": Method("DPO", "", PreferenceObjective(loss=("sigmoid",)), 0),
    "PPO-GT": Method("PPO-GT", "", PPO("true", 6.0), 0),
}


class Killed(Exception):
    pass


def quiet(*_):
    pass


def numbers(texts, completions):
    return np.array([float(len(text)) for text in completions])


def without_measuring(asked, dies):
    """In place of ``measure``: what it says depends on every parameter; it dies at the call of this number."""

    def measure(config, params, *_, step, **__):
        asked.append(step)
        if len(asked) == dies:
            raise Killed
        total = float(sum(np.abs(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(params)))
        nothing = [0.0]
        return Measurement(step, [0], [total], nothing, nothing, nothing, nothing, [1])

    return measure


def answered_twice():
    """A pair for every prompt."""
    return [
        data.answers_example(prompt.ids, [[30 + place, 31], [40, 41 + place]], record_id=place, pairs=[(0, 1)])
        for place, prompt in enumerate(PROMPTS)
    ]


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_is_killed_goes_on_to_the_same_end(tmp_path, monkeypatch, name):
    assets = types.SimpleNamespace(
        config=CONFIG, start=uncompiled_params(CONFIG), tokenizer=plain_tokenizer(), raters=Raters(numbers, numbers),
        reward=None, training=PROMPTS, held_out=PROMPTS[:1],
    )  # fmt: skip
    pairs = answered_twice()
    prepared = types.SimpleNamespace(examples=lambda report, other: pairs)
    asked = []

    def run(folder, dies=0):
        asked.clear()
        monkeypatch.setattr(_sentiment_runs, "measure", without_measuring(asked, dies))
        console = Console(file=io.StringIO())
        return _train(STUDY, assets, METHODS[name], prepared, console, quiet, tmp_path / folder)

    points, policy = run("whole")
    *before, last = asked
    assert [*before, last] == ([1, 2, 4] if isinstance(METHODS[name].objective, PPO) else [2, 4])
    with pytest.raises(Killed):
        run("killed", dies=len(before) + 1)
    assert sorted(path.name for path in (tmp_path / "killed" / "measured").iterdir()) == [
        f"{step}.json" for step in before
    ]
    again, continued = run("killed")
    assert asked == [last]  # the first half was neither trained nor measured again
    assert [row["step"] for row in again] == [*before, last]
    assert again == points
    assert points[0]["kl"] != points[1]["kl"]
    jax.tree.map(np.testing.assert_array_equal, continued, policy)


@pytest.mark.usefixtures("one_device")
def test_fine_tuning_that_is_killed_goes_on_to_the_same_end(tmp_path):
    start, tokenizer = uncompiled_params(CONFIG), plain_tokenizer()
    texts = [" ".join(f"w{place + word}" for word in range(12)) for place in range(8)]

    def run(folder, dies=0):
        seen = []

        def report(done, *_):
            seen.append(done)
            if done == dies:
                raise Killed

        return seen, fine_tune(CONFIG, start, tokenizer, texts, STUDY, report, tmp_path / folder)

    seen, whole = run("whole")
    assert seen == [1, 2, 3, 4]
    with pytest.raises(Killed):
        run("killed", dies=3)
    seen, again = run("killed")
    assert seen[-1] == 4
    assert seen[0] > 1
    jax.tree.map(np.testing.assert_array_equal, again, whole)


def scales(study):
    return [study.scale, study.rlhf.scale]


@pytest.mark.parametrize(("preset", "kept"), [("mini", False), ("demo", False), ("gpu", True), ("paper", True)])
def test_which_presets_keep_checkpoints(preset, kept):
    found = scales(PRESETS[preset])
    if preset in COSTS:
        found += [COSTS[preset].scale, *scales(COSTS[preset].study)]
    assert {scale.checkpoints for scale in found} == {kept}
    assert [dataclasses.replace(scale, checkpoints=True).save_every(1000) for scale in found] == [100] * len(found)


@pytest.mark.usefixtures("one_device")
def test_rmsprop_is_torchs_and_another_stage():
    """Its first update is the rate times g / sqrt(.01 g^2), ten times the rate wherever the gradient is not 0."""
    start = uncompiled_params(CONFIG)

    def change(optimizer):
        study = dataclasses.replace(
            STUDY, steps=1, measure_every=1, warmup_steps=0, learning_rate=1e-3, scale=Scale(), optimizer=optimizer
        )
        found = train(CONFIG, start, answered_twice(), METHODS["DPO"], study, evaluate=quiet, report=quiet)
        moved = jax.tree.map(lambda new, old: np.abs(np.asarray(new) - np.asarray(old)).max(), found, start)
        return max(jax.tree.leaves(moved))

    assert change("adamw") == pytest.approx(1e-3, rel=0.01)
    assert change("rmsprop") == pytest.approx(1e-2, rel=0.01)
    assert STUDY.optimizer_inputs == {}  # runs in AdamW stay what they were
    assert dataclasses.replace(STUDY, optimizer="rmsprop").optimizer_inputs == {"optimizer": "rmsprop"}
    assert {"optimizer", "scale"}.isdisjoint(_study_inputs(STUDY))
