"""The TL;DR study: its numbers, its posts, and how a post is asked about."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments._hindsight import Scale
from jaxalign import data
from jaxalign.data import Truncation
from jaxalign.errors import InputError
from jaxalign.evaluation.judges import EndpointConfig
from jaxalign.training import OptimizerConfig

__all__ = [
    "CONTENT_WORDS", "Judging", "PPORun", "Post", "Posts", "Run", "Study", "ask", "comparisons", "demonstration",
    "load_posts", "prompts_of",
]  # fmt: skip

CONTENT_WORDS = "content-words"


@dataclass(frozen=True, kw_only=True)
class Judging(EndpointConfig):
    """Who says which of two summaries is better."""

    model: str = CONTENT_WORDS
    """"content-words", two transparent scorers; or a model's name at an OpenAI-compatible endpoint."""
    order_seed: int = 0
    """Of the order in which an endpoint is shown the two."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run."""

    steps: int
    """Updates; of reading and of SFT 0 leaves the model as it is."""
    batch: int = 32
    """Rows in an update; of preferences a post with all its pairs is a row."""
    learning_rate: float = 3e-4
    """Its peak."""
    warmup_steps: int = 10
    """Linear warm-up."""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """The update rule."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""

    def optimizer_config(self) -> OptimizerConfig:
        """As ``recipes.fit`` takes it."""
        names = ("optimizer", "learning_rate", "schedule", "warmup_steps", "clip_norm")
        return OptimizerConfig(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class PPORun:
    """PPO against the reward model."""

    updates: int = 24
    """Rollouts."""
    episodes: int = 64
    """Summaries in a rollout."""
    ppo_epochs: int = 4
    """Passes over a rollout."""
    minibatches: int = 1
    """Optimizer steps of a pass."""
    learning_rate: float = 3e-4
    """Of AdamW, linear to 0 over the run; for policy and critic."""
    temperature: float = 0.7
    """Of the rollouts."""
    kl_coefficient: float = 0.05
    """Of the KL penalty, fixed."""
    missing_eos_score: float = -1.0
    """Score of a summary that does not end by itself."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The numbers of one preset."""

    model: str = "glassllm"
    """"glassllm" or "smollm2" (packaged), or a model folder or hub id."""
    posts: str = "xsum"
    """"xsum" (packaged articles and their one-sentence summaries), or a file or hub id of rows with ``prompt`` and
    ``label`` (the reference), as CarperAI/openai_summarize_tldr has them."""
    held_out_source: str = ""
    """A file, or a hub id whose split "test" is read; empty = as ``posts``."""
    comparisons: str = ""
    """A file or hub id of compared summaries; empty = the SFT model's own samples, ordered by ROUGE against the
    reference (the stand-in for a labeller)."""
    document_words: int = 16
    """A packaged article is cut after so many words."""
    sft_posts: int = 400
    """Posts whose references are demonstrations."""
    feedback_posts: int = 448
    """Posts that preferences and PPO's rollouts are about; of a data set on the hub, they are the demonstrations'."""
    held_out: int = 128
    """Posts that every method summarises."""
    samples_per_post: int = 4
    """Of the SFT model, to be ordered; all pairs are preferences."""
    max_new_tokens: int = 40
    """Most tokens of a summary."""
    max_length: int = 112
    """Most tokens of a prompt and its summary; a longer prompt loses its beginning."""
    sampling_batch: int = 128
    """Summaries decoded together."""
    sampling_temperature: float = 0.7
    """Of the samples that preferences are made of."""
    temperatures: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """At which every method is judged."""
    reading: Run = field(default_factory=lambda: Run(steps=0))
    """Before SFT, for a model that is too small to read: passages of the demonstrations' articles, each repeated behind
    the prompt, until the model finds again what stands in front of it."""
    reading_words: tuple[int, int] = (8, 16)
    """Words of such a passage, from - to."""
    sft: Run = field(default_factory=lambda: Run(steps=100))
    """Supervised fine-tuning on references."""
    preferred_ft: Run = field(default_factory=lambda: Run(steps=40))
    """On the preferred summaries alone."""
    dpo: Run = field(default_factory=lambda: Run(steps=40))
    """On preferences."""
    dpo_beta: float = 0.5
    """DPO's beta; 0.5 is the paper's for TL;DR."""
    reward: Run = field(default_factory=lambda: Run(steps=60))
    """The reward model, on the same preferences."""
    ppo: PPORun = field(default_factory=PPORun)
    """From the SFT model."""
    best_of: tuple[int, ...] = (1, 4, 16)
    """N of Best-of-N, nested: the first N of the same samples. The largest is drawn."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds of PPO and DPO; Preferred-FT has the first."""
    judging: Judging = field(default_factory=Judging)
    """Who judges."""
    scale: Scale = field(default_factory=Scale)
    """How runs are computed."""
    seed: int = 0
    """Of which posts are which, and of the samples."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError("--seeds: name at least one, each once")
        if sorted(set(self.best_of)) != list(self.best_of) or not self.best_of or self.best_of[0] < 1:
            raise InputError("--best-of: numbers from 1 on, rising")
        if 0.0 not in self.temperatures or len(set(self.temperatures)) < len(self.temperatures):
            raise InputError("--temperatures: each once, and 0 among them: human_vs_judge compares with PPO there")
        if self.max_new_tokens >= self.max_length:
            raise InputError(f"--max-new-tokens: {self.max_new_tokens} leave no room in --max-length {self.max_length}")

    @property
    def truncation(self) -> Truncation:
        """Of prompts and summaries; the same for training and sampling."""
        longest = self.max_length - self.max_new_tokens
        return Truncation(max_length=self.max_length, max_prompt_length=longest, prompt="keep_end")


class Post(NamedTuple):
    """What is to be summarised, and a person's summary."""

    document: str
    reference: str


class Posts(NamedTuple):
    """Posts by what they are for; those of ``sft`` and ``feedback`` may be the same, ``held_out`` ones are apart."""

    sft: list[Post]
    feedback: list[Post]
    held_out: list[Post]
    texts: list[str]
    """Articles in full, of ``sft`` alone."""
    windows: list[Post]
    """Demonstrations: ``sft``, of packaged articles also with their later passages, which the summary is of as well."""


def load_posts(study: Study) -> Posts:
    """All posts of a study. Raises ``InputError``: fewer than asked for, or a row of another form."""
    return _packaged(study) if study.posts == "xsum" else _published(study)


def ask(document: str) -> str:
    """The prompt; what follows begins with a space."""
    return f"{document}\nTL;DR:"


def demonstration(post: Post) -> dict[str, Any]:
    """A record to fine-tune on."""
    return {"prompt": ask(post.document), "completion": f" {post.reference}"}


def comparisons(study: Study, *, limit: int | None = None) -> list[dict[str, Any]]:
    """Summaries that people compared, as rated records; ``limit`` counts rows of the source."""
    return [
        {
            **record,
            "prompt": ask(record["prompt"]),
            "responses": [f" {text.strip()}" for text in record["responses"]],
        }
        for record in data.load_feedback(study.comparisons, limit=limit)
    ]


def prompts_of(posts: Sequence[Post], tokenizer: Any, study: Study) -> list[data.Prompt]:
    """What is sampled from."""
    return [
        data.Prompt(data.prompt_tokens({"prompt": text}, tokenizer, truncation=study.truncation), text)
        for text in (ask(post.document) for post in posts)
    ]


def _packaged(study: Study) -> Posts:
    from experiments.assets.glassllm import curl_quotes
    from experiments.assets.xsum import load_xsum

    articles = load_xsum(study.seed)
    needed = study.held_out + study.sft_posts + study.feedback_posts
    if len(articles) < needed:
        raise InputError(
            f"--held-out {study.held_out} + --sft-posts {study.sft_posts} + --feedback-posts {study.feedback_posts}: "
            f"there are {len(articles)} articles"
        )
    size = study.document_words
    texts = [curl_quotes(article.document) for article in articles[:needed]]
    references = [curl_quotes(article.summary) for article in articles[:needed]]
    posts = [Post(" ".join(text.split()[:size]), label) for text, label in zip(texts, references, strict=True)]
    start, end = study.held_out, study.held_out + study.sft_posts
    windows = []
    for text, reference in zip(texts[start:end], references[start:end], strict=True):
        words = text.split()
        passages = [words[place : place + size] for place in range(0, 4 * size, size)]
        whole = [passage for passage in passages if len(passage) > size // 2] or passages[:1]
        windows += [Post(" ".join(passage), reference) for passage in whole]
    return Posts(posts[start:end], posts[end:], posts[:start], texts[start:end], windows)


def _published(study: Study) -> Posts:
    sft = _rows(study.posts, "train", study.sft_posts, "--sft-posts")
    source = study.held_out_source or study.posts
    held_out = _rows(source, "train" if Path(source).is_file() else "test", study.held_out, "--held-out")
    return Posts(sft, sft, held_out, [post.document for post in sft], sft)


def _rows(source: str, split: str, count: int, flag: str) -> list[Post]:
    records = data.load_records(source, split=split, limit=count)
    if len(records) < count:
        raise InputError(f"{flag}: {count}, but {source} has {len(records)} rows in {split}")
    found = []
    for index, record in enumerate(records):
        prompt, label = record.get("prompt"), record.get("label")
        if not isinstance(prompt, str) or not isinstance(label, str) or not prompt.strip() or not label.strip():
            raise InputError(f"{records.place(index)}: needs the texts 'prompt' and 'label' (the reference)")
        found.append(Post(prompt.strip().removesuffix("TL;DR:").rstrip(), label.strip()))
    return found
