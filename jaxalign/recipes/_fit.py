"""From a model, examples and a method to a trained model: what every recipe and every experiment calls."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxalign import data, sharding, training
from jaxalign.data import BatchSource, Example, Examples
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig
from jaxalign.recipes._best import Best
from jaxalign.recipes._cached import attach_reference_log_probs, attach_trunk
from jaxalign.recipes._config import FitConfig
from jaxalign.recipes._fit_data import Pretraining, carried_extras, check_fit, listed, make_source
from jaxalign.recipes._handover import taken
from jaxalign.recipes._objective import Objective, Params
from jaxalign.recipes._program import make_program
from jaxalign.recipes._resume import open_run
from jaxalign.recipes._shared import run_mesh
from jaxalign.recipes._split import Split, split_model

__all__ = ["FitResult", "fit"]

# Largest deviation of the loss at step 0 from what policy = reference makes it, by type of the activations.
FIRST_LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


@dataclasses.dataclass(frozen=True)
class FitResult:
    """A trained model and how its training ended."""

    config: ModelConfig
    """The model, its layers in one stack."""
    params: Params
    """The whole model's parameters: what trained in ``parameter_dtype``, what did not in its own; an adapter is merged
    in (what it adapts is then in ``parameter_dtype``)."""
    step: int
    """Updates applied."""
    metrics: dict[str, float]
    """The last step's metrics."""
    interrupted: bool
    """Whether a signal ended the run before its last step; the same call then continues it."""
    lora_config: ModelConfig | None = None
    """With ``lora_rank``: the model as the adapter belongs to it (stacks, ``lora``), for ``models.save_adapter``."""
    lora: Params | None = None
    """With ``lora_rank``: the adapter alone, a tree beside the parameters that training started from."""
    best_step: int | None = None
    """With ``keep_best``: the step whose parameters these are."""


def fit(
    model_config: ModelConfig,
    params: Params | Callable[[], Params],
    examples: Examples,
    make_objective: Callable[[ModelConfig], Objective],
    config: FitConfig,
    *,
    reference: Params | Callable[[], Params] | None = None,
    cache_reference: bool = False,
    eval_examples: Examples = (),
    pretraining: Pretraining | None = None,
    directory: str | Path | None = None,
    pad_token: int = 0,
    identity: dict[str, Any] | None = None,
    evaluate: Callable[[int, Params], dict[str, float]] | None = None,
    keep_best: str | None = None,
    report: Callable[[int, int, str], None] | None = None,
    title: str = "train",
) -> FitResult:
    """Train ``params`` on ``examples``.

    Args:
      model_config, params: the model to start from; ``params`` is copied, not consumed. A function that returns them
        is called once: what nobody else holds is gone while the run trains, but for what the step reads of it (the
        frozen part, the reference).
      examples: the tokenised records, as a list or drawn anew each time (``data.ChainExamples``). They may carry
        ``trunk`` and ``reference_log_probs`` (``attach_trunk``,
        ``attach_reference_log_probs``), shared between runs; they are then not computed again.
      make_objective: the method: ``model config -> Objective``; called with the config whose layers are split as
        ``config.frozen_layers`` says, and which has the adapter where one trains (once more, without its dropout, for
        evaluation).
      config: the run.
      reference: the reference model's parameters, or a function that returns them, for methods that read one; None =
        ``params`` as they are now.
      cache_reference: compute reference log-probs once, before training, instead of in every step: same numbers.
      eval_examples: held-out examples for ``config.eval_every``; of drawn ones the first draw of each.
      pretraining: text that every step reads beside its batch, for methods that have a term for it.
      directory: where checkpoints, metrics.jsonl and caches go; a run that is there continues. None keeps nothing.
      pad_token: id written into padding; no result depends on it.
      identity: further values that a continued run must share with the one it continues (data, model ...).
      evaluate: ``(step, whole model's parameters, in one stack) -> values``, called and written where the loss is
        evaluated. What it keeps of the parameters it must copy: the next step reuses their memory.
      keep_best: the name of an evaluated value, such as "eval/rewards/accuracy": the result is the model of the
        evaluation at which it was highest (the first of equals), not the last. Costs another copy of what trains. With
        ``eval_every`` 0 it is evaluated ten times over the run.
      report: called as ``report(done, total, note)`` after every step, instead of a progress bar.
      title: the word before the progress bar.

    Raises:
      InputError: a setting that does not fit the model, the data or the method.
      TrainingError: a loss or gradient that is not finite.
    """
    mesh = run_mesh(config)
    model_config = model_config.replace(compute_dtype=config.dtype, remat=config.remat, attention=config.attention)
    split = split_model(model_config, taken(params), config, mesh)
    objective = make_objective(split.config)
    _check_method(objective, config, reference is not None, examples)
    eval_examples = listed(eval_examples)
    if keep_best is not None and not eval_examples and evaluate is None:
        raise InputError(f"keep_best {keep_best!r}: there is nothing to evaluate on")
    check_fit(model_config, examples)
    check_fit(model_config, eval_examples)
    if pretraining is not None:
        check_fit(model_config, pretraining.examples, flag="--pretraining-length")
    carried = carried_extras(examples, eval_examples)
    directory = None if directory is None else Path(directory)

    own = split.reference if reference is None else split.as_frozen(taken(reference))
    frozen: dict[str, Params] = {"base": split.base, "reference": {}}
    if objective.needs_reference and "reference_log_probs" not in carried and own:
        # Not a copy: the state that is donated has buffers of its own (create_state), nothing donates these.
        frozen["reference"] = sharding.shard_tree(own, split.trainable_layout)
    attach = _Attach(split, objective, config, mesh, directory)
    if isinstance(examples, Sequence) and config.cache_trunk and "trunk" not in carried:
        examples, eval_examples = attach.trunk(examples), attach.trunk(eval_examples)
    if (
        isinstance(examples, Sequence)
        and cache_reference
        and objective.needs_reference
        and "reference_log_probs" not in carried
    ):
        examples, eval_examples = (attach.reference(some, frozen["reference"]) for some in (examples, eval_examples))
        frozen["reference"] = {}

    source = make_source(examples, config, mesh, pad_token, shuffle=True, pretraining=pretraining)
    total_steps = len(source) if config.max_steps is None else config.max_steps
    if keep_best is not None and not config.eval_every:  # the first and the last model alone are no choice
        config = dataclasses.replace(config, eval_every=max(1, total_steps // 10))
    program = make_program(
        objective,
        split,
        config,
        mesh,
        own=own,
        reads_reference=bool(frozen["reference"]),
        total_steps=total_steps,
    )
    step, optimizer, extra, layout = program.step, program.optimizer, program.extra, program.layout
    frozen_layout = program.frozen_layout

    best = Best()
    checkpoints, restored = None, None
    if directory is not None:
        like = training.state_shapes(split.trainable, optimizer, dtype=config.parameter_dtype, extra=extra)
        saved_layout = layout
        if keep_best is not None:
            like, saved_layout = best.saved(like), best.saved(layout)
        checkpoints, restored = open_run(directory, config, identity, like, saved_layout)
    if restored is None:
        state = training.create_state(
            split.trainable,
            optimizer,
            jax.random.key(config.seed),
            mesh=mesh,
            shardings=split.trainable_layout,
            dtype=config.parameter_dtype,
            extra=extra,
        )
    else:
        state = restored.state if keep_best is None else best.restore(restored.state)
    # What the state was made of is no longer held here: it would lie beside it until the run ends.
    split = split.without_start
    del own, attach, program, extra

    evaluation = None
    if eval_examples:
        # Without dropout the loss is the same function of the parameters at every evaluation.
        scored = objective if split.without_dropout == split.config else make_objective(split.without_dropout)
        eval_step = training.make_eval_step(
            scored.evaluation or scored.loss,
            mesh=mesh,
            params_shardings=split.trainable_layout,
            frozen_shardings=frozen_layout,
        )
        eval_source = make_source(eval_examples, config, mesh, pad_token, shuffle=False)
        evaluation = _evaluation(eval_step, eval_source, frozen, mesh)

    def evaluate_all(index: int, state: training.TrainState) -> dict[str, float]:
        values = evaluation(state) if evaluation else {}
        if evaluate is not None:
            whole = sharding.settle(split.whole(state.params)[1])
            values |= evaluate(index, whole)
        if keep_best is not None:
            best.offer(index, values, keep_best, state)
        return values

    first_loss = objective.first_loss if reference is None and "reference_log_probs" not in carried else None

    def observe(index: int, values: Any) -> None:
        if report is not None:
            report(index, total_steps, f"loss {values['loss']:.4g}")
        if index == 1 and first_loss is not None:
            _check_first_loss(values["loss"], first_loss, FIRST_LOSS_TOLERANCE[config.dtype])

    result = _loop(
        step,
        state,
        source,
        config,
        position=restored.position if restored else 0,
        start=restored.step if restored else 0,
        evaluation_due=restored is not None and restored.evaluation_due,
        total_steps=total_steps,
        frozen=frozen,
        checkpoints=checkpoints,
        directory=directory,
        progress=None if report else title,
        evaluate=evaluate_all if evaluation or evaluate else None,
        observe=observe,
        to_save=best.saved if keep_best is not None else None,
    )
    trained = result.state.params if keep_best is None or result.interrupted else best.params
    whole_config, whole = split.whole(trained)
    return FitResult(
        config=whole_config,
        params=whole,
        step=result.step,
        metrics=result.metrics or (restored.metrics if restored else {}),
        interrupted=result.interrupted,
        lora_config=split.config if config.lora else None,
        lora=trained if config.lora else None,
        best_step=None if keep_best is None else best.step,
    )


@dataclasses.dataclass(frozen=True)
class _Attach:
    """What does not change while a run trains, computed once and carried by its examples."""

    split: Split
    objective: Objective
    config: FitConfig
    mesh: jax.sharding.Mesh
    directory: Path | None

    def trunk(self, examples: Sequence[Example]) -> list[Example]:
        """With the activations of the frozen layers."""
        if not examples:
            return []
        batch_size = self.config.batch_size
        return attach_trunk(self.split.config, self.split.base, examples, mesh=self.mesh, batch_size=batch_size)

    def reference(self, examples: Sequence[Example], own: Params) -> list[Example]:
        """With the reference's log-probs; ``own`` is what it has beside the frozen parameters."""
        if not examples:
            return []
        return attach_reference_log_probs(
            self.split.config,
            self.split.base,
            own,
            examples,
            temperature=self.objective.temperature,
            mesh=self.mesh,
            batch_size=self.config.batch_size,
            directory=None if self.directory is None else self.directory / "cache",
        )


def _check_method(objective: Objective, config: FitConfig, has_reference: bool, examples: Examples) -> None:
    if not isinstance(examples, Sequence) and config.cache_trunk:
        raise InputError("--cache-trunk: these sequences are drawn anew in every epoch; there is nothing to keep")
    if objective.couples_rows and config.accumulation > 1:
        raise InputError("--accumulation: this loss couples the rows of a batch; it needs them all at once (1)")
    if has_reference and (flag := config.shares_reference):
        raise InputError(f"--reference: with {flag} the reference shares what does not train; leave it out")


def _check_first_loss(loss: float, expected: float, tolerance: float) -> None:
    if not math.isclose(loss, expected, rel_tol=tolerance, abs_tol=tolerance):
        raise training.TrainingError(
            f"step 1: the loss is {loss:.6f}, but policy = reference makes it {expected:.6f}: "
            "the policy and the reference do not score alike"
        )


def _evaluation(
    eval_step: Callable[..., Any], source: BatchSource, frozen: dict[str, Params], mesh: jax.sharding.Mesh
) -> Callable[[training.TrainState], dict[str, float]]:
    """The loss and metrics on held-out examples, under names that begin with ``eval/``."""

    def run(state: training.TrainState) -> dict[str, float]:
        batches = data.make_iterator(source)
        values = training.evaluate(eval_step, state.params, frozen, batches, state.key, mesh=mesh, extra=state.extra)
        return {f"eval/{name}": value for name, value in values.items()}

    return run


def _loop(
    step: training.TrainStep,
    state: training.TrainState,
    source: BatchSource,
    config: FitConfig,
    *,
    position: int,
    start: int,
    evaluation_due: bool,
    total_steps: int,
    frozen: dict[str, Params],
    checkpoints: training.Checkpoints | None,
    directory: Path | None,
    progress: str | None,
    evaluate: Callable[[int, training.TrainState], dict[str, float]] | None,
    observe: Callable[[int, Any], None],
    to_save: Callable[[training.TrainState], training.TrainState] | None,
) -> training.LoopResult:
    """Run the loop with what it reads and writes open around it; ``progress`` titles the bar, None = no bar."""
    writer = None
    if directory is not None:
        writer = training.MetricWriter(
            directory / "metrics.jsonl",
            step=start,
            tensorboard=directory / "tensorboard" if config.tensorboard else None,
        )
    spikes = None
    if config.loss_spike is not None:
        history = [] if directory is None else training.read_losses(directory / "metrics.jsonl", start)
        spikes = training.LossSpikes(config.loss_spike, history)
    batches = data.make_iterator(source, start=position)
    shown = ("loss", "rewards/margin", "rewards/accuracy")
    try:
        bar = training.Progress(total_steps, start=start, title=progress or "", every=config.log_every, shown=shown)
        with bar if progress is not None else contextlib.nullcontext() as shown_bar:
            return training.run_loop(
                step,
                state,
                batches,
                max_steps=total_steps,
                frozen=frozen,
                position=position,
                save_every=config.save_every,
                checkpoints=checkpoints,
                writer=writer,
                progress=shown_bar,
                evaluate=evaluate,
                evaluate_every=config.eval_every,
                observe=observe,
                identify=lambda batch: batch.record_ids[batch.record_ids >= 0],
                to_save=to_save,
                evaluation_due=evaluation_due,
                spikes=spikes,
                limits=config.limits,
                debug=config.debug,
            )
    finally:
        batches.close()
        if writer:
            writer.close()
        if checkpoints:
            checkpoints.close()
