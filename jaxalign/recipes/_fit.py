"""From a model, examples and a method to a trained model: what every recipe and every experiment calls."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxalign import data, models, sharding, training
from jaxalign.data import BatchSource, Example
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig
from jaxalign.recipes._cached import attach_reference_log_probs, attach_trunk
from jaxalign.recipes._config import UNCHECKED, FitConfig
from jaxalign.recipes._objective import Objective, Params

__all__ = ["FitResult", "fit"]

# Largest deviation of the loss at step 0 from what policy = reference makes it, by type of the activations.
FIRST_LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


@dataclasses.dataclass(frozen=True)
class FitResult:
    """A trained model and how its training ended."""

    config: ModelConfig
    """The model, its layers in one stack."""
    params: Params
    """The whole model's parameters."""
    step: int
    """Updates applied."""
    metrics: dict[str, float]
    """The last step's metrics."""
    interrupted: bool
    """Whether a signal ended the run before its last step; the same call then continues it."""


def fit(
    model_config: ModelConfig,
    params: Params,
    examples: Sequence[Example],
    make_objective: Callable[[ModelConfig], Objective],
    config: FitConfig,
    *,
    reference: Params | None = None,
    cache_reference: bool = False,
    eval_examples: Sequence[Example] = (),
    directory: str | Path | None = None,
    pad_token: int = 0,
    identity: dict[str, Any] | None = None,
    evaluate: Callable[[int, Params], dict[str, float]] | None = None,
    report: Callable[[int, int, str], None] | None = None,
    title: str = "train",
) -> FitResult:
    """Train ``params`` on ``examples``.

    Args:
      model_config, params: the model to start from; ``params`` is copied, not consumed.
      examples: the tokenised records. They may carry ``trunk`` and ``reference_log_probs`` (``attach_trunk``,
        ``attach_reference_log_probs``), shared between runs; they are then not computed again.
      make_objective: the method: ``model config -> Objective``; called with the config whose layers are split as
        ``config.frozen_layers`` says.
      config: the run.
      reference: the reference model's parameters, for methods that read one; None = ``params`` as they are now.
      cache_reference: compute reference log-probs once, before training, instead of in every step: same numbers.
      eval_examples: held-out examples for ``config.eval_every``.
      directory: where checkpoints, metrics.jsonl and caches go; a run that is there continues. None keeps nothing.
      pad_token: id written into padding; no result depends on it.
      identity: further values that a continued run must share with the one it continues (data, model ...).
      evaluate: ``(step, whole model's parameters, in one stack) -> values``, called and written where the loss is
        evaluated. What it keeps of the parameters it must copy: the next step reuses their memory.
      report: called as ``report(done, total, note)`` after every step, instead of a progress bar.
      title: the word before the progress bar.

    Raises:
      InputError: a setting that does not fit the model, the data or the method.
      TrainingError: a loss or gradient that is not finite.
    """
    mesh = sharding.parse_mesh(config.mesh)
    model_config = model_config.replace(compute_dtype=config.dtype, remat=config.remat)
    if config.frozen_layers > model_config.layers:
        raise InputError(f"--frozen-layers: the model has {model_config.layers} layers, not {config.frozen_layers}")
    split_config, trainable, base = models.freeze(model_config, params, config.frozen_layers)
    objective = make_objective(split_config)
    if objective.couples_rows and config.accumulation > 1:
        raise InputError("--accumulation: this loss couples the rows of a batch; it needs them all at once (1)")
    if reference is not None and config.frozen_layers:
        raise InputError("--reference: with --frozen-layers the reference shares the frozen layers; leave it out")
    own = trainable if reference is None else reference
    eval_examples = list(eval_examples)
    _check_fit(model_config, [*examples, *eval_examples])

    layout = sharding.tree_shardings(models.logical_axes(split_config), _shapes(split_config), mesh)
    trainable_layout, base_layout = _like(layout, trainable), _like(layout, base)
    base = sharding.shard_tree(base, base_layout)
    frozen: dict[str, Params] = {"base": base, "reference": {}}
    carried, also = ({spec.name for spec in data.extra_specs(some)} for some in (examples, eval_examples or examples))
    if different := sorted((carried ^ also) & {"trunk", "reference_log_probs"}):
        raise InputError(f"eval_examples: they and the examples must carry {different[0]} both, or neither")
    cache_reference = cache_reference and objective.needs_reference and "reference_log_probs" not in carried
    if objective.needs_reference and "reference_log_probs" not in carried:
        # Not a copy: the state that is donated has buffers of its own (create_state), nothing donates these.
        frozen["reference"] = sharding.shard_tree(own, trainable_layout)

    directory = None if directory is None else Path(directory)
    batch_size = config.batch_size
    if config.cache_trunk and "trunk" not in carried:
        examples = attach_trunk(split_config, base, examples, mesh=mesh, batch_size=batch_size)
        if eval_examples:
            eval_examples = attach_trunk(split_config, base, eval_examples, mesh=mesh, batch_size=batch_size)
    if cache_reference:

        def attach(examples: Sequence[Example]) -> list[Example]:
            return attach_reference_log_probs(
                split_config,
                base,
                frozen["reference"],
                examples,
                temperature=objective.temperature,
                mesh=mesh,
                batch_size=batch_size,
                directory=None if directory is None else directory / "cache",
            )

        examples, eval_examples = attach(examples), attach(eval_examples) if eval_examples else []
        frozen["reference"] = {}

    source = _batches(examples, config, mesh, pad_token, shuffle=True)
    total_steps = len(source) if config.max_steps is None else config.max_steps
    optimizer, schedule = training.make_optimizer(config.optimizer, total_steps)
    extra = objective.initial_extra(own)
    state_layout = training.state_shardings(trainable, optimizer, mesh=mesh, shardings=trainable_layout, extra=extra)
    frozen_layout = {"base": base_layout, "reference": trainable_layout if frozen["reference"] else {}}
    step = training.make_train_step(
        objective.loss,
        optimizer,
        mesh=mesh,
        state_shardings=state_layout,
        frozen_shardings=frozen_layout,
        accumulation=config.accumulation,
        schedule=schedule,
        update_extra=objective.update_extra,
    )

    checkpoints, restored = None, None
    if directory is not None:
        described = json.loads(json.dumps(dataclasses.asdict(config) | (identity or {}), default=str))
        may_change = UNCHECKED
        if config.optimizer.schedule != "constant":
            # The schedule falls over the whole run: with another length every update so far would have been another.
            may_change = UNCHECKED - {"max_steps", "epochs"}
        checkpoints = training.Checkpoints(
            directory / "checkpoints", config=described, keep=config.keep_checkpoints, may_change=tuple(may_change)
        )
        like = training.state_shapes(trainable, optimizer, extra=extra)
        restored = checkpoints.restore(like, state_layout)
        if jax.process_index() == 0:
            (directory / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    if restored is None:
        key = jax.random.key(config.seed)
        state = training.create_state(trainable, optimizer, key, mesh=mesh, shardings=trainable_layout, extra=extra)
        start, position = 0, 0
    else:
        state, start, position = restored.state, restored.step, restored.position
    metrics = restored.metrics if restored else {}

    evaluation = _evaluation(objective, eval_examples, config, mesh, frozen, frozen_layout, trainable_layout, pad_token)

    def evaluate_all(index: int, state: training.TrainState) -> dict[str, float]:
        values = evaluation(state) if evaluation else {}
        if evaluate:
            whole = models.combine(state.params, base)
            values |= evaluate(index, models.restack(split_config, whole, (split_config.layers,))[1])
        return values

    def observe(index: int, values: Any) -> None:
        if report is not None:
            report(index, total_steps, f"loss {values['loss']:.4g}")
        expected = objective.first_loss
        if index == 1 and expected is not None and reference is None and "reference_log_probs" not in carried:
            tolerance = FIRST_LOSS_TOLERANCE[config.dtype]
            if not math.isclose(values["loss"], expected, rel_tol=tolerance, abs_tol=tolerance):
                raise training.TrainingError(
                    f"step 1: the loss is {values['loss']:.6f}, but policy = reference makes it {expected:.6f}: "
                    "the policy and the reference do not score alike"
                )

    writer = None
    if directory is not None:
        writer = training.MetricWriter(
            directory / "metrics.jsonl",
            step=start,
            tensorboard=directory / "tensorboard" if config.tensorboard else None,
        )
    shown = ("loss", "rewards/margin", "rewards/accuracy")
    batches = data.make_iterator(source, start=position)
    try:
        bar = training.Progress(total_steps, start=start, title=title, every=config.log_every, shown=shown)
        with contextlib.nullcontext() if report else bar as progress:
            result = training.run_loop(
                step,
                state,
                batches,
                max_steps=total_steps,
                frozen=frozen,
                position=position,
                save_every=config.save_every,
                checkpoints=checkpoints,
                writer=writer,
                progress=progress,
                evaluate=evaluate_all if evaluation or evaluate else None,
                evaluate_every=config.eval_every,
                observe=observe,
                identify=lambda batch: batch.record_ids[batch.record_ids >= 0],
                count_tokens=lambda batch: int((batch.example > 0).sum()) * sharding.row_share(mesh)[1],
            )
    finally:
        batches.close()
        if writer:
            writer.close()
        if checkpoints:
            checkpoints.close()
    whole = models.combine(result.state.params, base)
    whole_config, whole = models.restack(split_config, whole, (split_config.layers,))
    return FitResult(whole_config, whole, result.step, result.metrics or metrics, result.interrupted)


def _batches(
    examples: Sequence[Example], config: FitConfig, mesh: jax.sharding.Mesh, pad_token: int, *, shuffle: bool
) -> BatchSource:
    part, parts = sharding.row_share(mesh)
    return data.make_batches(
        examples,
        batch_size=config.batch_size,
        process_index=part,
        process_count=parts,
        pad_token=pad_token,
        seed=config.seed,
        shuffle=shuffle,
        num_epochs=1 if not shuffle else (config.epochs if config.max_steps is None else None),
        pack=config.packing,
        max_length=config.row_length,
        layout=config.pair_layout,
    )


def _evaluation(
    objective: Objective,
    examples: Sequence[Example],
    config: FitConfig,
    mesh: jax.sharding.Mesh,
    frozen: dict[str, Params],
    frozen_layout: Any,
    trainable_layout: Any,
    pad_token: int,
) -> Callable[[training.TrainState], dict[str, float]] | None:
    """The loss and metrics on held-out examples, under names that begin with ``eval/``."""
    if not examples:
        return None
    eval_step = training.make_eval_step(
        objective.loss, mesh=mesh, params_shardings=trainable_layout, frozen_shardings=frozen_layout
    )
    source = _batches(examples, config, mesh, pad_token, shuffle=False)

    def run(state: training.TrainState) -> dict[str, float]:
        batches = data.make_iterator(source)
        values = training.evaluate(eval_step, state.params, frozen, batches, state.key, mesh=mesh, extra=state.extra)
        return {f"eval/{name}": value for name, value in values.items()}

    return run


def _shapes(config: ModelConfig) -> Any:
    return jax.eval_shape(lambda: models.init(config, jax.random.key(0)))


def _like(whole: Any, part: Any) -> Any:
    """The entries of the nested dict ``whole`` that ``part`` has."""
    if not isinstance(part, dict):
        return whole
    return {name: _like(whole[name], value) for name, value in part.items()}


def _check_fit(config: ModelConfig, examples: Sequence[Example]) -> None:
    """An index past the end of a table would be read as its last row, without a word."""
    for example in examples:
        if not example.count("token"):
            continue
        if int(example.positions.max()) >= config.max_positions:
            raise InputError(
                f"--max-length: record {example.record_id} has positions up to {int(example.positions.max())}, but the "
                f"model has {config.max_positions}"
            )
        if int(example.tokens.max()) >= config.vocab_size:
            raise InputError(
                f"--model: record {example.record_id} has the token {int(example.tokens.max())}, but the model's "
                f"vocabulary has {config.vocab_size}: the tokenizer is another model's"
            )
