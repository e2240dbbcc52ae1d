"""What a recipe's command holds while it trains is what ``recipes.plan`` says: nothing of where it started is left."""

import jax
import pytest

from jaxalign import models, recipes, training
from jaxalign.recipes import DPOConfig, PPOConfig, RewardModelConfig, SFTConfig, dpo, ppo, reward_model, sft
from jaxalign.recipes._plan_devices import parse_devices
from jaxalign.recipes._plan_process import Workers
from jaxalign.recipes.plan import _Planner
from tests.recipes import toy
from tests.recipes.memory import held_on_a_device
from tests.tolerances import PLANNED_MEMORY

SHAPE = toy.SHAPES["llama"].replace(width=64, head_dim=16, mlp_width=128)


@pytest.fixture(scope="module")
def workers():
    with Workers() as found:
        yield found


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A policy, another, and two reward models of the same shape."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("policy", "other", "reward", "critic")):
        config, params = SHAPE, models.init(SHAPE, jax.random.key(seed))
        if name in ("policy", "other"):
            models.save_pretrained(folder / name, config, params, toy.tokenizer())
        else:
            model = models.RewardModel(*models.add_score_head(config, params, jax.random.key(seed)))
            models.save_reward_model(folder / name, model, toy.tokenizer())
    (folder / "rater.py").write_text("def rate(prompts, completions):\n    return [0.0] * len(completions)\n")
    return folder


RUNS = [
    ("sft", sft.run, SFTConfig, {}),
    ("sft", sft.run, SFTConfig, {"frozen_layers": 1}),
    ("sft", sft.run, SFTConfig, {"lora_rank": 2}),
    ("dpo", dpo.run, DPOConfig, {}),
    ("dpo", dpo.run, DPOConfig, {"reference": "other", "dtype": "bfloat16", "frozen_dtype": "bfloat16"}),
    ("dpo", dpo.run, DPOConfig, {"reference_log_probs": "cached"}),
    ("dpo", dpo.run, DPOConfig, {"reference_update_every": 2}),
    ("reward", reward_model.run, RewardModelConfig, {}),
    ("ppo", ppo.run, PPOConfig, {"reward": "rater.py:rate"}),
    ("ppo", ppo.run, PPOConfig, {"reward_model": "reward", "critic_model": "critic", "reference": "other"}),
]
DATA = {"sft": toy.demonstrations, "dpo": toy.pair_records, "reward": toy.pair_records, "ppo": toy.demonstrations}


@pytest.mark.parametrize(
    ("recipe", "run", "kind", "changes"), RUNS, ids=[f"{name} {changes}" for name, _, _, changes in RUNS]
)
def test_a_command_holds_what_is_planned(recipe, run, kind, changes, folders, workers, tmp_path, monkeypatch):
    of_folders = ("reference", "reward_model", "critic_model", "reward")
    changes = {name: str(folders / value) if name in of_folders else value for name, value in changes.items()}
    if recipe == "ppo":
        changes |= {"max_new_tokens": 4, "max_prompt_length": 16, "sampling_batch": 4}
    else:
        changes |= {"max_length": 32}
    config = kind(
        model=str(folders / "policy"), dataset=str(toy.write_jsonl(tmp_path / "data.jsonl", DATA[recipe]())),
        output_dir=tmp_path / "run", batch_size=4, max_steps=2, mesh="data=1", **changes,
    )  # fmt: skip
    planned = _Planner(config, parse_devices("cpu"), workers, None, None).plan({}, 1)
    expected = planned.update_bytes - sum(planned.memory[name] for name in ("gradients", "activations", "temporary"))
    found = []
    real = training.run_loop

    def watched(*arguments, observe, **rest):
        def look(index, values):
            found.append(held_on_a_device())
            observe(index, values)

        return real(*arguments, observe=look, **rest)

    before = held_on_a_device()
    monkeypatch.setattr(training, "run_loop", watched)
    run(config)
    assert found[-1] - before == pytest.approx(expected, rel=PLANNED_MEMORY)


def test_parameters_that_a_caller_keeps_stay_as_they_were():
    """A tree is copied; of a function's only a copy is left."""
    examples, config = toy.examples(toy.demonstrations()), recipes.FitConfig(max_steps=1, mesh="data=1")

    def train(params):
        return recipes.fit(SHAPE, params, examples, recipes.likelihood_objective, config, report=print)

    params = models.init(SHAPE, jax.random.key(0))
    kept, given = train(params), train(lambda: models.init(SHAPE, jax.random.key(0)))
    for one, other in zip(jax.tree.leaves(kept.params), jax.tree.leaves(given.params), strict=True):
        assert (one == other).all()
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(params))
