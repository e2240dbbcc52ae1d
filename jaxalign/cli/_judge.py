"""``jaxalign judge run``: two models' outputs compared by a judge, every verdict kept."""

import collections
import contextlib
import dataclasses
import inspect
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxalign.cli._progress import progress
from jaxalign.errors import InputError
from jaxalign.evaluation.judges import EndpointConfig

if TYPE_CHECKING:
    from jaxalign.evaluation import Interval
    from jaxalign.evaluation.judges import Item, Judge, Judged

__all__ = ["ALIASES", "JudgeConfig", "run"]

ALIASES = {"--output": "--output-dir"}

_WRITERS = ("openai", "sampled")
# Whose a flag is, of those that are not everybody's.
_JUDGES_OF = {
    **{field.name: ("openai",) for field in dataclasses.fields(EndpointConfig) if field.name != "model"},
    **dict.fromkeys(("temperature", "max_tokens", "sampling_seed", "ties"), _WRITERS),
    "tie_margin": ("likelihood",),
    "prompts": ("openai", "likelihood", "sampled"),
    "batch_size": ("likelihood", "sampled", "reward"),
    "dtype": ("likelihood", "sampled"),
}


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(EndpointConfig):
    """Have two models' outputs to the same prompts compared."""

    judge: Literal["openai", "likelihood", "sampled", "reward"]
    """Who compares: a model behind an OpenAI-compatible endpoint; a local model by how likely it finds the letters A
    and B, or by what it writes; a reward, whose larger score wins."""
    model: str
    """Of ``openai`` the model's name at the endpoint; of ``likelihood`` and ``sampled`` a folder in Hugging Face
    format, or a hub id; of ``reward`` such a reward model or classifier (FOLDER#LABEL), or package.module:function."""
    output_dir: Path
    """Where verdicts.jsonl, summary.json and the cache go. The same command again asks only what has no verdict yet."""
    pairs: Path | None = None
    """Records (JSONL, CSV, Parquet) of ``prompt`` and ``outputs``, an object of system -> answer; or of ``prompt``,
    ``chosen`` and ``rejected``. Every two systems of a row are compared, in an order drawn at random."""
    ours: str | None = None
    """Of ``pairs``: compare only this system with each other, not every two; its wins are counted."""
    completions: tuple[Path, Path] | None = None
    """In place of ``pairs``: two files of records with ``prompt`` and ``completion`` (as ``jaxalign sample`` writes
    them), ours and theirs, with the same prompts; the k-th completion of a prompt meets the k-th."""
    names: tuple[str, str] | None = None
    """Of ``completions``: what our model and theirs are called; None = the files."""
    label: str | None = None
    """What the judge is called in tables and figures; None = "MODEL, PROMPTS", of local models "MODEL, PROMPTS, by
    likelihood" or "by samples", of ``reward`` the model."""
    sampled_at: float | None = None
    """Temperature at which our outputs were sampled: win rates are drawn over it."""
    step: int | None = None
    """Training step after which our outputs were sampled: win rates are drawn over it."""
    axes: tuple[str, ...] = ("overall",)
    """What is asked of every pair: one or more of the questions of ``prompts``, such as accuracy,coverage."""
    prompts: str = "summaries"
    """What a judge is asked: summaries, summaries-concise, dialogue, or a TOML file. Not of ``reward``."""
    ties: bool = False
    """Of ``openai`` and ``sampled``: offer "tie" as an answer."""
    tie_margin: float = 0.0
    """Of ``likelihood``: log-probs of the letters no further apart than this, in nats, are a tie."""
    seed: int = 0
    """Of the order in which outputs are shown."""
    cache: Path | None = None
    """SQLite file of verdicts, which several evaluations may share; None = verdicts.sqlite in ``output_dir``."""
    batch_size: int = 8
    """Of local models: comparisons computed at a time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of local models: type of activations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.pairs is None) == (self.completions is None):
            raise InputError("--pairs or --completions: give one of them")
        for name, flag in (("ours", "pairs"), ("names", "completions")):
            if getattr(self, name) is not None and getattr(self, flag) is None:
                raise InputError(f"--{name}: is for --{flag}")
        if self.batch_size < 1:
            raise InputError(f"--batch-size: must be at least 1, is {self.batch_size}")
        if not self.tie_margin >= 0:
            raise InputError(f"--tie-margin: must be at least 0, is {self.tie_margin}")
        for field in dataclasses.fields(self):
            judges = _JUDGES_OF.get(field.name, (self.judge,))
            if self.judge not in judges and getattr(self, field.name) != field.default:
                flag = f"--{field.name.replace('_', '-')}"
                raise InputError(f"{flag}: is for --judge {' or '.join(judges)}, not for {self.judge}")
        if self.label is not None and not (self.label.strip() and self.label.isprintable()):
            raise InputError(f"--label: must be printable and not empty, is {self.label!r}")
        if self.sampled_at is not None and not self.sampled_at >= 0:
            raise InputError(f"--sampled-at: must be at least 0, is {self.sampled_at}")
        if self.step is not None and self.step < 0:
            raise InputError(f"--step: must be at least 0, is {self.step}")
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise InputError(f"--output-dir: {self.output_dir} is a file, not a folder")
        if len(set(self.asked)) < len(self.asked):
            raise InputError(f"--axes: one is named twice: {', '.join(self.asked)}")
        if self.judge == "reward" and self.asked != ("overall",):
            raise InputError("--axes: a reward is asked nothing; it knows overall alone")

    @property
    def asked(self) -> tuple[str, ...]:
        """The axes, each by itself."""
        return tuple(part.strip() for spec in self.axes for part in spec.split(","))


def run(config: JudgeConfig) -> None:
    """Read, have judged, write, print counts and win rates. Raises ``InputError``, and what the judge raises.

    Where an endpoint gave some comparisons up, what has a verdict is written before its ``EndpointError`` is raised.
    """
    from jaxalign.evaluation.judges import EndpointError, VerdictCache, compare, judged_so_far

    items = _items(config)
    judge = _judge(config)
    config.output_dir.mkdir(parents=True, exist_ok=True)
    path = config.cache or config.output_dir / "verdicts.sqlite"
    with VerdictCache(path) as cache, progress("judging", len(items), "comparisons") as on_progress:
        try:
            judged = compare(judge, items, seed=config.seed, cache=cache, on_progress=on_progress)
        except EndpointError:
            if judged := judged_so_far(judge, items, seed=config.seed, cache=cache):
                _report(config, judge, items, judged)
            raise
    _report(config, judge, items, judged)


def _report(config: JudgeConfig, judge: "Judge", items: "Sequence[Item]", judged: "Sequence[Judged]") -> None:
    """Write verdicts and summary, and say what is in them."""
    from jaxalign.evaluation import Percent
    from jaxalign.evaluation.judges import OpenAIJudge

    _write(config.output_dir / "verdicts.jsonl", "".join(json.dumps(_row(one, config)) + "\n" for one in judged))
    compared: dict[tuple[str, str, str], list[Judged]] = {}
    for item in items:
        compared.setdefault((item.axis, *item.names), [])
    for one in judged:
        compared[one.item.axis, *one.item.names].append(one)
    rows, said = [], []
    for (axis, ours, theirs), some in compared.items():
        counts = collections.Counter(one.outcome for one in some)
        rate = _win_rate(some)
        found = {outcome: counts[outcome] for outcome in ("win", "tie", "lose", "invalid")}
        rows.append(
            {"axis": axis, "method": ours, "against": theirs}
            | found
            | {"win_rate": None if rate is None else asdict(rate)}
        )
        said.append(
            f"{axis}: {ours} against {theirs}: {found['win']} won, {found['tie']} tied, {found['lose']} lost, "
            f"{found['invalid']} invalid" + ("" if rate is None else f"; win rate {Percent(rate)} %")
        )
    summary: dict[str, Any] = {
        "judge": judge.name,
        "label": _label(config),
        "version": judge.version,
        "seed": config.seed,
        "comparisons": rows,
        "without_verdict": len(items) - len(judged),
        "tokens": {
            "prompt": sum(one.verdict.prompt_tokens for one in judged),
            "completion": sum(one.verdict.completion_tokens for one in judged),
        },
    }
    if isinstance(judge, OpenAIJudge):
        usage = judge.usage
        summary["this_run"] = asdict(usage)
        said.append(
            f"this run: {usage.requests:,} requests ({usage.failures:,} failed), {usage.prompt_tokens:,} prompt and "
            f"{usage.completion_tokens:,} answer tokens, cost {usage.cost:.4f}"
        )
    _write(config.output_dir / "summary.json", json.dumps(summary, indent=2) + "\n")
    said.append(f"{config.output_dir}: verdicts.jsonl, summary.json")
    said.append(
        f"Tables and figures: jaxalign evaluate --verdicts {config.output_dir / 'verdicts.jsonl'} "
        f"--output-dir {config.output_dir / 'report'}"
    )
    sys.stdout.write("\n".join(said) + "\n")


def _win_rate(judged: "Sequence[Judged]") -> "Interval | None":
    """Ties are halves; None where there is nothing but invalid answers."""
    from jaxalign import evaluation

    with contextlib.suppress(InputError):
        return evaluation.win_rate([one.outcome for one in judged], groups=[one.item.prompt for one in judged]).interval
    return None


# Judges of one model and one prompt are still different judges.
_WAYS = {"openai": "", "likelihood": ", by likelihood", "sampled": ", by samples"}


def _label(config: JudgeConfig) -> str:
    if config.label is not None:
        return config.label
    return config.model if config.judge == "reward" else f"{config.model}, {config.prompts}{_WAYS[config.judge]}"


# (place, prompt, ours, theirs, their names)
_Row = tuple[str, Any, str, str, tuple[str, str]]


def _items(config: JudgeConfig) -> "list[Item]":
    """What is to be compared, on every axis."""
    from jaxalign.evaluation import as_text
    from jaxalign.evaluation.judges import Item

    found = []
    rows = _pairs(config) if config.pairs is not None else _matched(config)
    for axis in config.asked:
        for place, prompt, ours, theirs, names in rows:
            if config.judge == "reward" and not isinstance(prompt, str):
                raise InputError(f"{place}: field 'prompt': a reward is given texts here, this is a list of messages")
            found.append(Item(prompt=as_text(prompt, place), ours=ours, theirs=theirs, names=names, axis=axis))
    if not found:
        raise InputError(f"{config.pairs or (config.completions or [''])[0]}: holds no record")
    return found


def _pairs(config: JudgeConfig) -> list[_Row]:
    """What a file of named outputs compares."""
    from jaxalign.evaluation import as_text, read_pairs

    def text(output: Any, place: str) -> str:
        whole = isinstance(output, str) or len(output) > 1
        return as_text(output, place, name="outputs") if whole else str(output[0]["content"])

    assert config.pairs is not None
    rows: list[_Row] = []
    for pair in read_pairs(config.pairs, ours=config.ours, keep_equal=True)[0]:  # equal ones are ties
        ours, theirs = (text(output, pair.place) for output in pair.outputs)
        rows.append((pair.place, pair.prompt, ours, theirs, pair.systems))
    return rows


def _matched(config: JudgeConfig) -> list[_Row]:
    """What two files of completions compare, in the order of ours."""
    from jaxalign import data

    assert config.completions is not None
    ours, theirs = config.completions
    names = config.names or ((ours.stem, theirs.stem) if ours.stem != theirs.stem else ("ours", "theirs"))
    if names[0] == names[1]:
        raise InputError(f"--names: two different names, both are {names[0]!r}")
    waiting: dict[str, collections.deque[str]] = {}
    others = data.load_records(theirs)
    for index, record in enumerate(others):
        key = json.dumps(record.get("prompt"))
        waiting.setdefault(key, collections.deque()).append(_field(record, "completion", others.place(index)))
    rows = []
    records = data.load_records(ours)
    for index, record in enumerate(records):
        place, prompt = records.place(index), record.get("prompt")
        left = waiting.get(json.dumps(prompt))
        if not left:
            raise InputError(f"{place}: {theirs} has no completion, or none left, of the prompt {prompt!r:.60}")
        rows.append((place, prompt, _field(record, "completion", place), left.popleft(), names))
    for key, left in waiting.items():
        if left:
            raise InputError(f"{theirs}: {ours} has no completion, or none left, of the prompt {json.loads(key)!r:.60}")
    return rows


def _field(record: Any, name: str, place: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        found = "missing" if value is None else f"a {type(value).__name__}"
        raise InputError(f"{place}: field {name!r}: expected text, is {found}")
    return value


def _judge(config: JudgeConfig) -> "Judge":
    """The judge by its flags."""
    from jaxalign.evaluation import judges

    if config.judge == "openai":
        return judges.OpenAIJudge(config, config.prompts, ties=config.ties)
    if config.judge == "reward":
        from jaxalign import recipes

        reward = recipes.load_text_reward(config.model, flag="--model", batch_size=config.batch_size)
        version = recipes.identity_of(reward) or _source(reward)
        return judges.RewardJudge(reward, name=config.model, version=version)

    from jaxalign import models
    from jaxalign.recipes import load_tokenizer

    prompts = judges.load_prompts(config.prompts)  # before gigabytes are read
    model_config, params = models.load_pretrained(config.model)
    model = (model_config.replace(compute_dtype=config.dtype), params, load_tokenizer(config.model), prompts)
    if config.judge == "likelihood":
        return judges.LikelihoodJudge(
            *model, tie_margin=config.tie_margin, batch_size=config.batch_size, name=config.model
        )
    return judges.SampledJudge(
        *model,
        ties=config.ties,
        temperature=config.temperature or 0.0,
        max_new_tokens=config.max_tokens,
        seed=config.sampling_seed or 0,
        batch_size=config.batch_size,
        name=config.model,
    )


def _source(function: Any) -> str:
    """What a function is, by the file that it stands in: changed code is another judge. Empty where there is none."""
    import hashlib

    try:
        file = inspect.getsourcefile(function if inspect.isroutine(function) else type(function))
    except TypeError:
        return ""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file and Path(file).is_file() else ""


def _row(one: "Judged", config: JudgeConfig) -> dict[str, Any]:
    """What win rates are computed from, by the names that a study's export has too; then what the judge said."""
    item, (ours, theirs) = one.item, one.item.names
    row = {
        "prompt": item.prompt,
        "ours": item.ours,
        "theirs": item.theirs,
        "axis": item.axis,
        "outcome": one.outcome,
        "method": ours,
        "against": theirs,
        "judge": _label(config),
        "temperature": config.sampled_at,
        "step": config.step,
    }
    return row | {"flipped": one.flipped} | asdict(one.verdict)


def _write(path: Path, text: str) -> None:
    """All of it or what was there before."""
    beside = path.with_name(f"{path.name}.part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
