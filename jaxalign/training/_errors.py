"""The exceptions of a run that cannot go on."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


class TrainingError(RuntimeError):
    """Training cannot go on: a loss or gradient is not finite, a loss jumped. One line: step, metric and record ids."""


class CheckpointError(TrainingError):
    """A checkpoint could not be written. One line: folder, step, cause, and the newest checkpoint that is whole."""


@contextlib.contextmanager
def about(path: str | Path) -> Iterator[None]:
    """Errors of the system from inside name this file, as those of ``open`` do (those of ``write`` name none)."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
