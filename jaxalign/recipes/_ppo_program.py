"""The program of a PPO run's updates: ``fit_ppo`` runs it on arrays, ``plan`` compiles it for shapes."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxalign import sharding, training
from jaxalign.recipes._actor_critic import ActorCritic
from jaxalign.recipes._objective import Params
from jaxalign.recipes._ppo_config import PPOFitConfig
from jaxalign.recipes._ppo_update import make_ppo_step
from jaxalign.recipes._program import Program

__all__ = ["make_ppo_program"]


def make_ppo_program(
    models: ActorCritic, trainable: Params, layout: Any, config: PPOFitConfig, mesh: Mesh, total: int
) -> Program:
    """Make the update of a PPO run. Its arrays may be tracers: under ``jax.eval_shape`` nothing is computed.

    Args:
      models, trainable, layout: from ``make_actor_critic``.
      config: the run.
      mesh: its devices.
      total: updates, which the learning rate falls over.
    """
    optimizer, schedule = training.make_optimizer(config.optimizer, total * config.ppo_epochs * config.minibatches)
    extra = {"kl_coefficient": jnp.float32(config.kl_coefficient)}
    shardings = training.state_shardings(trainable, optimizer, mesh=mesh, shardings=layout, extra=extra)
    whole = sharding.replicated(mesh)
    frozen_layout = {
        "base": models.policy.base_layout,
        "value_base": models.critic.base_layout if models.critic else {},
        "value_moments": jax.tree.map(lambda _: whole, (0.0, 1.0)),
    }
    step = make_ppo_step(
        models,
        config,
        optimizer,
        mesh=mesh,
        state_shardings=shardings,
        frozen_shardings=frozen_layout,
        schedule=schedule,
    )
    return Program(step, optimizer, schedule, extra, shardings, frozen_layout)
