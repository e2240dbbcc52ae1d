"""The chips that runs are planned for: published peaks, and the ways people write how many they have."""

import os
import re
from dataclasses import dataclass

from jaxalign.errors import InputError, did_you_mean

__all__ = ["CHIPS", "Chip", "Slice", "parse_devices"]

GIB, MIB, GB, TERA = 2**30, 2**20, 1e9, 1e12


@dataclass(frozen=True)
class Chip:
    """One device as JAX counts them; all figures are the makers' peaks."""

    name: str
    memory: int
    """Bytes."""
    usable: float
    """The share of them that a program can have."""
    bfloat16: float
    """FLOP/s of dense products in bfloat16."""
    float32: float
    """FLOP/s of products of float32 numbers at JAX's default precision."""
    bandwidth: float
    """Bytes/s of its memory."""
    inside: float
    """Bytes/s that a chip sends to others of its slice or machine."""
    outside: float | None = None
    """Bytes/s that it sends beyond its machine of 8; None where a slice is one network."""
    cores: int = 1
    """TensorCores of a chip, which some of Google's names count."""

    @property
    def platform(self) -> str:
        """As ``jax.default_backend`` says it."""
        return "cpu" if self.name == "cpu" else "tpu" if self.name.startswith("v") else "gpu"

    @property
    def room(self) -> int:
        """Bytes that a program can have."""
        return int(self.memory * self.usable)


# Google: cloud.google.com/tpu/docs/{v5e,v5p,v6e}, "system architecture": HBM, HBM bandwidth, peak compute (bf16),
# interchip interconnect bandwidth of a chip (1600, 4800 and 3584 Gbit/s). JAX's default products of float32 numbers on
# a TPU are one pass of bfloat16. The runtime keeps a few per cent for itself (v5e: 15.75 of 16 GiB are a program's).
# NVIDIA: the data sheets of A100 80GB SXM, H100 SXM, H200 SXM: dense bfloat16 and TF32 (JAX's default for float32),
# bandwidth of the memory; NVLink is half of its two-way figure (600 and 900 GB/s); beyond a machine of 8 one network
# port a GPU, 200 Gbit/s in a DGX A100 and 400 Gbit/s in a DGX H100 or H200. The size of the memory is what nvidia-smi
# reports (81920, 81559 and 143771 MiB): the sheets' "80 GB" and "141 GB" are no one unit. The CUDA context, NCCL and
# cuBLAS take a few per cent.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 16 * GIB, 0.98, 197 * TERA, 197 * TERA, 819 * GB, 200 * GB),
        Chip("v5p", 95 * GIB, 0.98, 459 * TERA, 459 * TERA, 2765 * GB, 600 * GB, cores=2),
        Chip("v6e", 32 * GIB, 0.98, 918 * TERA, 918 * TERA, 1640 * GB, 448 * GB),
        Chip("A100", 81920 * MIB, 0.92, 312 * TERA, 156 * TERA, 2039 * GB, 300 * GB, 25 * GB),
        Chip("H100", 81559 * MIB, 0.92, 989 * TERA, 494.5 * TERA, 3350 * GB, 450 * GB, 50 * GB),
        Chip("H200", 143771 * MIB, 0.92, 989 * TERA, 494.5 * TERA, 4800 * GB, 450 * GB, 50 * GB),
    )
}
OTHER_NAMES = {
    "v5litepod": "v5e",
    "v5lite": "v5e",
    "tpu-v5e": "v5e",
    "tpu-v5p": "v5p",
    "tpu-v6e": "v6e",
    "trillium": "v6e",
}
MACHINE = 8  # GPUs that NVLink joins


@dataclass(frozen=True)
class Slice:
    """So many chips of a kind."""

    chip: Chip
    count: int
    """Devices as ``jax.devices()`` counts them: chips."""
    note: str = ""
    """What the way it was written counts, where that is something else."""

    @property
    def is_this_machine(self) -> bool:
        """Whether what compiles the plan is what would run it."""
        return self.chip.name == "cpu"

    def speed(self, dtype: str) -> float:
        """Peak FLOP/s of one chip."""
        return self.chip.bfloat16 if dtype == "bfloat16" else self.chip.float32

    def network(self, span: int) -> float:
        """Bytes/s that a chip sends in a group of devices whose numbers are less than ``span`` apart."""
        chip = self.chip
        return chip.inside if chip.outside is None or span <= MACHINE else chip.outside


def parse_devices(text: str) -> Slice:
    """Read ``8xH100``, ``H100``, ``v5e-16`` (Google's name: 16 chips), ``v5p-256`` (256 TensorCores, so 128 chips),
    ``128xv5p`` (128 chips) or ``8xcpu`` (this machine's memory shared by 8 devices).

    Raises:
      InputError: none of these; the message names the flag.
    """
    written = text.strip()
    times = re.fullmatch(r"(\d+)\s*[x×*]\s*([A-Za-z][\w-]*)", written)
    dashed = re.fullmatch(r"([A-Za-z][\w-]*?)-(\d+)", written)
    name, count = (times[2], int(times[1])) if times else (dashed[1], int(dashed[2])) if dashed else (written, 1)
    chip = _chip(name)
    if chip is None and dashed is None and times is None:
        chip = _chip(written)
    if chip is None:
        hint = did_you_mean(name, [*CHIPS, "cpu"], what="known:")
        raise InputError(f"--devices {text}: {name!r} is no chip that is known; {hint} (write 8xH100 or v5p-256)")
    if count < 1:
        raise InputError(f"--devices {text}: there must be at least one")
    if dashed and chip.cores > 1:
        if count % chip.cores:
            raise InputError(f"--devices {text}: Google counts TensorCores there, {chip.cores} a chip: {count} is odd")
        chips = count // chip.cores
        note = f"{written}: {count} TensorCores, {chip.cores} a chip; {chips} devices as JAX counts them"
        return Slice(chip, chips, note)
    if chip.name == "cpu":
        chip = Chip("cpu", chip.memory // count, 1.0, chip.bfloat16, chip.float32, chip.bandwidth, chip.inside)
    return Slice(chip, count)


def _chip(name: str) -> Chip | None:
    short = OTHER_NAMES.get(name.lower(), name)
    if short.lower() == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        unknown = float("inf")  # nobody publishes them
        return Chip("cpu", memory, 1.0, unknown, unknown, unknown, unknown)
    return next((chip for chip in CHIPS.values() if chip.name.lower() == short.lower()), None)
