"""Preference collection: several answers of a model to each prompt, rated, as the records that every recipe reads.

Records: anything with a ``prompt``, text or messages; answers, where there are any, are not read. Raters: a Python
function, a reward model or classifier, a pairwise judge, or people, through a file to fill in.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxalign import data, models
from jaxalign.data import Truncation
from jaxalign.errors import InputError
from jaxalign.recipes._collect import Collected, collect_preferences
from jaxalign.recipes._collection import CollectSettings
from jaxalign.recipes._raters import identity_of, load_function, load_text_reward
from jaxalign.recipes._run import load_tokenizer, say
from jaxalign.recipes._sheet import PeopleAsk
from jaxalign.sampling import TextJudge, TextReward

__all__ = ["CollectConfig", "run"]


@dataclass(frozen=True, kw_only=True)
class CollectConfig(CollectSettings):
    """Collect preferences over a model's own answers."""

    model: str
    """Folder in Hugging Face format, or a hub id. It gives the answers: mostly, a fine-tuned model."""
    adapter: str | None = None
    """Folder or hub id of a LoRA adapter in PEFT's format, for this model."""
    dataset: str
    """Prompts: JSONL, JSON, CSV or Parquet file, a saved dataset folder, or a hub id."""
    output: Path
    """Where the records go, a name that ends with .jsonl. Samples and ratings are kept in a folder beside it, from
    which the same command goes on if it was stopped."""
    rater: str | None = None
    """What scores an answer: "package.module:function" or "path/to/file.py:function", called as f(prompts,
    completions) -> scores; or the folder or hub id of a reward model or classifier (one of several labels:
    FOLDER#LABEL)."""
    judge: str | None = None
    """What compares two answers instead: such a function, called as f(prompts, first, second) -> "first", "second"
    or "tie" for each."""
    people: PeopleAsk | None = None
    """People instead: write a file of blind, shuffled questions ("comparisons" of two answers, or single "ratings");
    once it is filled in, the same command reads it."""
    sheet: Path | None = None
    """The file for people, a name that ends with .jsonl or .csv; None = sheet.jsonl in the folder beside ``output``."""
    dataset_split: str = "train"
    """Split of the dataset."""
    dataset_limit: int | None = None
    """Use only the first N rows."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A row that cannot be used: stop with its file, row and field, or leave it out and count it."""
    max_prompt_length: int | None = None
    """Most tokens of a prompt; None = what the model has positions for."""
    prompt_truncation: Literal["error", "keep_end", "drop"] = "error"
    """A prompt over its limit: stop and name it, keep its end, or leave the record out and count it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dataset_limit", "max_prompt_length"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')}: must be at least 1, is {getattr(self, name)}")
        if sum(value is not None for value in (self.rater, self.judge, self.people)) != 1:
            raise InputError("--rater, --judge or --people: give one of the three")
        if self.sheet is not None and self.people is None:
            raise InputError("--sheet: only people are asked through a file; it needs --people")
        if self.comparisons_per_prompt and self.judge is None and self.people != "comparisons":
            raise InputError("--comparisons-per-prompt: nothing is compared without --judge or --people comparisons")


def run(config: CollectConfig) -> Collected:
    """Sample, rate, write, say what was done. Raises ``InputError`` for what is wrong with the input."""
    records = data.load_dataset(
        config.dataset, split=config.dataset_split, limit=config.dataset_limit, on_bad_row=config.on_bad_row
    )
    model_config = models.load_config(config.model)
    if model_config.labels:
        raise InputError(f"--model: {config.model} is a classifier, no language model")
    rater: TextReward | None = None
    judge: TextJudge | None = None
    identity: dict[str, Any] = {}
    if config.rater is not None:
        rater = load_text_reward(config.rater, flag="--rater")
        if (known := identity_of(rater)) is not None:
            identity["weights of --rater"] = known
    elif config.judge is not None:
        judge = load_function(config.judge, flag="--judge")
        if judge is None:
            raise InputError(
                f"--judge: {config.judge} is no function (package.module:function or file.py:function); a model that "
                "scores answers is a --rater"
            )
    tokenizer = load_tokenizer(config.model)
    prompts, counters = data.build_prompts(
        records,
        tokenizer,
        truncation=Truncation(max_prompt_length=config.max_prompt_length, prompt=config.prompt_truncation),
        on_bad_row=config.on_bad_row,
    )
    say(f"{config.dataset}: {counters.summary()}")

    model_config, params = models.load_pretrained(config.model)
    if config.adapter is not None:
        adapted, lora = models.load_adapter(config.adapter, model_config)
        params = models.merge_lora(adapted, params, lora, dtype="float32")
    result = collect_preferences(
        model_config.replace(compute_dtype=config.dtype),
        params,
        tokenizer,
        prompts,
        config.output,
        rater=rater,
        judge=judge,
        people=config.people,
        sheet=config.sheet,
        config=config,
        identity=identity,
        report=lambda done, total: say(f"{done} of {total} prompts"),
    )
    if result.waiting:
        say(
            f"{result.waiting} questions in {result.sheet} have no answer yet; fill them in, then run the same command "
            "again"
        )
    else:
        say(f"{result.summary()}; they are in {result.output}")
    return result
