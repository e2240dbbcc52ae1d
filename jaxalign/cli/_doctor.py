"""``jaxalign doctor``: what is here (versions, devices, kernels, the hub, disks), and what would stop a run."""

import dataclasses
import glob
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from jaxalign.errors import InputError

__all__ = ["DoctorConfig", "run"]

GIGABYTE = 10**9
# Less than this holds no checkpoint of a model worth training.
LITTLE_DISK = 5 * GIGABYTE
STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Look at this machine."""

    output_dir: Path = Path()
    """Where runs would be written: its disk is looked at."""
    timeout: float = 5.0
    """Seconds to wait for the hub."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise InputError(f"--timeout: must be above 0, is {self.timeout}")


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    value: str
    status: Literal["ok", "warning", "error"] = "ok"
    """warning = worth knowing; error = a run would stop."""
    advice: str = ""


def run(config: DoctorConfig) -> int:
    """Print what is found; 1 if something would stop a run, else 0."""
    found = [*versions(), *devices(), *extras(), *hub(config.timeout), *disks(config.output_dir)]
    broken = any(one.status == "error" for one in found)
    if config.json:
        content = {"ok": not broken, "findings": [dataclasses.asdict(one) for one in found]}
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    else:
        _print(found)
    return int(broken)


def _print(found: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for one in found:
        value = Text(one.value, overflow="fold")
        if one.advice:
            value.append(f"\n{one.advice}", style="dim")
        table.add_row(Text(one.status, style=STYLES[one.status]), Text(one.name), value)
    Console(highlight=False).print(table)


def versions() -> Iterator[Finding]:
    """Python and the core dependencies, against the ranges that jaxalign's own metadata (pyproject.toml) gives."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python = platform.python_version()
    try:
        about = importlib.metadata.metadata("jaxalign")
        required = [Requirement(line) for line in importlib.metadata.requires("jaxalign") or ()]
    except importlib.metadata.PackageNotFoundError:
        advice = "the supported versions are those of an installed package: pip install -e ."
        yield Finding("python", python)
        yield Finding("jaxalign", "not installed", "warning", advice)
        return
    yield _in_range("python", python, SpecifierSet(about["Requires-Python"] or ""))
    core = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    for requirement in [*core, Requirement("jaxlib")]:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            advice = f"pip install '{requirement}'"
            yield Finding(requirement.name, "not installed", "error", advice)
        else:
            yield _in_range(requirement.name, version, requirement.specifier)


def _in_range(name: str, version: str, supported: Any) -> Finding:
    if supported.contains(version, prereleases=True):
        return Finding(name, version)
    return Finding(name, version, "warning", f"supported: {supported}")


def devices() -> Iterator[Finding]:
    """What jax computes on and how, and accelerators that it does not see."""
    try:
        import jax

        here = jax.devices()
    except (ImportError, RuntimeError) as error:  # a plugin that does not load, a device that somebody else holds
        yield Finding("devices", " ".join(str(error).split()), "error", "jax finds no device to compute on")
        return
    memory = (here[0].memory_stats() or {}).get("bytes_limit")
    each = f", {memory / GIGABYTE:.1f} GB each" if memory else ""
    yield Finding("devices", f"{len(here)} x {here[0].device_kind} ({here[0].platform}){each}")
    yield Finding("processes", str(jax.process_count()))
    # No public way to read either but the flags themselves.
    precision = jax.config.jax_default_matmul_precision or "the platform's"  # type: ignore[attr-defined]
    yield Finding("matmul precision", str(precision))
    yield Finding("x64", "on" if jax.config.jax_enable_x64 else "off")  # type: ignore[attr-defined]
    yield from kernels()
    unseen = _unseen_accelerators() if here[0].platform == "cpu" else ""
    if unseen:
        forced = os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME")
        advice = f"JAX_PLATFORMS is {forced}" if forced else _to_be_seen("NVIDIA" in unseen)
        yield Finding("accelerator", f"{unseen}, which jax does not see", "warning", advice)


def _to_be_seen(nvidia: bool) -> str:
    """What would let jax see an accelerator."""
    if not nvidia:
        return "pip install 'jaxalign[tpu]'"
    if any("cuda" in plugin.name for plugin in importlib.metadata.entry_points(group="jax_plugins")):
        return "jax's CUDA plugin is installed: look at the NVIDIA driver (nvidia-smi), which may be too old for it"
    return "pip install 'jaxalign[cuda]'"


def kernels() -> Iterator[Finding]:
    """Which kernel would attend in a model of today, Llama 3's heads and rows of 1024 tokens."""
    import jax.numpy as jnp

    from jaxalign import models
    from jaxalign.recipes._plan_models import NAMED

    config = models.config_of_fields(dict(NAMED["llama-3-8b"]), "llama-3-8b")
    for dtype in ("float32", "bfloat16"):
        yield Finding(f"attention, {dtype}", models.causal_kernel(config, jnp.dtype(dtype), 1024))


def _unseen_accelerators() -> str:
    """Accelerators by what the system says of them; "" where it says of none."""
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        try:
            listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False).stdout
        except (OSError, subprocess.TimeoutExpired):
            listed = ""
        if lines := re.findall(r"^GPU \d+: (.*?)(?: \(UUID.*)?$", listed, re.MULTILINE):
            return f"NVIDIA: {len(lines)} x {lines[0]}"
    chips = glob.glob("/dev/accel*")
    return f"{len(chips)} TPU chips ({chips[0]})" if chips else ""


def extras() -> Iterator[Finding]:
    """Which optional parts are installed."""
    try:
        names = importlib.metadata.metadata("jaxalign").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return
    missing = {name: sorted(_missing("jaxalign", name)) for name in names}
    yield Finding("extras installed", ", ".join(name for name in names if not missing[name]) or "none")
    lacking = [f"{name} ({', '.join(missing[name])})" for name in names if missing[name]]
    if lacking:
        yield Finding("extras missing", "; ".join(lacking))


def _missing(package: str, extra: str) -> set[str]:
    """What an extra of a package asks for that is not installed."""
    from packaging.requirements import Requirement

    found: set[str] = set()
    for requirement in map(Requirement, importlib.metadata.requires(package) or ()):
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}) or not marker.evaluate({"extra": extra}):
            continue
        try:
            importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found.add(requirement.name)
        else:
            for other in requirement.extras:
                found |= _missing(requirement.name, other)
    return found


def hub(timeout: float) -> Iterator[Finding]:
    """Whether the hub answers; of a token only that there is one."""
    try:
        import huggingface_hub
        from huggingface_hub import constants
    except ImportError:
        return  # said among the versions
    parts = urlsplit(constants.ENDPOINT)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"  # an address may hold a password
    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", f"{shown}: not asked, HF_HUB_OFFLINE is set; the cache is what there is")
    else:
        yield _asked(constants.ENDPOINT, shown, timeout)
    yield Finding("hub token", "present" if huggingface_hub.get_token() else "none")


def _asked(endpoint: str, shown: str, timeout: float) -> Finding:
    advice = "hub ids cannot be downloaded; local folders and files work, as does what is in the cache"
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=timeout) as answer:
            return Finding("hub", f"{shown}: answers ({answer.status})")
    except urllib.error.HTTPError as error:
        if error.code < 500:  # somebody is there
            return Finding("hub", f"{shown}: answers ({error.code})")
        return Finding("hub", f"{shown}: status {error.code}", "warning", advice)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Finding("hub", f"{shown}: no answer ({reason})", "warning", advice)


def disks(output_dir: Path) -> Iterator[Finding]:
    """What is free where runs and downloads go."""
    places = [("output folder", output_dir.expanduser())]
    try:
        from huggingface_hub import constants

        places.append(("hub cache", Path(constants.HF_HUB_CACHE)))
    except ImportError:
        pass
    for name, folder in places:
        try:
            there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
            reason = "" if there.is_dir() and os.access(there, os.W_OK) else "cannot be written"
            free = shutil.disk_usage(there).free
        except OSError as error:  # a parent that may not be entered
            reason = f"cannot be looked at ({error.strerror})"
        if reason:
            yield Finding(name, f"{folder}: {reason}", "error" if name == "output folder" else "warning")
            continue
        little = free < LITTLE_DISK
        advice = "a checkpoint holds the parameters and the optimizer's state: 12 bytes a parameter" if little else ""
        yield Finding(name, f"{folder}: {free / GIGABYTE:.1f} GB free", "warning" if little else "ok", advice)
