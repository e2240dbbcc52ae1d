"""How the cost of a DPO step grows with batch, length, vocabulary, layers and devices: a table and a figure.

    python -m benchmarks.cost_growth --output runs/cost-growth

One thing grows at a time from one base (below), by factors of two. Seconds are the median of steps that are taken in
turn over the whole sweep, so that what else runs on the machine falls on every size alike; memory is the compiled
program's own account of one device: arguments (parameters, reference, optimizer state, batch) and temporaries. The
slope is that of log cost over log size between the two largest sizes: 1 is in proportion, 0 is for free.

Virtual devices share the same cores, so more of them cannot be faster: what the table shows of them is what dividing
costs (time above the first row) and saves (memory a device).
"""

import argparse
import dataclasses
import gc
import json
import math
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEVICES = 8


@dataclasses.dataclass(frozen=True)
class Point:
    """What is measured: the base, or one thing of it grown."""

    batch: int = 8
    """Pairs in an update."""
    length: int = 64
    """Tokens of the prompt, and of each answer."""
    vocabulary: int = 8192
    layers: int = 4
    devices: int = 1
    """All on the axis fsdp."""


SWEEPS = {
    "batch": (8, 16, 32, 64),
    "length": (64, 128, 256, 512),
    "vocabulary": (8192, 16384, 32768, 65536),
    "layers": (4, 8, 16, 32),
    "devices": (1, 2, 4, 8),
}


class Measured:
    """One point, compiled, and its steps' seconds."""

    def __init__(self, point: Point, width: int) -> None:
        import jax
        import numpy as np

        from benchmarks._workload import dpo_batch, dpo_work, gpt2
        from jaxalign import sharding, training

        base = gpt2("tiny")
        heads = width // base.head_dim
        config = base.replace(
            vocab_size=point.vocabulary, width=width, layers=point.layers, heads=heads, kv_heads=heads,
            mlp_width=4 * width, max_positions=2 * point.length,
        )  # fmt: skip
        mesh = sharding.make_mesh(fsdp=point.devices, devices=jax.devices()[: point.devices])
        self.work = dpo_work(config, mesh, 100)
        batch = dpo_batch(config, np.random.default_rng(0), point.batch, point.length, point.length)
        self.batch = training.put_batch(batch, mesh)
        memory = self.work.step.lower(self.work.state, self.work.frozen, self.batch).compile().memory_analysis()
        self.arguments, self.temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        self.seconds: list[float] = []
        self.run()  # compiles
        self.seconds.clear()

    def run(self) -> None:
        """One step."""
        start = time.perf_counter()
        self.work.state, metrics = self.work.step(self.work.state, self.work.frozen, self.batch)
        float(metrics["loss"][0])
        self.seconds.append(time.perf_counter() - start)

    def row(self) -> dict[str, float]:
        """Seconds (median), and megabytes of one device."""
        return {
            "seconds": statistics.median(self.seconds),
            "arguments_mb": self.arguments / 1e6,
            "temporary_mb": self.temporary / 1e6,
        }


def sweep(axis: str, sizes: tuple[int, ...], rounds: int, width: int) -> list[dict[str, float]]:
    """The rows of one axis, its sizes measured in turn ``rounds`` times."""
    points = [Measured(dataclasses.replace(Point(), **{axis: size}), width) for size in sizes]
    for _ in range(rounds):
        for point in points:
            point.run()
    rows = [{"size": size, **point.row()} for size, point in zip(sizes, points, strict=True)]
    points.clear()
    gc.collect()
    return rows


def slope(rows: list[dict[str, float]], cost: str) -> float:
    """Of log cost over log size, between the two largest sizes."""
    one, other = rows[-2:]
    return math.log(other[cost] / one[cost]) / math.log(other["size"] / one["size"])


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: a block of rows an axis, the slopes below it."""
    lines = ["| | size | step, relative to the base | arguments, MB a device | temporary, MB a device |"]
    lines.append("|---|---:|---:|---:|---:|")
    for axis, rows in results.items():
        base = rows[0]["seconds"]
        for row in rows:
            lines.append(
                f"| {axis} | {row['size']:,} | {row['seconds'] / base:.2f} | {row['arguments_mb']:,.1f} | "
                f"{row['temporary_mb']:,.1f} |"
            )
        slopes = " | ".join(f"{slope(rows, cost):.2f}" for cost in ("seconds", "arguments_mb", "temporary_mb"))
        lines.append(f"| {axis}, slope | | {slopes} |")
    return "\n".join(lines)


def plot(results: dict[str, list[dict[str, float]]]) -> "Figure":
    """Time and memory over size, both axes logarithmic, relative to the smallest; in proportion is the grey line."""
    from jaxalign.evaluation import plot_growth

    curves = {
        label: {axis: [(row["size"] / rows[0]["size"], value(row) / value(rows[0])) for row in rows]
                for axis, rows in results.items()}
        for label, value in (
            ("Step time", lambda row: row["seconds"]),
            ("Memory of a device", lambda row: row["arguments_mb"] + row["temporary_mb"]),
        )
    }  # fmt: skip
    return plot_growth(curves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/cost-growth"))
    parser.add_argument("--axes", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--sizes", type=int, default=4, help="how many of the sizes, the smallest first (2 to 4)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=256)
    args = parser.parse_args()
    if not 2 <= args.sizes <= 4:
        parser.error("--sizes: a slope needs 2, and there are 4")
    import jax

    from jaxalign import evaluation

    jax.config.update("jax_num_cpu_devices", DEVICES)  # of no effect where there is an accelerator
    results: dict[str, Any] = {}
    for axis in args.axes:
        sizes = tuple(size for size in SWEEPS[axis][: args.sizes] if axis != "devices" or size <= jax.device_count())
        if len(sizes) > 1:
            results[axis] = sweep(axis, sizes, args.rounds, args.width)
            print(json.dumps({axis: results[axis]}), flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    text = table(results)
    (args.output / "table.md").write_text(text + "\n", encoding="utf-8")
    (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    evaluation.save_figure(plot(results), args.output / "growth")
    print(text)


if __name__ == "__main__":
    main()
