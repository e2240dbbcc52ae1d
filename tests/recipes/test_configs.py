"""Configs that are several in one: what a command runs with by default is what its fit function runs with."""

import dataclasses
import inspect

import pytest

from jaxalign import recipes
from jaxalign.recipes import dpo, ppo, reward_model, sft
from jaxalign.recipes._ppo_config import PPOFitConfig


def default(item):
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default


@pytest.mark.parametrize(
    ("command", "fits"),
    [
        (ppo.PPOConfig, PPOFitConfig),
        (sft.SFTConfig, recipes.FitConfig),
        (dpo.DPOConfig, recipes.FitConfig),
        (reward_model.RewardModelConfig, recipes.FitConfig),
    ],
)
def test_a_command_has_the_defaults_of_its_fit(command, fits):
    """Of two bases with a field of one name the first has it; a field that a command sets anew is its own."""
    own = {item.name: default(item) for item in dataclasses.fields(command)}
    anew = set(inspect.get_annotations(command))
    for item in dataclasses.fields(fits):
        if item.name not in anew:
            assert own[item.name] == default(item), item.name


def test_ppos_optimizer_is_the_published_one():
    fields = {item.name: item for item in dataclasses.fields(ppo.PPOConfig)}
    optimizer = default(fields["optimizer"])
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.epsilon, optimizer.clip_norm) == (
        3e-6, "linear", 1e-5, 1.0,
    )  # fmt: skip
    assert default(fields["batch_size"]) == 64
