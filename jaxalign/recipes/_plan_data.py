"""The lengths of a run's rows as its data make them."""

import sys

from jaxalign import data
from jaxalign.errors import InputError
from jaxalign.recipes._config import FolderConfig, RunConfig
from jaxalign.recipes._plan_models import NAMED
from jaxalign.recipes._ppo_config import PPOFitConfig
from jaxalign.recipes._run import load_tokenizer

__all__ = ["lengths_of_data"]


def lengths_of_data(config: FolderConfig) -> tuple[int, int]:
    """(tokens, supervised positions) of a row, when the recipe itself has read and tokenised its records.

    Raises:
      InputError: what is wrong with the records, or a model known by its sizes alone, which has no tokenizer.
    """
    if config.model.lower() in NAMED:
        raise InputError(
            f"--dataset: lengths are those of --model's tokens, but {config.model} is known by its sizes alone; give a "
            "folder or a hub id, or --row-tokens instead of --dataset"
        )
    load = sys.modules[type(config).__module__].load
    found = load(config)(load_tokenizer(config.model))
    if isinstance(config, PPOFitConfig):
        prompt = max(len(prompt.tokens) for prompt in found)
        return prompt + config.max_new_tokens, config.max_new_tokens
    assert isinstance(config, RunConfig)
    # The step pads its rows to the pieces of its mesh, whose devices are not here.
    shape = data.make_batches(
        found.examples,
        batch_size=1,
        seed=config.seed,
        pack=config.packing,
        max_length=config.row_length,
        layout=config.pair_layout,
    ).plan.shape
    return shape.tokens, min(shape.targets, shape.tokens - 1)
