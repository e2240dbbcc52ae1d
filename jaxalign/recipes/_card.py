"""The card of a trained model: what it is, how it was made, how it is loaded, what its figures mean."""

import dataclasses
import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

import jaxalign
from jaxalign import data, models
from jaxalign.recipes._config import FolderConfig
from jaxalign.recipes._methods import Method, further_terms, methods_of
from jaxalign.recipes._public import public_dataset, public_rater
from jaxalign.recipes._resume import OF_A_PROCESS
from jaxalign.recipes._shared import say

__all__ = ["Card", "write_card"]

# Said elsewhere in the card, or nothing of the model: where it ran, how it was watched, how often it was saved.
LEFT_OUT = {
    *OF_A_PROCESS, "model", "dataset", "dataset_split", "dataset_limit", "output_dir", "mesh", "sharding_rules",
    "attention", "remat", "save_every", "keep_checkpoints", "keep_every", "keep_best_by", "log_every", "tensorboard",
    "stop_deadline", "step_timeout", "slow_timeout", "loss_spike", "debug", "eval_split", "pretraining_split",
}  # fmt: skip
# Settings that begin so do nothing without that one.
NEEDS = {"eval_": "eval_dataset", "pretraining_": "pretraining_dataset", "lora_": "lora_rank"}
# Whose values are names of data sets, of raters, or regular expressions; any other text may be a path.
DATASETS = {"eval_dataset", "normalise_dataset", "pretraining_dataset", "prompts"}
RATERS = {"reward", "rater", "judge"}
PATTERNS = {"frozen_parameters", "lora_targets"}
# Not of the model; what a clock says is another number in every run.
NO_FIGURES = ("step", "tokens", "tokens_per_second")
WHAT = {
    "sft": "a language model fine-tuned on demonstrations",
    "dpo": "a language model trained on preference pairs",
    "reward": "a reward model: it gives a text a score, the higher the better people are expected to like it",
    "ppo": "a language model trained with PPO to earn a reward while staying near the model it started from",
    "hindsight": "a language model trained on chains of feedback and outputs; it is asked with the words of a good one",
}
USE = {
    "transformers": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)""",
    "peft": """from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(BASE)  # what the adapter was trained beside: NAMED
model = PeftModel.from_pretrained(base, FOLDER)""",
    "reward": """from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(FOLDER)  # its logit is the score, not yet the reward
tokenizer = AutoTokenizer.from_pretrained(FOLDER)""",
}
OURS = {
    "transformers": "config, params = models.load_pretrained(FOLDER)",
    "peft": """config, base = models.load_pretrained(BASE)  # NAMED
config, adapter = models.load_adapter(FOLDER, config)
params = models.merge_lora(config, base, adapter)""",
    "reward": "reward_model = models.load_reward_model(FOLDER)  # with its normalisation",
}


@dataclass(frozen=True)
class Card:
    """What a run knows of the model that it wrote."""

    recipe: str
    """The command: sft, dpo, reward, ppo, hindsight."""
    identity: Mapping[str, str]
    """Fingerprints of what it learnt from, by name."""
    step: int
    """Updates applied to the model that was kept."""


def write_card(folder: Path, config: FolderConfig, card: Card) -> None:
    """Write the card of the model in ``folder``, which is complete but for it; somebody's own card there stays.

    It is a function of the run alone: the same run leaves the same card, however often it was interrupted. Local paths
    are named by their last part.
    """
    if jax.process_index() != 0:
        return
    kind = "reward" if card.recipe == "reward" else "peft" if (folder / "adapter_config.json").is_file() else ""
    methods = methods_of(card.recipe, config)
    base = models.base_of(config.model)
    sources = config.dataset if isinstance(config.dataset, tuple) else (config.dataset,)
    header = {
        "library_name": "peft" if kind == "peft" else "transformers",
        "pipeline_tag": "text-classification" if kind == "reward" else "text-generation",
        "base_model": base,
        "base_model_relation": None if base is None else "adapter" if kind == "peft" else "finetune",
        "datasets": [one for source in sources if (one := _hub_dataset(source))],
        "tags": list(dict.fromkeys(["jaxalign", card.recipe, *(method.name for method in methods)])),
    }
    name = models.public_name(config.model)
    sections = [
        f"# {models.code(name)} after jaxalign {card.recipe}",
        f"This is {WHAT[card.recipe]}, made from {_linked(name, base)}."
        + (" It is the adapter alone; it works beside that model." if kind == "peft" else ""),
        "## How it was made",
        *map(_method, methods),
        *further_terms(card.recipe, config),
        _table(("", ""), _origin(config, card, sources)),
        "Every setting that shapes the result:",
        _table(("setting", "value"), _settings(config)),
        *_results(config, card),
        "## How to load it",
        _code(USE[kind or "transformers"], folder, config),
        "With jaxalign:",
        _code("from jaxalign import models\n\n" + OURS[kind or "transformers"], folder, config),
        *(_scores(folder) if kind == "reward" else ()),
    ]
    if kind != "peft":
        template = "brings" if models.has_chat_template(folder) else "brings no"
        sections += ["## Chat template", f"The tokenizer {template} chat template."]
    sections += [
        "## Limitations",
        "Nothing here measures facts, bias or safety. The model has the faults of the one it was made from and of its "
        "data; the figures above are of this run's own data, and other texts may give others.",
    ]
    if cited := [method for method in methods if method.source]:
        sections += ["## Citation", "\n".join(f"- {_cited(method.source)}" for method in cited)]
    if not models.write_card(folder, models.card_text(header, "\n\n".join(sections))):
        say(f"{folder / 'README.md'} is not of jaxalign's making and stays as it is")


def _linked(name: str, base: str | None) -> str:
    if base is None:
        return f"{models.code(name)}"
    link = f"[{base}](https://huggingface.co/{base})"
    return link if base == name else f"{models.code(name)}, which comes from {link}"


def _hub_dataset(source: str) -> str | None:
    name = data.parse_source(source)[0]
    known = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and models.public_name(name) == name
    return name if known and not name.endswith((".jsonl", ".json", ".csv", ".parquet", ".gz", ".ndjson")) else None


def _method(method: Method) -> str:
    text = f"Loss {models.code(method.name)}: {method.summary}"
    text += f" ({_cited(method.source)})" if method.source else ""
    return text + (f"\n\n```\n{method.equation}\n```" if method.equation else "")


def _cited(source: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def _origin(config: FolderConfig, card: Card, sources: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield "start", models.code(models.public_name(config.model))
    yield "data", "; ".join(_with_split(source, config.dataset_split) for source in sources) or "sampled by the run"
    if config.dataset_limit is not None:
        yield "rows", f"the first {config.dataset_limit:,}"
    for what, fingerprint in card.identity.items():
        yield f"{what} (fingerprint)", models.code(fingerprint)
    yield "steps", f"{card.step:,}"
    if tokens := sum(row.get("tokens", 0) for row in _rows(config) if row["step"] <= card.step):
        yield "tokens", f"{tokens:,}"
    yield "made with", f"jaxalign {jaxalign.__version__}, jax {importlib.metadata.version('jax')}"


def _with_split(source: str, split: str) -> str:
    return f"{models.code(public_dataset(source))}, split {models.code(data.parse_source(source)[2] or split)}"


def _settings(config: Any) -> Iterator[tuple[str, str]]:
    """All that acts; what is off (None, empty, False) only where it is on by default."""
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        needed = next((needed for start, needed in NEEDS.items() if name.startswith(start)), None)
        if name in LEFT_OUT or (needed is not None and not getattr(config, needed)):
            continue
        if name == "epochs" and config.max_steps is not None:  # which goes before it
            continue
        if dataclasses.is_dataclass(value):
            yield from _settings(value)
        elif (value is not None and value not in ("", ()) and value is not False) or value != field.default:
            values = value if isinstance(value, tuple) and value else (value,)
            yield models.code(name), ", ".join(_shown(config, name, one) for one in values)


def _shown(config: Any, name: str, value: Any) -> str:
    if name in DATASETS and value:
        return _with_split(value, getattr(config, name.replace("_dataset", "_split"), "train"))
    if not isinstance(value, (str, Path)) or name in PATTERNS:
        return models.code(str(value))
    return models.code(public_rater(str(value)) if name in RATERS else models.public_name(value))


def _rows(config: FolderConfig) -> list[dict[str, Any]]:
    path = config.output_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _results(config: FolderConfig, card: Card) -> Iterator[str]:
    """The last figures of the model that was kept, and those of ``evaluation.json`` where this run evaluated."""
    kept = [row for row in _rows(config) if row["step"] <= card.step]
    found: dict[str, Any] = {}
    for trained in (True, False):
        rows = [row for row in kept if ("loss" in row) == trained]
        found |= rows[-1] if rows else {}
    figures = [
        (models.code(name), f"{value:.6g}")
        for name, value in found.items()
        if name not in NO_FIGURES and not name.endswith("seconds") and isinstance(value, (int, float))
    ]
    if figures:
        yield "## Figures"
        yield f"Of step {card.step:,}, as training recorded them:"
        yield _table(("metric", "value"), figures)
    path = config.output_dir / "evaluation.json"
    if getattr(config, "eval_dataset", None) is not None and path.exists():
        values = json.loads(path.read_text(encoding="utf-8"))
        wanted = ("accuracy", "low", "high", "pairs")
        yield "Held out (" + models.code(public_dataset(str(values.get("dataset")))) + "):"
        yield _table(("measure", "value"), [(name, f"{values[name]:.6g}") for name in wanted if name in values])


def _scores(folder: Path) -> Iterator[str]:
    values = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
    yield "## What a score means"
    yield (
        f"reward = (score - {values['mean']:.6g}) / {values['std']:.6g}: the mean over "
        f"{values['measured_answers']:,} answers is reward 0. Of two answers to one prompt, the chance that the first "
        "is preferred is the logistic function of the difference of their scores (Bradley-Terry); scores of different "
        "prompts are not comparable by themselves. `reward.json` holds these numbers."
    )


def _table(head: Sequence[str], rows: Any) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _code(text: str, folder: Path, config: FolderConfig) -> str:
    # A folder's own base is another model than the folder's: only a hub id says by itself where the weights are.
    base = config.model if models.base_of(config.model) == config.model else "PATH_OF_THE_BASE"
    values = {"FOLDER": folder.name, "BASE": base, "NAMED": models.public_name(config.model)}
    text = re.sub("FOLDER|BASE|NAMED", lambda found: json.dumps(values[found[0]]), text)
    return f"```python\n{text}\n```"
