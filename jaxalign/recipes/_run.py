"""From a model folder and a file of records to a model folder: the part that every recipe's command shares."""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from jaxalign import data, models, sharding, training
from jaxalign.data import Counters, Example, Examples, Records, load_tokenizer
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig
from jaxalign.recipes._card import Card, write_card
from jaxalign.recipes._config import FolderConfig, RunConfig
from jaxalign.recipes._fit import FitResult, fit
from jaxalign.recipes._fit_data import Pretraining
from jaxalign.recipes._handover import Handover
from jaxalign.recipes._objective import Objective, Params
from jaxalign.recipes._resume import OF_A_PROCESS
from jaxalign.recipes._shared import check_agreement, check_folder, check_shared, run_mesh, say

__all__ = [
    "RunData", "Tokenise", "Trained", "join_processes", "load_start", "load_tokenizer", "read_examples", "run_recipe",
    "same_shape", "say", "weights_name", "write_final",
]  # fmt: skip

logger = logging.getLogger(__name__)


class Trained(Protocol):
    """What a training run returns, whatever its method."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def params(self) -> Params: ...
    @property
    def step(self) -> int: ...
    @property
    def interrupted(self) -> bool: ...
    @property
    def lora_config(self) -> ModelConfig | None: ...
    @property
    def lora(self) -> Params | None: ...


@dataclass(frozen=True)
class RunData:
    """What a run trains on, tokenised."""

    examples: Examples
    eval_examples: Examples = ()
    pretraining: Pretraining | None = None

    @property
    def identity(self) -> dict[str, str]:
        """Its name by content: a run that continues must have the same."""
        examples = self.examples
        name = data.fingerprint(examples) if isinstance(examples, Sequence) else examples.fingerprint()
        found = {"tokenised data": name}
        if self.pretraining is not None:
            found["tokenised pretraining text"] = data.fingerprint(self.pretraining.examples)
        return found


Build = Callable[[Records, Any], tuple[list[Example], Counters]]
Tokenise = Callable[[Any], RunData]
"""``tokenise(tokenizer) -> RunData``: what a recipe's ``load`` returns once it has read the records."""
WithHead = Callable[[ModelConfig, Params], tuple[ModelConfig, Params]]
Write = Callable[[FitResult, Any, RunData], None]
"""``write(result, tokenizer, data)``."""


def run_recipe(
    config: RunConfig,
    load: Callable[[], Tokenise],
    make_objective: Callable[[ModelConfig], Objective],
    *,
    title: str,
    reference: str | None = None,
    cache_reference: bool = False,
    with_head: WithHead | None = None,
    keep_best: str | None = None,
    write: Write | None = None,
) -> None:
    """Load model and records, train, write ``output_dir/final``; a run that is there continues.

    ``mesh`` and ``batch_size`` are checked before anything is read, and the records are read (``load``) before the
    model: what is wrong with them is said in a second, not after a minute. A method that trains another model than a
    language model makes it ``with_head`` and knows how to ``write`` it.
    """
    join_processes(config)
    mesh = run_mesh(config)
    training.check_row_count(config.batch_size, mesh, config.accumulation)
    tokenise = load()
    model_config = models.load_config(config.model)
    if model_config.labels and not (with_head and model_config.labels == 1):
        raise InputError(
            f"--model: {config.model} is a classifier with {model_config.labels} labels, no language model"
        )
    if reference is not None and not same_shape(models.load_config(reference), model_config):
        raise InputError("--reference: the reference model has another architecture than --model")
    tokenizer = load_tokenizer(config.model)
    run_data = tokenise(tokenizer)

    # A folder of the same name may hold other weights by the time a run goes on.
    identity = dict(run_data.identity)
    model_config, start, identity["weights of --model"] = load_start(config.model, mesh, config.rules, with_head)
    other = None
    if reference is not None:
        _, other, identity["weights of --reference"] = load_start(reference, mesh, config.rules)
    result = fit(
        model_config,
        start,
        run_data.examples,
        make_objective,
        config,
        reference=other,
        cache_reference=cache_reference,
        eval_examples=run_data.eval_examples,
        pretraining=run_data.pretraining,
        directory=config.output_dir,
        pad_token=tokenizer.pad_token_id or 0,
        identity=identity,
        keep_best=keep_best,
        title=title,
    )
    if write is None or result.interrupted:
        write_final(config, result, tokenizer, card=Card(title, run_data.identity, result.step))
    else:
        write(result, tokenizer, run_data)


def load_start(
    folder_or_hub_id: str, mesh: jax.sharding.Mesh, rules: sharding.Rules, with_head: WithHead | None = None
) -> tuple[ModelConfig, Handover[Params], str]:
    """A model to start from: its config, its parameters (with a head, where it gets one) to be handed over, and the
    name of its weights."""
    model_config, params = models.load_pretrained(folder_or_hub_id, mesh=mesh, rules=rules)
    name = weights_name(params)
    if with_head is not None:
        model_config, params = with_head(model_config, params)
    return model_config, Handover(params), name


def join_processes(config: FolderConfig) -> None:
    """Join the processes of this run, where there are several, and make sure that they share flags and folder."""
    sharding.initialize_distributed(config.coordinator, config.num_processes, config.process_id)
    check_folder(config.output_dir)
    if jax.process_count() > 1:
        say(f"{jax.process_count()} processes with {jax.device_count()} devices: {jax.devices()[0].device_kind}")
        values = dataclasses.asdict(config)
        check_agreement({name: value for name, value in values.items() if name not in OF_A_PROCESS})
        check_shared(config.output_dir)


def write_final(config: FolderConfig, result: Trained, tokenizer: Any, *, card: Card) -> None:
    """Write ``final``, and ``adapter`` where one trained, with their cards; an interrupted run says how it goes on."""
    if result.interrupted:
        say(f"stopped at step {result.step}; the same command continues from there")
        return
    final, adapter = config.output_dir / "final", config.output_dir / "adapter"
    save_dtype = config.save_dtype or config.parameter_dtype
    with training.watched(config.limits, f"{final} to be written") as watch:
        whole = jax.tree.map(lambda leaf: leaf if leaf.dtype == save_dtype else leaf.astype(save_dtype), result.params)
        models.save_pretrained(final, result.config.replace(compute_dtype="float32"), whole, tokenizer)
        write_card(final, config, card)
        if result.lora is None or result.lora_config is None:
            say(f"{result.step} steps done; the model is in {final}")
            return
        watch.wait_for(f"{adapter} to be written", slow=True)
        models.save_adapter(adapter, result.lora_config, result.lora, base_name=config.model)
        write_card(adapter, config, card)
    say(f"{result.step} steps done; the model is in {final}, its adapter alone in {adapter}")


def read_examples(config: RunConfig, build: Build, *, require_pairs: bool = False) -> Tokenise:
    """Read the records of a run, and its held-out ones; what is wrong with a file is said here, with a row later."""
    records = data.load_dataset(
        config.dataset, split=config.dataset_split, limit=config.dataset_limit, on_bad_row=config.on_bad_row
    )
    eval_records = None
    if config.eval_dataset is not None:
        eval_records = data.load_dataset(config.eval_dataset, split=config.eval_split, on_bad_row=config.on_bad_row)

    def tokenise(tokenizer: Any) -> RunData:
        examples = _examples(config.dataset, records, build, tokenizer, require_pairs)
        if eval_records is None:
            return RunData(examples)
        held_out = _examples(str(config.eval_dataset), eval_records, build, tokenizer, require_pairs)
        return RunData(examples, held_out)

    return tokenise


def _examples(name: str, records: Records, build: Build, tokenizer: Any, require_pairs: bool) -> list[Example]:
    examples, counters = build(records, tokenizer)
    say(f"{name}: {counters.summary()}")
    if require_pairs and not all(example.count("pair") for example in examples):
        odd = next(example for example in examples if not example.count("pair"))
        raise InputError(
            f"{records.place(odd.record_id)}: not a preference: it needs prompt, chosen and rejected, or prompt, "
            "responses and ratings"
        )
    if not require_pairs and (pair := next((example for example in examples if example.count("pair")), None)):
        raise InputError(
            f"{records.place(pair.record_id)}: a preference has several answers: --answer chosen (or rejected) says "
            "which to learn"
        )
    return examples


def same_shape(one: ModelConfig, other: ModelConfig) -> bool:
    """Whether two models have the same parameters and compute the same of them."""
    plain = {"extra": (), "remat": "none", "compute_dtype": "float32"}
    return one.replace(**plain, stacks=(one.layers,)) == other.replace(**plain, stacks=(other.layers,))


def weights_name(params: Params) -> str:
    """The name of parameters by their content, on any mesh."""
    return hashlib.sha256(repr(sorted(training.fingerprint(params).items())).encode()).hexdigest()
