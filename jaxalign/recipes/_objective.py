"""What a method hands to the trainer: its loss, and what that loss needs beside the parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from jaxalign import models
from jaxalign.data import Batch
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig
from jaxalign.training import LossFunction

__all__ = ["Objective", "frozen_trunk"]

Params = Any


@dataclass(frozen=True)
class Objective:
    """A method, as the trainer sees it.

    ``loss(params, frozen, batch, key, extra) -> (terms, metrics)`` is pure. ``params`` is what trains; ``frozen`` is
    ``{"base": ..., "reference": ...}``: the parameters that do not train (``{}`` when all do) and the reference's own
    copy of what trains (``{}`` where no reference is read in the step, and where an adapter trains: the base alone is
    then the reference). ``key`` is the step's.
    """

    loss: LossFunction
    evaluation: LossFunction | None = None
    """The loss that evaluation computes, where it is not the training loss: without what is drawn to regularise."""
    needs_reference: bool = False
    """Whether the loss reads reference log-probs: those the batch carries, or those of ``frozen["reference"]``."""
    temperature: float = 1.0
    """The softmax temperature the loss scores at; reference log-probs computed beforehand are at this one too."""
    couples_rows: bool = False
    """Whether a row's loss depends on other rows: gradient accumulation would then change the result."""
    initial_extra: Callable[[Params], dict[str, Any]] = lambda reference: {}
    """The train state's ``extra`` at step 0, from what trains as the reference has it."""
    update_extra: Callable[..., dict[str, Any]] | None = None
    """``(extra, params, metrics, step) -> extra`` after each update, inside the step."""
    first_loss: float | None = None
    """The loss that step 0 must show (ln 2 for DPO at policy = reference), checked as training starts; None = none."""


def frozen_trunk(
    config: ModelConfig,
    own: Params,
    frozen: dict[str, Params],
    batch: Batch,
    *,
    attention_mask: jax.Array | None = None,
) -> jax.Array | None:
    """Activations of the frozen lower stack: the cached ones, else computed once for policy and reference alike.

    The trunk is the embedding and stack "0". It is frozen exactly if ``own``, what a model has of its own beside
    ``frozen["base"]`` (the parameters that train, or the reference's copy of them), holds nothing under ``embed`` and
    nothing under ``stacks/0``, an adapter's leaves included; None where it is not. ``attention_mask`` (bool
    ``[B, T, T]``) is and-ed with what tokens see.

    Raises:
      InputError: the batch carries a trunk's activations, but the trunk is not frozen, or is to see less: they would
        be stale.
    """
    trunk = (own.get("embed"), own.get("stacks", {}).get("0"))
    cached = batch.extras.get("trunk")
    if jax.tree.leaves(trunk):
        if cached is not None:
            raise InputError("examples: they carry the activations of layers that train (attach_trunk); leave them out")
        return None
    if cached is not None:
        if attention_mask is not None:
            raise InputError("--cache-trunk: with --forget-max-ratio the trunk sees something else in every step")
        return cached
    return models.trunk(
        config,
        frozen["base"],
        batch.tokens,
        positions=batch.positions,
        example=batch.example,
        branch=batch.branch if batch.branched else None,
        attention_mask=attention_mask,
    )
