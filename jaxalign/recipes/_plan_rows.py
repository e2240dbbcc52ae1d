"""The rows of a step that is planned: as long as the config's limits allow, or as is said."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import data
from jaxalign.data import Batch, Example
from jaxalign.models import ModelConfig
from jaxalign.recipes._config import RunConfig
from jaxalign.recipes.dpo import DPOConfig
from jaxalign.recipes.hindsight import HindsightConfig
from jaxalign.recipes.reward_model import RewardModelConfig

__all__ = ["batch_of", "longest_example", "rollout_batch", "rows_of", "window"]


def longest_example(config: RunConfig, model: ModelConfig, row_tokens: int | None, row_targets: int | None) -> Example:
    """The longest example that the limits allow, or of the length given: it makes the shape of all rows."""
    limit = config.max_length
    if isinstance(config, DPOConfig | RewardModelConfig):
        answers = 2 if config.pair_layout == "shared" else 1  # in one row
        prompt = config.max_prompt_length or limit // 2
        answer = limit - prompt
        if config.row_length is not None and row_tokens is None:
            row_tokens = config.row_length
        if row_targets is not None:
            answer = row_targets // answers
        elif row_tokens is not None:
            answer = max(1, row_tokens * answer // (prompt + answers * answer))
        if row_tokens is not None:
            prompt = row_tokens - answers * answer
        example = _pair(prompt, answer)
    else:
        example = window(row_tokens or config.row_length or limit, row_targets)
    extras: dict[str, dict[str, Any]] = {"token": {}, "target": {}, "pair": {}, "sequence": {}}
    if isinstance(config, DPOConfig) and config.reference_log_probs == "cached":
        extras["target"]["reference_log_probs"] = np.zeros(example.count("target"), np.float32)
    if isinstance(config, RewardModelConfig) and config.margin:
        extras["pair"]["margin"] = np.zeros(example.count("pair"), np.float32)
    if isinstance(config, HindsightConfig):
        extras["target"]["negative"] = np.zeros(example.count("target"), bool)
        extras["sequence"]["draw"] = np.zeros(example.sequences, np.int32)
    if config.cache_trunk:
        extras["token"]["trunk"] = np.zeros((example.count("token"), model.width), jnp.dtype(config.dtype))
    return example.replace(**{f"{level}_extras": found for level, found in extras.items()})


def _pair(prompt: int, answer: int) -> Example:
    words = np.ones(answer, np.int32)
    return data.answers_example([1] * prompt, [words, words], pairs=np.array([[0, 1]], np.int32))


def window(tokens: int, targets: int | None = None) -> Example:
    """A sequence, its last ``targets`` tokens supervised."""
    targets = tokens - 1 if targets is None else targets
    words = np.ones(tokens, np.int32)
    supervised = np.arange(tokens) >= tokens - targets
    return data.answers_example([], [words], supervised=[supervised], branched=False)


def batch_of(example: Example, config: RunConfig, pieces: int) -> Batch:
    """A row of one example, padded to ``pieces`` equal ones."""
    return data.make_batches([example], batch_size=1, layout=config.pair_layout, pieces=pieces)[0]


def rollout_batch(prompt: int, response: int, pieces: int = 1) -> Batch:
    """A row that PPO trains on."""

    def numbers(dtype: Any = np.float32) -> np.ndarray:
        return np.zeros((1, response), dtype)

    return data.response_batch(
        [[1] * prompt],
        np.ones((1, response), np.int32),
        np.ones((1, response), bool),
        prompt_width=prompt,
        record_ids=[0],
        pieces=pieces,
        old_log_probs=numbers(),
        old_values=numbers(),
        reference_log_probs=numbers(),
        entropy=numbers(),
        sampler_log_probs=numbers(),
        scores=np.zeros(1, np.float32),
        finished=np.zeros(1, bool),
    )


def rows_of(batch: Batch, rows: int) -> Batch:
    """The shapes of a batch of so many rows like this one."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), batch)
