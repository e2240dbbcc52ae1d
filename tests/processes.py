"""One program as several processes on loopback, each with virtual devices of its own."""

import os
import socket
import subprocess
import sys
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
    processes = []
    for index in range(count):
        call = f"{name}({', '.join(map(repr, (port, index, count, *map(str, arguments))))})"
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", f"from {module} import {name}; {call}"],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
                env=os.environ | own,
            )
        )  # fmt: skip
    outputs = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=timeout)
            assert process.returncode == status, errors[-3000:]
            outputs.append(errors if status else output)
    finally:  # one alone would wait for the other
        for process in processes:
            process.kill()
    return outputs
