"""Lowered programs compiled for so many devices that are not there, and what the compiler says of it."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from jaxalign import sampling
from jaxalign.recipes._plan_cost import count_cost
from jaxalign.recipes._plan_hlo import Module, parse_module
from jaxalign.recipes._plan_memory import allocated_bytes, peak_of_live_ranges
from jaxalign.recipes._plan_step import PlannedRollout, PlannedStep
from jaxalign.sampling import SamplerMemory

__all__ = ["Measured", "compile_program", "compile_rollout", "compile_step"]

# What XLA does for CPUs alone: numbers of 16 bits become float32, whatever a loop does not change leaves it, and
# all-reduces wait for one another.
OF_CPUS = "float-normalization-bf16,operand_upcaster,while-loop-invariant-code-motion,cpu-all-reduce-combiner"

# Machine code that nobody runs need not be good. Memory is assigned before it is made.
IN_A_HURRY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@dataclass(frozen=True)
class Measured:
    """Of one device and one step; bytes unless said."""

    arguments: int
    """What the compiler gives the step's arguments."""
    results: int
    """Of results that do not lie where arguments lay."""
    peak: int
    """Beside the arguments, at the peak."""
    kept: int
    """Of that, what is kept of the forward pass for the backward pass."""
    flops: float
    recomputed_flops: float
    traffic_bytes: float
    """Read and written in the device's own memory."""
    network: tuple[dict[str, Any], ...]
    """``Traffic`` as dicts."""


@dataclass(frozen=True)
class CompiledProgram:
    """What the compiler says of a program; bytes of one device."""

    module: Module
    arguments: int
    """What the compiler gives the arguments."""
    results: int
    """Of results that do not lie where arguments lay; 0 where they are in ``peak``."""
    peak: int
    """Beside the arguments (and results), at the peak."""
    kept: int
    """Of that, what is kept of a forward pass for the backward pass."""
    output_shardings: Callable[[], Any]
    """Where its results lie."""


def compile_program(lowered: Any, *, for_this_machine: bool) -> CompiledProgram:
    """Compile, and read what the compiler wrote down.

    For another machine the compiler is asked to leave out what it does for CPUs alone (``OF_CPUS``). Its generator of
    machine code may then refuse products of bfloat16 numbers, which nobody will run here: by then memory is assigned
    and written down.
    """
    with tempfile.TemporaryDirectory(prefix="jaxalign-plan-") as folder:
        options: dict[str, Any] = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True, **IN_A_HURRY}
        if not for_this_machine:
            options["xla_disable_hlo_passes"] = OF_CPUS
        compiled = None
        with _quiet():
            try:
                compiled = lowered.compile(compiler_options=options)
            except jax.errors.JaxRuntimeError:
                if for_this_machine or not _reports(folder):
                    raise
        texts = {kind: path.read_text() for kind, path in _reports(folder).items()}
    module = parse_module(texts["module"])
    peak = peak_of_live_ranges(texts["live-range"], texts["buffer-assignment"], module)
    held, results = peak.total, 0
    if compiled is not None and for_this_machine:
        memory = compiled.memory_analysis()
        held = memory.temp_size_in_bytes
        results = memory.output_size_in_bytes - memory.alias_size_in_bytes

    def output_shardings() -> Any:
        # Where bfloat16 was refused: what lies where does not depend on how products are made.
        return (compiled or lowered.compile(compiler_options=IN_A_HURRY)).output_shardings

    return CompiledProgram(
        module=module,
        arguments=allocated_bytes(texts["buffer-assignment"], arguments=True),
        results=results,
        peak=held,
        kept=min(peak.kept, held),
        output_shardings=output_shardings,
    )


def compile_step(step: PlannedStep, *, for_this_machine: bool) -> Measured:
    """Compile a step, and count what it computes and sends."""
    found = compile_program(step.lowered, for_this_machine=for_this_machine)
    cost = count_cost(found.module, dict(step.mesh.shape), unknown_trips=step.unknown_trips)
    return Measured(
        arguments=found.arguments,
        results=found.results,
        peak=found.peak,
        kept=found.kept,
        flops=cost.flops,
        recomputed_flops=cost.recomputed_flops,
        traffic_bytes=cost.bytes,
        network=tuple(asdict(traffic) for traffic in cost.traffic.values()),
    )


def compile_rollout(
    rollout: PlannedRollout, *, for_this_machine: bool, kept: dict[str, SamplerMemory]
) -> SamplerMemory:
    """What a device holds beside the state and what is frozen while PPO samples, or while one pass rates what was
    sampled, if that is more.

    Args:
      rollout: the sampler's arguments and the pass.
      for_this_machine: as in ``compile_program``.
      kept: what was found before, by ``rollout.name``: a sampler has no gradients, so many changes leave it as it is.
    """

    def compile_one(lowered: Any) -> tuple[int, Any]:
        found = compile_program(lowered, for_this_machine=for_this_machine)
        return found.peak + found.results, found.output_shardings()

    if rollout.name not in kept:
        with jax.set_mesh(rollout.mesh):
            kept[rollout.name] = sampling.sampler_memory(
                rollout.config, rollout.params, compile_one, **rollout.settings
            )
    sampler = kept[rollout.name]
    rating = compile_program(rollout.rating, for_this_machine=for_this_machine)
    if rating.peak + rating.results > sampler.total:
        return SamplerMemory(0, 0, rating.peak + rating.results)
    return sampler


def _reports(folder: str) -> dict[str, Path]:
    """The newest texts of the step's module, by kind; empty where the compiler did not get so far."""
    found: dict[str, Path] = {}
    modules = sorted(Path(folder).glob("*cpu_after_optimizations.txt"), key=lambda path: path.stat().st_size)
    if not modules:
        return {}
    stem = str(modules[-1]).removesuffix(".txt")
    for kind, name in (("module", ""), ("live-range", "-live-range"), ("buffer-assignment", "-buffer-assignment")):
        path = Path(f"{stem}{name}.txt")
        if not path.is_file():
            return {}
        found[kind] = path
    return found


@contextlib.contextmanager
def _quiet() -> Any:
    """The compiler writes its refusal to the process's standard error; it is expected."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
