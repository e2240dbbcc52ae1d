"""What every recipe's config holds: the model, the data, the step, the run. A field's docstring is its help."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from jaxalign.data import Truncation
from jaxalign.errors import InputError
from jaxalign.models import PARAMETER_AXES, LoRA
from jaxalign.sharding import Rules, parse_rules
from jaxalign.training import OptimizerConfig, Retention, TimeLimits

__all__ = ["HOW", "UNCHECKED", "FitConfig", "FolderConfig", "RunConfig", "TrainConfig"]

# Fields that say how a step is computed, not what: between a run and its continuation they may change, by rounding.
HOW = frozenset({
    "mesh", "sharding_rules", "accumulation", "remat", "attention", "cache_trunk", "reference_log_probs",
    "sampling_batch",
})  # fmt: skip
# Fields that may change between a run and its continuation; any other change is an error.
UNCHECKED = HOW | {
    "max_steps", "epochs", "save_every", "keep_checkpoints", "keep_every", "keep_best_by", "log_every", "eval_every",
    "tensorboard", "output_dir", "save_dtype", "normalise_dataset", "normalise_variance",
    "stop_deadline", "step_timeout", "slow_timeout", "loss_spike", "debug",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every training run has: what trains, in which types, with which optimizer, on which devices. The same values
    give the same run, bit for bit, on the same devices and versions."""

    max_steps: int | None = None
    """Stop after N updates; None = as many as ``epochs`` take."""
    epochs: int = 1
    """Passes over the dataset, where ``max_steps`` does not say."""
    batch_size: int = 8
    """Rows in one update (all devices together)."""
    accumulation: int = 1
    """Micro-batches an update is computed in; the result does not depend on it, the memory does."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer."""
    frozen_layers: int = 0
    """Keep the embeddings and the lowest K layers as they are; only what is above trains."""
    frozen_embeddings: bool = False
    """Keep the embeddings as they are (with tied embeddings, the unembedding too)."""
    frozen_parameters: tuple[str, ...] = ()
    """Keep these as they are: regular expressions of whole names, such as "stacks/.*/mlp_norm/.*"."""
    lora_rank: int = 0
    """Train a low-rank adapter of this rank beside a model that stays as it is; 0 = train the model itself. With
    ``frozen_layers`` the layers above them have adapters."""
    lora_alpha: float = 32.0
    """The adapter's update is scaled by alpha / rank."""
    lora_targets: tuple[str, ...] = (".*",)
    """What has an adapter: regular expressions of whole names among query, key, value, output, gate, up, down."""
    lora_dropout: float = 0.0
    """Share of the adapter's inputs zeroed while training."""
    lora_rank_stabilised: bool = False
    """Scale by alpha / sqrt(rank) instead (rsLoRA)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and matrix products. Every reduction is float32 (norms, softmax, losses, the gradient's norm,
    sums over micro-batches), and so is the optimizer's arithmetic."""
    parameter_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of what trains: float32 master weights, or bfloat16, rounded stochastically at every update (norms and
    biases stay float32)."""
    frozen_dtype: Literal["float32", "bfloat16"] | None = None
    """Type of frozen layers and of the reference; None = the model folder's own. bfloat16 needs ``dtype`` bfloat16 and
    then changes no number of the run; ``final`` holds frozen layers as they are then, rounded."""
    attention: Literal["auto", "xla", "cudnn", "splash", "ring"] = "auto"
    """Which kernel attends: the platform's table decides (with ``mesh`` sequence=N the ring), or one is named; one that
    cannot do it is an error."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass computes again instead of keeping: nothing, whole layers, or all but matrix products."""
    mesh: str = ""
    """Devices by axis, e.g. "data=1,fsdp=8,tensor=1"; -1 takes the rest; empty = all devices on fsdp. For rows too long
    for one device, "fsdp=2,sequence=4" splits every row into 4 pieces."""
    sharding_rules: tuple[str, ...] = ()
    """Which mesh axes split which axis of parameters, where it is not as usual: "vocab=fsdp" "embed=tensor"; several
    as "embed=fsdp,sequence", none as "vocab=". Axes: embed, heads, kv_heads, mlp, vocab, head_dim, layers, positions,
    labels, norm, rank."""
    seed: int = 0
    """Seed of the data order and of all randomness."""

    save_every: int = 500
    """Checkpoint every N steps (and at the end, and on SIGTERM)."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints to keep."""
    keep_every: int | None = None
    """Checkpoints of steps that are multiples of this stay for ever; a multiple of ``save_every``."""
    keep_best_by: str | None = None
    """The checkpoint at which this metric was best stays too, e.g. "eval/loss" or "eval/rewards/accuracy": the lowest
    of a loss, the highest of anything else. Evaluated ones need ``eval_every``, a multiple of ``save_every``."""
    stop_deadline: float | None = None
    """Seconds from SIGTERM or SIGINT to the end of the save; then the run gives up the save and ends with status 1.
    None = as long as it takes."""
    step_timeout: float | None = None
    """End the run if a single wait within a step (for its batch, its dispatch, its results) takes more seconds than
    this: a hung collective or callback. None = wait for ever."""
    slow_timeout: float = 1800.0
    """With ``step_timeout``: the same for the first step, which compiles, for an evaluation, a save, reading a
    checkpoint, writing the final model, and each batch that is scored after training."""
    loss_spike: float | None = None
    """Stop if the loss is more than this many deviations above the median of the last 64 steps (5 is far out); None =
    never. Nothing of the step is saved."""
    debug: bool = False
    """Where a loss or gradient is not finite, run the step again operation by operation and name the first module, or
    gradient, that was not. Costs that each step's metrics are waited for."""
    log_every: int = 10
    """Steps between lines in a log; a terminal has a bar, and metrics.jsonl every step."""
    tensorboard: bool = False
    """Also write TensorBoard files into ``tensorboard`` beside metrics.jsonl."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "frozen_layers", "lora_rank", "seed")
        _at_least(self, 1, "max_steps", "epochs", "batch_size", "accumulation")
        _at_least(self, 1, "save_every", "keep_checkpoints", "keep_every", "log_every")
        _above(self, 0, "stop_deadline", "step_timeout", "slow_timeout", "loss_spike")
        if self.keep_every is not None and self.keep_every % self.save_every:
            raise InputError(
                f"--keep-every: {self.keep_every} is no multiple of --save-every {self.save_every}: nothing to keep"
            )
        self._check_lora()
        self.rules  # noqa: B018
        if self.frozen_dtype == "bfloat16" and self.dtype == "float32":
            raise InputError("--frozen-dtype: bfloat16 would round what --dtype float32 computes with")

    def _check_lora(self) -> None:
        if self.lora_rank:
            for name in ("frozen_embeddings", "frozen_parameters"):
                if getattr(self, name):
                    raise InputError(f"{_flag(name)}: with --lora-rank only the adapter trains; leave it out")
            try:
                self.lora  # noqa: B018
            except InputError as error:
                raise InputError(re.sub(r"^LoRA\.(\w+)", lambda found: _flag(f"lora_{found[1]}"), str(error))) from None
            return
        for item in fields(TrainConfig):
            if item.name.startswith("lora_") and getattr(self, item.name) != item.default:
                raise InputError(f"{_flag(item.name)}: there is no adapter without --lora-rank")

    @property
    def retention(self) -> Retention:
        """Which checkpoints stay."""
        return Retention(self.keep_checkpoints, self.keep_every, self.keep_best_by)

    @property
    def limits(self) -> TimeLimits:
        """How long what may take."""
        return TimeLimits(self.step_timeout, self.slow_timeout, self.stop_deadline)

    @property
    def shares_reference(self) -> str | None:
        """The flag by which part of the model does not train, shared with the reference; None = all of it trains."""
        names = ("frozen_layers", "frozen_embeddings", "frozen_parameters", "lora_rank")
        return next((_flag(name) for name in names if getattr(self, name)), None)

    @property
    def rules(self) -> Rules:
        """The table from logical axes to mesh axes. Raises ``InputError`` for ``sharding_rules`` that make none."""
        return parse_rules(self.sharding_rules, PARAMETER_AXES)

    @property
    def lora(self) -> LoRA | None:
        """The adapter, where one trains."""
        if not self.lora_rank:
            return None
        return LoRA(
            rank=self.lora_rank,
            alpha=self.lora_alpha,
            targets=self.lora_targets,
            dropout=self.lora_dropout,
            rank_stabilised=self.lora_rank_stabilised,
            first_layer=self.frozen_layers,
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _at_least(config: Any, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise InputError(f"{_flag(name)}: must be at least {least}, is {value}")


def _above(config: Any, bound: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > bound:
            raise InputError(f"{_flag(name)}: must be above {bound}, is {value}")


@dataclass(frozen=True, kw_only=True)
class FitConfig(TrainConfig):
    """One training run over examples that are at hand."""

    batch_size: int = 8
    """Rows in one update (all devices together): an example a row, or several with ``packing``."""
    packing: bool = False
    """Lay several short examples side by side in one row; what is computed for each does not depend on it."""
    row_length: int | None = None
    """Tokens of a row with ``packing``; None = the longest example."""
    pair_layout: Literal["shared", "two_rows"] = "shared"
    """Answers of one prompt behind a shared prompt in one row, or one row an answer: same numbers, more compute."""
    cache_trunk: bool = False
    """With ``frozen_layers``: compute the frozen layers' activations once, before training, and keep them in memory."""
    eval_every: int = 0
    """Evaluate every N steps; 0 = only before the first and after the last, where there is something to evaluate on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 0, "eval_every")
        _at_least(self, 1, "row_length")
        if self.cache_trunk and not self.frozen_layers:
            raise InputError("--cache-trunk: nothing to cache without --frozen-layers")
        if self.row_length is not None and not self.packing:
            raise InputError("--row-length: rows are as long as the longest example without --packing")


@dataclass(frozen=True, kw_only=True)
class FolderConfig(TrainConfig):
    """A run from a model folder and a file of records to a model folder."""

    model: str
    """Folder in Hugging Face format, or a hub id."""
    dataset: str
    """JSONL, JSON, CSV or Parquet file, a folder of such files or a saved one, or a hub id ("ID:CONFIG@SPLIT")."""
    output_dir: Path
    """Where checkpoints, metrics.jsonl, config.json and, at the end, the folder ``final`` go (with ``lora_rank``, the
    merged model, and beside it ``adapter``, the adapter alone in PEFT's format). The same command again continues
    the run that is there."""
    dataset_split: str = "train"
    """Split of the dataset."""
    dataset_limit: int | None = None
    """Use only the first N rows."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A row that cannot be used: stop with its file, row and field, or leave it out and count it."""
    save_dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the weights in ``final``; None = ``parameter_dtype``, so that nothing learnt is rounded away."""
    coordinator: str | None = None
    """HOST:PORT of process 0, on hosts that do not find each other by themselves, as they do on a TPU pod, under Slurm
    or Open MPI and in a Kubernetes job. With it come the next two."""
    num_processes: int | None = None
    """How many processes train together; 1 = look for no others."""
    process_id: int | None = None
    """Which of them this is, from 0; every other flag is the same on all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 1, "dataset_limit", "num_processes")
        _at_least(self, 0, "process_id")
        if scheme := re.match(r"[a-z][a-z0-9+.-]+:/", str(self.output_dir)):
            raise InputError(
                f"--output-dir: {scheme[0]}/... is no folder; mount the bucket (docs/pods.md) and give a path in it"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig(FitConfig, FolderConfig):
    """A run over a file of examples."""

    eval_dataset: str | None = None
    """Held-out rows of the same form; None = no evaluation."""
    eval_split: str = "train"
    """Split of the evaluation dataset."""

    max_length: int = 512
    """Most tokens of prompt and answer together."""
    max_prompt_length: int | None = None
    """Most tokens of a prompt; None = what its answers leave it, at least half of ``max_length``."""
    prompt_truncation: Literal["error", "keep_end", "drop"] = "error"
    """A prompt over its limit: stop and name it, keep its end, or leave the record out and count it."""
    completion_truncation: Literal["cut", "drop", "error"] = "cut"
    """An answer over the limit: cut it (it then gets no end-of-sequence token), leave it out, or stop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 1, "max_prompt_length")
        _at_least(self, 2, "max_length")
        if self.eval_dataset is None and (self.eval_every or self.eval_split != "train"):
            flag = "--eval-every" if self.eval_every else "--eval-split"
            raise InputError(f"{flag}: there is nothing to evaluate on without --eval-dataset")
        if (self.keep_best_by or "").startswith("eval/") and (not self.eval_every or self.eval_every % self.save_every):
            raise InputError(
                f"--keep-best-by {self.keep_best_by}: evaluations must fall on checkpoints; give --eval-every, a "
                f"multiple of --save-every {self.save_every}"
            )
        if self.max_prompt_length is not None and self.max_prompt_length >= self.max_length:
            raise InputError(
                f"--max-prompt-length: {self.max_prompt_length} leaves no room for an answer in "
                f"--max-length {self.max_length}"
            )

    @property
    def truncation(self) -> Truncation:
        """The length limits as the data package takes them."""
        return Truncation(
            max_length=self.max_length,
            max_prompt_length=self.max_prompt_length,
            prompt=self.prompt_truncation,
            completion=self.completion_truncation,
        )
