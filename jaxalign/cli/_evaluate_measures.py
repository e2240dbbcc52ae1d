"""What ``jaxalign evaluate`` reads, and the numbers it has of completions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError

__all__ = [
    "Completions",
    "Measured",
    "measure",
    "name_and_path",
    "read_completions",
    "read_frontier",
    "read_json",
    "read_references",
]


@dataclass(frozen=True)
class Completions:
    """A file of completions: who wrote them, and its records in order."""

    name: str
    prompts: list[Any]
    """As they were given, texts or messages."""
    keys: list[str]
    """The same as text: what makes two prompts one."""
    texts: list[str]
    finished: list[bool]
    log_probs: list[float] | None
    """Of whole completions as they were sampled, where every record has it."""
    token_log_probs: list[list[float]] | None
    """Of their tokens, where every record has them."""
    places: list[str]

    def first_of_each(self) -> dict[str, str]:
        """The first completion of every prompt."""
        found: dict[str, str] = {}
        for key, text in zip(self.keys, self.texts, strict=True):
            found.setdefault(key, text)
        return found


@dataclass
class Measured:
    """Tables of what was measured, a row a file, and where each lies in reward and KL, if both were."""

    texts: list[dict[str, object]] = field(default_factory=list)
    """Of the texts alone: how many, how long, how diverse."""
    scores: list[dict[str, object]] = field(default_factory=list)
    """Against references, by the reward, under the model; none where there is none of these."""
    differences: list[dict[str, object]] = field(default_factory=list)
    points: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def name_and_path(spec: str) -> tuple[str | None, str]:
    """Of ``NAME=FILE`` both; of ``FILE`` no name."""
    name, mark, path = spec.partition("=")
    return (name, path) if mark and not Path(spec).exists() else (None, spec)


def read_completions(spec: str) -> Completions:
    """The file of ``NAME=FILE`` or ``FILE``, which is then called by its stem. Raises ``InputError``."""
    from jaxalign import data, evaluation

    given, path = name_and_path(spec)
    name = Path(path).stem if given is None else given
    if not name.isprintable():  # it heads tables and figures
        raise InputError(f"--completions: the name {name!r} must be printable")
    records = data.load_records(path)
    places = [records.place(index) for index in range(len(records))]
    for record, place in zip(records, places, strict=True):
        if record.get("prompt") is None:
            raise InputError(f"{place}: missing field 'prompt'")
        if not isinstance(record.get("completion"), str):
            raise InputError(f"{place}: field 'completion' is missing or no text")
        if not isinstance(record.get("finished", True), bool):
            raise InputError(f"{place}: field 'finished' is {record['finished']!r}, must be true or false")
        if isinstance(record.get("log_prob", 0.0), bool) or not isinstance(record.get("log_prob", 0.0), int | float):
            raise InputError(f"{place}: field 'log_prob' is {record['log_prob']!r}, no number")
        tokens = record.get("token_log_probs", [])
        if not isinstance(tokens, list) or not all(isinstance(value, float | int) for value in tokens):
            raise InputError(f"{place}: field 'token_log_probs' is {tokens!r:.60}, no list of numbers")
    prompts = [record["prompt"] for record in records]
    return Completions(
        name=name,
        prompts=prompts,
        keys=[evaluation.as_text(prompt, place) for prompt, place in zip(prompts, places, strict=True)],
        texts=[record["completion"] for record in records],
        finished=[record.get("finished", True) for record in records],
        log_probs=_if_all(records, "log_prob"),
        token_log_probs=_if_all(records, "token_log_probs"),
        places=places,
    )


def _if_all(records: Sequence[Any], name: str) -> list[Any] | None:
    return [record[name] for record in records] if all(name in record for record in records) else None


def read_references(path: Path, files: Sequence[Completions]) -> dict[str, str]:
    """The reference of each prompt, the first where there are several. Raises ``InputError`` where a file has none."""
    from jaxalign import data, evaluation

    records = data.load_records(path)
    found: dict[str, str] = {}
    for index, record in enumerate(records):
        text = record.get("completion", record.get("chosen"))
        if record.get("prompt") is None or not isinstance(text, str):
            raise InputError(
                f"{records.place(index)}: a reference needs 'prompt' and 'completion' (or 'chosen'), a text"
            )
        found.setdefault(evaluation.as_text(record["prompt"], records.place(index)), text)
    for file in files:
        if not found.keys() & set(file.keys):
            raise InputError(f"--references: {path} has no reference to a prompt of {file.name}")
    return found


def read_json(path: Path) -> Any:
    """The value in a file. Raises ``InputError``."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: invalid JSON: {error}") from None


def read_frontier(path: Path) -> list[Any]:
    """The points of an experiment's ``results.json``; none where it holds none. Raises ``InputError``."""
    from jaxalign.evaluation import FrontierPoint

    value = read_json(path)
    points = value.get("points", []) if isinstance(value, Mapping) else []
    try:
        return [FrontierPoint.from_json(point) for point in points]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: 'points' are no points of a frontier: {type(error).__name__}: {error}") from None


def measure(
    files: Sequence[Completions],
    *,
    references: Mapping[str, str] | None,
    reward: str | None,
    model: str | None,
    batch_size: int,
    dtype: str,
    seed: int,
) -> Measured:
    """Length, diversity, ROUGE, reward, perplexity and KL of every file, as far as there is what they need."""
    import numpy as np

    from jaxalign import evaluation

    found = Measured()
    rewards = None if reward is None else _rewards(files, reward)
    likelihoods = None if model is None else _log_probs(files, model, batch_size, dtype, found.notes)

    def distinct(file: Completions, n: int) -> object:
        """With an interval over prompts, where there are two."""
        if len(set(file.keys)) < 2:
            return evaluation.distinct_n(file.texts, n)
        return evaluation.distinct_n_interval(file.texts, n, groups=file.keys)

    def finished(file: Completions) -> float | evaluation.Interval:
        """Wilson's interval, or where prompts repeat that over prompts."""
        if len(set(file.keys)) == len(file.keys):
            return evaluation.wilson_interval(sum(file.finished) / len(file.finished), len(file.finished))
        return mean(np.asarray(file.finished, float), file)

    def mean(values: Any, file: Completions, keep: Sequence[int] | None = None) -> float | evaluation.Interval:
        """With an interval over prompts, where there are two."""
        groups = [file.keys[index] for index in (range(len(file.keys)) if keep is None else keep)]
        if len(set(groups)) < 2:
            return float(np.mean(values))
        return evaluation.bootstrap_interval(values, groups=groups, seed=seed)

    for number, file in enumerate(files):
        lengths = evaluation.length_statistics(file.texts)
        row: dict[str, object] = {
            "name": file.name,
            "prompts": len(set(file.keys)),
            "completions": len(file.texts),
            "finished %": evaluation.Percent(finished(file)),
            "words": mean([len(text.split()) for text in file.texts], file),
            "words, median": lengths.median,
            "distinct-1": distinct(file, 1),
            "distinct-2": distinct(file, 2),
            "repeated 4-grams": mean(evaluation.repetition(file.texts), file),
        }
        if len(set(file.keys)) < len(file.keys):
            distances = evaluation.sample_distance(file.texts, file.keys)
            row["distance between samples"] = (
                evaluation.bootstrap_interval(distances, seed=seed) if len(distances) > 1 else float(distances.mean())
            )
        found.texts.append(row)
        scores: dict[str, object] = {"name": file.name}
        if references is not None:
            keep = [index for index, key in enumerate(file.keys) if key in references]
            overlaps = evaluation.rouge(
                [file.texts[index] for index in keep], [references[file.keys[index]] for index in keep]
            )
            if len(keep) < len(file.keys):
                found.notes.append(f"{file.name}: {len(file.keys) - len(keep)} completions have no reference.")
            names = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
            scores |= {names[kind]: mean(values, file, keep) for kind, values in overlaps.items()}
        if rewards is not None:
            scores["reward"] = mean(rewards[number], file)
        if likelihoods is not None:
            scores |= _likelihood_cells(file, likelihoods[number], seed)
            if file.log_probs is not None:
                moved = np.array(file.log_probs) - np.array([own.sum() for own in likelihoods[number]])
                scores["KL (nats/completion)"] = mean(moved, file)
                if file.token_log_probs is not None:
                    scores["KL, k3 (nats/completion)"] = _k3(file, likelihoods[number], seed, found.notes)
                found.notes.append(f"{file.name}: KL is k1, of what was sampled from to the model at temperature 1.")
                if rewards is not None and len(set(file.keys)) > 1:
                    found.points.append(
                        evaluation.FrontierPoint.from_samples(
                            file.name, "", 0, kl=moved, reward=rewards[number], prompt=file.keys, seed=seed
                        )
                    )
        if len(scores) > 1:
            found.scores.append(scores)
    if rewards is not None:
        found.differences = _differences(files, rewards, seed)
    return found


def _rewards(files: Sequence[Completions], spec: str) -> list[Any]:
    from jaxalign import recipes, sampling

    reward = recipes.load_text_reward(spec)
    return [
        sampling.score_texts(reward, file.prompts, file.texts, finished=file.finished, names=file.places)
        for file in files
    ]


def _log_probs(
    files: Sequence[Completions], model: str, batch_size: int, dtype: str, notes: list[str]
) -> list[list[Any]]:
    """Of every completion its tokens' log-probs under the model, the EOS included where it ended by itself."""
    import numpy as np

    from jaxalign import data, models, recipes

    config, params = models.load_pretrained(model)
    if config.labels:
        raise InputError(f"--model: {model} is a classifier, no language model")
    config = config.replace(compute_dtype=dtype)
    encoder = data.Encoder(recipes.load_tokenizer(model))
    found = []
    for file in files:
        # One that was cut before it said anything has no token.
        kept = [index for index, text in enumerate(file.texts) if text or file.finished[index]]
        if len(kept) < len(file.texts):
            notes.append(f"{file.name}: {len(file.texts) - len(kept)} completions say nothing and have no perplexity.")
        examples = [
            data.response_example(
                file.prompts[index], file.texts[index], encoder, finished=file.finished[index], place=file.places[index]
            )
            for index in kept
        ]
        rows = recipes.example_log_probs(config, params, examples, batch_size=batch_size) if examples else []
        own = [np.zeros(0)] * len(file.texts)
        for index, row in zip(kept, rows, strict=True):
            own[index] = np.asarray(row, np.float64)
        found.append(own)
    return found


def _k3(file: Completions, log_probs: Sequence[Any], seed: int, notes: list[str]) -> object:
    """The estimator of lower variance near the model, of the completions whose text is the tokens that were sampled."""
    import numpy as np

    from jaxalign import evaluation

    assert file.token_log_probs is not None
    pairs = zip(file.token_log_probs, log_probs, strict=True)
    kept = [index for index, (own, theirs) in enumerate(pairs) if len(own) == len(theirs)]
    if len(kept) < len(file.keys):
        left = len(file.keys) - len(kept)
        notes.append(f"{file.name}: k3 is without {left} completions whose text has other tokens than were sampled.")
    if len({file.keys[index] for index in kept}) < 2:
        return None
    mask = np.arange(max(len(log_probs[index]) for index in kept))[None] < [[len(log_probs[index])] for index in kept]
    own, theirs = np.zeros(mask.shape), np.zeros(mask.shape)
    own[mask] = np.concatenate([file.token_log_probs[index] for index in kept])
    theirs[mask] = np.concatenate([log_probs[index] for index in kept])
    return evaluation.sequence_kl(own, theirs, mask, groups=[file.keys[index] for index in kept], seed=seed).k3


def _likelihood_cells(file: Completions, log_probs: Sequence[Any], seed: int) -> dict[str, object]:
    import numpy as np

    from jaxalign import evaluation

    said = {key for key, row in zip(file.keys, log_probs, strict=True) if len(row)}
    if len(said) > 1:
        return {"perplexity": evaluation.perplexity(log_probs, groups=file.keys, seed=seed)}
    tokens = np.concatenate(log_probs)
    return {"perplexity": float(np.exp(-tokens.mean()))} if tokens.size else {}


def _differences(files: Sequence[Completions], rewards: Sequence[Any], seed: int) -> list[dict[str, object]]:
    """Mean reward of each prompt minus the first file's of the same prompt, where two prompts are common."""
    import numpy as np

    from jaxalign import evaluation

    def by_prompt(file: Completions, scores: Any) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        for key, score in zip(file.keys, scores, strict=True):
            found.setdefault(key, []).append(score)
        return {key: float(np.mean(own)) for key, own in found.items()}

    means = [by_prompt(file, scores) for file, scores in zip(files, rewards, strict=True)]
    rows = []
    for file, own in zip(files[1:], means[1:], strict=True):
        common = [key for key in means[0] if key in own]
        if len(common) > 1:
            first, second = [own[key] for key in common], [means[0][key] for key in common]
            rows.append({
                "name": file.name,
                "minus": files[0].name,
                "difference in reward": evaluation.paired_bootstrap_difference(first, second, seed=seed),
                "prompts": len(common),
            })  # fmt: skip
    return rows
