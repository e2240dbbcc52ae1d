"""Direct preference optimisation and its relatives: train on pairs, without a reward model and without sampling.

    L = -log sigmoid(beta * (log pi/ref(y_w | x) - log pi/ref(y_l | x)))                       (DPO, equation 7)

Records: ``prompt`` + ``chosen`` + ``rejected`` (or both answers with the prompt in front), or ``prompt`` +
``responses`` + ``ratings``, of which every ordered pair is used and every answer computed once. ``loss`` names the
variant; "preferred_ft" and "unlikelihood" are the paper's baselines through the same machinery.
A record's ``margin`` is for reward models; no loss here reads it.
"""

from dataclasses import dataclass, field, fields
from typing import Literal

from jaxalign import data
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig
from jaxalign.recipes._config import RunConfig
from jaxalign.recipes._objective import Objective
from jaxalign.recipes._pairs import preference_objective
from jaxalign.recipes._preference import PreferenceObjective
from jaxalign.recipes._run import Tokenise, read_examples, run_recipe
from jaxalign.training import OptimizerConfig

__all__ = ["DPOConfig", "load", "run"]


@dataclass(frozen=True, kw_only=True)
class DPOConfig(PreferenceObjective, RunConfig):
    """Train on preference pairs."""

    reference: str | None = None
    """Folder or hub id of the reference model; None = the model that training starts from."""
    reference_log_probs: Literal["in_step", "cached"] = "in_step"
    """Score with the reference in every step, or once before training (kept in ``output_dir/cache``): same numbers."""
    reference_update_every: int = 0
    """TR-DPO: move the reference towards the policy every N steps; 0 = never."""
    reference_update_rate: float = 0.6
    """TR-DPO: how far it moves, in (0, 1]; 1 makes it the policy."""
    batch_size: int = 64
    """Rows in one update (all devices together): a pair (or all answers to one prompt) a row, or several packed."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            optimizer="rmsprop", learning_rate=1e-6, warmup_steps=150, clip_norm=10.0
        )
    )
    """The DPO paper's: RMSprop, linear warm-up over 150 steps, then constant."""

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        PreferenceObjective.__post_init__(self)
        if self.reference_update_every < 0:
            raise InputError(f"--reference-update-every: must be at least 0, is {self.reference_update_every}")
        if not 0 < self.reference_update_rate <= 1:
            raise InputError(f"--reference-update-rate: must be in (0, 1], is {self.reference_update_rate}")
        if self.reference_update_every and not self.needs_reference:
            raise InputError(f"--reference-update-every: loss {' + '.join(self.loss)} reads no reference")
        default_rate = {item.name: item.default for item in fields(DPOConfig)}["reference_update_rate"]
        if self.reference_update_rate != default_rate and not self.reference_update_every:
            raise InputError("--reference-update-rate: the reference does not move without --reference-update-every")
        if self.reference is not None and self.shares_reference:
            raise InputError(
                f"--reference: with {self.shares_reference} the reference shares what does not train; leave it out"
            )
        if self.reference_update_every and self.lora_rank and self.reference_update_rate != 1:
            raise InputError(
                "--reference-update-rate: with --lora-rank it must be 1: the mean of two adapters' factors is not the "
                "mean of the adapters"
            )
        if self.couples_pairs and self.accumulation > 1:
            raise InputError(
                f"--accumulation: loss {' + '.join(self.loss)} couples the pairs of a batch; it needs "
                "them all at once (1)"
            )
        if self.reference is not None and not self.needs_reference:
            raise InputError(f"--reference: loss {' + '.join(self.loss)} reads no reference")
        if self.reference_log_probs == "cached":
            if not self.needs_reference:
                raise InputError(f"--reference-log-probs cached: loss {' + '.join(self.loss)} reads no reference")
            if self.reference_update_every:
                raise InputError("--reference-log-probs cached: a reference that moves cannot be cached")


def load(config: DPOConfig) -> Tokenise:
    """Read the records; the result makes examples of them. Raises ``InputError``."""
    return read_examples(
        config,
        lambda records, tokenizer: data.build_examples(
            records, tokenizer, kind=None, truncation=config.truncation, on_bad_row=config.on_bad_row
        ),
        require_pairs=True,
    )


def make_objective(model_config: ModelConfig, config: DPOConfig) -> Objective:
    """The run's method, for the model as it is divided."""
    return preference_objective(
        model_config,
        config,
        reference_update_every=config.reference_update_every,
        reference_update_rate=config.reference_update_rate,
    )


def run(config: DPOConfig) -> None:
    """Load, tokenise, train, write ``output_dir/final``. Raises ``InputError`` for what is wrong with the input."""
    run_recipe(
        config,
        lambda: load(config),
        lambda model_config: make_objective(model_config, config),
        title="dpo",
        reference=config.reference,
        cache_reference=config.reference_log_probs == "cached",
    )
