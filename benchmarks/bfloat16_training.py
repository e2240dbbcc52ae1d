"""What bfloat16 costs in loss: 200 steps of fine-tuning under each choice of dtypes, on the same batches.

    python -m benchmarks.bfloat16_training
    python -m benchmarks.bfloat16_training --model smollm2 --seeds 1 --batch-size 4 --length 48

A packaged model is fine-tuned on film reviews (AdamW, linear warm-up of 10 steps, gradients clipped to norm 1). Every
row sees the same batches in the same order; all but the first compute in bfloat16. The yardstick is float32 master
weights under bfloat16 compute. With ``--start bfloat16`` the weights are rounded before anything else, as those of most
model folders are. Columns, in nats a token:

- held out: the loss after the last step on reviews that none was trained on;
- gap held out: that, less the yardstick's;
- mean gap, furthest behind, furthest ahead: the training loss less the yardstick's on the same batch, over all steps;
- bytes: parameters and optimizer state a parameter, gradients and activations not counted.

Two rows are not in jaxalign, they are what it is compared with: bfloat16 parameters rounded to nearest, and Kahan-style
compensation, where a second bfloat16 holds what the first could not.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.assets import glassllm, smollm2
from experiments.assets.movie_reviews import first_words, load_movie_reviews
from jaxalign import data, models, recipes, sharding, training
from jaxalign.training import OptimizerConfig

YARDSTICK = "float32 master weights"
# Name -> (compute, parameters, optimizer state, how an update is applied)
CHOICES: dict[str, tuple[Any, str, Any, str]] = {
    "all float32": ("float32", "float32", "float32", "jaxalign"),
    YARDSTICK: ("bfloat16", "float32", "float32", "jaxalign"),
    "the same, bfloat16 optimizer state": ("bfloat16", "float32", "bfloat16", "jaxalign"),
    "bfloat16, stochastic rounding": ("bfloat16", "bfloat16", "float32", "jaxalign"),
    "the same, bfloat16 optimizer state ": ("bfloat16", "bfloat16", "bfloat16", "jaxalign"),
    "bfloat16, Kahan compensation": ("bfloat16", "bfloat16", "float32", "compensated"),
    "bfloat16, rounded to nearest": ("bfloat16", "bfloat16", "float32", "nearest"),
}


class Compensated(NamedTuple):
    """The rule's state, and what the parameters could not hold: their true value is parameter + rest."""

    inner: Any
    rest: Any


def wide(tree: Any) -> Any:
    """The tree in float32."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def to_nearest(x: jax.Array) -> jax.Array:
    """A float32 that bfloat16 holds. A cast there and back would not do: XLA may drop the pair."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def nearest(rule: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Plain bfloat16: parameter + update, rounded to nearest by ``optax.apply_updates``."""

    def update(grads: Any, state: Any, params: Any, **_: Any) -> Any:
        return rule.update(wide(grads), state, wide(params))

    return optax.GradientTransformationExtraArgs(lambda params: rule.init(wide(params)), update)


def compensated(rule: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Kahan-style: what rounding took from parameter + rest + update is the next rest."""

    def update(grads: Any, state: Compensated, params: Any, **_: Any) -> Any:
        old = wide(params)
        moves, inner = rule.update(wide(grads), state.inner, old)
        wanted = jax.tree.map(lambda p, rest, move: p + rest.astype(jnp.float32) + move, old, state.rest, moves)
        new = jax.tree.map(lambda value, p: to_nearest(value) if p.dtype == jnp.bfloat16 else value, wanted, params)
        rest = jax.tree.map(lambda value, kept: (value - kept).astype(jnp.bfloat16), wanted, new)
        return jax.tree.map(jnp.subtract, new, old), Compensated(inner, rest)

    def init(params: Any) -> Compensated:
        return Compensated(rule.init(wide(params)), jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.bfloat16), params))

    return optax.GradientTransformationExtraArgs(init, update)


APPLY = {"jaxalign": lambda rule: rule, "nearest": nearest, "compensated": compensated}


def examples(tokenizer: Any, texts: tuple[str, ...], length: int, curl: bool) -> list[data.Example]:
    """The openings of reviews, one a row."""
    texts = tuple(first_words(text, length) for text in texts)
    records = [{"text": glassllm.curl_quotes(text) if curl else text, "finished": False} for text in texts]
    return data.build_examples(records, tokenizer, kind="text", truncation=data.Truncation(max_length=length))[0]


def run(
    name: str, options: argparse.Namespace, loaded: Any, rows: Sequence[list[data.Example]], seed: int
) -> dict[str, Any]:
    """Train one choice; its losses, its held-out loss, its bytes a parameter."""
    compute, parameter_dtype, state_dtype, applied = CHOICES[name]
    config, params, _ = loaded
    config = config.replace(compute_dtype=compute)
    mesh = sharding.parse_mesh("data=1")
    layout_of = sharding.tree_shardings(models.logical_axes(config), params, mesh)
    rule, schedule = training.make_optimizer(
        OptimizerConfig(learning_rate=options.learning_rate, warmup_steps=10, clip_norm=1.0, state_dtype=state_dtype),
        options.steps,
    )
    rule = APPLY[applied](rule)
    state = training.create_state(
        params, rule, jax.random.key(seed), mesh=mesh, shardings=layout_of, dtype=parameter_dtype
    )
    layout = training.state_shardings(params, rule, mesh=mesh, shardings=layout_of)
    objective = recipes.likelihood_objective(config)
    step = training.make_train_step(objective.loss, rule, mesh=mesh, state_shardings=layout, schedule=schedule)
    frozen: dict[str, Any] = {"base": {}, "reference": {}}

    def batches(some: list, **more: Any) -> Iterator[Any]:
        return data.make_iterator(data.make_batches(some, batch_size=options.batch_size, seed=seed, **more))

    losses = []
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.optimizer_state)))
    for _, batch in zip(range(options.steps), batches(rows[0], num_epochs=None), strict=False):
        state, metrics = step(state, frozen, training.put_batch(batch, mesh))
        losses.append(float(metrics["loss"][0]))
    eval_step = training.make_eval_step(objective.loss, mesh=mesh)
    held_out = training.evaluate(
        eval_step, state.params, frozen, batches(rows[1], shuffle=False, num_epochs=1), state.key, mesh=mesh
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {"losses": losses, "held_out": held_out["loss"], "bytes": stored / count}


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table; figures are means over the seeds, the furthest of all steps and seeds."""
    heads = ("", "held out", "gap held out", "mean gap", "furthest behind", "furthest ahead", "bytes")
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for name, runs in found.items():
        gaps = np.array([run["losses"] for run in runs]) - np.array([run["losses"] for run in found[YARDSTICK]])
        held_out = np.array([run["held_out"] for run in runs])
        gap = (held_out - np.array([run["held_out"] for run in found[YARDSTICK]])).mean()
        lines.append(
            f"| {name.strip()} | {held_out.mean():.4f} | {gap:+.4f} | {gaps.mean():+.4f} | {gaps.max():+.4f} | "
            f"{gaps.min():+.4f} | "
            f"{runs[0]['bytes']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("glassllm", "smollm2"), default="glassllm")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=64, help="most tokens of a row")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--start", choices=("float32", "bfloat16"), default="float32", help="type of the first weights")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="rows by the beginning of their name; the yardstick is always run")
    parser.add_argument("--losses", type=Path, help="also write every step's loss to this JSON file")
    options = parser.parse_args()

    loaded = (glassllm if options.model == "glassllm" else smollm2).load()
    if options.start == "bfloat16":
        loaded = (loaded[0], wide(training.cast_parameters(loaded[1], "bfloat16")), loaded[2])
    reviews = load_movie_reviews(0)
    count = options.steps * options.batch_size
    rows = tuple(
        examples(loaded[2], part.take(limit).texts, options.length, options.model == "glassllm")
        for part, limit in ((reviews.reward, count), (reviews.prompts, 16 * options.batch_size))
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for name in CHOICES:
        if options.only and name != YARDSTICK and not any(name.startswith(some) for some in options.only):
            continue
        begin = time.perf_counter()
        found[name] = [run(name, options, loaded, rows, seed) for seed in range(options.seeds)]
        print(f"{name.strip()}: {time.perf_counter() - begin:.0f} s", flush=True)
        if options.losses:
            options.losses.write_text(json.dumps(found))
    start = np.mean([run["losses"][0] for run in found[YARDSTICK]])
    end = np.mean([run["losses"][-10:] for run in found[YARDSTICK]])
    print(
        f"\n{options.model} ({options.start} at the start), {options.steps} steps of {options.batch_size} rows of "
        f"{options.length} tokens, learning rate {options.learning_rate:g}, {options.seeds} seeds; the yardstick's "
        f"training loss went from {start:.3f} to {end:.3f}.\n\n{table(found)}"
    )


if __name__ == "__main__":
    main()
