"""One program as several processes on loopback, each with virtual devices of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def run_together(function: str, count: int, *arguments: Any, timeout: float = 900, status: int = 0) -> list[str]:
    """Call ``package.module:function(port, process, count, *arguments)`` in ``count`` processes.

    All end with ``status``; returns what they wrote to standard output, or where they fail to standard error.
    """
    module, _, name = function.partition(":")
    port = free_port()
    own = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PYTHONFAULTHANDLER": "1"}
    processes, outputs = [], []
    with contextlib.ExitStack() as stack:
        for index in range(count):
            call = f"{name}({', '.join(map(repr, (port, index, count, *map(str, arguments))))})"
            said = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)]
            process = subprocess.Popen(
                [sys.executable, "-c", f"from {module} import {name}; {call}"],
                stdout=said[0], stderr=said[1], text=True, cwd=ROOT, env=os.environ | own,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)  # one alone would wait for the other
            processes.append((process, said))
        end = time.monotonic() + timeout
        while any(process.poll() is None for process, _ in processes):
            assert time.monotonic() < end, f"not done after {timeout} s: {_ended(processes, None)}"
            if any(process.poll() not in (None, status) for process, _ in processes):
                break
            time.sleep(0.05)
        wrong = [pair for pair in processes if pair[0].poll() not in (None, status)]
        assert not wrong, _ended(wrong, status)
        for _, (output, errors) in processes:
            chosen = errors if status else output
            chosen.seek(0)
            outputs.append(chosen.read())
    return outputs


def _ended(processes: list[Any], status: int | None) -> str:
    """What these processes wrote to standard error."""
    texts = []
    for process, (_, errors) in processes:
        errors.seek(0)
        texts.append(f"status {process.poll()}, not {status}: {errors.read()[-3000:]}")
    return "\n".join(texts)
