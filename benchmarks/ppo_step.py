"""PPO updates on random prompts, beside TRL on the same workload, in turn.

    python -m benchmarks.ppo_step --size tiny
    python -m benchmarks.ppo_step --size tiny --peer-python PEER/bin/python --peer-script trl_ppo.py --peer-path TRL

Workload: GPT-2 shape ("tiny" 4 layers of width 256, "small" 12 of 768), vocabulary 50,257, float32; policy, reference,
reward model and critic are four models of that shape. An update samples 64 tokens to each of 16 prompts of 32, rates
them with the reward model, and takes 4 passes over them, one optimizer step each. tokens/s counts sampled tokens over
the whole update, rollout included. With a peer (TRL 1.11, the last that has the trainer; ``--peer-path`` is the folder
it was installed into) both run in turn as whole processes, and what is printed is the ratio of medians over the rounds.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from typing import Any

from benchmarks._workload import EOS, SIZES, gpt2, run, zipf_ids


def measure(size: str, steps: int, warmup: int, batch: int, prompt: int, new: int, epochs: int) -> dict[str, Any]:
    """Run the updates in this process and return one row of figures."""
    import jax
    import numpy as np

    from jaxalign import data, models, recipes
    from jaxalign.training import OptimizerConfig

    config = gpt2(size)
    params = models.init(config, jax.random.key(0))
    scored, reward = models.add_score_head(config, models.init(config, jax.random.key(1)), jax.random.key(2))
    critic = models.add_score_head(config, models.init(config, jax.random.key(3)), jax.random.key(4))
    rng = np.random.default_rng(0)
    prompts = [data.Prompt(ids, "") for ids in zipf_ids(rng, batch * steps, prompt).tolist()]
    settings = recipes.PPOFitConfig(
        max_steps=steps,
        batch_size=batch,
        sampling_batch=batch,
        max_new_tokens=new,
        ppo_epochs=epochs,
        optimizer=OptimizerConfig(learning_rate=1e-6, epsilon=1e-8, clip_norm=1.0),
    )
    wall, cpu = [time.perf_counter()], [time.process_time()]

    def report(done: int, total: int, note: str) -> None:
        wall.append(time.perf_counter())
        cpu.append(time.process_time())

    result = recipes.fit_ppo(
        config,
        params,
        prompts,
        models.RewardModel(scored, reward, 0.0),
        settings,
        decode=str,
        stop_tokens=(EOS,),
        critic=models.RewardModel(*critic, 0.0),
        report=report,
    )
    seconds, cpu_seconds = np.diff(wall)[warmup:], np.diff(cpu)[warmup:]
    median = statistics.median(seconds)
    return {
        "bench": "jaxalign_ppo", "size": size, "tokens_per_s": round(batch * new / median, 1),
        "median_step_s": round(median, 3), "cpu_s": round(statistics.median(cpu_seconds), 3),
        "first_step_s": round(wall[1] - wall[0], 2), "step_s": [round(s, 3) for s in np.diff(wall).tolist()],
        "response_length": result.metrics["val/response_length"],
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1), "jax": jax.__version__,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--steps", type=int, default=6, help="updates, warm-up included")
    parser.add_argument("--warmup", type=int, default=1, help="updates left out of the median")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=64, help="tokens sampled to a prompt")
    parser.add_argument("--epochs", type=int, default=4, help="passes over a rollout")
    parser.add_argument("--peer-python", help="python of an environment that holds the peer")
    parser.add_argument("--peer-script", help="the peer's script; takes --size --steps --warmup, prints a JSON line")
    parser.add_argument("--peer-path", help="added to the peer's PYTHONPATH")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if not args.peer_script:
        print(json.dumps(measure(args.size, args.steps, args.warmup, args.batch, args.prompt, args.new, args.epochs)))
        return
    common = ["--size", args.size, "--steps", str(args.steps), "--warmup", str(args.warmup)]
    found: dict[str, list[dict[str, Any]]] = {"TRL": [], "jaxalign": []}
    for _ in range(args.rounds):
        path = {"PYTHONPATH": args.peer_path} if args.peer_path else None
        found["TRL"].append(run([args.peer_python or sys.executable, args.peer_script, *common], path))
        found["jaxalign"].append(run([sys.executable, "-m", "benchmarks.ppo_step", *common]))
        print(json.dumps({name: rows[-1] for name, rows in found.items()}), file=sys.stderr, flush=True)
    print(f"| {args.size}, {args.rounds} rounds in turn | sampled tokens/s | peak memory, MB |")
    print("|---|---:|---:|")
    figures = {}
    for name, rows in found.items():
        figures[name] = [statistics.median(float(row[key]) for row in rows) for key in ("tokens_per_s", "peak_rss_mb")]
        print(f"| {name} | {figures[name][0]:,.0f} | {figures[name][1]:,.0f} |")
    speed, memory = (figures["jaxalign"][i] / figures["TRL"][i] for i in (0, 1))
    print(f"| jaxalign / TRL | {speed:.2f} | {memory:.2f} |")


if __name__ == "__main__":
    main()
