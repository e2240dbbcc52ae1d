"""What does not change while a run trains, computed once and carried beside the tokens: trunk activations of frozen
layers, log-probs of the reference."""

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign import data, models, sharding, training
from jaxalign.data import Batch, Example
from jaxalign.models import ModelConfig
from jaxalign.recipes._objective import Params, frozen_trunk
from jaxalign.recipes._scores import score_targets, sequence_scores

__all__ = ["OnProgress", "attach_reference_log_probs", "attach_trunk", "example_log_probs", "example_scores"]

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]


def attach_trunk(
    config: ModelConfig,
    base: Params,
    examples: Sequence[Example],
    *,
    mesh: Mesh,
    batch_size: int,
    on_progress: OnProgress | None = None,
) -> list[Example]:
    """Examples that carry ``trunk``, the frozen stack's activations of their tokens (``[n, D]``, compute dtype).

    They are the numbers the step would compute: positions and visibility belong to the example, not to its row.

    Args:
      config: the model, as ``models.freeze`` returned it.
      base: its frozen parameters, from the same call.
      examples: the tokenised records.
      mesh: where to compute.
      batch_size: rows computed at a time (all devices together); a row is as long as the longest example, and holds
        as many as fit.
      on_progress: called as ``on_progress(done, total)``, in examples.
    """
    trunk = _map_examples(
        _trunk, config, {"base": base}, examples, "token", mesh=mesh, batch_size=batch_size, on_progress=on_progress
    )
    return data.with_extras(examples, token={"trunk": trunk})


def example_log_probs(
    config: ModelConfig,
    params: Params,
    examples: Sequence[Example],
    *,
    temperature: float = 1.0,
    mesh: Mesh | None = None,
    batch_size: int = 16,
    base: Params | None = None,
    on_progress: OnProgress | None = None,
) -> list[np.ndarray]:
    """Log-probabilities of every example's targets under a model: a list of ``[m]`` float32 arrays, nats.

    Args:
      config, params: the model; with ``base``, the config and the trainable part that ``models.freeze`` returned.
      examples: the tokenised records.
      temperature: the softmax temperature of the model scored.
      mesh: where to compute; all devices by default.
      batch_size: rows computed at a time (all devices together); a row is as long as the longest example, and holds
        as many as fit.
      base: the frozen part.
      on_progress: called as ``on_progress(done, total)``, in examples.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    frozen = {"base": base or {}, "reference": params}
    return _map_examples(
        functools.partial(_log_probs, temperature=temperature),
        config,
        frozen,
        examples,
        "target",
        mesh=mesh,
        batch_size=batch_size,
        on_progress=on_progress,
    )


def attach_reference_log_probs(
    config: ModelConfig,
    base: Params,
    reference: Params,
    examples: Sequence[Example],
    *,
    temperature: float,
    mesh: Mesh,
    batch_size: int,
    directory: Path | None = None,
    on_progress: OnProgress | None = None,
) -> list[Example]:
    """Examples that carry ``reference_log_probs`` (``[m]`` float32, nats), the numbers the step would compute.

    With ``directory`` they are kept there under the hash of what they follow from (the reference's weights, the
    tokenised data, the temperature), and read again by a run whose hash is the same; a damaged file is computed anew,
    with a warning. Arguments as in :func:`example_log_probs`; ``reference`` is its ``params``.
    """
    path = None
    if directory is not None:
        digest = hashlib.sha256()
        for part in (
            data.fingerprint(examples),
            repr(config.replace(extra=())),
            repr(sorted(training.fingerprint({"base": base, "reference": reference}).items())),
            repr(float(temperature)),
        ):
            digest.update(part.encode())
        path = directory / f"reference-{digest.hexdigest()[:24]}.safetensors"
        kept = _read(path)
        if _everywhere(kept is not None):
            assert kept is not None
            logger.info("reference log-probs: read from %s", path)
            return _with_log_probs(examples, kept)
    rows = example_log_probs(
        config,
        reference,
        examples,
        temperature=temperature,
        mesh=mesh,
        batch_size=batch_size,
        base=base,
        on_progress=on_progress,
    )
    flat = np.concatenate(rows)
    if path is not None and jax.process_index() == 0:
        _write(path, flat)
    return _with_log_probs(examples, flat)


def example_scores(
    config: ModelConfig,
    params: Params,
    examples: Sequence[Example],
    *,
    mesh: Mesh | None = None,
    batch_size: int = 16,
    on_progress: OnProgress | None = None,
) -> list[np.ndarray]:
    """Scores of every example's sequences by a model with one label: a list of ``[q]`` float32 arrays, unnormalised.

    Arguments as in :func:`example_log_probs`.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    return _map_examples(
        _scores, config, params, examples, "sequence", mesh=mesh, batch_size=batch_size, on_progress=on_progress
    )


@functools.partial(jax.jit, static_argnames="config")
def _scores(config: ModelConfig, params: Params, batch: Batch) -> jax.Array:
    return sequence_scores(config, params, batch)


@functools.partial(jax.jit, static_argnames="config")
def _trunk(config: ModelConfig, frozen: dict[str, Params], batch: Batch) -> jax.Array:
    found = frozen_trunk(config, {}, frozen, batch)
    assert found is not None
    return found


@functools.partial(jax.jit, static_argnames=("config", "temperature"))
def _log_probs(config: ModelConfig, frozen: dict[str, Params], batch: Batch, *, temperature: float) -> jax.Array:
    own = frozen["reference"]
    trunk = frozen_trunk(config, own, frozen, batch)
    return score_targets(config, models.combine(own, frozen["base"]), batch, trunk=trunk, temperature=temperature)


def _everywhere(here: bool) -> bool:
    """Whether it is so on every process: what follows is done by all of them or by none."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.asarray(here))))


def _with_log_probs(examples: Sequence[Example], flat: np.ndarray) -> list[Example]:
    ends = np.cumsum([example.count("target") for example in examples])
    return data.with_extras(examples, target={"reference_log_probs": np.split(flat, ends[:-1])})


def _map_examples(
    function: Callable[[ModelConfig, Any, Batch], jax.Array],
    config: ModelConfig,
    frozen: Any,
    examples: Sequence[Example],
    level: Literal["token", "target", "sequence"],
    *,
    mesh: Mesh,
    batch_size: int,
    on_progress: OnProgress | None = None,
) -> list[np.ndarray]:
    """The jitted ``function`` (``[B, level's axis, ...]``) of every example, in order; the host reads one batch late.

    Examples are packed into rows as long as the longest: one shape, one program, little padding. The shardings are
    those of the arguments: parameters as they lie, rows over the data axes.
    """
    shards = sharding.data_shards(mesh)
    part, parts = sharding.row_share(mesh)
    source = data.make_batches(
        examples,
        batch_size=-(-batch_size // shards) * shards,
        shuffle=False,
        num_epochs=1,
        pack=True,
        process_index=part,
        process_count=parts,
        pieces=sharding.length_shards(mesh),
    )
    order = np.asarray(sharding.row_order(mesh))
    found = [np.empty(0)] * len(examples)
    done = 0

    def read(rows: jax.Array, k: int) -> None:
        """Cut batch k's rows into their examples."""
        nonlocal done
        host = sharding.to_host(rows)
        if jax.process_count() > 1:  # into the order of the plan
            host = host.reshape(shards, -1, *host.shape[1:])[order].reshape(host.shape)
        for row, indices in zip(host, source.plan.rows(k), strict=True):
            start = 0
            for index in indices:
                end = start + examples[index].count(level)
                found[index] = row[start:end].copy()  # a view would keep the batch that it is cut from
                start = end
            done += len(indices)
        if on_progress is not None:
            on_progress(done, len(examples))

    waiting: tuple[jax.Array, int] | None = None
    with jax.set_mesh(mesh):
        for k, batch in enumerate(data.make_iterator(source)):
            running = sharding.settle(function(config, frozen, training.put_batch(batch, mesh)))
            if waiting is not None:
                read(*waiting)
            waiting = running, k
        if waiting is not None:
            read(*waiting)
    return found


def _write(path: Path, flat: np.ndarray) -> None:
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({"log_probs": flat}, partial, metadata={"sha256": _digest(flat)})
    partial.replace(path)


def _read(path: Path) -> np.ndarray | None:
    """What ``_write`` wrote; None where there is none, or no longer what was written."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            flat: np.ndarray = file.get_tensor("log_probs")
            if (file.metadata() or {}).get("sha256") == _digest(flat):
                return flat
        cause = "its checksum does not match"
    except SafetensorError as error:
        cause = str(error)
    logger.warning("%s is damaged, its log-probs are computed again: %s", path, cause)
    return None


def _digest(flat: np.ndarray) -> str:
    return hashlib.sha256(flat.tobytes()).hexdigest()
