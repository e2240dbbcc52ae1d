"""A program for test_processes.py: one of several processes, which train together, run after run."""

import json
import pickle
from pathlib import Path

import jax


def train(port: int, process: int, count: int, folder: str, meshes: str, handed_over: str) -> None:
    """Train every recipe that ``meshes`` (JSON) has on its mesh of four devices; then the run that is handed over.

    ``handed_over`` is its [updates, mesh], JSON. The first process writes what the runs did; all print what they know.
    """
    jax.config.update("jax_num_cpu_devices", 4 // count)
    jax.config.update("jax_default_matmul_precision", "highest")
    from jaxalign import sharding
    from tests.recipes import matrix

    sharding.initialize_distributed(f"localhost:{port}", count, process)
    rated: list[int] = []

    def rate(prompts, completions):
        rated.append(len(prompts))
        return matrix.likes_short(prompts, completions)

    known = {}
    for recipe, mesh in json.loads(meshes).items():
        options = {"rate": rate} if recipe == "ppo" else {}
        found = matrix.RECIPES[recipe](
            steps=matrix.STEPS, mesh=mesh, folder=Path(folder) / f"{recipe}-{count}", **options
        )
        known[recipe] = {name: float(abs(value).sum()) for name, value in found.params[-1].items()}
        if process == 0:
            (Path(folder) / f"{recipe}-{count}.pickle").write_bytes(pickle.dumps(found))
    updates, mesh = json.loads(handed_over)
    params, metrics = matrix.continued(Path(folder) / "handed", updates, mesh)
    if process == 0:
        (Path(folder) / f"handed-{count}.pickle").write_bytes(pickle.dumps(params))
    print(json.dumps({"known": known, "rated": rated, "metrics": metrics}))
