"""The loss of supervised fine-tuning as a train step sees it."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxalign import losses, models
from jaxalign.data import Batch
from jaxalign.models import ModelConfig
from jaxalign.recipes._objective import Objective, Params, frozen_trunk
from jaxalign.recipes._scores import score_targets
from jaxalign.training import Metrics, Terms

__all__ = ["likelihood_objective"]


def likelihood_objective(config: ModelConfig, *, temperature: float = 1.0) -> Objective:
    """Make the pure loss of SFT: the mean of -log pi over all supervised tokens of the global batch, nats a token.

    Args:
      config: the model, as ``models.freeze`` returned it.
      temperature: softmax temperature at which the model is scored.
    """

    def loss(
        params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array, extra: dict[str, Any]
    ) -> tuple[Terms, Metrics]:
        del extra
        log_probs = score_targets(
            config,
            models.combine(params, frozen["base"]),
            batch,
            trunk=frozen_trunk(config, params, frozen, batch),
            temperature=temperature,
            dropout_key=key,
        )
        tokens = jnp.sum(batch.target_mask).astype(log_probs.dtype)
        value = jnp.sum(losses.cross_entropy(log_probs))
        return {"cross_entropy": (value, tokens, 1.0)}, {}

    return Objective(loss=loss, temperature=temperature)
