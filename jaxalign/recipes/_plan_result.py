"""What a plan says: bytes a device, FLOPs, traffic, and the time that peaks allow."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from jaxalign.recipes._plan_devices import Slice

__all__ = ["OF_A_STEP", "Network", "Plan", "make_plan"]

OF_A_STEP = ("gradients", "activations", "temporary")
"""Categories of what is there only while an update is computed."""


@dataclass(frozen=True)
class Network:
    """What a device sends in one step along some mesh axes."""

    axes: tuple[str, ...]
    kinds: dict[str, float]
    """Bytes by kind of collective."""
    seconds: float

    @property
    def bytes(self) -> float:
        return sum(self.kinds.values())


@dataclass(frozen=True)
class Plan:
    """A run on so many chips, before it runs. Bytes and FLOPs are of one device and one step."""

    recipe: str
    model: str
    devices: Slice
    mesh: dict[str, int]
    parameters: int
    """Numbers of the model."""
    trainable: int
    """Numbers that train (of PPO, the critic's too)."""
    rows: int
    """Of one step, over all devices."""
    row_tokens: int
    row_targets: int
    own_kernel: bool
    """Whether the chip's own attention kernel would run, which holds and computes less than XLA's, as it is planned."""
    memory: dict[str, int]
    """Bytes by category while an update is computed. What is given to the step (parameters, reference, frozen,
    optimizer, batch) is exact; gradients, activations and temporary (``OF_A_STEP``) are shares of the compiled
    program's peak."""
    rollout: dict[str, int]
    """PPO's, while it samples, in place of ``OF_A_STEP``: the policy taken apart ("parameters"), keys and values
    ("cache"), the rest of the peak ("temporary"); empty otherwise, and of a change whose update alone is too large."""
    total: int
    """Of update and rollout what is more."""
    fits: bool
    flops: float
    recomputed_flops: float
    """Of them, what rematerialisation adds."""
    memory_traffic: float
    network: tuple[Network, ...]
    compute_seconds: float
    memory_seconds: float
    network_seconds: float
    seconds_taken: float
    """That the planning of this took."""
    change: tuple[str, ...] = ()
    """Flags that make it fit, where it does not; empty where it does or none were found."""
    changed: "Plan | None" = None
    """The plan with them."""
    devices_needed: int | None = None
    """Where no flags make it fit: chips that would, with ``change``."""
    failed: tuple[str, ...] = ()
    """Changes (with their number of chips) of which it is not known whether they fit: the compiler's process died."""

    @property
    def update_bytes(self) -> int:
        """While an update is computed."""
        return sum(self.memory.values())

    @property
    def rollout_bytes(self) -> int:
        """While PPO samples; of other methods, what lies there between updates."""
        return self.update_bytes - sum(self.memory[name] for name in OF_A_STEP) + sum(self.rollout.values())

    @property
    def step_seconds(self) -> float:
        """The time of a step that peaks allow: what is slowest of computing, memory and network, the others behind it.
        The least, unless the chip has its own attention kernel, which leaves out some of what is counted."""
        return max(self.compute_seconds, self.memory_seconds, self.network_seconds)

    @property
    def bound(self) -> str:
        """Which one it is."""
        times = {"compute": self.compute_seconds, "memory": self.memory_seconds, "network": self.network_seconds}
        return max(times, key=lambda name: times[name])

    @property
    def tokens_per_second(self) -> float:
        """Of all devices, in that time."""
        return self.rows * self.row_tokens / self.step_seconds if self.step_seconds else float("inf")

    @property
    def utilisation(self) -> float:
        """Model FLOPs utilisation in that time: without what rematerialisation adds, over what the chips could have."""
        if not self.step_seconds:
            return 0.0
        useful = self.flops - self.recomputed_flops
        return useful / self.flops * self.compute_seconds / self.step_seconds if self.flops else 0.0

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        plain = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if item.name not in ("devices", "network", "changed")
        }
        own = {name: getattr(self, name) for name in ("step_seconds", "bound", "tokens_per_second", "utilisation")}
        known = self.step_seconds > 0
        return {
            **plain,
            "chip": self.devices.chip.name,
            "devices": self.devices.count,
            "chip_memory": self.devices.chip.memory,
            "room": self.devices.chip.room,
            "network": [dataclasses.asdict(network) for network in self.network],
            **(own if known else {}),
            "changed": None if self.changed is None else self.changed.as_json(),
        }


def make_plan(
    recipe: str, model: str, devices: Slice, answer: dict[str, Any], *, dtype: str, seconds_taken: float
) -> Plan:
    """Read a worker's answer for a kind of chip.

    Args:
      recipe, model: names.
      devices: the chips.
      answer: from ``_plan_worker``.
      dtype: of matrix products.
      seconds_taken: to make the answer.
    """
    step, measured = answer["step"], answer["measured"]
    given, beside = step["arguments"], step["resident"]
    kept = measured["kept"]
    gradients = min(step["gradients"], measured["peak"] - kept)
    memory = {
        "parameters": given["parameters"],
        "reference": given["reference"] + beside.get("reference", 0),
        "reward model": beside.get("reward model", 0),
        "best so far": beside.get("best", 0),
        "frozen": given["frozen"],
        "optimizer": given["optimizer"],
        "gradients": gradients,
        "activations": kept,
        "temporary": measured["peak"] - kept - gradients,
        "batch": given["batch"] + given["counters"] + measured["results"],
    }
    for name in ("reward model", "best so far"):
        if not memory[name]:
            del memory[name]
    rollout = answer["rollout"] or {}
    of_step = sum(memory[name] for name in OF_A_STEP)
    total = sum(memory.values()) + max(0, sum(rollout.values()) - of_step)
    by_axes: dict[tuple[str, ...], dict[str, float]] = {}
    seconds: dict[tuple[str, ...], float] = {}
    for traffic in measured["network"]:
        axes = tuple(traffic["axes"])
        kinds = by_axes.setdefault(axes, {})
        kinds[traffic["kind"]] = kinds.get(traffic["kind"], 0.0) + traffic["bytes"]
        seconds[axes] = seconds.get(axes, 0.0) + traffic["bytes"] / devices.network(traffic["span"])
    network = tuple(Network(axes, kinds, seconds[axes]) for axes, kinds in sorted(by_axes.items()))
    return Plan(
        recipe=recipe,
        model=model,
        devices=devices,
        mesh=step["mesh"],
        parameters=step["parameters"],
        trainable=step["trainable"],
        rows=step["rows"],
        row_tokens=step["row_tokens"],
        row_targets=step["row_targets"],
        own_kernel=step["own_kernel"],
        memory=memory,
        rollout=rollout,
        total=total,
        fits=total <= devices.chip.room,
        flops=measured["flops"],
        recomputed_flops=measured["recomputed_flops"],
        memory_traffic=measured["traffic_bytes"],
        network=network,
        compute_seconds=measured["flops"] / devices.speed(dtype),
        memory_seconds=measured["traffic_bytes"] / devices.chip.bandwidth,
        network_seconds=sum(seconds.values()),
        seconds_taken=seconds_taken,
    )
