"""The settings of PPO: every choice that implementations make silently has a name here."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxalign.errors import InputError
from jaxalign.recipes._config import TrainConfig
from jaxalign.training import OptimizerConfig

__all__ = ["PPO_PRESETS", "PRESET_YIELDS", "PPOFitConfig"]

PPO_PRESETS: dict[str, dict[str, Any]] = {
    "summarisation": {
        "max_steps": 1953, "batch_size": 512, "max_new_tokens": 53, "temperature": 0.7, "kl_coefficient": 0.05,
        "score_at": "after_eos", "missing_eos_score": -1.0,
    },
}  # fmt: skip
"""Settings of published runs that differ from the defaults. "summarisation": a million episodes of TL;DR (Huang et al.
2024, arXiv 2403.17031, the implementation details of Stiennon et al. 2020): the score lands on the token after the EOS,
and a summary without one scores -1."""

PRESET_YIELDS = {"max_steps": "epochs", "missing_eos_score": "missing_eos_penalty"}
"""Settings of a preset that leave the field to another flag where that is given."""


@dataclass(frozen=True, kw_only=True)
class PPOFitConfig(TrainConfig):
    """A PPO run over prompts that are at hand.

    An update (a step of the run) is: a rollout of ``batch_size`` episodes with the current policy, their rewards, then
    ``ppo_epochs`` passes over them in ``minibatches`` optimizer steps each.
    """

    batch_size: int = 64
    """Episodes (sampled responses) of one rollout, over all devices."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=3e-6, schedule="linear", epsilon=1e-5, clip_norm=1.0)
    )
    """AdamW, linear to 0 over the run, epsilon 1e-5, global norm (of policy and critic together) clipped at 1."""

    max_new_tokens: int = 53
    """Most tokens of a response."""
    temperature: float = 1.0
    """Softmax temperature of sampling, and of every log-prob of policy and reference."""
    samples_per_prompt: int = 1
    """Responses to each prompt of a rollout; ``batch_size`` counts responses."""
    sampling_batch: int = 64
    """Responses decoded together."""

    save_every: int = 20
    """Checkpoint every N updates (and at the end, and on SIGTERM)."""
    ppo_epochs: int = 4
    """Passes over a rollout."""
    minibatches: int = 1
    """Optimizer steps of one pass; the rollout is shuffled anew for every pass."""
    clip: float = 0.2
    """The policy's probability ratio is clipped to [1 - clip, 1 + clip]."""
    dual_clip: float | None = None
    """Where the advantage is negative the objective is bounded below by this times the advantage (above 1, e.g. 3)."""
    value_clip: float | None = 0.2
    """The value may move this far from what it was at the rollout before its loss is clipped; None = no clipping."""
    value_coefficient: float = 0.1
    """Weight of the value loss, 0.5 max(unclipped^2, clipped^2)."""
    discount: float = 1.0
    """Discount of later rewards, a token."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation: 1 = returns minus values, 0 = one-step errors."""
    whiten_rewards: bool = False
    """Scale the shaped rewards to unit variance over the rollout (their mean stays)."""
    whiten_advantages: bool = True
    """Shift and scale advantages to mean 0 and variance 1 over the rollout's tokens."""

    kl_coefficient: float = 0.05
    """beta: every token's reward has -beta * KL estimate; with ``kl_target`` where it starts."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """With k1 = log pi - log ref: k1, k1^2 / 2 or exp(-k1) - 1 + k1."""
    kl_target: float | None = None
    """Adapt beta so that the KL of whole responses stays near this many nats; None = beta is fixed."""
    kl_horizon: float = 10_000.0
    """Episodes over which beta adapts: beta *= 1 + clip(KL / target - 1, -.2, .2) * batch_size / horizon."""
    stop_kl: float | None = None
    """Give up the rest of a rollout's optimizer steps once the policy's mean squared log-ratio / 2 to what it was at
    the rollout is above this (nats a token); None = never."""
    score_at: Literal["eos", "after_eos"] = "eos"
    """The token whose reward has the score: the response's last, or the one after it where it fits."""
    missing_eos_score: float | None = None
    """The score of a response that was cut by ``max_new_tokens``, whatever the reward says (-1 for summaries)."""
    missing_eos_penalty: float | None = None
    """What the score of such a response is lowered by."""
    critic: Literal["separate", "shared"] = "separate"
    """The value is a model of its own, or a linear head on the policy's hidden states."""
    overlap_rewards: bool = False
    """Sample the next rollout while a text reward rates this one: its policy is then one update old."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.keep_best_by or "").startswith("eval/"):
            raise InputError(
                f"--keep-best-by {self.keep_best_by}: PPO evaluates on nothing; name one of its own metrics"
            )
        none = math.inf
        for name, least, most in (
            ("max_new_tokens", 1, none), ("samples_per_prompt", 1, none), ("sampling_batch", 1, none),
            ("ppo_epochs", 1, none), ("minibatches", 1, none), ("value_coefficient", 0, none), ("discount", 0, 1),
            ("gae_lambda", 0, 1), ("kl_coefficient", 0, none),
        ):  # fmt: skip
            value = getattr(self, name)
            if not least <= value <= most:
                limits = f"at least {least}" if most == none else f"between {least} and {most}"
                raise InputError(f"--{name.replace('_', '-')}: must be {limits}, is {value}")
        for name, above in (
            ("temperature", 0), ("clip", 0), ("dual_clip", 1), ("value_clip", 0), ("kl_target", 0), ("kl_horizon", 0),
            ("stop_kl", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not above < value < none:
                raise InputError(f"--{name.replace('_', '-')}: must be above {above}, is {value}")
        if self.batch_size % self.samples_per_prompt:
            raise InputError(
                f"--samples-per-prompt: {self.samples_per_prompt} does not divide --batch-size {self.batch_size}"
            )
        if self.batch_size % (self.minibatches * self.accumulation):
            raise InputError(
                f"--minibatches: {self.minibatches} x --accumulation {self.accumulation} does not divide "
                f"--batch-size {self.batch_size}"
            )
        score, penalty = self.missing_eos_score, self.missing_eos_penalty
        if score is not None and not math.isfinite(score):
            raise InputError(f"--missing-eos-score: must be finite, is {score}")
        if penalty is not None and not 0 <= penalty < none:
            raise InputError(f"--missing-eos-penalty: must be at least 0, is {penalty}: it is taken off the score")
        if self.missing_eos_score is not None and self.missing_eos_penalty is not None:
            raise InputError("--missing-eos-penalty: --missing-eos-score replaces the score; give one of the two")
        if self.kl_target is not None and not self.kl_coefficient:
            raise InputError("--kl-coefficient: 0 stays 0, whatever --kl-target says; start above 0")
        if self.kl_target is None and self.kl_horizon != 10_000.0:
            raise InputError("--kl-horizon: beta does not adapt without --kl-target")
        if self.lora_dropout:
            raise InputError("--lora-dropout: PPO's ratio compares a policy with itself; it must be 0")

    @property
    def parts(self) -> int:
        """Pieces a rollout is computed in, each as large as a micro-batch of an optimizer step."""
        return self.minibatches * self.accumulation

    @property
    def prompts_per_rollout(self) -> int:
        return self.batch_size // self.samples_per_prompt
