"""The loop: batches in, updates, rows of metrics and checkpoints out."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxalign.errors import InputError
from jaxalign.training._batches import prefetch, put_batch
from jaxalign.training._checkpoints import Checkpoints
from jaxalign.training._errors import CheckpointError, TrainingError
from jaxalign.training._explain import NameRows
from jaxalign.training._metrics import MetricWriter, means
from jaxalign.training._progress import Progress
from jaxalign.training._signals import StopRequest
from jaxalign.training._spikes import LossSpikes
from jaxalign.training._state import TrainState
from jaxalign.training._step import TrainStep
from jaxalign.training._update import Metrics
from jaxalign.training._watchdog import UNWATCHED, TimeLimits, Watchdog


@dataclasses.dataclass(frozen=True)
class LoopResult:
    """Where a loop ended.

    Attributes:
        state: the last state.
        step: number of updates applied.
        position: number of batches consumed.
        interrupted: whether a signal ended it before ``max_steps``.
        metrics: the metrics of the last step, empty if no step was made.
    """

    state: TrainState
    step: int
    position: int
    interrupted: bool
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A dispatched step whose metrics the host has not read yet."""

    step: int
    metrics: Metrics
    batch: Any
    placed: Any
    values: Mapping[str, float]


MakeBatch = Callable[[TrainState, int], tuple[Any, Mapping[str, float]]]
"""``make(state, position) -> (batch, values)``: a batch that the current parameters make, such as a rollout, and what
is to be written beside its step's metrics. On several processes it raises on all or on none."""


_Supply = tuple[Any, Any, Mapping[str, float]]
"""(host batch, batch on the mesh, values beside its metrics)."""


def run_loop(
    step: TrainStep,
    state: TrainState,
    batches: Iterable[Any] | MakeBatch,
    *,
    max_steps: int,
    frozen: Any = None,
    position: int = 0,
    save_every: int = 0,
    checkpoints: Checkpoints | None = None,
    writer: MetricWriter | None = None,
    progress: Progress | None = None,
    evaluate: Callable[[int, TrainState], Mapping[str, float]] | None = None,
    evaluate_every: int = 0,
    observe: Callable[[int, Mapping[str, float]], None] | None = None,
    identify: Callable[[Any], Sequence[int]] | None = None,
    count_tokens: Callable[[Any], int] | None = None,
    to_save: Callable[[TrainState], TrainState] | None = None,
    evaluation_due: bool = False,
    spikes: LossSpikes | None = None,
    limits: TimeLimits = UNWATCHED,
    debug: bool = False,
) -> LoopResult:
    """Train until ``max_steps`` updates are applied, the batches end, or SIGTERM or SIGINT arrives.

    The host reads a step's metrics while the next step runs, so the device never waits for it; it waits only before a
    save or an evaluation. A checkpoint is therefore only ever made of steps that are known to be finite. At the end,
    also after a signal, the last state is saved; and so it is when a batch cannot be made: what raised is raised again
    when the state is safe.

    Args:
        step: the train step. It donates ``state``: use the returned one.
        state: the first state; its ``step`` is where counting starts.
        batches: host batches, the first one being number ``position``; on several processes, this process's rows. Or
            a function ``(state, position) -> (batch, values)``, called when the step before is dispatched.
        max_steps: number of updates of the whole run, those before a resume included.
        frozen: the frozen trees, passed to every step.
        position: number of batches consumed before.
        save_every: updates between checkpoints; 0 saves only at the end.
        checkpoints: where to save; None saves nothing.
        writer: gets one row a step: the metrics, ``seconds``, and ``tokens`` and ``tokens_per_second``.
        progress: shows the run to a person.
        evaluate: ``(step, state) -> values``, written as a row of their own; before the first update of a new run,
            every ``evaluate_every`` updates and after the last. It must not keep or donate the state's arrays.
        evaluate_every: updates between evaluations; 0 evaluates only at the beginning and the end.
        observe: called with every step's number and metrics (one step late where batches are at hand);
            what it raises ends the run.
        identify: batch -> record ids, for the message about a non-finite step.
        count_tokens: batch -> number of tokens of all processes, where the step has no metric ``tokens``.
        to_save: state -> what a checkpoint holds of it, where that is more than the step sees.
        evaluation_due: whether the evaluation of the first state is still to be made (``Restored.evaluation_due``).
        spikes: what says of a loss that it is out of line.
        limits: how long the loop may wait for what, and how long it may take to stop.
        debug: read each step's metrics before the next step runs, so that of one that is not finite it can be said
            where that began (``TrainStep.explain``).

    Raises:
        TrainingError: if a loss or gradient was not finite, or a loss jumped; names step, metric and records. Nothing
            is saved then.
        CheckpointError: if a checkpoint could not be written.
        InputError: if ``checkpoints`` keeps the best by a metric that is not there.
    """
    index = first = int(state.step)
    values: dict[str, float] = {}
    pending: _Pending | None = None
    clock = time.monotonic()
    interrupted = False
    due = evaluation_due
    evaluated: dict[str, float] = {}
    watch = Watchdog(limits)

    def write(late: _Pending) -> tuple[dict[str, float], int]:
        nonlocal clock
        found = means(late.metrics)
        now = time.monotonic()
        seconds, clock = now - clock, now
        tokens = int(found.pop("tokens")) if "tokens" in found else count_tokens(late.batch) if count_tokens else 0
        speed = {"seconds": seconds} | ({"tokens": tokens, "tokens_per_second": tokens / seconds} if tokens else {})
        if writer:
            writer.write(late.step, {**found, **late.values, **speed})
        return found, tokens

    def read(late: _Pending) -> dict[str, float]:
        watch.wait_for(f"the devices to finish step {late.step}", slow=late.step == first + 1)
        jax.block_until_ready(late.metrics)
        watch.wait_for(f"the metrics of step {late.step} to be written and observed")
        found, tokens = write(late)
        records = f"; records {list(map(int, identify(late.batch)))}, counted from 0" if identify else ""
        if found["nonfinite"]:
            why = ""
            if debug:
                watch.wait_for(f"what step {late.step} computed to be looked through", slow=True)
                why = "; " + step.explain(state, frozen, late.placed, found, _row_names(late.batch, identify))
            raise TrainingError(f"step {late.step}: {_not_finite(found)} is not finite{records}{why}")
        if spikes and (jump := spikes.check(found["loss"])):
            raise TrainingError(f"step {late.step}: {jump}{records}")
        if checkpoints:
            checkpoints.retention.check(found)
        if progress:
            progress.update(late.step, found, tokens)
        if observe:
            observe(late.step, found)
        return found

    def run_evaluation() -> None:
        nonlocal clock, due, evaluated
        if evaluate:
            watch.wait_for(f"the evaluation at step {index}", slow=True)
            begin = time.monotonic()
            evaluated = dict(evaluate(index, state))
            if writer:
                writer.write(index, evaluated)
            if checkpoints:
                checkpoints.retention.check(evaluated)
                if due:  # cut off by a signal before: its checkpoint is there without it
                    checkpoints.retention.offer(index, evaluated)
            clock += time.monotonic() - begin
        due = False

    def supply() -> Iterator[_Supply]:
        """Read ahead where batches are at hand, one by one where the state makes them."""
        if not callable(batches):
            for batch, placed in prefetch(itertools.islice(batches, max(max_steps - index, 0)), step.mesh):
                yield batch, placed, {}
            return
        while index < max_steps:
            watch.wait_for(
                f"the batch of step {index + 1} to be made", slow=True
            )  # a rollout may compile for prompts of another length
            batch, described = batches(state, position)
            yield batch, put_batch(batch, step.mesh), described

    def save() -> None:
        if checkpoints:
            watch.wait_for(f"the checkpoint of step {index}, or the one before it, to be written", slow=True)
            checkpoints.save(
                index,
                to_save(state) if to_save else state,
                position=position,
                metrics=values | evaluated,
                evaluation_due=due,
            )

    def attempt(supplied: Iterator[_Supply]) -> Iterator[_Supply]:
        """The same, but a batch that cannot be made costs nothing of what has been trained."""
        nonlocal values, pending
        try:
            yield from supplied
        except Exception:
            if pending:
                late, pending = pending, None
                values = read(late)
            # Of several processes all have failed to make it alike, or else the others do not know.
            if index > first and (jax.process_count() == 1 or callable(batches)):
                save()
            raise

    with watch, StopRequest(watch.stop_soon) as stop:
        try:
            if index < max_steps and (index == 0 or due):
                run_evaluation()
            watch.wait_for(f"the batch of step {index + 1}", slow=True)
            for batch, placed, described in attempt(supply()):
                watch.wait_for(f"step {index + 1} to be dispatched", slow=index == first)
                state, metrics = step(state, frozen, placed)
                index, position, evaluated = index + 1, position + 1, {}
                late, pending = pending, _Pending(index, metrics, batch, placed if debug else None, described)
                # The next batch waits for this step anyway: so its seconds are its own.
                if callable(batches) or debug:
                    late, pending = pending, None
                if late:
                    values = read(late)
                if index == max_steps:
                    break
                saves = checkpoints is not None and save_every > 0 and index % save_every == 0
                due = evaluate is not None and evaluate_every > 0 and index % evaluate_every == 0
                interrupted = stop.reached()
                if interrupted:
                    break
                if pending and (saves or due):
                    late, pending = pending, None
                    values = read(late)
                if due:
                    run_evaluation()
                if saves:
                    save()
                watch.wait_for(f"the batch of step {index + 1}")
            if pending:
                late, pending = pending, None
                values = read(late)
            if index > first and not interrupted:
                run_evaluation()
            if index > first:
                save()
            if checkpoints:
                watch.wait_for("the last checkpoint to be written", slow=True)
                checkpoints.wait()
        except BaseException as error:
            if pending and not isinstance(error, TrainingError):  # a broken batch must not lose the row before it
                write(pending)
            if checkpoints:
                watch.wait_for("the checkpoint that is being written", slow=True)
                _heard(checkpoints, error)
            raise
    return LoopResult(state, index, position, interrupted, values)


def _not_finite(values: Mapping[str, float]) -> str:
    """Return which number was not finite: a term rather than their total, the total rather than the gradient."""
    names = sorted((name for name in values if name.startswith("loss")), key=len, reverse=True)
    return next((name for name in names if not math.isfinite(values[name])), "grad_norm")


def _row_names(batch: Any, identify: Callable[[Any], Sequence[int]] | None) -> NameRows | None:
    """Which records some rows of a batch are: those of a batch of these rows alone."""
    if identify is None or jax.process_count() > 1:
        return None
    size = jax.tree.leaves(batch)[0].shape[0]

    def name(rows: Sequence[int], length: int) -> list[int] | None:
        if length != size:
            return None
        chosen = np.asarray(rows)
        part = jax.tree.map(lambda leaf: leaf[chosen] if leaf.shape[0] == size else leaf, batch)
        return sorted(map(int, identify(part)))

    return name


def _heard(checkpoints: Checkpoints, error: BaseException) -> None:
    """Wait for the save that still runs while the loop ends with an error; if it fails too, both are said."""
    try:
        checkpoints.wait()
    except CheckpointError as second:
        if isinstance(error, TrainingError | InputError):
            raise type(error)(f"{error}; and {second}") from error
        raise
