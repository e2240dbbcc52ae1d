"""The models of PPO, laid out on a mesh: the policy, its reference, the critic and, where it is a model, the reward."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign import models, sharding
from jaxalign.data import Batch
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig, RewardModel
from jaxalign.recipes._objective import Params, frozen_trunk
from jaxalign.recipes._ppo_config import PPOFitConfig
from jaxalign.recipes._scores import sequence_scores
from jaxalign.recipes._split import Split, split_model

__all__ = ["ActorCritic", "make_actor_critic"]


@dataclass(frozen=True)
class ActorCritic:
    """Configs and layouts; the parameters are arguments of everything below.

    ``params`` is what trains, ``{"policy": ..., "value": ...}``. ``frozen`` is what an update reads beside it,
    ``{"base": ..., "value_base": ..., "value_moments": (mean, std)}``; a rollout also reads ``{"reference": ...,
    "reward": ..., "reward_moments": (mean, std)}``.
    """

    policy: Split
    critic: Split | None
    """None = a head on the policy's hidden states."""
    reward: ModelConfig | None
    """None = the reward is a function of texts."""
    temperature: float

    @property
    def value_config(self) -> ModelConfig:
        return self.policy.config.replace(labels=1) if self.critic is None else self.critic.config

    def log_probs_and_values(
        self, params: Params, frozen: dict[str, Any], batch: Batch
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(log pi of every response token, the value of the state before it, the policy's hidden states).

        Log-probs ``[B, N]`` nats at the sampling temperature, 0 where masked; values ``[B, N]`` float32, read from the
        hidden state that predicts the token: (score - mean) / std with the moments the critic was made with; hidden
        ``[B, T, D]``.
        """
        hidden = self._hidden(self.policy.config, params["policy"], frozen["base"], batch)
        log_probs = self._log_probs(params["policy"], frozen["base"], hidden, batch)
        if self.critic is None:
            value_hidden, head = hidden, params["value"]
        else:
            value_hidden = self._hidden(self.critic.config, params["value"], frozen["value_base"], batch)
            head = models.combine(params["value"], frozen["value_base"])
        sources = models.take_tokens(value_hidden, batch.source_index)
        mean, std = frozen["value_moments"]
        return log_probs, (models.score(self.value_config, head, sources)[..., 0] - mean) / std, hidden

    def reference_log_probs(self, frozen: dict[str, Any], batch: Batch) -> jax.Array:
        """log ref of every response token ``[B, N]``, nats."""
        own = frozen["reference"]
        hidden = self._hidden(self.policy.config, own, frozen["base"], batch)
        return self._log_probs(own, frozen["base"], hidden, batch)

    def rewards(self, frozen: dict[str, Any], batch: Batch) -> jax.Array:
        """The reward model's opinion of every response ``[B]``, normalised."""
        assert self.reward is not None
        mean, std = frozen["reward_moments"]
        return (sequence_scores(self.reward, frozen["reward"], batch)[:, 0] - mean) / std

    def entropy(self, params: Params, frozen: dict[str, Any], hidden: jax.Array, batch: Batch) -> jax.Array:
        """The policy's entropy before every response token ``[B, N]``, nats."""
        whole = models.combine(params["policy"], frozen["base"])
        return models.target_entropy(
            self.policy.config, whole, hidden, batch.source_index, temperature=self.temperature
        )

    def _hidden(self, config: ModelConfig, own: Params, base: Params, batch: Batch) -> jax.Array:
        return models.apply(
            config,
            models.combine(own, base),
            batch.tokens,
            positions=batch.positions,
            example=batch.example,
            trunk=frozen_trunk(config, own, {"base": base}, batch),
        )

    def _log_probs(self, own: Params, base: Params, hidden: jax.Array, batch: Batch) -> jax.Array:
        log_probs = models.target_log_probs(
            self.policy.config,
            models.combine(own, base),
            hidden,
            batch.source_index,
            batch.targets,
            temperature=self.temperature,
        )
        return jnp.where(batch.target_mask, log_probs, 0.0)


def make_actor_critic(
    model_config: ModelConfig,
    params: Params,
    config: PPOFitConfig,
    mesh: Mesh,
    *,
    critic: RewardModel | None,
    reward: RewardModel | None,
    reference: Params | None,
) -> tuple[ActorCritic, Params, Any, dict[str, Any]]:
    """Divide, initialise and lay out the models of a run.

    The critic starts as ``critic``, which is usually the reward model; without one it starts as the policy with a head
    of zeros, so that every value is 0 at first. A shared critic is a head on the policy: that of ``critic``, or zeros.

    Returns:
        (the models, what trains, its layout, the frozen trees).

    Raises:
        InputError: a critic or reward of another vocabulary, or what ``split_model`` refuses.
    """
    for name, model in (("--critic-model", critic), ("--reward-model", reward)):
        if model is not None and model.config.vocab_size != model_config.vocab_size:
            raise InputError(
                f"{name}: a vocabulary of {model.config.vocab_size} tokens, but the policy's has "
                f"{model_config.vocab_size}: it must have the policy's tokenizer (or rate texts)"
            )
    policy = split_model(model_config, params, config, mesh)
    moments = (critic.mean, critic.std) if critic else (0.0, 1.0)
    frozen: dict[str, Any] = {"base": policy.base, "value_moments": _moments(moments, mesh)}
    if reference is not None and (flag := config.shares_reference):
        raise InputError(f"--reference: with {flag} the reference shares what does not train; leave it out")
    own = policy.reference if reference is None else policy.as_frozen(reference)
    frozen["reference"] = sharding.shard_tree(own, policy.trainable_layout) if own else {}
    whole = sharding.replicated(mesh)
    split: Split | None = None
    if config.critic == "shared":
        head = _zeros(model_config)
        if critic is not None:
            if critic.config.hidden_width != model_config.hidden_width:
                raise InputError("--critic shared: the reward model's head is of another width than the policy")
            head = critic.params["score"]
        value: Params = {"score": jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), head)}
        value_layout = jax.tree.map(lambda _: whole, value)
        frozen["value_base"] = {}
    else:
        value_config, value_params = (critic.config, critic.params) if critic else _as_critic(model_config, params)
        value_config = value_config.replace(compute_dtype=config.dtype, remat=config.remat, attention=config.attention)
        split = split_model(value_config, value_params, config, mesh)
        value, value_layout = split.trainable, split.trainable_layout
        frozen["value_base"] = split.base if critic else _held_once(split.base, policy.base)
    reward_config = None
    if reward is not None:
        reward_config = reward.config.replace(compute_dtype=config.dtype, attention=config.attention)
        axes = models.logical_axes(reward_config)
        shapes = jax.eval_shape(lambda: models.init(reward_config, jax.random.key(0)))
        layout = sharding.tree_shardings(axes, shapes, mesh, config.rules)
        frozen["reward"] = sharding.shard_tree(reward.params, layout)
        frozen["reward_moments"] = _moments((reward.mean, reward.std), mesh)
    critic_split = None if split is None else split.without_start
    found = ActorCritic(policy.without_start, critic_split, reward_config, config.temperature)
    trainable = {"policy": policy.trainable, "value": value}
    return found, trainable, {"policy": policy.trainable_layout, "value": value_layout}, frozen


def _moments(values: tuple[float, float], mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    return sharding.shard_tree((np.float32(values[0]), np.float32(values[1])), sharding.replicated(mesh))


def _zeros(config: ModelConfig) -> Params:
    return {"kernel": jnp.zeros((1, config.hidden_width), jnp.float32)}


def _held_once(tree: Params, other: Params) -> Params:
    """With the arrays of ``other`` where it has the same part: both started alike and stay as they are."""
    there = dict(jax.tree_util.tree_leaves_with_path(other))
    return jax.tree_util.tree_map_with_path(lambda path, leaf: there.get(path, leaf), tree)


def _as_critic(config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """The policy as a critic whose every value is 0."""
    critic_config, critic = models.add_score_head(config, params, jax.random.key(0))
    return critic_config, {**critic, "score": _zeros(config)}
