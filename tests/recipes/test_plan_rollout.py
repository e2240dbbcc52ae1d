"""``recipes.plan`` of PPO: what it says of a rollout against what a run holds while it samples."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from jaxalign import models, recipes, sampling
from jaxalign.recipes import PPOConfig
from jaxalign.recipes import _plan_step as steps
from jaxalign.recipes import _ppo as ppo_module
from jaxalign.recipes._plan_devices import Slice, parse_devices
from jaxalign.recipes._plan_process import Workers
from jaxalign.recipes._ppo_update import RolloutPass
from jaxalign.recipes.plan import _Planner
from jaxalign.sampling import _ahead
from jaxalign.sampling import _engine as engine
from tests.recipes import toy
from tests.recipes.memory import held_on_a_device
from tests.tolerances import PLANNED_MEMORY

PROMPT, RESPONSE = 32, 16
SHAPE = toy.SHAPES["llama"].replace(width=64, head_dim=16, mlp_width=128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    models.save_pretrained(folder, SHAPE, models.init(SHAPE, jax.random.key(0)), toy.tokenizer())
    return folder


@pytest.fixture(scope="module")
def workers():
    with Workers() as found:
        yield found


def settings(folder, **changes):
    return PPOConfig(**{
        "model": str(folder), "dataset": "d", "output_dir": "o", "reward": "a:b", "max_steps": 3, "batch_size": 32,
        "minibatches": 4, "max_prompt_length": PROMPT, "max_new_tokens": RESPONSE, "mesh": "data=1",
    } | changes)  # fmt: skip


class Stopped(Exception):
    pass


def measured(config, monkeypatch):
    """Bytes of the first device at the peak of the first rollout: what lies there, and what each program takes."""
    peaks = []

    def watch(owner, name, lower):
        real = getattr(owner, name)

        def call(*arguments):
            memory = lower(real)(*arguments).compile().memory_analysis()
            beside = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
            peaks.append(held_on_a_device() + beside)
            return real(*arguments)

        monkeypatch.setattr(owner, name, call)

    for name in ("unstack", "prefill_prefix", "stage", "empty", "refill", "decode"):
        watch(engine, name, lambda real: real.lower)
    watch(RolloutPass, "__call__", lambda real: RolloutPass.lower)

    def one_rollout(step, state, source, **rest):
        peaks.clear()  # what was computed before a rollout
        source(state, 0)
        raise Stopped

    monkeypatch.setattr(ppo_module.training, "run_loop", one_rollout)
    draws = np.random.default_rng(0).integers(2, toy.VOCABULARY, (config.batch_size, PROMPT))
    before = held_on_a_device()
    with contextlib.suppress(Stopped):
        recipes.fit_ppo(
            SHAPE,
            lambda: models.init(SHAPE, jax.random.key(0)),
            [recipes._ppo.Prompt(row, "a") for row in draws.tolist()],
            lambda prompts, texts: [0.0] * len(texts),
            config,
            decode=str,
            stop_tokens=[0],
            report=print,
        )
    return max(peaks) - before


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"sampling_batch": 8}, {"samples_per_prompt": 4, "sampling_batch": 16}, {"dtype": "bfloat16"},
        {"minibatches": 1, "max_new_tokens": 2}, {"mesh": "fsdp=4"}, {"lora_rank": 2}, {"frozen_layers": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_rollout_holds_what_is_planned(changes, folder, workers, monkeypatch):
    config = settings(folder, **changes)
    count = 4 if "mesh" in changes else 1
    planned = _Planner(config, parse_devices(f"{count}xcpu"), workers, None, None).plan({}, count)
    held = planned.rollout_bytes - sum(planned.rollout.values())
    found = measured(config, monkeypatch)
    assert sum(planned.rollout.values()) == pytest.approx(found - held, rel=PLANNED_MEMORY)
    assert planned.total == max(planned.update_bytes, planned.rollout_bytes)


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2}, {"frozen_layers": 1}, {"mesh": "fsdp=4"}], ids=str)
def test_what_many_layers_hold_is_on_a_line_through_few(changes, folder, monkeypatch):
    """Three layers from the programs of one and two against their own programs."""

    def compiled(lowered):
        program = lowered.compile()
        memory = program.memory_analysis()
        beside = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        return beside, program.output_shardings

    rollout = steps.lower_step(settings(folder, **changes), steps.PlannedModel(SHAPE, "float32")).rollout

    def held():
        with jax.set_mesh(rollout.mesh):
            return sampling.sampler_memory(rollout.config, rollout.params, compiled, **rollout.settings)

    real, layers = _ahead._sizes, []

    def sizes(config, *rest):
        layers.append(config.layers)
        return real(config, *rest)

    monkeypatch.setattr(_ahead, "_sizes", sizes)
    directly = held()
    monkeypatch.setattr(_ahead, "LAYERS", (1, 2))
    by_line = held()
    assert layers == [3, 1, 2]
    assert (by_line.parameters, by_line.cache) == (directly.parameters, directly.cache)
    assert by_line.total == pytest.approx(directly.total, rel=PLANNED_MEMORY)


def test_a_rollout_that_was_planned_is_not_compiled_again(folder, workers):
    """Of gradients a sampler knows nothing: with another ``remat`` it is the same."""
    config = settings(folder)
    planner = _Planner(config, parse_devices("cpu"), workers, None, None)
    again, other = planner.plan({}, 1), planner.plan({"remat": "full"}, 1)
    assert again.rollout == other.rollout
    assert other.memory["activations"] < again.memory["activations"]


def test_of_a_change_whose_update_is_too_large_no_rollout_is_compiled(folder, workers):
    config, cpu = settings(folder), parse_devices("cpu")
    asked = _Planner(config, cpu, workers, None, None).plan({}, 1)
    chip = dataclasses.replace(cpu.chip, memory=asked.update_bytes, usable=1.0)
    fitting, small = (
        _Planner(config, Slice(dataclasses.replace(chip, memory=chip.memory - less), 1), workers, None, None)
        for less in (0, 1)
    )
    same = {"sampling_batch": config.sampling_batch}
    assert fitting.plan(same, 1).rollout == small.plan({}, 1).rollout == asked.rollout
    without = small.plan(same, 1)
    assert not without.rollout
    assert not without.fits
    assert without.memory == asked.memory


def test_where_only_a_rollout_is_too_large_fewer_responses_are_decoded_together(folder, workers):
    config = settings(folder, batch_size=128, sampling_batch=128, minibatches=128, ppo_epochs=1)
    cpu = parse_devices("cpu")
    asked = _Planner(config, cpu, workers, None, None).plan({}, 1)
    assert asked.rollout_bytes > asked.update_bytes
    chip = dataclasses.replace(cpu.chip, memory=(asked.rollout_bytes + asked.update_bytes) // 2)
    planner = _Planner(config, Slice(chip, 1), workers, None, None)
    found = planner.suggest(planner.plan({}, 1))
    assert not found.fits
    (flag,) = found.change
    name, rows = flag.split()
    assert name == "--sampling-batch"
    assert found.changed is not None
    assert found.changed.fits
    assert not planner.plan({"sampling_batch": 2 * int(rows)}, 1).fits
