"""Every loss, once: how it is called, and an independent closed form of it in float64 numpy."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from jaxalign import losses

BETA = 0.3
rng = np.random.default_rng(7)


def surprise(x: Any) -> Any:
    """-log sigmoid(x)."""
    return np.logaddexp(0, -x)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def ratio_form(form: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """A closed form of (a, b), the chosen and the rejected log-ratio, as one of the four log-probabilities."""
    return lambda pc, pr, rc, rr: form(pc - rc, pr - rr)


@dataclass(frozen=True)
class Case:
    name: str
    loss: Callable[..., Any]
    closed_form: Callable[..., Any]
    inputs: Sequence[Any]
    check: dict[str, Any] = field(default_factory=dict)


def uniform(low: float, high: float, *shape: int) -> np.ndarray:
    return rng.uniform(low, high, size=shape)


PAIR = [uniform(-4, 4, 6) for _ in range(4)]
PAIR_SHIFTS = [(0, 1), (2, 3), (0, 2), (1, 3)]
RATIO_SHIFTS = [(0, 2), (1, 3)]


def pair(
    name: str, form: Callable[[Any, Any], Any], at_reference: float, shifts: Any = RATIO_SHIFTS, **kwargs: Any
) -> Case:
    """A loss of the four log-probabilities with these hyper-parameters."""
    loss = partial(getattr(losses, name), beta=BETA, **kwargs)
    label = "-".join([name, *kwargs])
    return Case(label, loss, ratio_form(form), PAIR, {"at_reference": at_reference, "shifts": shifts})


def exo_form(a: Any, b: Any, smoothing: float = 0.1) -> Any:
    p = sigmoid(BETA * (a - b))
    return p * np.log(p / (1 - smoothing)) + (1 - p) * np.log((1 - p) / smoothing)


def discopop_form(a: Any, b: Any) -> Any:
    h = BETA * (a - b)
    m = sigmoid(h / 0.05)
    return (1 - m) * surprise(h) + m * np.exp(-h)


def transport_form(first: Any, second: Any) -> Any:
    return surprise(BETA * (np.sort(first) - np.sort(second)))


def orpo_form(chosen: Any, rejected: Any) -> Any:
    odds = [np.exp(mean) / (1 - np.exp(mean)) for mean in (chosen, rejected)]
    return -chosen + 0.4 * np.log(1 + odds[1] / odds[0])


def kto_form(policy: Any, reference: Any, desirable: Any) -> Any:
    gain = BETA * (policy - reference - 0.5)
    return np.where(desirable, 1.5 * (1 - sigmoid(gain)), 0.7 * (1 - sigmoid(-gain)))


def plackett_luce_form(rewards: Any, mask: Any) -> Any:
    values = []
    for row, kept in zip(rewards, mask, strict=True):
        ranked = row[kept]
        values.append(sum(np.log(np.sum(np.exp(ranked[k:]))) - ranked[k] for k in range(len(ranked))))
    return np.asarray(values)


def k3_form(policy: Any, reference: Any) -> Any:
    return np.exp(reference - policy) - 1 + policy - reference


LN2 = math.log(2)
MEANS = [uniform(-3, -0.2, 6) for _ in range(2)]
REWARDS = [uniform(-3, 3, 6) for _ in range(2)]
TOKENS = [uniform(-6, -0.1, 4, 5)]
TOKEN_PAIR = [uniform(-3, -0.1, 4, 5) for _ in range(2)]
DESIRABLE = np.asarray([True, False, True, True, False, False])
RANKING_MASK = np.asarray([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 0]], bool)

CASES = [
    pair("dpo", lambda a, b: surprise(BETA * (a - b)), LN2, PAIR_SHIFTS),
    pair(
        "dpo",
        lambda a, b: 0.8 * surprise(BETA * (a - b)) + 0.2 * surprise(BETA * (b - a)),
        LN2,
        PAIR_SHIFTS,
        label_smoothing=0.2,
    ),
    pair("unweighted_dpo", lambda a, b: BETA * (b - a), 0.0, PAIR_SHIFTS),
    pair("ipo", lambda a, b: (a - b - 1 / (2 * BETA)) ** 2, 1 / (4 * BETA**2), PAIR_SHIFTS),
    pair("hinge", lambda a, b: np.maximum(0, 1 - BETA * (a - b)), 1.0, PAIR_SHIFTS),
    pair(
        "robust_dpo",
        lambda a, b: (0.8 * surprise(BETA * (a - b)) - 0.2 * surprise(BETA * (b - a))) / 0.6,
        LN2,
        PAIR_SHIFTS,
        label_smoothing=0.2,
    ),
    pair("sppo_hard", lambda a, b: (a - 0.5 / BETA) ** 2 + (b + 0.5 / BETA) ** 2, 0.5 / BETA**2),
    pair("nca", lambda a, b: surprise(BETA * a) + surprise(-BETA * a) / 2 + surprise(-BETA * b) / 2, 2 * LN2),
    pair("apo_zero", lambda a, b: 1 - sigmoid(BETA * a) + sigmoid(BETA * b), 1.0),
    pair("apo_down", lambda a, b: sigmoid(BETA * a) + 1 - sigmoid(BETA * (a - b)), 1.0),
    pair("exo", exo_form, LN2 * -1 - (math.log(0.9) + math.log(0.1)) / 2, PAIR_SHIFTS, label_smoothing=0.1),
    pair("discopop", discopop_form, LN2 / 2 + 0.5, PAIR_SHIFTS),
    pair(
        "bco",
        lambda a, b: surprise(BETA * a - 0.4) + surprise(0.4 - BETA * b),
        surprise(-0.4) + surprise(0.4),
        shift=0.4,
    ),
    Case(
        "aot",
        partial(losses.aot, beta=BETA),
        lambda pc, pr, rc, rr: transport_form(pc - pr, rc - rr),
        PAIR,
        {"coupled": True, "at_reference": LN2, "shifts": [(0, 1), (2, 3)]},
    ),
    Case(
        "aot_unpaired",
        partial(losses.aot_unpaired, beta=BETA),
        ratio_form(transport_form),
        PAIR,
        {"coupled": True, "at_reference": LN2, "shifts": RATIO_SHIFTS},
    ),
    Case(
        "kto",
        partial(losses.kto, beta=BETA, reference_kl=0.5, desirable_weight=1.5, undesirable_weight=0.7),
        kto_form,
        [*PAIR[:2], DESIRABLE],
        {"shifts": [(0, 1)]},
    ),
    Case("orpo", partial(losses.orpo, weight=0.4), orpo_form, MEANS),
    Case(
        "simpo",
        partial(losses.simpo, beta=2.0, margin=0.5),
        lambda chosen, rejected: surprise(2 * (chosen - rejected) - 0.5),
        MEANS,
        {"shifts": [(0, 1)], "at_reference": math.log(1 + math.exp(0.5))},
    ),
    Case(
        "implicit_reward",
        partial(losses.implicit_reward, beta=BETA),
        lambda policy, reference: BETA * (policy - reference),
        PAIR[:2],
        {"shifts": [(0, 1)], "at_reference": 0.0},
    ),
    Case(
        "bradley_terry",
        partial(losses.bradley_terry, margin=0.5),
        lambda chosen, rejected: surprise(chosen - rejected - 0.5),
        REWARDS,
        {"shifts": [(0, 1)], "at_reference": math.log(1 + math.exp(0.5))},
    ),
    Case("reward_centering", losses.reward_centering, lambda chosen, rejected: (chosen + rejected) ** 2, REWARDS),
    Case(
        "plackett_luce",
        losses.plackett_luce,
        plackett_luce_form,
        [uniform(-3, 3, 6, 4), RANKING_MASK],
        {"reduced_axes": 1, "mask": 1, "shifts": [(0,)]},
    ),
    Case("cross_entropy", losses.cross_entropy, lambda log_probs: -log_probs, TOKENS),
    Case("unlikelihood", losses.unlikelihood, lambda log_probs: -np.log(1 - np.exp(log_probs)), TOKENS),
    Case(
        "kl_estimate-k1",
        partial(losses.kl_estimate, estimator="k1"),
        lambda policy, reference: policy - reference,
        TOKEN_PAIR,
        {"shifts": [(0, 1)], "at_reference": 0.0},
    ),
    Case(
        "kl_estimate-k2",
        partial(losses.kl_estimate, estimator="k2"),
        lambda policy, reference: (policy - reference) ** 2 / 2,
        TOKEN_PAIR,
        {"shifts": [(0, 1)], "at_reference": 0.0},
    ),
    Case(
        "kl_estimate-k3",
        partial(losses.kl_estimate, estimator="k3"),
        k3_form,
        TOKEN_PAIR,
        {"shifts": [(0, 1)], "at_reference": 0.0},
    ),
    Case(
        "sequence_log_prob",
        losses.sequence_log_prob,
        lambda log_probs, mask: np.where(mask, log_probs, 0).sum(-1),
        [uniform(-5, 0, 6, 4), RANKING_MASK],
        {"reduced_axes": 1, "mask": 1},
    ),
    Case(
        "sequence_log_prob-average",
        partial(losses.sequence_log_prob, average=True),
        lambda log_probs, mask: np.where(mask, log_probs, 0).sum(-1) / np.maximum(mask.sum(-1), 1),
        [uniform(-5, 0, 6, 4), RANKING_MASK],
        {"reduced_axes": 1, "mask": 1},
    ),
    Case(
        "token_log_probs",
        losses.token_log_probs,
        lambda logits, targets: np.log(np.exp(logits)[np.arange(6), targets] / np.exp(logits).sum(-1)),
        [uniform(-3, 3, 6, 4), rng.integers(0, 4, 6)],
        {"reduced_axes": 1, "shifts": [(0,)]},
    ),
    Case("reverse_kl_ratio", losses.reverse_kl_ratio, lambda x: x, TOKENS),
    Case("forward_kl_ratio", losses.forward_kl_ratio, lambda x: -np.exp(-x), TOKENS),
    Case("jensen_shannon_ratio", losses.jensen_shannon_ratio, lambda x: -surprise(x), TOKENS),
    Case(
        "alpha_divergence_ratio",
        partial(losses.alpha_divergence_ratio, alpha=0.6),
        lambda x: -np.exp(-0.6 * x) / 0.6,
        TOKENS,
    ),
    Case(
        "divergence_ratio",
        partial(losses.divergence_ratio, divergence="alpha", alpha=0.3),
        lambda x: -np.exp(-0.3 * x) / 0.3,
        TOKENS,
    ),
]
