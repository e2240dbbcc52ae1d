"""Reward models: one number for an answer, learnt from preferences.

    P(y_w preferred to y_l | x) = sigmoid(r(x, y_w) - r(x, y_l))                  (Bradley-Terry; DPO paper, equation 1)

Records: ``prompt`` + ``chosen`` + ``rejected``, or ``prompt`` + ``responses`` + ``ratings``. The model is that of
``model``, usually an SFT folder, with a linear score read at the answer's last token. What is written is a Hugging Face
``...ForSequenceClassification`` folder, and in its ``reward.json`` the mean (and scale) of scores on demonstrations:
reward = (score - mean) / std.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign import data, evaluation, models, sharding
from jaxalign.data import Example
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig, RewardModel
from jaxalign.recipes._cached import OnProgress, example_scores
from jaxalign.recipes._card import Card, write_card
from jaxalign.recipes._config import RunConfig
from jaxalign.recipes._fit import FitResult
from jaxalign.recipes._fit_data import listed
from jaxalign.recipes._objective import Params
from jaxalign.recipes._public import public_dataset
from jaxalign.recipes._reward import RewardObjective, reward_objective
from jaxalign.recipes._run import RunData, Tokenise, load_tokenizer, read_examples, run_recipe, say
from jaxalign.training import OptimizerConfig, Watchdog, watched

__all__ = ["RewardModelConfig", "load", "moments", "pair_margins", "run"]

# Folded into the seed's key to make the score head.
SCORE = 0x5343_4F52
# What a run waits for once it has trained.
MEASURED, HELD_OUT = "demonstrations to be scored", "held-out pairs to be scored"


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig(RewardObjective, RunConfig):
    """Train a reward model on preferences."""

    eval_every: int = 0
    """With ``eval_dataset``: evaluate every N steps; 0 = ten times over the run."""
    batch_size: int = 64
    """Rows in one update (all devices together): a pair (or all answers to one prompt) a row, or several packed."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=3e-6, schedule="linear", epsilon=1e-5, clip_norm=1.0)
    )
    """AdamW, falling linearly to 0 over the run."""
    normalise_dataset: str | None = None
    """Demonstrations (``prompt`` + ``completion``) whose mean reward is made 0; None = ``dataset``'s best answers."""
    normalise_variance: bool = False
    """Also give the rewards of demonstrations unit variance."""

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        RewardObjective.__post_init__(self)


def load(config: RewardModelConfig) -> Tokenise:
    """Read the records; the result makes examples of them. Raises ``InputError``."""
    return read_examples(
        config,
        lambda records, tokenizer: data.build_examples(
            records, tokenizer, kind=None, truncation=config.truncation, on_bad_row=config.on_bad_row
        ),
        require_pairs=True,
    )


def run(config: RewardModelConfig) -> None:
    """Load, tokenise, train, write ``output_dir/final``. Raises ``InputError`` for what is wrong with the input.

    With ``eval_dataset`` the model of best held-out accuracy is kept, and its accuracy and calibration are written to
    ``evaluation.json`` (and drawn, where matplotlib is installed).
    """

    # Read before hours of training, as the records are.
    demonstrations = None if config.normalise_dataset is None else _demonstrations(config)

    def with_head(model_config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
        if model_config.labels == 1:  # a reward model that goes on
            return model_config, params
        return models.add_score_head(model_config, params, jax.random.fold_in(jax.random.key(config.seed), SCORE))

    def write(result: FitResult, tokenizer: Any, run_data: RunData) -> None:
        measured = listed(run_data.examples) if demonstrations is None else demonstrations
        with watched(config.limits, MEASURED) as watch:
            _write(config, result, tokenizer, measured, listed(run_data.eval_examples), watch)
        kept = result.step if result.best_step is None else result.best_step
        write_card(config.output_dir / "final", config, Card("reward", run_data.identity, kept))

    run_recipe(
        config,
        lambda: load(config),
        lambda model_config: reward_objective(model_config, config),
        title="reward",
        with_head=with_head,
        keep_best=None if config.eval_dataset is None else "eval/rewards/accuracy",
        write=write,
    )


def moments(
    config: ModelConfig,
    params: Params,
    examples: Sequence[Example],
    *,
    mesh: Mesh | None = None,
    batch_size: int = 16,
    on_progress: OnProgress | None = None,
) -> tuple[float, float, int]:
    """(mean, standard deviation, number) of the scores of demonstrations; of preferences, of answers no other beats.

    Args:
      config, params: the reward model.
      examples: tokenised records.
      mesh, batch_size: where, and how many rows at a time, each of as many examples as fit.
      on_progress: called as ``on_progress(done, total)``, in examples.
    """
    scores = example_scores(config, params, examples, mesh=mesh, batch_size=batch_size, on_progress=on_progress)
    best = []
    for own, example in zip(scores, examples, strict=True):
        beaten = set(example.pairs[:, 1].tolist())
        best += [float(score) for slot, score in enumerate(own) if slot not in beaten]
    return float(np.mean(best)), float(np.std(best)), len(best)


def pair_margins(
    config: ModelConfig,
    params: Params,
    examples: Sequence[Example],
    *,
    mesh: Mesh | None = None,
    batch_size: int = 16,
    on_progress: OnProgress | None = None,
) -> np.ndarray:
    """r_w - r_l of every pair of the examples, float32 ``[n]``, in order: for ``evaluation.calibration``.

    Arguments as in :func:`moments`.
    """
    scores = example_scores(config, params, examples, mesh=mesh, batch_size=batch_size, on_progress=on_progress)
    return np.concatenate(
        [own[example.pairs[:, 0]] - own[example.pairs[:, 1]] for own, example in zip(scores, examples, strict=True)]
    )


def _demonstrations(config: RewardModelConfig) -> list[Example]:
    try:
        return data.build_examples(
            data.load_dataset(str(config.normalise_dataset), on_bad_row=config.on_bad_row),
            load_tokenizer(config.model),
            truncation=config.truncation,
            on_bad_row=config.on_bad_row,
        )[0]
    except InputError as error:
        raise InputError(f"--normalise-dataset: {error}") from error


def _write(
    config: RewardModelConfig,
    result: FitResult,
    tokenizer: Any,
    measured: list[Example],
    eval_examples: list[Example],
    watch: Watchdog,
) -> None:
    final, mesh = config.output_dir / "final", sharding.parse_mesh(config.mesh)
    save_dtype = config.save_dtype or config.parameter_dtype
    params = jax.tree.map(
        lambda leaf: leaf if leaf.dtype == save_dtype else leaf.astype(save_dtype),
        {name: part for name, part in result.params.items() if name != "score"},
    )
    params["score"] = result.params["score"]  # float32 whatever the rest is, as it is computed
    source = public_dataset(config.normalise_dataset or config.dataset)
    source = source if config.normalise_dataset else f"the best answers of {source}"
    scored = result.config.replace(compute_dtype="float32")  # as the folder is computed by whoever loads it
    mean, std, count = moments(
        scored,
        params,
        measured,
        mesh=mesh,
        batch_size=config.batch_size,
        on_progress=watch.wait_for_parts(MEASURED),
    )
    model = RewardModel(scored, params, mean, std if config.normalise_variance else 1.0)
    watch.wait_for(f"{final} to be written", slow=True)
    models.save_reward_model(final, model, tokenizer, measured_on=source, measured_answers=count, measured_std=std)
    lines = [
        f"{result.step} steps done; the reward model is in {final}, its rewards less their mean {mean:.4f} over "
        f"{count} answers ({source})"
    ]
    if eval_examples:
        watch.wait_for(HELD_OUT, slow=True)
        margins = pair_margins(
            scored,
            params,
            eval_examples,
            mesh=mesh,
            batch_size=config.batch_size,
            on_progress=watch.wait_for_parts(HELD_OUT),
        )
        found = evaluation.calibration(margins)
        content = {
            "step": result.best_step,
            "dataset": config.eval_dataset,
            "note": "the checkpoint was chosen by its accuracy on these pairs; intervals take pairs as independent",
            **dataclasses.asdict(found),
        }
        if jax.process_index() == 0:
            path = config.output_dir / "evaluation.json"
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            _draw(config, found)
        lines.append(
            f"held out: accuracy {found.accuracy:.3f} [{found.low:.3f}, {found.high:.3f}] on {found.pairs} pairs, the "
            f"best of step {result.best_step}; calibration in {config.output_dir / 'evaluation.json'}"
        )
    for line in lines:
        say(line)


def _draw(config: RewardModelConfig, found: evaluation.Calibration) -> None:
    import importlib.util

    if importlib.util.find_spec("matplotlib") is not None:
        evaluation.save_figure(evaluation.plot_calibration(found), config.output_dir / "calibration")
