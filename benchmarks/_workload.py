"""What benchmarks beside a peer share: GPT-2 shapes with random weights, Zipf-like ids, whole processes in turn."""

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from jaxalign.models import ModelConfig

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


def zipf_ids(rng: "np.random.Generator", *shape: int) -> "np.ndarray":
    """Random ids, common ones more often, as the peers' scripts draw them; never the EOS."""
    return ((VOCABULARY - 3) * rng.random(shape) ** 3).astype("int32")


def run(command: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a process; the last line it prints is its row of figures. ``environment`` is added to this process's."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | (environment or {}))
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
