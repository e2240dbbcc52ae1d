"""Preferences from a model's own samples: sample, rate, write records, in blocks that a killed run goes on from."""

import collections
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxalign import sharding
from jaxalign.data import Prompt
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig
from jaxalign.recipes._collection import Collection, CollectSettings, shown_comparisons
from jaxalign.recipes._journal import Journal, check_settings, lines_of, write_whole
from jaxalign.recipes._run import weights_name
from jaxalign.recipes._sheet import SKIP, PeopleAsk, Sheet, blind_order
from jaxalign.recipes._verdicts import Answers, Comparison, make_records, win_shares
from jaxalign.sampling import TextJudge, TextReward

__all__ = ["Collected", "collect_preferences"]

# What may change between a collection and its continuation: it changes no sample and no rating. (Another batch size
# rounds otherwise.)
UNCHECKED = frozenset({"records", "margin", "output", "sheet"})


@dataclass(frozen=True)
class Collected:
    """What a collection came to."""

    output: Path
    """The records."""
    prompts: int
    responses: int
    records: int
    """How many were written; 0 while people have not answered yet."""
    counts: Mapping[str, int]
    """Of what was cut, tied, invalid or left out, by its name."""
    sheet: Path | None = None
    """The questions to people, where they are asked."""
    waiting: int = 0
    """How many questions have no answer yet."""

    def summary(self) -> str:
        """A readable line."""
        found = "".join(f", {count} {name}" for name, count in sorted(self.counts.items()) if count)
        return f"{self.prompts} prompts, {self.responses} responses, {self.records} records{found}"


def collect_preferences(
    model_config: ModelConfig,
    params: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    output: str | Path,
    *,
    rater: TextReward | None = None,
    judge: TextJudge | None = None,
    people: PeopleAsk | None = None,
    sheet: str | Path | None = None,
    config: CollectSettings | None = None,
    identity: Mapping[str, Any] | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Collected:
    """Sample responses to prompts, have them rated, and write the records that reward models and DPO train on.

        prompts, _ = data.build_prompts(data.load_records("prompts.jsonl"), tokenizer)
        collect_preferences(config, params, tokenizer, prompts, "preferences.jsonl", rater=my_reward)

    ``preferences.jsonl`` appears when all is done. Until then (and after) the samples, the ratings and the settings are
    in the folder ``preferences.collect`` beside it: a run that was killed, or whose rater failed, goes on there, and
    the file is to the byte what an uninterrupted run writes. What is sampled for a prompt follows from the seed, the
    prompt and its place in the list, whatever ``save_every`` and the batch size. Other forms of records can be had of
    the same ratings: call again with other ``records`` or ``margin``.

    Args:
        model_config, params: the model that is sampled.
        tokenizer: its tokenizer.
        prompts: of ``data.build_prompts``; texts or chats.
        output: a name that ends with .jsonl.
        rater: ``f(prompts, completions) -> scores`` (see ``sampling.score_texts``); or else
        judge: ``f(prompts, first, second) -> verdicts`` (see ``sampling.compare_texts``), asked of every pair of a
            prompt's responses once, in an order drawn at random. A response's rating is the share of its comparisons
            that it won, ties half; records of "all" pairs are the pairs judged. Or else
        people: "comparisons" or "ratings": the questions are written to ``sheet``, blind and shuffled; called again
            when it is filled in, this reads the answers.
        sheet: a name that ends with .jsonl or .csv; by default ``sheet.jsonl`` in the folder.
        config: the settings.
        identity: what else decides the numbers and must not change in a continuation, such as the rater's name.
        report: called as ``report(done, total)``, in prompts, after every block.

    Returns:
        What it came to.

    Raises:
        InputError: a rater or judge that fails (naming the prompt; what was done before it is kept), settings or
            weights other than those of the run that is there, an answer on the sheet that is none, no record to write.
    """
    config = CollectSettings() if config is None else config
    output = Path(output)
    folder = _prepare(output, rater, judge, people)
    if not prompts:
        raise InputError("no prompt to sample from")
    collection = Collection(model_config, params, tokenizer, prompts, config, rater, judge)
    asked = {"rater": rater, "judge": judge, "people": people}
    described = {name: value for name, value in dataclasses.asdict(config).items() if name not in UNCHECKED}
    described |= {
        "rated by": next(people or name for name, value in asked.items() if value is not None),
        "dtype": model_config.compute_dtype,
        "tokenised prompts": _name(prompts),
        "weights of --model": weights_name(params),
        **(identity or {}),
    }
    if config.margin and config.records == "all" and (judge is not None or people == "comparisons"):
        raise InputError("--margin: a comparison says which answer is better, not by how much; it needs ratings")
    begun = any((folder / name).exists() for name in ("samples.jsonl", "ratings.jsonl"))
    check_settings(folder / "settings.json", described, begun=begun)

    samples = Journal(folder / "samples.jsonl", total=len(prompts), block=config.save_every)
    ratings = Journal(folder / "ratings.jsonl", total=len(prompts), block=config.save_every)
    if len(ratings.rows) > len(samples.rows):
        raise InputError(
            f"{folder}: ratings.jsonl has {len(ratings.rows)} rows, samples.jsonl {len(samples.rows)}: ratings of "
            "samples that are no longer there; remove the rows beyond, or the folder"
        )
    for start in range(0, len(prompts), config.save_every):
        stop = min(start + config.save_every, len(prompts))
        todo = False
        if len(samples.rows) < stop:
            samples.append(collection.sample(start, stop))
            todo = True
        if people is None and len(ratings.rows) < stop:
            ratings.append(collection.rate(start, samples.rows[start:stop]))
            todo = True
        if todo and report is not None:
            report(stop, len(prompts))

    counts: collections.Counter[str] = collections.Counter()
    answers = [collection.answers(row) for row in samples.rows]
    path = None
    verdicts: Sequence[_Verdict]
    if people is None:
        verdicts = [_read_verdict(row, config.samples_per_prompt) for row in ratings.rows]
    else:
        path = folder / "sheet.jsonl" if sheet is None else Path(sheet)
        verdicts, waiting = _ask_people(path, people, answers, config)
        if waiting:
            return _collected(output, answers, 0, counts, sheet=path, waiting=waiting)
    records = []
    for texts, (rated, compared) in zip(answers, verdicts, strict=True):
        records += make_records(texts, rated, compared, config.records, counts, margin=config.margin)
        counts.update(f"verdicts {comparison.verdict!r}" for comparison in compared or ())
    result = _collected(output, answers, len(records), counts, sheet=path)
    if not records:
        raise InputError(f"no preference to write: {result.summary()}")
    write_whole(output, lines_of(records))
    return result


_Verdict = tuple[list[float | None], list[Comparison] | None]
"""The ratings of a prompt's responses, and the comparisons they come from."""


def _prepare(output: Path, *asked: Any) -> Path:
    """The folder of a collection, made if it is not there."""
    if sum(value is not None for value in asked) != 1:
        raise InputError("--rater, --judge or --people: give one of the three")
    if output.suffix != ".jsonl":
        raise InputError(f"--output: {output}: must end with .jsonl")
    if jax.process_count() > 1 or sharding.started_together():
        raise InputError("preferences are collected by one process; split the prompts between several")
    folder = output.with_suffix(".collect")
    if output.is_dir():
        raise InputError(f"--output: {output} is a folder, not a file")
    if output.exists() and not (folder / "settings.json").exists():
        raise InputError(f"--output: {output} is there already, and not of a collection that could go on")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _read_verdict(row: Mapping[str, Any], count: int) -> _Verdict:
    if "ratings" in row:
        return list(row["ratings"]), None
    compared = [Comparison(*entry) for entry in row["comparisons"]]
    return win_shares(count, compared), compared


def _ask_people(
    path: Path, people: PeopleAsk, answers: Sequence[Answers], config: CollectSettings
) -> tuple[Sequence[_Verdict], int]:
    """Their verdicts and how many are missing; writes the sheet if it is not there."""
    count = config.samples_per_prompt
    shown = (
        [shown_comparisons(texts, index, config) for index, texts in enumerate(answers)]
        if people == "comparisons"
        else None
    )
    questions = blind_order(answers, shown, config.seed)
    sheet = Sheet(path, questions, answers)
    if not path.exists():
        sheet.write()  # what is there already holds someone's work
    found, waiting = sheet.read()
    ratings: list[list[float | None]] = [[None] * count for _ in answers]
    compared: list[list[Comparison]] = [[] for _ in answers]
    for (prompt, asked), answer in zip(questions, found, strict=True):
        if isinstance(asked, Comparison):
            compared[prompt].append(dataclasses.replace(asked, verdict=answer or ""))
        elif answer != SKIP:
            ratings[prompt][asked] = answer
    if shown is None:
        return [(some, None) for some in ratings], waiting
    return [(win_shares(count, some), sorted(some, key=_sampled_order)) for some in compared], waiting


def _sampled_order(comparison: Comparison) -> tuple[int, int]:
    return min(comparison.first, comparison.second), max(comparison.first, comparison.second)


def _collected(
    output: Path,
    answers: Sequence[Answers],
    records: int,
    counts: "collections.Counter[str]",
    **more: Any,
) -> Collected:
    responses = sum(len(texts.responses) for texts in answers)
    counts["responses cut"] = sum(not flag for flag in itertools.chain(*(texts.finished for texts in answers)))
    counts["responses that say nothing"] = responses - sum(len(texts.usable) for texts in answers)
    kept = {name: count for name, count in counts.items() if count}
    return Collected(output, len(answers), responses, records, kept, **more)


def _name(prompts: Sequence[Prompt]) -> str:
    """The name of prompts by their ids, texts and order."""
    listed = [[list(map(int, prompt.tokens)), prompt.content] for prompt in prompts]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
