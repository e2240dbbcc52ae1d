"""What benchmarks beside a peer share: GPT-2 shapes with random weights, Zipf-like ids, whole processes in turn."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from jax.sharding import Mesh

    from jaxalign.data import Batch
    from jaxalign.models import ModelConfig
    from jaxalign.training import TrainStep

SIZES = {
    "tiny": {"layers": 4, "width": 256, "heads": 4, "positions": 512},
    "small": {"layers": 12, "width": 768, "heads": 12, "positions": 1024},
}
VOCABULARY, EOS = 50257, 50256


def gpt2(size: str) -> "ModelConfig":
    """A GPT-2 of that size."""
    from jaxalign import models

    shape = SIZES[size]
    return models.ModelConfig(
        family="gpt2", vocab_size=VOCABULARY, width=shape["width"], layers=shape["layers"], heads=shape["heads"],
        kv_heads=shape["heads"], head_dim=shape["width"] // shape["heads"], mlp_width=4 * shape["width"],
        max_positions=shape["positions"], norm="layer", position="learned", activation="gelu_tanh", gated_mlp=False,
        attention_bias=True, attention_output_bias=True, mlp_bias=True, tied_embeddings=True,
    )  # fmt: skip


def zipf_ids(rng: "np.random.Generator", *shape: int, vocabulary: int = VOCABULARY) -> "np.ndarray":
    """Random ids, common ones more often, as the peers' scripts draw them; never the EOS."""
    return ((vocabulary - 3) * rng.random(shape) ** 3).astype("int32")


@dataclass
class Work:
    """A train step and what it starts from."""

    step: "TrainStep"
    state: Any
    frozen: Any
    mesh: "Mesh"


def dpo_work(config: "ModelConfig", mesh: "Mesh", steps: int) -> Work:
    """DPO with AdamW on random weights, the reference scored in the step."""
    import jax

    from jaxalign import models, sharding, training
    from jaxalign.recipes import PreferenceObjective, preference_objective

    params = models.init(config, jax.random.key(0))
    layout = sharding.tree_shardings(models.logical_axes(config), params, mesh)
    objective = preference_objective(config, PreferenceObjective(beta=0.1))
    optimizer, schedule = training.make_optimizer(training.OptimizerConfig(learning_rate=1e-6), steps)
    state_layout = training.state_shardings(params, optimizer, mesh=mesh, shardings=layout)
    step = training.make_train_step(
        objective.loss, optimizer, mesh=mesh, state_shardings=state_layout, schedule=schedule
    )
    state = training.create_state(params, optimizer, jax.random.key(1), mesh=mesh, shardings=layout)
    return Work(step, state, {"base": {}, "reference": sharding.shard_tree(params, layout)}, mesh)


def dpo_batch(
    config: "ModelConfig",
    rng: "np.random.Generator",
    pairs: int,
    prompt: int,
    completion: int,
    layout: Literal["shared", "two_rows"] = "shared",
) -> "Batch":
    """Random pairs, all of one length."""
    from jaxalign import data

    def ids(length: int) -> "np.ndarray":
        return zipf_ids(rng, length, vocabulary=config.vocab_size)

    eos = config.vocab_size - 1
    rows = [[preference_example(ids(prompt), ids(completion), ids(completion), eos)] for _ in range(pairs)]
    answers = 1 if layout == "two_rows" else 2
    shape = data.BatchShape(
        tokens=prompt + answers * completion, targets=answers * completion, pairs=1, sequences=2, answers=2,
        layout=layout,
    )  # fmt: skip
    return data.collate(rows, shape)


def preference_example(prompt: Any, chosen: Any, rejected: Any, eos: int = EOS) -> Any:
    """Ids of a prompt and two answers as the example [prompt | chosen | rejected] of ``jaxalign.data``."""
    import numpy as np

    from jaxalign import data

    chosen[-1] = rejected[-1] = eos
    n, c, r = len(prompt), len(chosen), len(rejected)
    start = np.arange(n, dtype=np.int32)
    last = np.array([n - 1], np.int32)
    return data.Example(
        record_id=0,
        tokens=np.concatenate([prompt, chosen, rejected]),
        positions=np.concatenate([start, n + np.arange(c), n + np.arange(r)]).astype(np.int32),
        branch=np.repeat([0, 1, 2], [n, c, r]).astype(np.int32),
        source_index=np.concatenate([last, n + np.arange(c - 1), last, n + c + np.arange(r - 1)]).astype(np.int32),
        targets=np.concatenate([chosen, rejected]),
        target_sequence=np.repeat([0, 1], [c, r]).astype(np.int32),
        sequences=2,
        pairs=np.array([[0, 1]], np.int32),
    )


def run(command: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a process; the last line it prints is its row of figures. ``environment`` is added to this process's."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | (environment or {}))
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
