"""Start-up of one run on several processes (hosts of a pod, nodes of a cluster)."""

import contextlib
import importlib.util
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import jax

from jaxalign.errors import InputError

logger = logging.getLogger(__name__)

FLAGS = "--coordinator, --num-processes and --process-id"
ALONE = "(--num-processes 1 trains in this process alone)"
# Seconds that JAX, which ends the process without a reason when it gives up waiting, waits longer than we do.
GRACE = 60


@dataclass(frozen=True)
class _Launcher:
    """What started this process, by its environment."""

    name: str
    processes: int | None
    """How many processes it started; None = it does not say."""
    missing: str = ""
    """What keeps JAX from joining them, and what to do about it."""


def initialize_distributed(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 300.0,
) -> None:
    """Join the other processes of this run; must come before the first use of a device.

    With no argument, JAX looks for a cluster it knows (TPU pod, Slurm, Open MPI, Kubernetes) and joins it; where there
    is none, this is a single-process run and nothing happens. A launcher that has started several processes which JAX
    cannot join is an error: each of them would train alone, into one folder. ``num_processes=1`` never looks. Otherwise
    all three arguments are given, the same on every process but ``process_id``; no cluster is then asked.

    Under Slurm and Open MPI each process takes the one GPU of its local rank; a Slurm task that has its node alone
    takes all of the node's.

    Args:
        coordinator: ``host:port`` of process 0, which listens there.
        num_processes: how many processes there are.
        process_id: which one this is, 0-based.
        timeout: seconds to wait for the other processes. When they are over the process ends with status 2 and one
            line: nothing can be taken back by then.

    Raises:
        InputError: if only some of the three are given, or they make no sense; the coordinator is not reached, or its
            port is taken; a launcher's processes cannot be joined.
        RuntimeError: if explicit arguments come after JAX has already used a device.
    """
    if jax.distributed.is_initialized():
        return
    if coordinator is None and process_id is None and num_processes in (None, 1):
        if num_processes is None:
            _join_detected(timeout)
        return
    if coordinator is None or num_processes is None or process_id is None:
        raise InputError(f"{FLAGS} are given together or not at all")
    host, colon, port = coordinator.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise InputError(f"--coordinator {coordinator}: expected host:port")
    if not 0 <= process_id < num_processes:
        raise InputError(f"--process-id {process_id} is not in 0..{num_processes - 1} (--num-processes)")
    if process_id:
        _wait_for(host.strip("[]"), int(port), timeout)
    else:
        _check_free(coordinator, int(port))
    with _limit(f"--coordinator {coordinator}: not all of --num-processes {num_processes} have come", timeout):
        jax.distributed.initialize(
            coordinator, num_processes, process_id,
            cluster_detection_method="deactivate", initialization_timeout=int(timeout) + GRACE,
        )  # fmt: skip
    _log("flags")


def started_together() -> bool:
    """Whether a launcher has started this process as one of several, joined or not."""
    launcher = _launcher()
    return (
        launcher is not None and (launcher.processes or 0) > 1 and not (launcher.name == "Slurm" and launcher.missing)
    )


def abandon_distributed(status: int, *, patience: float = 10.0) -> NoReturn:
    """End this process, whose part of the run has failed, with this exit status.

    At a common end the processes wait for one another, for minutes. Here the others are waited for a few seconds, in
    case they have failed alike; then they lose the connection, or its heartbeat, which ends them.
    """
    leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    leaving.start()
    leaving.join(patience)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _join_detected(timeout: float) -> None:
    launcher = _launcher()
    if launcher is not None:
        if launcher.processes == 1:
            logger.debug("%s with one process", launcher.name)
            return
        if launcher.missing:
            raise InputError(f"{_started(launcher)}; {launcher.missing} {ALONE}")
    elif (
        "KUBERNETES_SERVICE_HOST" in os.environ and "JAX_COORDINATOR_ADDRESS" not in os.environ
    ):  # a pod that is no part of an indexed job; JAX would ask for its job
        logger.debug("a single pod")
        return
    name = launcher.name if launcher else "TPU VM"
    try:
        with _limit(f"{name}: not all of the run's processes have come", timeout):
            jax.distributed.initialize(
                local_device_ids=_gpus_of_the_node(), initialization_timeout=int(timeout) + GRACE
            )
    except ValueError as error:  # no cluster that JAX knows
        if launcher is not None or "JAX_COORDINATOR_ADDRESS" in os.environ:
            where = _started(launcher) if launcher else "JAX_COORDINATOR_ADDRESS is set"
            raise InputError(f"{where}, but JAX finds no cluster ({_line(error)}): give {FLAGS} {ALONE}") from error
        logger.debug("no cluster detected: one process")
        return
    except Exception as error:  # what a detector may raise: no permission, a name or server that does not answer
        if "must be called before" in str(error) and launcher is None:
            logger.debug("not looking for a cluster: the devices are already in use")  # a notebook
            return
        raise InputError(f"{name}: the run's processes cannot be joined: {_line(error)}") from error
    _log(name)


def _launcher() -> _Launcher | None:
    """By the variables that ``jax/_src/clusters`` reads, in its order, and some that it does not know."""
    found = os.environ
    if "OMPI_COMM_WORLD_SIZE" in found:
        missing = f"this Open MPI does not tell JAX where they are: give {FLAGS}"
        ready = "OMPI_MCA_orte_hnp_uri" in found
        return _Launcher("Open MPI", int(found["OMPI_COMM_WORLD_SIZE"]), "" if ready else missing)
    if "SLURM_JOB_ID" in found and "SLURM_NTASKS" in found:
        step = all(f"SLURM_{name}" in found for name in ("STEP_NODELIST", "PROCID", "LOCALID"))
        missing = "" if step else "this process is not one of them: start it with srun"
        return _Launcher("Slurm", int(found["SLURM_NTASKS"]), missing)
    if hosts := found.get("TPU_PROCESS_ADDRESSES", found.get("TPU_WORKER_HOSTNAMES", "")):
        count = len(hosts.split(",")) * int(found.get("MEGASCALE_NUM_SLICES") or 1)
        ready = "TPU_LIBRARY_PATH" in found or importlib.util.find_spec("libtpu") is not None
        return _Launcher("GKE TPU", count, "" if ready else "JAX has no TPU here: pip install 'jaxalign[tpu]'")
    if "KUBERNETES_SERVICE_HOST" in found and "JOB_COMPLETION_INDEX" in found:
        ready = importlib.util.find_spec("kubernetes") is not None
        return _Launcher("Kubernetes", None, "" if ready else f"give {FLAGS}, or pip install kubernetes")
    for name, variable in (("torchrun", "WORLD_SIZE"), ("MPI", "PMI_SIZE")):
        if found.get(variable, "").isdigit():
            return _Launcher(name, int(found[variable]), f"JAX does not know it: give {FLAGS}")
    return None


def _started(launcher: _Launcher) -> str:
    return f"{launcher.name} has started {launcher.processes or 'several'} processes"


def _gpus_of_the_node() -> list[int] | None:
    """All GPUs for a Slurm task that has its node alone, to whom JAX would give the first; None leaves it to JAX."""
    tasks = re.sub(r"\(x\d+\)", "", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    count = os.environ.get("SLURM_GPUS_ON_NODE", "")
    alone = set(tasks.split(",")) == {"1"} and count.isdigit() and int(count) > 0
    return list(range(int(count))) if alone and "JAX_LOCAL_DEVICE_IDS" not in os.environ else None


def _check_free(coordinator: str, port: int) -> None:
    """Where process 0 cannot listen: JAX's own attempt, on all addresses too, mostly ends in a segmentation fault."""
    dual = socket.has_dualstack_ipv6()
    with socket.socket(socket.AF_INET6 if dual else socket.AF_INET) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if dual:
            own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            own.bind(("", port))
        except OSError as error:
            raise InputError(
                f"--coordinator {coordinator}: process 0 cannot listen there: {error.strerror or error}"
            ) from error


def _wait_for(host: str, port: int, timeout: float) -> None:
    """Until something listens there: JAX's own wait ends in an abort of the process."""
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise InputError(
                    f"--coordinator {host}:{port}: not reached within {timeout:g} s ({error.strerror or error}): is "
                    "process 0 running there, and the port open?"
                ) from error
        time.sleep(min(1.0, timeout / 10))


@contextlib.contextmanager
def _limit(what: str, seconds: float) -> Iterator[None]:
    """End the process with one line, where JAX would wait on and then abort it."""

    def end() -> None:
        logger.critical("%s within %g s: see the logs of the others", what, seconds)
        sys.stderr.flush()
        os._exit(2)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _log(name: str) -> None:
    logger.info(
        "joined by %s: process %d of %d, %d of %d devices here",
        name, jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count(),
    )  # fmt: skip


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
