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


def run_together(function: str, count: int, *arguments: Any, timeout: float = 300, **environment: str) -> list[str]:
    """Call ``package.module:function(port, process, count, *arguments)`` in ``count`` processes; their outputs."""
    module, _, name = function.partition(":")
    port = free_port()
    processes = []
    for index in range(count):
        call = f"{name}({', '.join(map(repr, (port, index, count, *map(str, arguments))))})"
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", f"from {module} import {name}; {call}"],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PYTHONFAULTHANDLER": "1"} | environment,
            )
        )  # fmt: skip
    outputs = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=timeout)
            assert process.returncode == 0, errors[-3000:]
            outputs.append(output)
    finally:  # one alone would wait for the other
        for process in processes:
            process.kill()
    return outputs
