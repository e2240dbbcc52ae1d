"""Starts ``jaxalign`` commands in a fraction of a second: imports everything once, then forks a process a command.

One JSON object a line comes in: ``arguments`` and ``log``; ``file_size`` limits the files that the process may write,
``permissions`` makes them count for root too. Two lines go out: the process's id and, when it has ended, its exit
status (-N for signal N).
The forked process opens its devices itself, reads and writes as any other, and can be killed as any other.
"""

import json
import os
import sys

import grain  # noqa: F401
import orbax.checkpoint  # noqa: F401
import transformers  # noqa: F401
import tyro  # noqa: F401

import jaxalign.recipes.dpo
import jaxalign.recipes.sft  # noqa: F401
from jaxalign.cli import main
from tests.faults import disks


def child(request: dict) -> int:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if request.get("file_size"):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"],) * 2)
    if request.get("permissions"):
        disks.obey_permissions()
    try:
        return main(request["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
        return 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


for line in sys.stdin:
    request = json.loads(line)
    process = os.fork()
    if process == 0:
        os._exit(child(request))
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
