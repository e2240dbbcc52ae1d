"""Reward models: a language model's trunk with one score, and the moments that set its rewards' zero and scale."""

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxalign.errors import InputError
from jaxalign.models._config import ModelConfig
from jaxalign.models._decoder import Params
from jaxalign.models._hub import local_folder
from jaxalign.models._load import load_pretrained
from jaxalign.models._save import save_pretrained
from jaxalign.sharding import RULES, Rules

MOMENTS = "reward.json"


@dataclass(frozen=True)
class RewardModel:
    """A model with one score, and its normalisation: reward = (score - mean) / std."""

    config: ModelConfig
    """``labels`` is 1."""
    params: Params
    mean: float = 0.0
    """Mean score of demonstrations, so that their mean reward is 0."""
    std: float = 1.0
    """1, or the standard deviation of the demonstrations' scores."""

    def __post_init__(self) -> None:
        if self.config.labels != 1:
            raise InputError(f"a reward model has one score, this model has {self.config.labels} labels")
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise InputError(f"a reward model's mean and std must be finite and std above 0: {self.mean}, {self.std}")


def add_score_head(
    config: ModelConfig, params: Params, key: jax.Array, *, labels: int = 1
) -> tuple[ModelConfig, Params]:
    """The model with a new score head in place of its unembedding; every other leaf is the same array.

    The head is a matrix ``[labels, E]`` without bias, drawn from N(0, 1 / (E + 1)), float32 (Stiennon et al. 2020,
    arXiv 2009.01325, appendix B.1).

    Args:
        config, params: a language model, such as one fine-tuned on demonstrations.
        key: a PRNG key.
        labels: scores a text.

    Raises:
        InputError: the model has a score head already, or fewer than one label is asked for.
    """
    if config.labels:
        raise InputError(f"the model has a score head with {config.labels} labels already")
    if labels < 1:
        raise InputError(f"labels must be at least 1, is {labels}")
    kernel = jax.random.normal(key, (labels, config.hidden_width), jnp.float32) / math.sqrt(config.hidden_width + 1)
    kept = {name: subtree for name, subtree in params.items() if name != "unembed"}
    return config.replace(labels=labels), {**kept, "score": {"kernel": kernel}}


def save_reward_model(folder: str | Path, model: RewardModel, tokenizer: Any = None, **about: Any) -> None:
    """Write a ``...ForSequenceClassification`` folder, and the normalisation beside it in ``reward.json``.

    Hugging Face's ``score`` has no bias, so the folder's own scores are unnormalised: reward = (score - mean) / std.
    Its classes read the score at the last token that is not padding, which must be the EOS: where the tokenizer pads
    with its EOS, or not at all, the folder (not the tokenizer given) pads with another of its tokens.

    Args:
        folder: made if it does not exist.
        model: the reward model.
        tokenizer: as in ``save_pretrained``.
        about: further entries of ``reward.json``, such as what the moments were measured on.
    """
    config, tokenizer = _with_padding(model.config, tokenizer)
    save_pretrained(folder, config, model.params, tokenizer)
    if jax.process_index() == 0:
        content = {"mean": model.mean, "std": model.std, **about, "reward": "(score - mean) / std"}
        (Path(folder) / MOMENTS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_reward_model(
    folder_or_hub_id: str | Path, *, dtype: Any = None, mesh: Mesh | None = None, rules: Rules = RULES
) -> RewardModel:
    """Read a decoder's ``...ForSequenceClassification`` folder with one label, and its ``reward.json`` if it has one.

    Raises:
        InputError: as ``load_pretrained`` does; a language model, several labels, or a ``reward.json`` without finite
            ``mean`` and positive ``std``.
    """
    folder = local_folder(folder_or_hub_id)
    config, params = load_pretrained(folder, dtype=dtype, mesh=mesh, rules=rules)
    if config.labels != 1:
        kind = f"a classifier with {config.labels} labels" if config.labels else "a language model"
        raise InputError(f"{folder_or_hub_id}: {kind}, not a reward model: that has one label")
    path = folder / MOMENTS
    if not path.is_file():
        return RewardModel(config, params)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return RewardModel(config, params, float(content["mean"]), float(content["std"]))
    except (ValueError, TypeError, KeyError, InputError) as error:
        raise InputError(f"{path}: needs numbers 'mean' and 'std', std above 0 ({error})") from None


def _with_padding(config: ModelConfig, tokenizer: Any) -> tuple[ModelConfig, Any]:
    """A config and tokenizer whose padding token is not the EOS."""
    if tokenizer is None:
        return config, None
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if pad is None or pad == eos:
        tokenizer = copy.deepcopy(tokenizer)
        known = (tokenizer.unk_token_id, tokenizer.bos_token_id, 0, 1)
        pad = next(token for token in known if token is not None and token != eos)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    extra = {**dict(config.extra), "pad_token_id": pad}
    return config.replace(extra=tuple(extra.items())), tokenizer
