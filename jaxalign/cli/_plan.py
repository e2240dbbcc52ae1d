"""``jaxalign plan RECIPE``: will it fit, and how fast, before a run: the recipe's own flags, and the chips."""

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxalign.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from jaxalign.recipes.plan import Plan

__all__ = ["RECIPES", "PlanFlags", "config_of", "run", "show", "usage"]

RECIPES = ("sft", "dpo", "reward", "hindsight", "ppo")
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class PlanFlags:
    """What a plan asks beside its recipe's flags."""

    devices: str
    """The chips: 8xH100, H200, v5e-16, 128xv5p, v5p-256 (Google's name: 256 TensorCores, 128 chips), 8xcpu. Known:
    v5e, v5p, v6e, A100 (80 GB), H100, H200, and cpu, this machine."""
    row_tokens: int | None = None
    """Tokens of a row of the step; None = as many as ``max_length`` allows, with both answers where they share a
    prompt."""
    row_targets: int | None = None
    """Supervised positions of a row; None = as many as such a row can have."""
    suggest: bool = True
    """Where it does not fit, look for the least change that makes it fit."""
    json: bool = False
    """Print JSON instead of tables."""
    dataset: str = ""
    """Not needed. Where it is given, rows are as long as its longest record, by the tokenizer of ``model``."""
    output_dir: Path = Path("unused")
    """Not needed: nothing is written."""


def config_of(recipe: type) -> type:
    """The config of a recipe with the plan's flags; of its data and folders none is required."""
    held: dict[str, Any] = {"__doc__": recipe.__doc__, "__module__": __name__}
    if typing.get_origin(typing.get_type_hints(recipe)["dataset"]) is tuple:
        held |= {"__annotations__": {"dataset": tuple[str, ...]}, "dataset": ("",)}
    return dataclass(frozen=True, kw_only=True)(type(f"Plan{recipe.__name__}", (PlanFlags, recipe), held))


def usage(recipes: Mapping[str, str]) -> str:
    """What ``jaxalign plan --help`` prints; ``recipes`` has their summaries."""
    return "\n".join([
        "usage: jaxalign plan RECIPE --model NAME_OR_FOLDER_OR_HUB_ID --devices 8xH100 [any flag of RECIPE]",
        "                     [--row-tokens N] [--row-targets N] [--suggest False] [--json True]",
        "",
        "Compiles the train step that RECIPE would run for devices that need not be there, and prints what each would",
        "hold, compute and send, and the least time of a step. Where it does not fit, the flags that make it fit,",
        "found by trying. The command that is to run, with 'plan' before the recipe and --devices behind, is a plan.",
        "",
        *(f"  jaxalign plan {name:<{max(map(len, recipes))}}  {summary}" for name, summary in recipes.items()),
        "",
        "  --model           also a size by name, with nothing downloaded: gpt2, smollm2-135m, pythia-2.8b,",
        "                    qwen2.5-7b, llama-3-8b, llama-3-70b ...",
        "  --devices         v5e, v5p, v6e, A100, H100, H200, cpu: 8xH100, v5e-16, v5p-256 (256 cores: 128 chips)",
        "  --row-tokens N    tokens of a row (as long as --max-length allows, or as --dataset's longest)",
        "  --row-targets N   supervised positions of a row",
        "  --suggest False   do not look for flags that make it fit",
        "  --json True       print JSON",
        "",
        "  jaxalign plan RECIPE --help   every flag with its default",
    ])  # fmt: skip


def run(config: Any, recipe: type, console: "Console | None" = None) -> None:
    """Plan and print.

    Args:
      config: a recipe's, with ``PlanFlags``.
      recipe: the recipe's own config.
      console: where to; by default standard output.

    Raises:
      InputError: what the run would refuse, a model or a chip that is not known.
    """
    from rich.console import Console

    from jaxalign.recipes.plan import lengths_of_data, parse_devices, plan

    parse_devices(config.devices)  # before data are read
    own = recipe(**{item.name: getattr(config, item.name) for item in dataclasses.fields(recipe)})
    row_tokens, row_targets = config.row_tokens, config.row_targets
    if config.dataset not in ("", ("",)):
        if row_tokens is not None or row_targets is not None:
            raise InputError("--row-tokens, --row-targets: with --dataset rows are as long as its records")
        row_tokens, row_targets = lengths_of_data(own)
    found = plan(own, devices=config.devices, row_tokens=row_tokens, row_targets=row_targets, suggest=config.suggest)
    if config.json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        show(found, console or Console(highlight=False), dtype=own.dtype, suggested=config.suggest)


def show(plan: "Plan", console: "Console", *, dtype: str = "", suggested: bool = True) -> None:
    """Print a plan, and where it does not fit what would."""
    _page(plan, console, dtype)
    if plan.fits:
        return
    if plan.failed:
        console.print(f"[yellow]Not known, as the process that compiles died: {'; '.join(plan.failed)}[/]")
    chip = plan.devices.chip.name
    if plan.changed is None:
        if suggested:
            where = "" if plan.devices.is_this_machine else ", on this or a larger number of chips"
            console.print(f"[bold red]No change that was tried makes it fit{where}.[/]")
        return
    flags = plan.change
    if plan.devices_needed is not None:
        console.print(f"[bold red]No change makes it fit {plan.devices.count} {chip}.[/]", end=" ")
        flags = (f"--devices {plan.devices_needed}x{chip}", *flags)
    console.print("[bold]It fits with these flags added, found by trying:[/]")
    console.print(f"  {' '.join(flags)}", style="bold green", soft_wrap=True)
    console.print()
    _page(plan.changed, console, "")


def _page(plan: "Plan", console: "Console", dtype: str) -> None:
    from rich.table import Table

    chip, G = plan.devices.chip, GIB
    mesh = ",".join(f"{name}={size}" for name, size in plan.mesh.items() if size > 1) or "one device"
    console.print(f"[bold]{plan.recipe} of {plan.model} on {plan.devices.count} {chip.name}[/] ({mesh})")
    if plan.devices.note:
        console.print(plan.devices.note)
    console.print(
        f"{_count(plan.parameters)} parameters, {_count(plan.trainable)} train; {plan.rows:,} rows of "
        f"{plan.row_tokens:,} tokens, {plan.row_targets:,} of them supervised, in a step"
    )
    table = Table(title="GiB of a device", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("what", min_width=12)
    table.add_column("GiB", justify="right")
    table.add_column("")
    for name, size in plan.memory.items():
        table.add_row(name, f"{size / G:,.2f}", WHAT[name] if size else "[dim]none[/]")
    if plan.rollout:
        table.add_row("rollout", f"{sum(plan.rollout.values()) / G:,.2f}", _said_of_rollout(plan))
    style = "bold green" if plan.fits else "bold red"
    room = chip.room / G
    verdict = f"fits: {room - plan.total / G:,.2f} left" if plan.fits else f"{plan.total / G - room:,.2f} too many"
    of = (
        f"of {room:,.2f} ({chip.memory / G:,.1f} less what the runtime keeps)" if chip.usable < 1 else f"of {room:,.2f}"
    )
    table.add_row(f"[{style}]total[/]", f"[{style}]{plan.total / G:,.2f}[/]", f"{of}: [{style}]{verdict}[/]")
    console.print()
    console.print(table)
    console.print()
    _times(plan, console)
    console.print(f"[dim]{_said_of(plan)}[/]")
    console.print()


def _said_of_rollout(plan: "Plan") -> str:
    parts = {"policy taken apart": "parameters", "keys and values": "cache", "the rest": "temporary"}
    shown = ", ".join(f"{name} {plan.rollout[key] / GIB:,.2f}" for name, key in parts.items() if plan.rollout[key])
    return f"before an update, in place of gradients, activations and temporary: {shown}"


def _said_of(plan: "Plan") -> str:
    """Which of the numbers are exact and which estimates."""
    rest = f"estimated for {plan.devices.chip.name} from XLA's live ranges on a CPU"
    if plan.devices.is_this_machine:
        rest = "XLA's own allocation on this machine"
    elif plan.own_kernel:
        rest += ", its attention holding whole score matrices, which this chip's own kernel would not"
    times = "what published peaks allow XLA's attention" if plan.own_kernel else "bounds that published peaks allow"
    return (
        f"Parameters, reference, frozen, optimizer and batch are exact; the rest is {rest}. Times are {times}. "
        f"Planned in {plan.seconds_taken:.0f} s."
    )


def _times(plan: "Plan", console: "Console") -> None:
    from rich.table import Table

    table = Table(title="a step, of a device", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("what", min_width=12)
    table.add_column("how much", justify="right")
    table.add_column("s", justify="right")
    table.add_column("")
    known = plan.step_seconds > 0

    def row(name: str, amount: str, seconds: float, about: str, *, bound: str = "") -> None:
        mark = " [bold]<- what a step waits for[/]" if known and bound == plan.bound else ""
        table.add_row(name, amount, f"{seconds:,.3f}" if known else "", about + mark)

    again = f"{plan.recomputed_flops / plan.flops:.0%} of it to recompute" if plan.recomputed_flops else ""
    row("compute", f"{plan.flops / 1e12:,.1f} TFLOP", plan.compute_seconds, again, bound="compute")
    row("memory", f"{plan.memory_traffic / 1e9:,.1f} GB", plan.memory_seconds, "", bound="memory")
    for network in plan.network:
        kinds = ", ".join(f"{kind} {size / 1e9:,.1f}" for kind, size in sorted(network.kinds.items()) if size >= 5e7)
        only = "network" if len(plan.network) == 1 else ""
        row(f"network {'+'.join(network.axes)}", f"{network.bytes / 1e9:,.1f} GB", network.seconds, kinds, bound=only)
    if len(plan.network) > 1:
        sent = sum(network.bytes for network in plan.network)
        row("network, all", f"{sent / 1e9:,.1f} GB", plan.network_seconds, "", bound="network")
    console.print(table)
    if known:
        # A kernel of the chip's own leaves out some of what is counted: then these are no bounds.
        least, most = ("about", "about") if plan.own_kernel else ("at least", "at most")
        console.print(
            f"{least} {plan.step_seconds:.3g} s a step, so {most} {plan.tokens_per_second:,.0f} tokens/s; "
            f"model FLOPs utilisation {most} {plan.utilisation:.0%}"
        )


WHAT = {
    "parameters": "what trains",
    "reference": "the reference's own",
    "reward model": "rates rollouts",
    "best so far": "the model that is kept, by --eval-dataset",
    "frozen": "what does not train, shared by policy and reference",
    "optimizer": "moments",
    "gradients": "of the peak, at most one",
    "activations": "kept of the forward pass for the backward pass",
    "temporary": "the rest of the peak",
    "batch": "and counters",
}


def _count(number: int) -> str:
    for size, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {name}"
    return str(number)
