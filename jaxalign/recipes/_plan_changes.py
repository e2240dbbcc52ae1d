"""Changes to a run that make it smaller, from what costs least to what costs most."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from jaxalign.errors import InputError
from jaxalign.recipes._config import TrainConfig
from jaxalign.recipes._ppo_config import PPOFitConfig

__all__ = ["apply_changes", "changes_of", "faster", "flags_of", "growing", "without_needless"]

Change = dict[str, Any]
"""Field of the config -> value; ``state_dtype`` is the optimizer's."""


def changes_of(config: TrainConfig, *, mesh: Mapping[str, int], has_frozen: bool, model_dtype: str) -> list[Change]:
    """Single changes that this run could make, cheapest first; those that its own checks refuse are left out.

    1-2 remat dots, then full       time of a second forward pass, the same numbers
    3   accumulation                smaller products, the same numbers
        sampling_batch              PPO's: fewer rows decoded together, the same samples but for rounding
    4   fsdp over every device      the same numbers
    5   cached reference            the same numbers, needs a pass over the data first
    6   dtype bfloat16              coarser activations
    7   frozen_dtype bfloat16       changes nothing where dtype is bfloat16
    8   tensor axis                 the same numbers, more network
    9   state_dtype bfloat16        moments rounded stochastically
    10  parameter_dtype bfloat16    master weights rounded stochastically
    11  lora_rank 16                another method

    Args:
      config: the run.
      mesh: its axes.
      has_frozen: whether it holds parameters that do not train, a reference's included.
      model_dtype: of the files.
    """
    found: list[Change] = []
    remats = ("none", "dots", "full")
    found += [{"remat": remat} for remat in remats[remats.index(config.remat) + 1 :]]
    shards = mesh.get("data", 1) * mesh.get("fsdp", 1)
    most = config.batch_size // shards // getattr(config, "minibatches", 1)
    if most > config.accumulation:
        found.append({"accumulation": most})
    if isinstance(config, PPOFitConfig) and min(config.sampling_batch, config.batch_size) > shards:
        found.append({"sampling_batch": shards})  # a row a device
    if mesh.get("data", 1) > 1:
        found.append({"mesh": _mesh(mesh, data=1, fsdp=shards)})
    if getattr(config, "reference_log_probs", None) == "in_step":
        found.append({"reference_log_probs": "cached"})
    if config.dtype == "float32":
        found.append({"dtype": "bfloat16"})
    if config.frozen_dtype is None and has_frozen and model_dtype != "bfloat16":
        found.append({"dtype": "bfloat16", "frozen_dtype": "bfloat16"})
    ways = min(8, shards)
    if mesh.get("tensor", 1) == 1 and ways > 1 and shards % ways == 0:
        found.append({"mesh": _mesh(mesh, data=1, fsdp=shards // ways, tensor=ways)})
    if config.optimizer.state_dtype == "float32":
        found.append({"state_dtype": "bfloat16"})
    if config.parameter_dtype == "float32":
        found.append({"parameter_dtype": "bfloat16"})
    if not config.lora_rank:
        found.append({"lora_rank": 16})
    return [change for change in found if _allowed(config, change)]


def apply_changes(config: TrainConfig, change: Change) -> Any:
    """The config with the change. Raises ``InputError`` where its own checks refuse it."""
    change = dict(change)
    state_dtype = change.pop("state_dtype", None)
    if state_dtype is not None:
        change["optimizer"] = dataclasses.replace(config.optimizer, state_dtype=state_dtype)
    return dataclasses.replace(config, **change)


def without_needless(change: Change, fits: Callable[[Change], bool], *, keep: Collection[str] = ()) -> Change:
    """The change without what turns out not to be needed, the dearest first; ``keep`` names what stays."""
    for name in reversed(list(change)):
        fewer = {key: value for key, value in change.items() if key != name}
        if name not in keep and fewer and fits(fewer):
            change = fewer
    return change


def faster(config: TrainConfig, change: Change, fits: Callable[[Change], bool]) -> Change:
    """The change with the smallest accumulation and the largest sampling batch that still fit: fewer and larger
    products are faster."""
    while change.get("accumulation", 0) % 2 == 0 and change.get("accumulation", 0) // 2 > config.accumulation:
        half = {**change, "accumulation": change["accumulation"] // 2}
        if not fits(half):
            break
        change = half
    while "sampling_batch" in change and 2 * change["sampling_batch"] < getattr(config, "sampling_batch", 0):
        twice = {**change, "sampling_batch": 2 * change["sampling_batch"]}
        if not fits(twice):
            break
        change = twice
    return change


def flags_of(change: Change) -> tuple[str, ...]:
    """As they are written behind a command."""
    return tuple(f"--{name.replace('_', '-')} {value}" for name, value in change.items())


def _mesh(mesh: Mapping[str, int], **sizes: int) -> str:
    changed = {**mesh, **sizes}
    return ",".join(f"{name}={size}" for name, size in changed.items() if size > 1 or name in ("fsdp",))


def _allowed(config: TrainConfig, change: Change) -> bool:
    try:
        apply_changes(config, change)
    except InputError:
        return False
    return True


def growing(changes: list[Change], config: TrainConfig) -> Iterator[Change]:
    """One change, two, three ... together, in their order; a later value of a field takes the place of an earlier."""
    together: Change = {}
    for change in changes:
        joined = {**together, **change}
        if _allowed(config, joined):
            together = joined
            yield dict(together)
