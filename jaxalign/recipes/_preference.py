"""Every preference loss by name: what it reads, which options it takes, and how it becomes terms of a train step."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxalign import losses
from jaxalign.data import Batch
from jaxalign.errors import InputError, did_you_mean
from jaxalign.recipes._scores import PairScores
from jaxalign.training import Terms

__all__ = ["LOSSES", "LossName", "PreferenceObjective", "preference_terms"]

LossName = Literal[
    "sigmoid", "ipo", "hinge", "robust", "exo", "sppo_hard", "nca", "apo_zero", "apo_down", "discopop", "bco", "aot",
    "aot_unpaired", "kto", "simpo", "orpo", "unweighted", "preferred_ft", "unlikelihood",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PreferenceObjective:
    """What is minimised over preference pairs: one loss or a weighted mix, and the options of each."""

    loss: tuple[LossName, ...] = ("sigmoid",)
    """One or more losses by name; their values are added with ``loss_weights``."""
    loss_weights: tuple[float, ...] = ()
    """One coefficient a loss; empty means 1 each."""
    beta: float = 0.1
    """Strength of the pull towards the reference (DPO equation 7); every loss reads it in its own paper's sense."""
    label_smoothing: float = 0.0
    """Assumed share of flipped labels, in [0, 0.5). sigmoid (cDPO), robust, exo (0 is 0.001 there)."""
    average_log_probs: bool = False
    """Average log-probabilities over an answer's tokens instead of summing: TRL's ipo; simpo and orpo always do."""
    divergence: Literal["reverse_kl", "forward_kl", "jensen_shannon", "alpha"] = "reverse_kl"
    """The f-divergence whose log-ratio the loss sees. sigmoid, ipo, hinge, robust, exo, discopop."""
    divergence_alpha: float = 0.5
    """Alpha of ``divergence="alpha"``."""
    length_desensitised: float | None = None
    """LD-DPO: weight in [0, 1] of the tokens past the shorter answer's length; None switches it off."""
    policy_weighting: bool = False
    """WPO: weight each pair by the policy's own probability of it, exp of the mean token log-prob of both answers."""
    simpo_margin: float = 0.5
    """simpo: the target margin gamma."""
    orpo_weight: float = 0.1
    """orpo: lambda, the weight of the odds-ratio term beside the mean likelihood of the chosen answer."""
    discopop_temperature: float = 0.05
    """discopop: tau of the blend."""
    desirable_weight: float = 1.0
    """kto: weight of chosen answers."""
    undesirable_weight: float = 1.0
    """kto: weight of rejected answers."""
    unlikelihood_weight: float = 1.0
    """unlikelihood: alpha in [0, 1], weight of -log(1 - pi) of the rejected tokens."""
    temperature: float = 1.0
    """Softmax temperature at which both models are scored: that of the samples, where they are sampled at another."""

    def __post_init__(self) -> None:
        if not self.loss:
            raise InputError("--loss: name at least one")
        for name in self.loss:
            if name not in LOSSES:
                raise InputError(f"--loss: {name!r} is unknown; {did_you_mean(name, LOSSES, what='the losses are')}")
        if self.loss_weights and len(self.loss_weights) != len(self.loss):
            raise InputError(f"--loss-weights: {len(self.loss_weights)} weights for {len(self.loss)} losses")
        defaults = {item.name: item.default for item in fields(PreferenceObjective)}
        taken = set().union(*(LOSSES[name].options for name in self.loss))
        if self.divergence != "alpha":
            taken.discard("divergence_alpha")
        for option in sorted(OPTIONS - taken):
            if getattr(self, option) != defaults[option]:
                why = f"loss {' + '.join(self.loss)}"
                if option == "divergence_alpha" and any(option in LOSSES[name].options for name in self.loss):
                    why = f"--divergence {self.divergence}"
                raise InputError(f"{_flag(option)}: not read by {why}; leave it out")
        for option, valid, allowed in (
            ("beta", self.beta > 0, "above 0"),
            ("temperature", self.temperature > 0, "above 0"),
            ("discopop_temperature", self.discopop_temperature > 0, "above 0"),
            ("label_smoothing", 0 <= self.label_smoothing < 0.5, "in [0, 0.5)"),
            ("divergence_alpha", self.divergence_alpha != 0, "other than 0"),
            ("unlikelihood_weight", 0 <= self.unlikelihood_weight <= 1, "in [0, 1]"),
            ("length_desensitised", 0 <= (self.length_desensitised or 0) <= 1, "in [0, 1]"),
            ("orpo_weight", self.orpo_weight >= 0, "at least 0"),
            ("desirable_weight", self.desirable_weight >= 0, "at least 0"),
            ("undesirable_weight", self.undesirable_weight >= 0, "at least 0"),
        ):
            if not valid:
                raise InputError(f"{_flag(option)}: must be {allowed}, is {getattr(self, option)}")

    @property
    def coefficients(self) -> tuple[float, ...]:
        """One coefficient a loss."""
        return self.loss_weights or (1.0,) * len(self.loss)

    @property
    def needs_reference(self) -> bool:
        """Whether any of the losses reads the reference model."""
        return any(LOSSES[name].needs_reference for name in self.loss)

    @property
    def couples_pairs(self) -> bool:
        """Whether a pair's loss depends on the other pairs of the batch, so that micro-batches would change it."""
        return any(LOSSES[name].couples_pairs for name in self.loss)


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


PairLoss = Callable[[PairScores, PreferenceObjective, dict[str, Any]], jax.Array]


@dataclass(frozen=True)
class _Loss:
    """A named loss: per pair (``pair``), or per token of the chosen and rejected answers (``pair`` is None)."""

    pair: PairLoss | None
    options: frozenset[str] = field(default_factory=frozenset)
    needs_reference: bool = True
    couples_pairs: bool = False


def _divergent(scores: PairScores, objective: PreferenceObjective) -> tuple[jax.Array, ...]:
    """The four arrays a loss takes, seen through the chosen f-divergence (its transform stands for log pi/ref)."""
    if objective.divergence == "reverse_kl":
        return scores.four
    chosen, rejected = (
        losses.divergence_ratio(ratio, divergence=objective.divergence, alpha=objective.divergence_alpha)
        for ratio in (scores.chosen_log_ratio, scores.rejected_log_ratio)
    )
    return chosen, rejected, jnp.zeros_like(chosen), jnp.zeros_like(rejected)


def _ipo(scores: PairScores, objective: PreferenceObjective, extra: dict[str, Any]) -> jax.Array:
    seen = scores.averaged() if objective.average_log_probs else scores
    return losses.ipo(*_divergent(seen, objective), beta=objective.beta)


def _kto(scores: PairScores, objective: PreferenceObjective, extra: dict[str, Any]) -> jax.Array:
    # The paper's reference point is the mean log-ratio of mismatched prompts and answers; a batch of pairs holds
    # none, so its own answers stand in, as in the method's paired form. It is a statistic of the whole batch.
    reference_kl = losses.kto_reference_kl(
        jnp.stack([scores.policy_chosen, scores.policy_rejected]),
        jnp.stack([scores.reference_chosen, scores.reference_rejected]),
        jnp.stack([scores.mask, scores.mask]),
    )

    def side(policy: jax.Array, reference: jax.Array, desirable: bool) -> jax.Array:
        return losses.kto(
            policy,
            reference,
            jnp.full(policy.shape, desirable),
            beta=objective.beta,
            reference_kl=reference_kl,
            desirable_weight=objective.desirable_weight,
            undesirable_weight=objective.undesirable_weight,
        )

    return side(scores.policy_chosen, scores.reference_chosen, True) + side(
        scores.policy_rejected, scores.reference_rejected, False
    )


def _sorted(loss: Callable[..., jax.Array]) -> PairLoss:
    """A loss that sorts the whole batch: its i-th value is handed to the i-th pair that is there."""

    def pair(scores: PairScores, objective: PreferenceObjective, extra: dict[str, Any]) -> jax.Array:
        mask = scores.mask.reshape(-1)
        values = loss(*(side.reshape(-1) for side in scores.four), beta=objective.beta, mask=mask)
        return values[jnp.maximum(jnp.cumsum(mask) - 1, 0)].reshape(scores.mask.shape)

    return pair


def _plain(loss: Callable[..., jax.Array], *, divergent: bool = False, **names: str) -> PairLoss:
    """A loss of the four arrays and beta, seen through the f-divergence where ``divergent``; ``names`` maps its further
    keywords to options."""

    def pair(scores: PairScores, objective: PreferenceObjective, extra: dict[str, Any]) -> jax.Array:
        options = {keyword: getattr(objective, option) for keyword, option in names.items()}
        four = _divergent(scores, objective) if divergent else scores.four
        return loss(*four, beta=objective.beta, **options)

    return pair


def _exo(scores: PairScores, objective: PreferenceObjective, extra: dict[str, Any]) -> jax.Array:
    # The loss takes log(label_smoothing): without any it would be infinite (its authors take 0.001).
    return losses.exo(
        *_divergent(scores, objective), beta=objective.beta, label_smoothing=objective.label_smoothing or 1e-3
    )


def _bco(scores: PairScores, objective: PreferenceObjective, extra: dict[str, Any]) -> jax.Array:
    return losses.bco(*scores.four, beta=objective.beta, shift=_reward_shift(extra))


def _reward_shift(extra: dict[str, Any]) -> jax.Array:
    """Mean implicit reward of all answers of the steps before this one (0 at the first)."""
    total, count = extra["reward_moments"]
    return total / jnp.maximum(count, 1)


def _simpo(scores: PairScores, objective: PreferenceObjective, extra: dict[str, Any]) -> jax.Array:
    means = scores.averaged()
    return losses.simpo(means.policy_chosen, means.policy_rejected, beta=objective.beta, margin=objective.simpo_margin)


def _orpo(scores: PairScores, objective: PreferenceObjective, extra: dict[str, Any]) -> jax.Array:
    means = scores.averaged()
    return losses.orpo(means.policy_chosen, means.policy_rejected, weight=objective.orpo_weight)


_SHAPE = frozenset({"beta", "length_desensitised", "policy_weighting"})
_DIVERGENCE = _SHAPE | {"divergence", "divergence_alpha"}

LOSSES: dict[str, _Loss] = {
    "sigmoid": _Loss(
        _plain(losses.dpo, divergent=True, label_smoothing="label_smoothing"), _DIVERGENCE | {"label_smoothing"}
    ),
    "ipo": _Loss(_ipo, _DIVERGENCE | {"average_log_probs"}),
    "hinge": _Loss(_plain(losses.hinge, divergent=True), _DIVERGENCE),
    "robust": _Loss(
        _plain(losses.robust_dpo, divergent=True, label_smoothing="label_smoothing"), _DIVERGENCE | {"label_smoothing"}
    ),
    "exo": _Loss(_exo, _DIVERGENCE | {"label_smoothing"}),
    "discopop": _Loss(
        _plain(losses.discopop, divergent=True, temperature="discopop_temperature"),
        _DIVERGENCE | {"discopop_temperature"},
    ),
    "sppo_hard": _Loss(_plain(losses.sppo_hard), _SHAPE),
    "nca": _Loss(_plain(losses.nca), _SHAPE),
    "apo_zero": _Loss(_plain(losses.apo_zero), _SHAPE),
    "apo_down": _Loss(_plain(losses.apo_down), _SHAPE),
    # The shift is a mean of whole answers' rewards.
    "bco": _Loss(_bco, _SHAPE - {"length_desensitised"}),
    "aot": _Loss(_sorted(losses.aot), _SHAPE - {"policy_weighting"}, couples_pairs=True),
    "aot_unpaired": _Loss(_sorted(losses.aot_unpaired), _SHAPE - {"policy_weighting"}, couples_pairs=True),
    "kto": _Loss(_kto, _SHAPE | {"desirable_weight", "undesirable_weight"}, couples_pairs=True),
    "unweighted": _Loss(_plain(losses.unweighted_dpo), _SHAPE),
    "simpo": _Loss(_simpo, frozenset({"beta", "simpo_margin"}), needs_reference=False),
    "orpo": _Loss(_orpo, frozenset({"orpo_weight"}), needs_reference=False),
    "preferred_ft": _Loss(None, needs_reference=False),
    "unlikelihood": _Loss(None, frozenset({"unlikelihood_weight"}), needs_reference=False),
}
# Every option that only some losses read.
OPTIONS = frozenset().union(*(loss.options for loss in LOSSES.values()))


def _token_terms(
    name: str, policy: jax.Array, batch: Batch, objective: PreferenceObjective, coefficient: float
) -> Terms:
    """Likelihood of the chosen answers, and for "unlikelihood" 1 - likelihood of the rejected ones, a token.

    An answer that stands in several pairs counts once a pair, as it would if each pair were a row of its own.
    """
    slots = jnp.arange(batch.sequence_mask.shape[-1])

    def tokens_of(side: int) -> jax.Array:
        chosen = (batch.pairs[..., side, None] == slots) & batch.pair_mask[..., None]
        times = chosen.sum(axis=1).astype(policy.dtype)  # [B, Q]
        times = times[:, None] if policy.ndim == 3 else times
        weights = jnp.take_along_axis(
            jnp.broadcast_to(times, (*policy.shape[:-1], slots.size)), batch.target_sequence, -1
        )
        return jnp.where(batch.target_mask, weights, 0.0)

    chosen = tokens_of(0)
    terms = {"preferred": (jnp.sum(chosen * losses.cross_entropy(policy)), jnp.sum(chosen), coefficient)}
    if name == "unlikelihood" and objective.unlikelihood_weight:
        rejected = tokens_of(1)
        # Where a token is not rejected its log-prob is replaced first: log(1 - p) has no finite slope at p = 1.
        log_probs = jnp.where(rejected > 0, policy, -1.0)
        value = jnp.sum(rejected * losses.unlikelihood(log_probs))
        terms["unlikelihood"] = (value, jnp.sum(rejected), coefficient * objective.unlikelihood_weight)
    return terms


def preference_terms(
    scores: PairScores,
    policy: jax.Array,
    batch: Batch,
    objective: PreferenceObjective,
    extra: dict[str, Any],
    *,
    desensitised: PairScores | None = None,
) -> Terms:
    """The terms of a train step, ``{name: (sum, weight, coefficient)}``: pair losses weigh by pairs, token losses by
    tokens, so that a mix is each loss's own mean, times its coefficient.

    Args:
      scores: the pairs' scores, every token counted.
      policy: ``[B, S]`` (or ``[B, R, S]``) log-probabilities of the targets under the policy.
      batch: where they come from.
      objective: the losses and their options.
      extra: the train state's ``extra``; "bco" reads ``extra["reward_moments"]``, (sum, count) of implicit rewards.
      desensitised: the scores that LD-DPO makes, for the losses that take that option; None = ``scores``.
    """
    terms: Terms = {}
    count = jnp.sum(scores.mask).astype(policy.dtype)
    for name, coefficient in zip(objective.loss, objective.coefficients, strict=True):
        loss = LOSSES[name]
        if loss.pair is None:
            own = _token_terms(name, policy, batch, objective, coefficient)
        else:
            seen = desensitised if desensitised is not None and "length_desensitised" in loss.options else scores
            values = loss.pair(seen, objective, extra)
            if objective.policy_weighting and "policy_weighting" in loss.options:
                means = scores.averaged()
                values = values * losses.wpo_weights(means.policy_chosen, means.policy_rejected)
            own = {name: (jnp.sum(jnp.where(scores.mask, values, 0.0)), count, coefficient)}
        for term, value in own.items():
            key = term if term not in terms else f"{name}_{term}"
            terms[key] = value
    return terms
