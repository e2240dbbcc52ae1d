"""Chain of Hindsight and its baselines: learn from outputs and what was said of them, as plain supervised training.

    x = prompt, then for each output: feedback in words, the output
    L = mean of -log pi over the outputs' tokens + lambda * the same over pretraining text           nats a token

(Liu, Sferrazza and Abbeel 2023, arXiv 2302.02676.) Records: anything rated: ``prompt`` + ``responses`` + ``ratings``
(or ``feedback``, a text a response), ``prompt`` + ``chosen`` + ``rejected``, ``prompt`` + ``completion`` + ``label``;
the published sets by their own schemas (WebGPT comparisons, Anthropic-HH, summarize_from_feedback). Presets make the
paper's baselines of the same recipe: SFT, SFT on all data, conditional SFT (C-SFT), SFT with unlikelihood (SFT-U).
With ``prompts`` and a rater it is the paper's Algorithm 1 whole: sample, rate, freeze the file, train.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax

from jaxalign import data, evaluation, sharding
from jaxalign.data import ChainExamples, ChainFormat, Counters, Example, FeedbackPrompts, Records
from jaxalign.errors import InputError
from jaxalign.recipes._card import Card, write_card
from jaxalign.recipes._config import RunConfig
from jaxalign.recipes._fit import FitResult
from jaxalign.recipes._fit_data import Pretraining
from jaxalign.recipes._hindsight import HindsightObjective, hindsight_objective
from jaxalign.recipes._hindsight_collect import frozen_feedback
from jaxalign.recipes._hindsight_presets import HINDSIGHT_PRESETS
from jaxalign.recipes._likelihood_margins import likelihood_margins
from jaxalign.recipes._run import RunData, Tokenise, run_recipe, say, write_final
from jaxalign.recipes._shared import check_folder
from jaxalign.recipes._sheet import PeopleAsk
from jaxalign.training import OptimizerConfig, Watchdog, watched

__all__ = ["PRESETS", "HindsightConfig", "load", "run"]

PRESETS = HINDSIGHT_PRESETS
# What a run waits for once it has trained.
HELD_OUT = "held-out outputs to be compared"


@dataclass(frozen=True, kw_only=True)
class HindsightConfig(HindsightObjective, ChainFormat, RunConfig):
    """Train on chains of feedback and outputs."""

    dataset: tuple[str, ...] = ()  # type: ignore[assignment]
    """One or more files, folders or hub ids of records with feedback; of a hub id's configuration ID:CONFIG, of another
    split than ``dataset_split`` ID@SPLIT or ID:CONFIG@SPLIT. ``dataset_limit`` is of each."""
    dataset_weights: tuple[float, ...] = ()
    """The datasets' shares of every epoch, one number each; empty = in proportion to their sizes."""
    axis: Literal["overall", "accuracy", "coverage", "coherence"] = "overall"
    """Of summarize_from_feedback's rated summaries: which rating."""
    pretraining_dataset: str | None = None
    """Plain text (records with ``text``) that every step also learns from, so that the model forgets nothing."""
    pretraining_split: str = "train"
    """Split of the pretraining dataset."""
    pretraining_limit: int | None = None
    """Use only the first N documents."""
    pretraining_batch_size: int = 8
    """Rows of pretraining text in one update."""
    pretraining_length: int | None = None
    """Tokens of such a row; None = ``max_length``."""
    prompts: str | None = None
    """Algorithm 1: sample ``model`` on these prompts, have the responses rated, keep them in
    ``output_dir/feedback.jsonl``, train on them (and on ``dataset``, if there is one)."""
    rater: str | None = None
    """With ``prompts``: what scores a response; see ``jaxalign collect``."""
    judge: str | None = None
    """With ``prompts``: what compares two responses instead."""
    people: PeopleAsk | None = None
    """With ``prompts``: people instead, through a sheet to fill in."""
    samples_per_prompt: int = 4
    """With ``prompts``: responses to each."""
    max_new_tokens: int = 64
    """With ``prompts``: most tokens of a response."""
    temperature: float = 1.0
    """With ``prompts``: softmax temperature of the sampling."""
    batch_size: int = 8
    """Sequences in one update (all devices together), or rows of several with ``packing``."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-5, beta2=0.95, warmup_steps=10, clip_norm=1.0)
    )
    """Adam with betas .9 and .95, linear warm-up, then constant."""

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        ChainFormat.__post_init__(self)
        HindsightObjective.__post_init__(self)
        for name, least in (("pretraining_limit", 1), ("pretraining_batch_size", 1), ("pretraining_length", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--{name.replace('_', '-')}: must be at least {least}, is {value}")
        if not self.dataset and self.prompts is None:
            raise InputError("--dataset: give records with feedback, or --prompts to sample and rate")
        if self.dataset_weights and len(self.dataset_weights) != len(self.dataset) + (self.prompts is not None):
            raise InputError(
                f"--dataset-weights: {len(self.dataset_weights)} numbers for "
                f"{len(self.dataset) + (self.prompts is not None)} datasets"
            )
        if any(not 0 < weight < float("inf") for weight in self.dataset_weights):
            raise InputError(f"--dataset-weights: must be above 0, are {list(self.dataset_weights)}")
        defaults = {item.name: item.default for item in dataclasses.fields(HindsightConfig)}
        if self.pretraining_dataset is None:
            if self.pretraining_weight:
                raise InputError(
                    "--pretraining-weight: there is no text without --pretraining-dataset (0 does without it)"
                )
            for name in ("pretraining_split", "pretraining_limit", "pretraining_batch_size", "pretraining_length"):
                if getattr(self, name) != defaults[name]:
                    raise InputError(f"--{name.replace('_', '-')}: there is no text without --pretraining-dataset")
        elif self.pretraining_coefficient == 0:
            raise InputError("--pretraining-weight: with 0, --pretraining-dataset would not be read; leave one out")
        if self.prompts is None:
            for name in ("rater", "judge", "people", "samples_per_prompt", "max_new_tokens", "temperature"):
                if getattr(self, name) != defaults[name]:
                    raise InputError(f"--{name.replace('_', '-')}: nothing is sampled without --prompts")
        elif sum(value is not None for value in (self.rater, self.judge, self.people)) != 1:
            raise InputError("--rater, --judge or --people: with --prompts give one of the three")
        if self.unlikelihood_weight is not None and set(self.weights) != {"p", "n"}:
            raise InputError("--unlikelihood-weight: it is of outputs that stand alone, --structures p n")
        if self.pair_layout != "shared":
            raise InputError("--pair-layout: chains are single sequences; it is for preference pairs")
        if self.cache_trunk:
            raise InputError("--cache-trunk: chains are drawn anew in every epoch; there is nothing to keep")

    @property
    def form(self) -> ChainFormat:
        """What sequences look like, without the rest."""
        return ChainFormat(**{item.name: getattr(self, item.name) for item in dataclasses.fields(ChainFormat)})


def load(config: HindsightConfig) -> Tokenise:
    """Read the records and the pretraining text; the result makes chains of them. Raises ``InputError``."""
    parts = [_read(config, source, split, config.dataset_limit) for source, split in _with_splits(config)]
    datasets = list(config.dataset)
    if config.prompts is not None:
        path = feedback_file(config)
        if not path.is_file():
            raise InputError(f"{path}: nothing has been sampled and rated yet; jaxalign hindsight does that")
        datasets.append(str(path))
        parts.append(_read(config, str(path)))
    held_out = None
    if config.eval_dataset is not None:
        held_out = _read(config, config.eval_dataset, config.eval_split)
    text = None
    if config.pretraining_dataset is not None and config.pretraining_coefficient > 0:
        text = data.load_records(
            config.pretraining_dataset,
            split=config.pretraining_split,
            limit=config.pretraining_limit,
            on_bad_row=config.on_bad_row,
        )

    def tokenise(tokenizer: Any) -> RunData:
        records, sources = _joined(parts)
        examples, counters = _chains(config, records, tokenizer, sources)
        say(f"{', '.join(datasets)}: {counters.summary()}")
        eval_examples: Any = ()
        if held_out is not None:
            # Said before hours of training, not after them.
            FeedbackPrompts(examples.writer).check(examples.text_kinds)
            eval_examples, counters = _chains(config, held_out, tokenizer, None)
            say(f"{config.eval_dataset}: {counters.summary()}")
        if text is None:
            return RunData(examples, eval_examples)
        length = config.pretraining_length or config.max_length
        windows, counters = data.text_windows(text, tokenizer, length=length, on_bad_row=config.on_bad_row)
        say(f"{config.pretraining_dataset}: {counters.summary()}")
        return RunData(examples, eval_examples, Pretraining(windows, config.pretraining_batch_size, length))

    return tokenise


def run(config: HindsightConfig) -> None:
    """Load, tokenise, train, write ``output_dir/final``. Raises ``InputError`` for what is wrong with the input.

    ``final`` has ``hindsight.json``, by which ``jaxalign sample --feedback`` asks the model as it was trained. With
    ``eval_dataset`` whose records have several rated outputs, how often the better one is the likelier after the words
    of a good one is written to ``evaluation.json``.
    """
    sharding.initialize_distributed(config.coordinator, config.num_processes, config.process_id)
    check_folder(config.output_dir)
    if config.prompts is not None and not frozen_feedback(config, feedback_file(config)):
        return
    if config.pretraining_dataset is None and config.pretraining_weight is None:
        say("no --pretraining-dataset: training without the paper's pretraining term, which its baselines have too")

    def write(result: FitResult, tokenizer: Any, run_data: RunData) -> None:
        card = Card("hindsight", run_data.identity, result.step)
        write_final(config, result, tokenizer, card=card)
        assert isinstance(run_data.examples, ChainExamples)
        prompts = FeedbackPrompts(run_data.examples.writer)
        if jax.process_index() == 0:
            prompts.save(config.output_dir / "final", kinds=run_data.examples.text_kinds)
        if config.eval_dataset is not None:
            with watched(config.limits, HELD_OUT) as watch:
                _write_evaluation(config, result, prompts, watch)
            write_card(config.output_dir / "final", config, card)  # once more, with what was measured

    run_recipe(
        config,
        lambda: load(config),
        lambda model_config: hindsight_objective(model_config, config),
        title="hindsight",
        write=write,
    )


def feedback_file(config: HindsightConfig) -> Path:
    """Where Algorithm 1 keeps what was sampled and rated."""
    return config.output_dir / "feedback.jsonl"


def _with_splits(config: HindsightConfig) -> list[tuple[str, str]]:
    """Every data set with the split ``dataset_split`` asks of it: the one in its name where another has none."""
    own = [data.parse_source(source)[2] for source in config.dataset]
    if None not in own:  # nothing is left for the flag, which must not say anything else
        return [(source, config.dataset_split) for source in config.dataset]
    return [(source, split or config.dataset_split) for source, split in zip(config.dataset, own, strict=True)]


def _read(config: HindsightConfig, source: str, split: str = "train", limit: int | None = None) -> Records:
    return data.load_feedback(source, split, limit=limit, on_bad_row=config.on_bad_row, axis=config.axis)


def _joined(parts: list[Records]) -> tuple[Records, list[int]]:
    """All records behind one another, and the number of each one's source."""
    counters = Counters()
    for part in parts:
        counters.rows_read += part.counters.rows_read
        counters.skipped.update(part.counters.skipped)
    places = [part.place(index) for part in parts for index in range(len(part))]
    sources = [number for number, part in enumerate(parts) for _ in range(len(part))]
    return Records([record for part in parts for record in part], places, counters), sources


def _chains(
    config: HindsightConfig, records: Records, tokenizer: Any, sources: list[int] | None
) -> tuple[ChainExamples, Counters]:
    return data.build_chains(
        records,
        tokenizer,
        config.form,
        truncation=config.truncation,
        seed=config.seed,
        on_bad_row=config.on_bad_row,
        sources=sources,
        weights=config.dataset_weights if sources is not None and config.dataset_weights else None,
    )


def _comparable(record: Any, place: str) -> bool:
    """Whether a record has two outputs of unequal rating; a bad row, which loading has counted, has not."""
    try:
        ratings = [output.rating for output in data.rated_outputs(record, place).outputs]
    except InputError:
        return False
    return None not in ratings and len(set(ratings)) > 1


def _write_evaluation(config: HindsightConfig, result: FitResult, prompts: FeedbackPrompts, watch: Watchdog) -> None:
    """Accuracy of the likelihood as a judge of held-out outputs, where there are several to a prompt."""
    records = _read(config, str(config.eval_dataset), config.eval_split)
    compared: list[Example] = []
    left_out = 0
    for index, record in enumerate(records):
        example = None
        if _comparable(record, records.place(index)):
            example = prompts.comparison(record, place=records.place(index), record_id=index)
        if example is None or int(example.positions.max()) >= result.config.max_positions:
            left_out += 1
        else:
            compared.append(example)
    if not compared:
        say(f"held out: no record of {config.eval_dataset} has two outputs of unequal rating that fit the model")
        return
    mesh = sharding.parse_mesh(config.mesh)
    scored = result.config.replace(compute_dtype=config.dtype)
    margins = likelihood_margins(
        scored,
        result.params,
        compared,
        mesh=mesh,
        batch_size=config.batch_size,
        on_progress=watch.wait_for_parts(HELD_OUT),
    )
    found = evaluation.calibration(margins)
    content = {
        "step": result.step,
        "dataset": config.eval_dataset,
        "what": "log pi(better | prompt, words of a good output) above log pi(worse | the same), summed over tokens",
        "accuracy": found.accuracy, "low": found.low, "high": found.high, "pairs": found.pairs,
        "records": len(compared), "records_left_out": left_out,
    }  # fmt: skip
    if jax.process_index() == 0:
        path = config.output_dir / "evaluation.json"
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    say(
        f"held out: the better output is the likelier in {found.accuracy:.3f} [{found.low:.3f}, {found.high:.3f}] of "
        f"{found.pairs} pairs"
    )
