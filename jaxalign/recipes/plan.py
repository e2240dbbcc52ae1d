"""Will it fit, and how fast, before a run: its real train step, compiled for devices that are not there.

    memory a device = what the step is given + the peak of what its program holds beside (PPO: or its rollout's)
    time of a step ~ max(FLOPs / peak, bytes / memory bandwidth, bytes / network bandwidth)

Nothing is loaded and no parameter is made: the step that ``fit`` would run is lowered for shapes and compiled by XLA in
a process that sees as many (virtual) devices as the run would have. What the step is given is exact. What its program
holds is XLA's answer for a CPU; for another chip an estimate (``_plan_memory``). Times are what peaks allow.
"""

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

from jaxalign.errors import InputError
from jaxalign.recipes._config import TrainConfig
from jaxalign.recipes._plan_changes import (
    Change,
    apply_changes,
    changes_of,
    faster,
    flags_of,
    growing,
    without_needless,
)
from jaxalign.recipes._plan_data import lengths_of_data
from jaxalign.recipes._plan_devices import CHIPS, Chip, Slice, parse_devices
from jaxalign.recipes._plan_models import NAMED, model_dtype, read_model
from jaxalign.recipes._plan_process import Workers
from jaxalign.recipes._plan_result import Network, Plan, make_plan
from jaxalign.recipes._plan_worker import encode
from jaxalign.recipes._raters import folder_of
from jaxalign.recipes.dpo import DPOConfig
from jaxalign.recipes.hindsight import HindsightConfig
from jaxalign.recipes.ppo import PPOConfig
from jaxalign.recipes.reward_model import RewardModelConfig
from jaxalign.recipes.sft import SFTConfig

__all__ = [
    "CHIPS", "NAMED", "RECIPES", "Chip", "Network", "Plan", "Slice", "lengths_of_data", "parse_devices",
    "plan",
]  # fmt: skip

RECIPES: dict[str, type[TrainConfig]] = {
    "sft": SFTConfig, "dpo": DPOConfig, "reward": RewardModelConfig, "hindsight": HindsightConfig, "ppo": PPOConfig,
}  # fmt: skip
MOST_DEVICES = 2048
"""As many as one process of XLA's CPU client can have."""


def plan(
    config: TrainConfig,
    *,
    devices: str,
    row_tokens: int | None = None,
    row_targets: int | None = None,
    suggest: bool = True,
) -> Plan:
    """Plan a run.

    Args:
      config: an ``SFTConfig``, ``DPOConfig``, ``RewardModelConfig``, ``HindsightConfig`` or ``PPOConfig``. Its
        ``model`` (and PPO's ``reward_model`` and ``critic_model``) may be a folder, a hub id or a name of ``NAMED``;
        data and folders are not read.
      devices: ``8xH100``, ``v5p-256`` ...; see ``parse_devices``.
      row_tokens: tokens of a row as the step has it; None = the longest that the config's limits allow: ``max_length``,
        and for pairs that share a prompt the prompt and both answers.
      row_targets: supervised positions of a row; None = as many as such a row can have.
      suggest: where it does not fit, look for the least change that makes it fit.

    Raises:
      InputError: what the run would refuse, a model or chip that is not known.
    """
    found = parse_devices(devices)
    with Workers() as workers:
        planner = _Planner(config, found, workers, row_tokens, row_targets)
        asked = planner.plan({}, found.count)
        if asked.fits or not suggest:
            return asked
        return planner.suggest(asked)


@dataclass
class _Planner:
    config: TrainConfig
    devices: Slice
    workers: Workers
    row_tokens: int | None
    row_targets: int | None
    failed: list[str] = field(default_factory=list)
    """Changes at which the compiler's process died."""

    def __post_init__(self) -> None:
        self.recipe = next((name for name, kind in RECIPES.items() if type(self.config) is kind), "")
        if not self.recipe:
            kinds = ", ".join(kind.__name__ for kind in RECIPES.values())
            raise InputError(f"a plan is of {kinds}, not of {type(self.config).__name__}")
        for name, value, least in (("row_tokens", self.row_tokens, 2), ("row_targets", self.row_targets, 1)):
            if value is not None and value < least:
                raise InputError(f"--{name.replace('_', '-')}: must be at least {least}, is {value}")
        if self.row_tokens is not None and self.row_targets is not None and self.row_targets >= self.row_tokens:
            raise InputError(
                f"--row-targets: {self.row_targets} of a row of --row-tokens {self.row_tokens}: its first token is no "
                "target"
            )
        names = {"model": getattr(self.config, "model"), "reward": None, "critic": None}  # noqa: B009
        if isinstance(self.config, PPOConfig):
            names |= {"reward": self.config.reward_model, "critic": self.config.critic_model}
        rater = self.config.reward if isinstance(self.config, PPOConfig) else None
        self.rater = None if rater is None else folder_of(rater)
        flags = {"model": "--model", "reward": "--reward-model", "critic": "--critic-model"}
        self.models = {
            part: None if name is None else {"name": name, "fields": read_model(name, flag=flags[part])}
            for part, name in names.items()
        }

    def plan(self, change: Change, count: int) -> Plan:
        """The run with a change, on so many chips; with one whose update does not fit, without its rollout."""
        if count > MOST_DEVICES:
            raise InputError(f"--devices: {count} devices; a plan can be compiled for up to {MOST_DEVICES}")
        started = time.monotonic()
        config = apply_changes(self.config, change)
        request = {
            "recipe": self.recipe,
            "config": encode(config),
            **self.models,
            "rater": self.rater,
            "row_tokens": self.row_tokens,
            "row_targets": self.row_targets,
            "chip": dataclasses.asdict(self.devices.chip),
            "room": self.devices.chip.room if change else None,  # of a change it is asked only whether it fits
        }
        answer = self.workers.ask(count, request)
        devices = dataclasses.replace(self.devices, count=count) if count != self.devices.count else self.devices
        taken = time.monotonic() - started
        return make_plan(self.recipe, config.model, devices, answer, dtype=config.dtype, seconds_taken=taken)

    def suggest(self, asked: Plan) -> Plan:
        """The plan with the first change that makes it fit; with the number of chips that would do where none does."""
        started = time.monotonic()
        assert self.models["model"] is not None
        options = changes_of(
            self.config,
            mesh=asked.mesh,
            has_frozen=asked.memory["reference"] + asked.memory["frozen"] > 0,
            model_dtype=model_dtype(self.models["model"]["fields"]),
        )
        tried: dict[str, Plan | None] = {}

        def attempt(change: Change, count: int) -> Plan | None:
            """The plan if it fits; None also where the run would refuse it, or the process that compiles it dies."""
            key = f"{sorted(change.items())} {count}"
            if key not in tried:
                try:
                    found = self.plan(change, count)
                    tried[key] = found if found.fits else None
                except InputError:
                    tried[key] = None
                except RuntimeError:  # out of this machine's memory, mostly; the plan that was asked for stands
                    tried[key] = None
                    self.failed.append(f"{' '.join(flags_of(change))} on {count}")
            return tried[key]

        count = self.devices.count
        same_method = [change for change in options if "lora_rank" not in change]
        adapters = [change for change in options if "lora_rank" in change]
        on_one_axis = [change for change in same_method if "tensor" not in change.get("mesh", "")]
        # One change; several; with a tensor axis, which leaves fewer shards to the rows; last an adapter, alone, then
        # with all others.
        candidates = [
            *same_method,
            *growing(on_one_axis, self.config),
            *growing(same_method, self.config),
            *adapters,
            *(list(growing([*on_one_axis, *adapters], self.config))[-1:] if adapters else ()),
        ]
        chosen = next(
            (change for change in candidates if self._could_do(asked, change) and attempt(change, count)), None
        )
        if chosen is not None:
            chosen = without_needless(chosen, lambda change: attempt(change, count) is not None)
            chosen = faster(self.config, chosen, lambda change: attempt(change, count) is not None)
            return self._answer(asked, started, change=flags_of(chosen), changed=attempt(chosen, count))
        return self._more_devices(asked, same_method, started, attempt)

    def _could_do(self, asked: Plan, change: Change) -> bool:
        """Whether a change can be enough: one that touches only what is kept and made, or only what is held, is not
        where the other alone is too much; nor one that touches only the update, where the rollout is too much."""
        room, memory, touched = self.devices.chip.room, asked.memory, set(change)
        if asked.update_bytes > room and touched <= {"sampling_batch"}:
            return False
        if asked.rollout.get("parameters") and asked.rollout_bytes > room and touched <= {"remat", "accumulation"}:
            return False
        held = sum(memory[name] for name in ("parameters", "reference", "frozen", "optimizer", "gradients"))
        if held > room and touched <= {"remat", "accumulation", "dtype"}:
            return False
        of_what_is_held = {
            "reference_log_probs",
            "dtype",
            "frozen_dtype",
            "state_dtype",
            "parameter_dtype",
            "lora_rank",
        }
        return memory["activations"] / (2 if "dtype" in touched else 1) <= room or not touched <= of_what_is_held

    def _more_devices(self, asked: Plan, options: list[Change], started: float, attempt: Any) -> Plan:
        """The least number of chips, doubled, that holds the run with all changes but the adapter; of those, the ones
        that it needs there."""
        if self.devices.is_this_machine:  # more of its devices would share the same memory
            return self._answer(asked, started)
        changes = [change for change in options if "mesh" not in change and "accumulation" not in change]
        change = ([{}, *growing(changes, self.config)])[-1]
        count = self.devices.count
        parts = self.config.accumulation * getattr(self.config, "minibatches", 1)
        while count < MOST_DEVICES:
            count *= 2
            rows = -(-self.config.batch_size // (count * parts)) * count * parts
            needed: Change = {"mesh": f"fsdp={count}"}
            if rows != self.config.batch_size:
                needed["batch_size"] = rows

            def fits(change: Change, count: int = count) -> bool:
                return attempt(change, count) is not None

            if "sampling_batch" in change:  # a row a device of these
                change["sampling_batch"] = min(count, getattr(self.config, "sampling_batch", count))
            if fits({**change, **needed}):
                chosen = without_needless({**change, **needed}, fits, keep=needed)
                chosen = faster(self.config, chosen, fits)
                found = attempt(chosen, count)
                return self._answer(asked, started, change=flags_of(chosen), changed=found, devices_needed=count)
        return self._answer(asked, started)

    def _answer(self, asked: Plan, started: float, **found: Any) -> Plan:
        """The plan that was asked for, with what was found."""
        taken = asked.seconds_taken + time.monotonic() - started
        return dataclasses.replace(asked, **found, failed=tuple(self.failed), seconds_taken=taken)
