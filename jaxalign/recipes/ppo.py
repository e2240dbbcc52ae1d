"""Proximal policy optimisation, the last stage of RLHF: raise a reward, stay near the model one starts from.

    maximise E_{x, y ~ pi(. | x)} [r(x, y)] - beta KL(pi(. | x) || ref(. | x))             (Ziegler et al. 2019)

Records: anything with a ``prompt``, or a ``text`` of which ``text_prefix`` takes the beginning; answers, where there
are any, are not read. The reward is a reward model
(``jaxalign reward``), or any Python function of texts: PPO-GT, where that is the true reward.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jax.sharding import Mesh

from jaxalign import data, models, sharding
from jaxalign.data import Prompt, Truncation
from jaxalign.errors import InputError
from jaxalign.models import RewardModel
from jaxalign.recipes._card import Card
from jaxalign.recipes._config import FolderConfig
from jaxalign.recipes._handover import Handover
from jaxalign.recipes._ppo import check_rollout, fit_ppo
from jaxalign.recipes._ppo_config import PPO_PRESETS, PRESET_YIELDS, PPOFitConfig
from jaxalign.recipes._raters import identity_of, load_text_reward
from jaxalign.recipes._run import join_processes, load_start, load_tokenizer, same_shape, say, write_final
from jaxalign.recipes._shared import run_mesh
from jaxalign.sampling import TextReward

__all__ = ["ALIASES", "PRESETS", "PRESET_YIELDS", "PPOConfig", "load", "run"]

PRESETS = PPO_PRESETS
ALIASES = {"--beta": "--kl-coefficient"}
"""Other names of flags: beta is what every method here calls the weight of its KL."""


@dataclass(frozen=True, kw_only=True)
class PPOConfig(PPOFitConfig, FolderConfig):
    """Train a policy with PPO."""

    reward_model: str | None = None
    """Folder or hub id of a reward model with the policy's tokenizer; it is computed on the devices, and the critic
    starts as it."""
    reward: str | None = None
    """A text reward instead: "package.module:function" or "path/to/file.py:function", called as f(prompts, completions)
    -> scores, or the folder or hub id of a classifier with a tokenizer of its own."""
    critic_model: str | None = None
    """Folder or hub id of the reward model that the critic starts as; None = ``reward_model``, else the policy with a
    head of zeros."""
    reference: str | None = None
    """Folder or hub id of the reference model; None = the model that training starts from."""
    max_prompt_length: int = 512
    """Most tokens of a prompt."""
    prompt_truncation: Literal["error", "keep_end", "drop"] = "error"
    """A prompt over its limit: stop and name it, keep its end, or leave the record out and count it."""
    text_prefix: tuple[int, int] | None = None
    """Of records of ``text`` alone (reviews): the prompt is about its first N tokens, N drawn from these, say 2 8."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.reward is None) == (self.reward_model is None):
            raise InputError("--reward-model or --reward: give one of the two")
        if self.text_prefix is not None and not 1 <= self.text_prefix[0] <= self.text_prefix[1]:
            raise InputError(f"--text-prefix: two numbers from 1 that do not fall, are {self.text_prefix}")
        if self.max_prompt_length < 1:
            raise InputError(f"--max-prompt-length: must be at least 1, is {self.max_prompt_length}")
        if self.reference is not None and self.shares_reference:
            raise InputError(
                f"--reference: with {self.shares_reference} the reference shares what does not train; leave it out"
            )
        if self.overlap_rewards and self.reward is None:
            raise InputError("--overlap-rewards: a reward model is computed on the devices; nothing would overlap")


def load(config: PPOConfig) -> Callable[[Any], list[Prompt]]:
    """Read the records; the result makes prompts of them, by a tokenizer. Raises ``InputError``."""
    records = data.load_dataset(
        config.dataset, split=config.dataset_split, limit=config.dataset_limit, on_bad_row=config.on_bad_row
    )

    def tokenise(tokenizer: Any) -> list[Prompt]:
        prompts, counters = data.build_prompts(
            records,
            tokenizer,
            truncation=Truncation(max_prompt_length=config.max_prompt_length, prompt=config.prompt_truncation),
            on_bad_row=config.on_bad_row,
            text_prefix=config.text_prefix,
            seed=config.seed,
        )
        say(f"{config.dataset}: {counters.summary()}")
        return prompts

    return tokenise


def run(config: PPOConfig) -> None:
    """Load, train, write ``output_dir/final``. Raises ``InputError`` for what is wrong with the input."""
    join_processes(config)
    mesh = run_mesh(config)
    check_rollout(config, mesh)
    tokenise = load(config)
    model_config = models.load_config(config.model)
    if model_config.labels:
        raise InputError(f"--model: {config.model} is a classifier, no language model")
    if config.reference is not None and not same_shape(models.load_config(config.reference), model_config):
        raise InputError("--reference: the reference model has another architecture than --model")
    tokenizer = load_tokenizer(config.model)
    encoder = data.Encoder(tokenizer)
    prompts = tokenise(encoder)

    identity: dict[str, Any] = {"prompts": _name(prompts)}
    reward: TextReward | RewardModel
    if config.reward_model is not None:
        reward = _reward_model("--reward-model", config.reward_model, tokenizer, mesh, config.rules)
        identity["weights of --reward-model"] = identity_of(reward)
    else:
        assert config.reward is not None
        reward = load_text_reward(config.reward)
        if (known := identity_of(reward)) is not None:
            identity["weights of --reward"] = known
    critic = None
    if config.critic_model is not None:
        critic, identity["weights of --critic-model"] = _critic(config.critic_model, tokenizer, mesh, config.rules)
    model_config, start, identity["weights of --model"] = load_start(config.model, mesh, config.rules)
    reference = None
    if config.reference is not None:
        _, reference, identity["weights of --reference"] = load_start(config.reference, mesh, config.rules)
    result = fit_ppo(
        model_config,
        start,
        prompts,
        reward,
        config,
        decode=encoder.decode_following,
        stop_tokens=_stop_tokens(prompts, encoder),
        critic=critic,
        reference=reference,
        directory=config.output_dir,
        pad_token=tokenizer.pad_token_id or 0,
        identity=identity,
    )
    write_final(config, result, tokenizer, card=Card("ppo", identity, result.step))


def _stop_tokens(prompts: Sequence[Prompt], encoder: data.Encoder) -> list[int]:
    """What ends a response to any of them: the EOS and, where there are messages, the chat template's end of turn."""
    a_kind = {isinstance(prompt.content, str): prompt for prompt in reversed(prompts)}  # the first of each kind
    found: set[int] = set()
    for prompt in a_kind.values():
        found.update(data.stop_tokens(prompt.content, encoder, place=prompt.place or None))
    return sorted(found)


def _name(prompts: Sequence[Prompt]) -> str:
    """The name of tokenised prompts by their content and order."""
    return hashlib.sha256(json.dumps([list(map(int, prompt.tokens)) for prompt in prompts]).encode()).hexdigest()


def _reward_model(flag: str, folder_or_hub_id: str, tokenizer: Any, mesh: Mesh, rules: sharding.Rules) -> RewardModel:
    """The reward model of a folder, whose tokens must be the policy's."""
    found = models.load_reward_model(folder_or_hub_id, mesh=mesh, rules=rules)
    if load_tokenizer(folder_or_hub_id).get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"{flag}: {folder_or_hub_id} has another tokenizer than --model; give it as --reward, which rates texts"
        )
    return found


def _critic(
    folder_or_hub_id: str, tokenizer: Any, mesh: Mesh, rules: sharding.Rules
) -> tuple[Handover[RewardModel], str | None]:
    """What the critic starts as, to be handed over, and the name of its weights."""
    found = _reward_model("--critic-model", folder_or_hub_id, tokenizer, mesh, rules)
    return Handover(found), identity_of(found)
