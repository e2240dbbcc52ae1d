"""PPO from the supervised model against PPO from the packaged one: is fine-tuning before PPO worth it?

    python -m benchmarks.policy_start

glassllm on the sentiment study's prefixes, its learned reward model and its PPO settings (``--updates`` of them), KL
target 6, one run a start and seed. The reward model is the same; each policy is held to the model it starts from, as
``jaxalign ppo`` does. A third kind starts from the packaged model but is held to the supervised one, so that its
objective is the first kind's: it is what the start alone costs. Every policy is measured on the same held-out
prefixes: the true reward, the judge's P(positive), and the perplexity of what it writes under the supervised model
(what leaves the kind of text people asked for). Differences are paired by prefix; their intervals are over prefixes
(bootstrap), the spread over seeds stands beside them.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._study import FOLDER, STUDY, load, over_seeds
from experiments._sentiment_start import Assets

KINDS = ("supervised", "packaged", "packaged, held to the supervised")


def train(assets: Assets, kind: str, seed: int, target: float, updates: int) -> tuple[dict[str, Any], Any]:
    """One run: PPO's last metrics and the policy measured."""
    from experiments._sentiment import measure
    from experiments._sentiment_rlhf import PPO, train_ppo

    assert assets.reward is not None
    study = dataclasses.replace(STUDY, rlhf=dataclasses.replace(STUDY.rlhf, updates=updates))
    policy, metrics = train_ppo(
        assets.config,
        assets.start if kind == "supervised" else assets.base,
        assets.training,
        assets.reward,
        PPO("learned", target),
        study,
        assets.tokenizer,
        seed=seed,
        reference=assets.start if kind == KINDS[2] else None,
        report=_say(f"{kind}, seed {seed}"),
    )
    found = measure(
        assets.config, policy, assets.start, assets.tokenizer, assets.held_out, assets.raters, study,
        step=updates, report=_say("measuring"),
    )  # fmt: skip
    return metrics, found


def _say(title: str) -> Any:
    def report(done: int, total: int, note: str = "") -> None:
        if done % 10 == 0 or done == total:
            print(f"{title}: {done}/{total} {note}", file=sys.stderr, flush=True)

    return report


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown, a line a kind: means over seeds +- half of Student's 95 % interval."""
    from jaxalign import evaluation

    names = {"reward": "true reward", "judge": "judge's P(positive)", "perplexity": "perplexity", "kl": "KL, nats"}
    lines = ["| starts as | " + " | ".join(names.values()) + " | reward, difference |"]
    lines.append("|---" + "|---:" * (len(names) + 1) + "|")
    first = found[KINDS[0]]
    for kind, rows in found.items():
        cells = []
        for name in names:
            mean, half = over_seeds([float(np.mean(row[name])) for row in rows])
            cells.append(f"{mean:.2f} ± {half:.2f}")
        own, others = (np.mean([row["reward"] for row in some], axis=0) for some in (rows, first))
        difference = ""
        if rows is not first:
            paired = evaluation.paired_bootstrap_difference(own, others)
            difference = f"{paired.estimate:+.2f} [{paired.low:+.2f}, {paired.high:+.2f}]"
        lines.append("| " + " | ".join([kind, *cells, difference]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=FOLDER, help="folder of the study's run, read or filled")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", type=float, default=6.0, help="KL held, nats a response")
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--rows", type=Path, help="also write every run's figures to this JSON lines file")
    args = parser.parse_args()
    assets = load(args.study)
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for seed in range(args.seeds):
        for kind, rows in found.items():
            metrics, measured = train(assets, kind, seed, args.target, args.updates)
            rows.append({
                "kind": kind, "seed": seed, "kl": metrics["objective/kl"],
                "learned_reward": metrics["objective/scores"],
                "reward": measured.by_prefix("reward").tolist(), "judge": measured.by_prefix("judge").tolist(),
                "perplexity": measured.extras()["start-model perplexity"],
            })  # fmt: skip
            shown = {name: np.round(np.mean(value), 3) for name, value in rows[-1].items() if name != "kind"}
            print(kind, json.dumps(shown, default=float), file=sys.stderr, flush=True)
            if args.rows:
                with args.rows.open("a") as stream:
                    stream.write(json.dumps(rows[-1]) + "\n")
    print(f"glassllm, KL target {args.target:g}, {args.updates} updates, {args.seeds} seeds:\n\n{table(found)}")


if __name__ == "__main__":
    main()
