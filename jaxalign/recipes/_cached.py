"""What does not change while a run trains, computed once and carried beside the tokens: trunk activations of frozen
layers, log-probs of the reference."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign import data, models, training
from jaxalign.data import Batch, Example
from jaxalign.models import ModelConfig
from jaxalign.recipes._objective import Params, frozen_trunk
from jaxalign.recipes._scores import score_targets
from jaxalign.sharding import batch_sharding

__all__ = ["attach_reference_log_probs", "attach_trunk"]

logger = logging.getLogger(__name__)


def attach_trunk(
    config: ModelConfig, base: Params, examples: Sequence[Example], *, mesh: Mesh, batch_size: int
) -> list[Example]:
    """Examples that carry ``trunk``, the frozen stack's activations of their tokens (``[n, D]``, compute dtype).

    They are the numbers the step would compute: positions and visibility belong to the example, not to its row.
    """

    def activations(base: Params, batch: Batch) -> jax.Array:
        found = frozen_trunk(config, {"base": base}, batch)
        assert found is not None, "without a frozen stack there is no trunk"
        return found

    rows = _map_rows(activations, base, examples, mesh=mesh, batch_size=batch_size)
    trunk = [row[: example.count("token")] for row, example in zip(rows, examples, strict=True)]
    return data.with_extras(examples, token={"trunk": trunk})


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
) -> list[Example]:
    """Examples that carry ``reference_log_probs`` (``[m]`` float32, nats), the numbers the step would compute.

    With ``directory`` they are kept there under the hash of what they follow from (the reference's weights, the
    tokenised data, the temperature), and read again by a run whose hash is the same.
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
        if path.is_file():
            logger.info("reference log-probs: read from %s", path)
            return _with_log_probs(examples, _read(path))

    def log_probs(trees: dict[str, Params], batch: Batch) -> jax.Array:
        whole = models.combine(trees["reference"], trees["base"])
        return score_targets(config, whole, batch, trunk=frozen_trunk(config, trees, batch), temperature=temperature)

    rows = _map_rows(log_probs, {"base": base, "reference": reference}, examples, mesh=mesh, batch_size=batch_size)
    flat = np.concatenate([row[: example.count("target")] for row, example in zip(rows, examples, strict=True)])
    if path is not None and jax.process_index() == 0:
        _write(path, flat)
    return _with_log_probs(examples, flat)


def _with_log_probs(examples: Sequence[Example], flat: np.ndarray) -> list[Example]:
    ends = np.cumsum([example.count("target") for example in examples])
    return data.with_extras(examples, target={"reference_log_probs": np.split(flat, ends[:-1])})


def _map_rows(
    function: Callable[[Any, Batch], jax.Array],
    frozen: Any,
    examples: Sequence[Example],
    *,
    mesh: Mesh,
    batch_size: int,
) -> list[np.ndarray]:
    """``function`` of every example, one a row, in order; the host reads one batch late."""
    processes = jax.process_count()
    source = data.make_batches(
        examples,
        batch_size=batch_size,
        shuffle=False,
        num_epochs=1,
        process_index=jax.process_index(),
        process_count=processes,
    )
    rows = batch_sharding(mesh)
    jitted = jax.jit(function, in_shardings=(None, rows), out_shardings=rows)
    found: list[np.ndarray] = []
    waiting: jax.Array | None = None

    def read(array: jax.Array) -> np.ndarray:
        if processes == 1:
            return np.asarray(array)
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))

    with jax.set_mesh(mesh):
        for batch in data.make_iterator(source):
            running = jitted(frozen, training.put_batch(batch, mesh))
            if waiting is not None:
                found.extend(read(waiting))
            waiting = running
        if waiting is not None:
            found.extend(read(waiting))
    return found[: len(examples)]


def _write(path: Path, flat: np.ndarray) -> None:
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({"log_probs": flat}, partial)
    partial.replace(path)


def _read(path: Path) -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(path)["log_probs"]
