"""Runs whose memory is predicted and measured: every recipe, several settings; and their steps, run once on ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import sampling
from jaxalign.recipes import DPOConfig, HindsightConfig, PPOConfig, RewardModelConfig, SFTConfig
from jaxalign.recipes._config import TrainConfig
from jaxalign.recipes._plan_models import config_of, model_dtype, read_model
from jaxalign.recipes._plan_step import PlannedModel, PlannedStep, lower_step

__all__ = ["CASES", "ROLLOUTS", "arguments", "lowered", "sampler"]

_UNREAD: dict[str, Any] = {"dataset": "unread", "output_dir": Path("unused")}


def _cases() -> dict[str, tuple[TrainConfig, int]]:
    """Name -> (run, devices)."""
    gpt2: dict[str, Any] = {**_UNREAD, "model": "gpt2"}
    smollm: dict[str, Any] = {**_UNREAD, "model": "smollm2-135m"}
    return {
        "sft, no remat": (SFTConfig(**gpt2, batch_size=4, max_length=256), 1),
        "sft, remat full, accumulation 4": (
            SFTConfig(**gpt2, batch_size=8, max_length=512, remat="full", accumulation=4), 1,
        ),
        "sft, 8 frozen layers": (SFTConfig(**gpt2, batch_size=4, max_length=512, frozen_layers=8), 1),
        "sft, bfloat16, remat dots": (
            SFTConfig(**smollm, batch_size=4, max_length=512, dtype="bfloat16", remat="dots"), 1,
        ),
        "reward": (RewardModelConfig(**gpt2, batch_size=4, max_length=256), 1),
        "dpo": (DPOConfig(**smollm, batch_size=2, max_length=256), 1),
        "dpo, cached, remat full": (
            DPOConfig(**smollm, batch_size=8, max_length=256, reference_log_probs="cached", remat="full"), 1,
        ),
        "dpo, lora": (DPOConfig(**smollm, batch_size=2, max_length=256, lora_rank=16), 1),
        "dpo, fsdp over 4": (DPOConfig(**smollm, batch_size=4, max_length=256, remat="dots"), 4),
        "hindsight": (HindsightConfig(**{**gpt2, "dataset": ("unread",)}, batch_size=4, max_length=384), 1),
        "ppo, two minibatches": (
            PPOConfig(
                **gpt2, batch_size=8, minibatches=2, reward="unread:reward", max_prompt_length=192, max_new_tokens=64
            ),
            1,
        ),
        "ppo, its rollout": (
            PPOConfig(**gpt2, batch_size=64, reward="unread:reward", max_prompt_length=192, max_new_tokens=64), 1,
        ),
        "ppo, its rollout, bfloat16, refilled": (
            PPOConfig(
                **smollm, batch_size=64, sampling_batch=32, dtype="bfloat16", reward="unread:reward",
                max_prompt_length=192, max_new_tokens=64,
            ),
            1,
        ),
    }  # fmt: skip


CASES = _cases()
ROLLOUTS = ("ppo, its rollout", "ppo, its rollout, bfloat16, refilled")
"""Cases of which a rollout is predicted and measured, not an update."""


def lowered(config: TrainConfig) -> PlannedStep:
    """The run's step for the devices there are."""
    fields = read_model(str(getattr(config, "model", "")))
    return lower_step(config, PlannedModel(config_of(fields, "config.json"), model_dtype(fields)))


def arguments(compiled: Any) -> tuple[Any, ...]:
    """Ones where the step's arguments lie, every page of them written."""

    def one(info: Any, sharding: Any) -> jax.Array:
        if jnp.issubdtype(info.dtype, jax.dtypes.prng_key):
            return jax.device_put(jax.random.key(0), sharding)
        return jax.jit(lambda: jnp.ones(info.shape, info.dtype), out_shardings=sharding)()

    return jax.tree.map(one, compiled.args_info[0], compiled.input_shardings[0])


def sampler(config: TrainConfig) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """(makes the policy's parameters, samples a rollout from them), as PPO does; prompts are as long as they may be."""
    rollout = lowered(config).rollout
    assert rollout is not None
    asked: dict[str, Any] = dict(rollout.settings)
    responses, length = asked.pop("responses"), asked.pop("prompt_length")
    count = responses // asked["samples_per_prompt"]
    prompts = np.random.default_rng(0).integers(0, rollout.config.vocab_size, (count, length)).tolist()

    def make() -> Any:
        def one(leaf: Any) -> jax.Array:
            return jax.jit(lambda: jnp.full(leaf.shape, 0.01, leaf.dtype), out_shardings=leaf.sharding)()

        return jax.tree.map(one, rollout.params)

    def run(params: Any) -> Any:
        with jax.set_mesh(rollout.mesh):
            return sampling.generate(rollout.config, params, prompts, jax.random.key(0), **asked)

    return make, run
