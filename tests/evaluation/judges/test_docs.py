"""The code of docs/judges.md, as it stands there, with a loopback server in the endpoint's place."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax

from benchmarks._judge_server import Act, JudgeServer
from jaxalign import models
from tests.recipes import toy

ROOT = Path(__file__).parents[3]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_block_runs(tmp_path):
    config = toy.SHAPES["llama"].replace(max_positions=2048)
    models.save_pretrained(tmp_path / "runs" / "sft" / "final", config, toy.params("llama"), toy.tokenizer())
    scored = models.add_score_head(config.replace(tied_embeddings=True), toy.params("llama"), jax.random.key(0))
    models.save_reward_model(tmp_path / "runs" / "reward" / "final", models.RewardModel(*scored), toy.tokenizer())
    blocks = BLOCK.findall((ROOT / "docs" / "judges.md").read_text(encoding="utf-8"))
    python = "\n".join(text for language, text in blocks if language == "python")
    shell = "\n".join(text for language, text in blocks if language == "bash")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
    }
    with JudgeServer(lambda *_: Act()) as server:
        for command in ([sys.executable, "-c", python], ["bash", "-euo", "pipefail", "-c", shell]):
            command[-1] = command[-1].replace("http://localhost:8000/v1", server.url)
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        assert sum(server.asked.values()) == 2 + 4
    summary = json.loads((tmp_path / "runs" / "judged" / "summary.json").read_text())
    assert [(row["method"], row["against"], row["axis"]) for row in summary["comparisons"]] == [
        ("dpo", "sft", "helpful"), ("dpo", "sft", "harmless")
    ]  # fmt: skip
