"""What a run minimised, in the words of its loss: the docstrings of ``jaxalign.losses`` are the only place they are."""

import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxalign import losses

__all__ = ["Method", "further_terms", "methods_of"]

PREFERENCE: dict[str, Callable[..., Any]] = {
    "sigmoid": losses.dpo, "robust": losses.robust_dpo, "unweighted": losses.unweighted_dpo,
    "preferred_ft": losses.cross_entropy,
    **{name: getattr(losses, name) for name in (
        "ipo", "hinge", "exo", "sppo_hard", "nca", "apo_zero", "apo_down", "discopop", "bco", "aot", "aot_unpaired",
        "kto", "simpo", "orpo", "unlikelihood",
    )},
}  # fmt: skip
"""The loss of each name of ``jaxalign dpo --loss``."""


@dataclass(frozen=True)
class Method:
    """A loss as its docstring says it."""

    name: str
    summary: str
    equation: str
    source: str
    """Who published it, with the arXiv number and the equation's; empty where nobody did."""


def methods_of(recipe: str, config: Any) -> list[Method]:
    """The losses of a run; ``recipe`` is its command, ``config`` its config."""
    if recipe == "dpo":
        return [_method(name, PREFERENCE[name]) for name in config.loss]
    if recipe == "reward":
        return [_method(config.reward_loss, getattr(losses, config.reward_loss))]
    if recipe == "ppo":
        return [_method("ppo", losses.ppo_policy)]
    if recipe == "hindsight":
        own = [_method("chain_of_hindsight", losses.chain_of_hindsight)]
        return own if config.unlikelihood_weight is None else [*own, _method("unlikelihood", losses.unlikelihood)]
    return [_method("cross_entropy", losses.cross_entropy)]


def further_terms(recipe: str, config: Any) -> list[str]:
    """What was minimised beside the losses of ``methods_of``: a sentence for every term that is not 0."""
    found = []
    if recipe == "reward" and config.centering:
        found.append(f"Added to it, times {config.centering:g}: {_method('', losses.reward_centering).summary}")
    if recipe == "ppo" and config.value_coefficient:
        clipped = "" if config.value_clip is None else ", the worse of clipped and unclipped"
        found.append(
            f"Added to it, times {config.value_coefficient:g}: 0.5 (V - return)^2, the critic's loss{clipped}."
        )
    if recipe == "ppo" and config.kl_coefficient:
        adapted = "" if config.kl_target is None else f" (at first; adapted to a KL of {config.kl_target:g} nats)"
        found.append(
            f"The reward of every token is less {config.kl_coefficient:g}{adapted} times the {config.kl_estimator} "
            "estimate of its KL divergence from the reference model."
        )
    if recipe == "hindsight" and config.pretraining_dataset is not None and config.pretraining_coefficient:
        summary = _method("", losses.cross_entropy).summary
        found.append(f"Added to it, times {config.pretraining_coefficient:g}, of the pretraining text: {summary}")
    return found


def _method(name: str, loss: Callable[..., Any]) -> Method:
    text = inspect.getdoc(loss) or name  # python -OO has no docstrings
    text = text.split("\nArgs:", 1)[0]
    equation = re.search(r"\n\n((?: {4}.*\n?)+)", text)
    source = re.search(r"\(([^()]*arXiv[^()]*)\)", text)
    return Method(
        name=name,
        summary=re.sub(r":\w+:`(\w+)`", r"\1", " ".join(text.split("\n\n", 1)[0].split())),
        equation=textwrap.dedent(equation[1]).rstrip() if equation else "",
        source=" ".join(source[1].split()).rstrip(".") if source else "",
    )
