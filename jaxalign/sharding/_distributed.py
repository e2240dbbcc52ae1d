"""Start-up of one run on several processes (hosts of a pod, nodes of a cluster)."""

import logging

import jax

from jaxalign.errors import InputError

logger = logging.getLogger(__name__)


def initialize_distributed(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the other processes of this run; must come before the first use of a device.

    With no argument, JAX looks for a cluster it knows (TPU pod, SLURM, Open MPI, Kubernetes) and joins it; where there
    is none, this is a single-process run and nothing happens. ``num_processes=1`` never looks. Otherwise all three
    arguments are given, the same on every process but ``process_id``.

    Args:
        coordinator: ``host:port`` of process 0.
        num_processes: how many processes there are.
        process_id: which one this is, 0-based.

    Raises:
        InputError: if only some of the three are given, or they make no sense.
        RuntimeError: if explicit arguments come after JAX has already used a device.
    """
    if jax.distributed.is_initialized():
        return
    if coordinator is None and process_id is None:
        if num_processes is None:
            _join_detected_cluster()
            return
        if num_processes == 1:
            return
    if coordinator is None or num_processes is None or process_id is None:
        raise InputError("--coordinator, --num-processes and --process-id are given together or not at all")
    if ":" not in coordinator:
        raise InputError(f"--coordinator {coordinator}: expected host:port")
    if not 0 <= process_id < num_processes:
        raise InputError(f"--process-id {process_id} is not in 0..{num_processes - 1} (--num-processes)")
    jax.distributed.initialize(coordinator, num_processes, process_id)


def _join_detected_cluster() -> None:
    try:
        jax.distributed.initialize()
    except ValueError:  # no cluster that JAX knows: one process
        logger.debug("no cluster detected: one process")
    except RuntimeError as error:  # a notebook whose devices are already in use; a failed join must be heard
        if "must be called before" not in str(error):
            raise
        logger.debug("not looking for a cluster: the devices are already in use")
