"""The code of docs/judges.md, as it stands there, with a loopback server in the endpoint's place."""

import json
import sys

import jax

from benchmarks._judge_server import Act, JudgeServer
from jaxalign import models
from tests.markdown import DOCS, blocks, shell
from tests.recipes import toy


def test_every_block_runs(tmp_path):
    config = toy.SHAPES["llama"].replace(max_positions=2048)
    models.save_pretrained(tmp_path / "runs" / "sft" / "final", config, toy.params("llama"), toy.tokenizer())
    scored = models.add_score_head(config.replace(tied_embeddings=True), toy.params("llama"), jax.random.key(0))
    models.save_reward_model(tmp_path / "runs" / "reward" / "final", models.RewardModel(*scored), toy.tokenizer())
    found = blocks(DOCS / "judges.md")
    python = "\n".join(block.text for block in found if block.language == "python")
    commands = "\n".join(block.text for block in found if block.language == "bash")
    with JudgeServer(lambda *_: Act()) as server:
        for command in ([sys.executable, "-c", python], ["bash", "-euo", "pipefail", "-c", commands]):
            command[-1] = command[-1].replace("http://localhost:8000/v1", server.url)
            shell(command, tmp_path)
        assert sum(server.asked.values()) == 2 + 4
    summary = json.loads((tmp_path / "runs" / "judged" / "summary.json").read_text())
    assert [(row["method"], row["against"], row["axis"]) for row in summary["comparisons"]] == [
        ("dpo", "sft", "helpful"), ("dpo", "sft", "harmless")
    ]  # fmt: skip
