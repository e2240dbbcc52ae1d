"""RLHF beside Chain of Hindsight: a reward model of a task's comparisons, and PPO against it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments._hindsight import RLHFRuns, asked_prompts
from experiments._hindsight_dialogue import DialogueTask
from experiments._hindsight_summaries import SummariesTask
from experiments._sentiment_rlhf import PPO, RewardAndPPO, train_ppo, train_reward
from experiments._stages import Report
from experiments.assets.prompts import Prompt
from jaxalign.data import Example
from jaxalign.errors import InputError

__all__ = ["RLHFTraining", "rlhf_on_comparisons"]

Params = Any
REWARD_ZERO = 64  # comparisons on whose best outputs the reward model's mean is 0


@dataclass(frozen=True, kw_only=True)
class RLHFTraining(RewardAndPPO):
    """One run's numbers."""

    target_kl: float = 6.0
    """KL to the start model (nats a response) that PPO is held at."""


@dataclass(frozen=True, kw_only=True)
class _Numbers:
    """What ``train_reward`` and ``train_ppo`` read of a study."""

    rlhf: RLHFTraining
    frozen_layers: int
    max_new_tokens: int
    sampling_batch: int
    seed: int
    temperature: float = 1.0


def rlhf_on_comparisons(
    task: SummariesTask | DialogueTask, rlhf: RLHFTraining, frozen_layers: int, max_length: int
) -> RLHFRuns:
    """The runs of a task whose records are comparisons: every seed has a reward model of its own.

    Args:
      task: whose records and start model.
      rlhf: a run's numbers.
      frozen_layers: lowest layers that stay as they are.
      max_length: comparisons with a longer prompt and answers teach the reward model nothing; prompts that leave no
        room for an output are not sampled from.
    """

    def policy(*, seed: int, report: Report, directory: Path) -> Params:
        numbers = _Numbers(
            rlhf=rlhf, frozen_layers=frozen_layers, max_new_tokens=task.settings.max_new_tokens,
            sampling_batch=task.settings.sampling_batch, seed=seed,
        )  # fmt: skip
        kept = rlhf.scale.kept(directory)
        groups, prompts = comparisons(task, max_length, seed)
        held_out = _last_groups(groups, rlhf.reward_held_out)
        examples = [example for group in groups for example in group]
        reward, _ = train_reward(
            task.config, task.start, examples, examples[:REWARD_ZERO], numbers, report, held_out=held_out,
            directory=kept and kept / "reward-model",
        )  # fmt: skip
        return train_ppo(
            task.config, task.start, prompts, reward, PPO("learned", rlhf.target_kl), numbers, task.tokenizer,
            seed=seed, directory=kept and kept / "ppo", report=report,
        )[0]  # fmt: skip

    inputs = rlhf.inputs | {"frozen_layers": frozen_layers, "max_length": max_length}
    return RLHFRuns(inputs, policy, rlhf.in_words(rlhf.target_kl))


def comparisons(
    task: SummariesTask | DialogueTask, max_length: int, seed: int
) -> tuple[list[list[Example]], list[Prompt]]:
    """Records as the reward model reads them, after neutral words, and what PPO samples from: the same prompts.

    Groups are of one prompt each, in an order of the seed: what the reward model is measured on, the last of them, is
    of every data set, and asks what it was not trained on.
    """
    asked = asked_prompts(task.tokenizer, None, task.templates, task.kind)
    compared: dict[tuple[int, ...], list[Example]] = {}
    for index, record in enumerate(task.records):
        try:
            example = asked.comparison(record, record_id=index)
        except InputError:
            continue  # ties, and the two rows of HH without an answer
        compared.setdefault(tuple(example.tokens[example.branch == 0].tolist()), []).append(example)
    found = list(compared.items())
    found = [found[place] for place in np.random.default_rng(seed).permutation(len(found)).tolist()]
    short = ([example for example in group if len(example.tokens) <= max_length] for _, group in found)
    groups = [group for group in short if group]
    room = max_length - task.settings.max_new_tokens
    prompts = [
        Prompt(ids, "", task.tokenizer.decode(ids))
        for ids, group in found
        # Dialogues may part at what a person says: there is nothing to be answered yet.
        if len(ids) <= room and group[0].source_index[0] == len(ids) - 1
    ]
    if len(groups) < 2 or not prompts:
        raise InputError(
            f"max_length {max_length}: comparisons of {len(groups)} prompts fit into it, and {len(prompts)} prompts to "
            "sample from"
        )
    return groups, prompts


def _last_groups(groups: list[list[Example]], share: float) -> int:
    """How many examples the last groups have that are a share of all, whole groups and never all of them."""
    wanted = share * sum(map(len, groups))
    held = 0
    for group in reversed(groups[1:]):
        held += len(group)
        if held >= wanted:
            break
    return held
