"""Training: the state, one jitted step, optimizers, the loop, checkpoints and metric writers.

A method enters as a loss function and frozen trees enter as arguments; nothing here knows which method, model or
data it trains. Losses live in ``jaxalign.losses``, the functions that feed them in ``jaxalign.recipes``.
"""

from jaxalign.training._batches import batch_shardings, check_row_count, constrain_batch, prefetch, put_batch
from jaxalign.training._checkpoints import Checkpoints, Restored
from jaxalign.training._dtypes import cast_parameters, round_stochastically
from jaxalign.training._errors import CheckpointError, TrainingError, about
from jaxalign.training._evaluate import evaluate, make_eval_step
from jaxalign.training._explain import NameRows, explain_loss
from jaxalign.training._fingerprint import fingerprint
from jaxalign.training._flags import MAY_CHANGE, as_flag, check_config, differences
from jaxalign.training._loop import LoopResult, MakeBatch, run_loop
from jaxalign.training._metrics import MetricWriter, means, read_rows
from jaxalign.training._optimizers import OptimizerConfig, at_update, decay_mask, make_optimizer, make_schedule
from jaxalign.training._progress import Progress
from jaxalign.training._retention import Retention
from jaxalign.training._spikes import LossSpikes, read_losses
from jaxalign.training._state import TrainState, copy_tree, create_state, state_shapes, state_shardings
from jaxalign.training._step import TrainStep, jit_step, make_train_step
from jaxalign.training._update import (
    LossFunction,
    Metrics,
    Terms,
    Update,
    Updated,
    make_update,
    select,
    split_rows,
    take_part,
    weighted_total,
)
from jaxalign.training._watchdog import TimeLimits, Watchdog, watched

__all__ = [
    "MAY_CHANGE",
    "CheckpointError",
    "Checkpoints",
    "LoopResult",
    "LossFunction",
    "LossSpikes",
    "MakeBatch",
    "MetricWriter",
    "Metrics",
    "NameRows",
    "OptimizerConfig",
    "Progress",
    "Restored",
    "Retention",
    "Terms",
    "TimeLimits",
    "TrainState",
    "TrainStep",
    "TrainingError",
    "Update",
    "Updated",
    "Watchdog",
    "about",
    "as_flag",
    "at_update",
    "batch_shardings",
    "cast_parameters",
    "check_config",
    "check_row_count",
    "constrain_batch",
    "copy_tree",
    "create_state",
    "decay_mask",
    "differences",
    "evaluate",
    "explain_loss",
    "fingerprint",
    "jit_step",
    "make_eval_step",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "make_update",
    "means",
    "prefetch",
    "put_batch",
    "read_losses",
    "read_rows",
    "round_stochastically",
    "run_loop",
    "select",
    "split_rows",
    "state_shapes",
    "state_shardings",
    "take_part",
    "watched",
    "weighted_total",
]
