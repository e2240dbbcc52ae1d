"""The parts of the controlled-sentiment study: what is sampled, trained and measured, each a pure function of settings.

``experiments.imdb_sentiment`` puts them together, keeps what they return, and writes the report.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np

from experiments._hindsight import Scale
from experiments._sentiment_rlhf import PPO, RLHF
from experiments._stages import Report
from experiments.assets.prompts import Prompt
from jaxalign import data, evaluation, recipes, sampling
from jaxalign.data import Example
from jaxalign.models import ModelConfig
from jaxalign.recipes import PreferenceObjective

__all__ = [
    "DPO",
    "OTHER_PAIRS",
    "UNWEIGHTED",
    "Ablations",
    "Measurement",
    "Method",
    "Raters",
    "Study",
    "Sweep",
    "measure",
    "preference_examples",
    "sample",
]

Params = Any
DPO, UNWEIGHTED, OTHER_PAIRS = "DPO", "DPO without its weight", "DPO on other pairs"
"""Names of methods that an ablation sets side by side."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Policies over the temperature they are sampled at, and methods against one another; none, no such part."""

    temperatures: tuple[float, ...] = ()
    """Where DPO, PPO, Preferred-FT and the start model are sampled."""
    tie: float = 0.05
    """Two continuations whose P(positive) differs by less are a tie."""


@dataclass(frozen=True, kw_only=True)
class Ablations:
    """Two questions about DPO, each at ``Study.dpo_seeds_at``; no seeds, no such part."""

    unweighted_seeds: tuple[int, ...] = ()
    """Runs whose gradient has 1 where DPO's has the weight sigmoid(r_l - r_w)."""
    other_model: str = "base"
    """Whose samples the other pairs are: "base" is the model before its fine-tuning on reviews, else as ``model``."""
    other_seeds: tuple[int, ...] = ()
    """Runs on those pairs."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The numbers of one preset."""

    model: str
    """"smollm2" or "glassllm" (packaged), or a model folder or hub id."""
    reviews: str = "packaged"
    """"packaged", or a hub id or file of rows with the fields text and label (0 or 1)."""
    reward: str = "packaged"
    """"packaged" (a linear model fitted on a part of the reviews), or a folder or hub id of a sentiment classifier."""
    chat: str | None = None
    """What the user asks in the chat template, the prefix being the assistant's opening; None = the prefix alone."""
    lead: str = "\n"
    """What stands before a prefix without a chat template."""
    prompts: int = 256
    """Prefixes whose samples are trained on."""
    held_out: int = 256
    """Prefixes that every policy is measured on."""
    samples_per_prompt: int = 4
    """Samples of each training prefix; all ordered pairs of them are used."""
    held_out_samples: int = 1
    """Samples of each held-out prefix a measurement takes."""
    max_new_tokens: int = 32
    """Longest sample, in tokens."""
    temperature: float = 1.0
    """Of sampling; log-probs, losses and KL are at this temperature too."""
    sampling_batch: int = 64
    """Samples decoded together."""
    sft_steps: int = 0
    """Steps of supervised fine-tuning on reviews before anything else; 0 starts from the model as it is."""
    sft_batch: int = 32
    """Windows of reviews in an SFT step."""
    sft_length: int = 64
    """Tokens of a window."""
    sft_learning_rate: float = 3e-3
    """Peak of the SFT learning rate, cosine after 10 steps."""
    frozen_layers: int = 0
    """Lowest layers that stay as they are, their activations computed once."""
    steps: int = 60
    """Updates of every method."""
    prompts_per_step: int = 16
    """Prefixes in an update, each with all the pairs of its samples."""
    learning_rate: float = 3e-4
    """After the warm-up."""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """The update rule of every pairwise method; SFT, reward model and PPO have AdamW."""
    warmup_steps: int = 10
    """Linear warm-up."""
    measure_every: int = 60
    """Steps between points on a method's curve."""
    dpo_betas: tuple[float, ...] = (0.1,)
    """DPO runs."""
    dpo_seeds: tuple[int, ...] = (0,)
    """Seeds of the run at ``dpo_seeds_at``; the other betas have the first alone."""
    dpo_seeds_at: float = 0.1
    """The beta that is run with every seed, and that the ablations are at."""
    preferred_ft_seeds: tuple[int, ...] = (0,)
    """Preferred-FT runs; it has no hyper-parameter, so several seeds stand where others have several settings."""
    unlikelihood_alphas: tuple[float, ...] = ()
    """Unlikelihood runs."""
    unlikelihood_seeds: tuple[int, ...] = (0,)
    """Seeds of the run at ``unlikelihood_seeds_at``; the other alphas have the first alone."""
    unlikelihood_seeds_at: float = 1.0
    """The alpha that is run with every seed: the one that does best where one seed of each was seen (mini)."""
    best_of_n: int = 4
    """Largest N of Best-of-N."""
    compare_at: tuple[float, ...] = ()
    """KLs (nats a sequence) at which methods are compared."""
    rlhf: RLHF = field(default_factory=RLHF)
    """Reward modelling and PPO."""
    sweep: Sweep = field(default_factory=Sweep)
    """Win rates between the policies."""
    ablations: Ablations = field(default_factory=Ablations)
    """What DPO's gradient and its data are worth."""
    scale: Scale = field(default_factory=Scale)
    """How SFT and the pairwise methods are computed; reward model and PPO have ``rlhf.scale``."""
    seed: int = 0
    """Of everything."""

    @property
    def optimizer_inputs(self) -> dict[str, str]:
        """What decides a pairwise run besides, where it is another than AdamW."""
        return {} if self.optimizer == "adamw" else {"optimizer": self.optimizer}


@dataclass(frozen=True)
class Method:
    """One training run: its name on the figure, and the loss of its pairs or what PPO raises."""

    name: str
    setting: str
    objective: PreferenceObjective | PPO
    seed: int
    """Of the data order, and of PPO's rollouts."""
    repeat: bool = False
    """A further seed of a run: for intervals over training, not on the figure."""

    @property
    def label(self) -> str:
        """Its name in tables."""
        return f"{self.name} {self.setting}".strip()


@dataclass(frozen=True)
class Raters:
    """What scores prompt + completion: the reward that preferences come from, and a judge that never saw its data."""

    reward: Callable[[Sequence[str], Sequence[str]], np.ndarray]
    judge: Callable[[Sequence[str], Sequence[str]], np.ndarray]
    """Probability of positive."""


@dataclass(frozen=True)
class Measurement:
    """A policy's samples on the held-out prefixes and what they scored, one entry a sample, prompt-major."""

    step: int
    prompt: list[int]
    """Which prefix the sample continues."""
    kl: list[float]
    """log pi - log start of the whole sample (k1), nats."""
    kl_k3: list[float]
    """The same divergence by the estimator that is never negative (``evaluation.sequence_kl``)."""
    reward: list[float]
    judge: list[float]
    log_perplexity: list[float]
    """Mean negative log-prob a token under the start model at the sampling temperature, nats."""
    lengths: list[int]
    texts: list[str] = field(default_factory=list)

    def extras(self) -> dict[str, float]:
        """The judge and the signs of degeneration, for tables."""
        weights = np.asarray(self.lengths, float)
        return {
            "judge P(positive)": float(np.mean(self.judge)),
            "start-model perplexity": float(np.exp(np.average(self.log_perplexity, weights=weights))),
            "distinct-2": evaluation.distinct_n(self.texts, 2),
            "repeated-2": float(np.mean(self.repetition)),
            "tokens": float(np.mean(weights)),
        }

    def point(
        self, method: str, setting: str, *, seed: int, rating: Literal["reward", "judge"] = "reward"
    ) -> evaluation.FrontierPoint:
        """Where it lies on the plane of KL and a rating."""
        return evaluation.FrontierPoint.from_samples(
            method,
            setting,
            self.step,
            kl=self.kl,
            reward=getattr(self, rating),
            prompt=self.prompt,
            extras=self.extras(),
            seed=seed,
        )

    @property
    def repetition(self) -> np.ndarray:
        """Of every sample's pairs of words, the share that it had before."""
        return evaluation.repetition(self.texts, n=2)

    def by_prefix(self, name: str) -> np.ndarray:
        """A value of every prefix, its samples averaged."""
        return np.bincount(self.prompt, weights=getattr(self, name)) / np.bincount(self.prompt)

    def judged(self) -> np.ndarray:
        """The judge's P(positive) of every prefix."""
        return self.by_prefix("judge")


def sample(
    config: ModelConfig,
    params: Params,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    study: Study,
    *,
    each: int,
    seed: int,
    report: Report,
) -> tuple[sampling.Samples, list[str]]:
    """Samples of every prefix and their texts, prompt-major."""
    stop = [token for token in {tokenizer.eos_token_id} if token is not None]
    samples = sampling.generate(
        config,
        params,
        [prompt.ids for prompt in prompts],
        jax.random.key(seed),
        max_new_tokens=study.max_new_tokens,
        temperature=study.temperature,
        stop_tokens=stop,
        samples_per_prompt=each,
        batch_size=study.sampling_batch,
        on_progress=lambda done, total: report(done, total, "samples"),
    )
    texts = []
    for ids in samples.responses():
        texts.append(tokenizer.decode(ids[:-1] if ids and ids[-1] in stop else ids))
    return samples, texts


def preference_examples(
    prompts: Sequence[Prompt], responses: Sequence[list[int]], rewards: np.ndarray
) -> list[Example]:
    """One example a prefix: all its samples behind the shared prefix, a pair for each two of different reward.

    Every sample is computed once, however many pairs it is in. A prefix whose samples all tie is left out.
    """
    each = len(responses) // len(prompts)
    examples = []
    for index, prompt in enumerate(prompts):
        scores = rewards[index * each : (index + 1) * each]
        pairs = [(i, j) for i in range(each) for j in range(each) if scores[i] > scores[j]]
        if pairs:
            answers = responses[index * each : (index + 1) * each]
            examples.append(data.answers_example(prompt.ids, answers, record_id=index, pairs=pairs))
    return examples


def measure(
    config: ModelConfig,
    params: Params,
    start: Params | None,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    raters: Raters,
    study: Study,
    *,
    step: int,
    each: int | None = None,
    report: Report,
) -> Measurement:
    """Sample the held-out prefixes and score the samples; ``start=None`` measures the start model itself (KL 0)."""
    each = study.held_out_samples if each is None else each
    samples, texts = sample(config, params, tokenizer, prompts, study, each=each, seed=study.seed + 1, report=report)
    own = np.where(samples.mask, samples.log_probs, 0.0)
    if start is None:
        reference = own
    else:
        rows = [
            data.answers_example(prompts[index // each].ids, [ids], record_id=index)
            for index, ids in enumerate(samples.responses())
        ]
        scored = recipes.example_log_probs(config, start, rows, temperature=study.temperature, batch_size=32)
        reference = np.zeros_like(own)
        reference[np.asarray(samples.mask)] = np.concatenate(scored)
    kl = evaluation.sequence_kl(own, reference, samples.mask)
    openings = [prompts[index // each].opening for index in range(len(texts))]
    lengths = np.asarray(samples.lengths)
    return Measurement(
        step=step,
        prompt=[index // each for index in range(len(texts))],
        kl=kl.k1_per_sequence.tolist(),
        kl_k3=kl.k3_per_sequence.tolist(),
        reward=sampling.score_texts(raters.reward, openings, texts).tolist(),
        judge=sampling.score_texts(raters.judge, openings, texts).tolist(),
        log_perplexity=(-reference.sum(axis=1) / lengths).tolist(),
        lengths=lengths.tolist(),
        texts=texts,
    )
