"""Summaries as feedback: references and a model's own summaries, rated by ROUGE or by people, good ones asked for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from experiments._hindsight import asked_prompts
from experiments._hindsight_tasks import AXIS, Axis, Measured, Published, forgetting, load_model, text_windows
from experiments._stages import JSON, Report, Stages, digest
from jaxalign import data, evaluation, recipes
from jaxalign.data import FeedbackKind, FeedbackPrompts, Polarity
from jaxalign.errors import InputError
from jaxalign.training import fingerprint

__all__ = ["Summaries", "SummariesTask", "plain_texts"]

Params = Any
_NONE = -20.0  # nats a token of a summary that says nothing: below any other


@dataclass(frozen=True, kw_only=True)
class Summaries:
    """Where documents, feedback and pretraining text come from."""

    model: str = "smollm2"
    """"smollm2" (packaged), or a model folder or hub id."""
    feedback: tuple[str, ...] = ()
    """Files or hub ids of rated summaries and answers; empty = the packaged XSum, its references and the model's own
    summaries rated by ROUGE-L against them (Algorithm 1)."""
    held_out_dataset: str = "xsum"
    """"xsum" (packaged), or a file or hub id of rows with ``prompt`` and ``label`` (the reference), as
    CarperAI/openai_summarize_tldr has them."""
    held_out_split: str = "test"
    """Its split."""
    held_out: int = 48
    """Documents that every model summarises."""
    documents: int = 128
    """Documents to train on, of the packaged ones."""
    document_words: int = 40
    """A packaged document is cut after so many words."""
    samples_per_document: int = 2
    """The model's own summaries of each."""
    max_new_tokens: int = 28
    """Most tokens of a summary."""
    sampling_temperature: float = 0.7
    """Of the model's own summaries; those that are measured are the likeliest (0)."""
    sampling_batch: int = 32
    """Summaries sampled together."""
    pretraining: str = "reviews"
    """"reviews" (packaged IMDb), or a file or hub id of rows with ``text``."""
    templates: str = "talk"
    """Words of feedback."""
    seed: int = 0
    """Of which documents are held out, and of the samples."""


class SummariesTask:
    """Rated summaries, and documents to be summarised."""

    kind: FeedbackKind = "summary"
    score = "ROUGE-L (F, x 100) of the likeliest summary after the words of a good one, against the reference"
    unit = "ROUGE-L x 100"
    decimals = 1
    paper = Published(
        source="Liu et al. 2023, section 4.4",
        pairwise="Liu et al. 2023, table 1, where people judge",
        scores={
            "Base": "20.2", "SFT": "24.9", "C-SFT": "25.4", "SFT-U": "19.6", "CoH": "27.5",
            "CoH, no forgetful mask": "26.7", "CoH, no chain": "25.4", "CoH, no pretraining term": "22.5",
            "RLHF (PPO)": "25.5",
        },
    )  # fmt: skip
    axes = (
        Axis("accuracy", "share of the summary's words that the document has, too", 0.05),
        Axis("coherence", "log-prob of the summary behind the document under the start model, nats a token", 0.1),
        Axis("coverage", "share of the reference's words that the summary has, too (ROUGE-1 recall)", 0.05),
    )

    def __init__(self, settings: Summaries, stages: Stages, text_length: int) -> None:
        self.settings, self.templates = settings, settings.templates
        self.config, self.start, self.tokenizer = load_model(settings.model)
        self._held_out: list[tuple[str, str]] = []
        if settings.held_out_dataset == "xsum" or not settings.feedback:
            articles = self._articles()
            if settings.held_out_dataset == "xsum":
                self._held_out = articles[: settings.held_out]
            articles = articles[settings.held_out :][: settings.documents]
        if settings.held_out_dataset != "xsum":
            self._held_out = self._references()
        weights = digest(sorted(fingerprint(self.start).items()))
        if settings.feedback:
            parts = [data.load_feedback(source) for source in settings.feedback]
            self.records: Sequence[Any] = [record for part in parts for record in part]
        else:
            inputs = {"weights": weights, "articles": digest(articles), "settings": _sampling(settings)}
            self.records = stages.stage("summaries", inputs, lambda report: self._collect(articles, report), *JSON)
        windows = text_windows(plain_texts(settings.pretraining, settings.seed), self.tokenizer, text_length)
        self.text, self._held_text = windows.train, windows.held_out
        self.inputs = {
            "weights": weights, "held out": digest(self._held_out), "pretraining": data.fingerprint(self.text),
            "max_new_tokens": settings.max_new_tokens, "axes": [axis.judge for axis in self.axes],
        }  # fmt: skip
        self.items = [document for document, _ in self._held_out]
        self.setting = f"{settings.model}, {', '.join(settings.feedback) or 'packaged XSum'}"

    def measure(
        self, params: Params, prompts: FeedbackPrompts | None, *, seed: int, report: Report, details: bool = True
    ) -> Measured:
        asked = asked_prompts(self.tokenizer, None, self.templates, self.kind) if prompts is None else prompts
        drafts = self._summaries(params, asked, "positive", report)
        texts = [draft[-1] for draft in drafts]
        found: Measured = {
            ("score" if kind == "rougeL" else f"{kind} x 100"): scores for kind, scores in self._scores(drafts).items()
        }
        found |= {"output": texts, **{AXIS + axis: scores for axis, scores in self._axis_scores(texts).items()}}
        if details:
            found["plain text, nats a token"] = forgetting(self.config, params, self._held_text)
        if asked.writer.form.markers == "feedback":
            drafts = self._summaries(params, asked, "negative", report, improvements=1)
            first, second = ([draft[place] for draft in drafts] for place in (0, -1))
            found["score, bad words"] = self._scores([[text] for text in first])["rougeL"]
            found["score, bettered"] = self._scores([[text] for text in second])["rougeL"]
            found["copied"] = [float(share) for share in evaluation.copied_share(second, first, n=3)]
        return found

    def _summaries(
        self, params: Params, prompts: FeedbackPrompts, polarity: Polarity, report: Report, *, improvements: int = 0
    ) -> list[tuple[str, ...]]:
        report(0, len(self._held_out), "summaries")
        drafts = recipes.sample_with_feedback(
            self.config,
            params,
            prompts,
            [document for document, _ in self._held_out],
            jax.random.key(self.settings.seed),
            max_new_tokens=self.settings.max_new_tokens,
            polarity=polarity,
            kind=self.kind,
            improvements=improvements,
            temperature=0.0,
            batch_size=self.settings.sampling_batch,
        )
        return [draft.texts for draft in drafts]

    def _scores(self, drafts: Sequence[Sequence[str]]) -> dict[str, list[float]]:
        references = [reference for _, reference in self._held_out]
        scores = evaluation.rouge([texts[-1] for texts in drafts], references)
        return {kind: [100 * float(value) for value in scores[kind]] for kind in ("rougeL", "rouge1", "rouge2")}

    def _axis_scores(self, texts: Sequence[str]) -> dict[str, list[float]]:
        """Of every summary; one without words scores the least there is."""
        documents, references = (list(column) for column in zip(*self._held_out, strict=True))
        neutral = asked_prompts(self.tokenizer, None, self.templates, self.kind)
        rows = []
        for index, (document, text) in enumerate(zip(documents, texts, strict=True)):
            ids = self.tokenizer.encode(f" {text or '.'}", add_special_tokens=False)
            rows.append(data.answers_example(neutral.tokens(document), [ids], record_id=index))
        log_probs = recipes.example_log_probs(self.config, self.start, rows, batch_size=16)
        return {
            "accuracy": _shared(texts, documents),
            "coherence": [
                float(np.mean(row)) if text else _NONE for row, text in zip(log_probs, texts, strict=True)
            ],
            "coverage": _shared(references, texts),
        }  # fmt: skip

    def _articles(self) -> list[tuple[str, str]]:
        from experiments.assets.xsum import load_xsum

        words = self.settings.document_words
        articles = load_xsum(self.settings.seed)
        return [(" ".join(article.document.split()[:words]), article.summary) for article in articles]

    def _references(self) -> list[tuple[str, str]]:
        source = self.settings.held_out_dataset
        records = data.load_records(source, split=self.settings.held_out_split, limit=self.settings.held_out)
        found = []
        for index, record in enumerate(records):
            prompt, label = record.get("prompt"), record.get("label")
            if not isinstance(prompt, str) or not isinstance(label, str):
                raise InputError(f"{records.place(index)}: needs the texts 'prompt' and 'label' (the reference)")
            found.append((prompt.removesuffix("TL;DR:").rstrip(), label.strip()))
        return found

    def _collect(self, articles: Sequence[tuple[str, str]], report: Report) -> list[dict[str, Any]]:
        """Each document's reference and the model's own summaries, rated by ROUGE-L."""
        each = self.settings.samples_per_document
        drafts = recipes.sample_with_feedback(
            self.config,
            self.start,
            asked_prompts(self.tokenizer, None, self.templates, self.kind),
            [document for document, _ in articles],
            jax.random.key(self.settings.seed),
            max_new_tokens=self.settings.max_new_tokens,
            kind=self.kind,
            temperature=self.settings.sampling_temperature,
            samples_per_prompt=each,
            batch_size=self.settings.sampling_batch,
            on_progress=lambda done, total: report(done, total, "summaries"),
        )
        found = []
        for index, (document, reference) in enumerate(articles):
            own = [draft for draft in drafts[index * each : (index + 1) * each] if draft.texts[-1]]
            texts = [draft.texts[-1] for draft in own]
            ratings = evaluation.rouge(texts, [reference] * len(texts))["rougeL"].tolist()
            found.append({
                "prompt": document,
                "responses": [reference, *texts],
                "ratings": [1.0, *ratings],
                "finished": [True, *(draft.finished for draft in own)],
                "kind": self.kind,
            })  # fmt: skip
        return [record for record in found if len(record["responses"]) > 1]


def _shared(texts: Sequence[str], others: Sequence[str]) -> list[float]:
    """The share of each text's different words that the other text has."""
    found = []
    for own, other in ((_words(text), _words(other)) for text, other in zip(texts, others, strict=True)):
        found.append(len(own & other) / len(own) if own else 0.0)
    return found


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _sampling(settings: Summaries) -> dict[str, Any]:
    names = ("samples_per_document", "max_new_tokens", "sampling_temperature", "templates", "seed")
    return {name: getattr(settings, name) for name in names}


def plain_texts(source: str, seed: int) -> list[str]:
    """The pretraining text: "reviews", those that the sentiment study fine-tunes on, or the texts of a data set."""
    if source == "reviews":
        from experiments.assets.movie_reviews import load_movie_reviews

        return [" ".join(text.split()) for text in load_movie_reviews(seed).sft.texts[:600]]
    return [str(record["text"]) for record in data.load_records(source)]
