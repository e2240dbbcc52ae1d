"""Processes that compile for devices that are not there, asked from here."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from jaxalign.errors import InputError

__all__ = ["Workers"]


class Workers:
    """One process at a time: how many devices it sees is settled when it starts, so another count is another process.

    To be used in a ``with``.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._devices = 0
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the workers

    def ask(self, devices: int, request: Mapping[str, Any]) -> dict[str, Any]:
        """What ``_plan_worker`` answers.

        Raises:
          InputError: what the run itself would refuse.
          RuntimeError: the process died; with the end of what it said.
        """
        if self._process is None or self._devices != devices:
            self.close()
            self._process, self._devices = self._start(devices), devices
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.close()  # so that the next question starts another
            self._said.seek(0)
            raise RuntimeError(f"the process that compiles the plan died: {self._said.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise InputError(answer["refused"])
        return answer

    def _start(self, devices: int) -> "subprocess.Popen[str]":
        flags = os.environ.get("XLA_FLAGS", "").split()
        own = [flag for flag in flags if "host_platform_device_count" not in flag and flag.startswith("--xla_")]
        environment = {
            **os.environ,
            "XLA_FLAGS": " ".join(flag for flag in own if "gpu" not in flag and "tpu" not in flag),
        }
        environment["JAX_PLATFORMS"] = "cpu"  # the accelerator stays with whoever trains on it
        paths = [path for path in sys.path if path]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        return subprocess.Popen(
            [sys.executable, "-m", "jaxalign.recipes._plan_worker", str(devices)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment,
        )

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # what a dead process has not read
                self._process.stdin.close()
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._process = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
        self._said.close()
