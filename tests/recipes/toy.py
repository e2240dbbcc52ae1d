"""Tiny real things: a byte-level BPE tokenizer, Llama- and GPT-2-shaped models, records, recorded runs of ``fit``."""

import contextlib
import functools
import json
import random
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign import data, models, recipes, sharding
from jaxalign.data._templates import parse_templates
from jaxalign.training import OptimizerConfig
from tests.tolerances import FLOAT32

WORDS = ["the", "film", "was", "good", "and", "plot", "bad", "but", "it", "fun", "to", "watch"]
STEPS = 5


@functools.cache
def tokenizer() -> Any:
    """Byte-level BPE in which every word of ``WORDS`` with its space is one token."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(kinds.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([" " + " ".join(WORDS)] * 10, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>", pad_token="<pad>")


VOCABULARY = 304  # the tokenizer's, rounded up so that four devices can split it

SHAPES = {
    "llama": models.ModelConfig(
        vocab_size=VOCABULARY, width=16, layers=3, heads=4, kv_heads=2, head_dim=8, mlp_width=32, max_positions=64,
        tied_embeddings=True,
    ),
    "gpt2": models.ModelConfig(
        vocab_size=VOCABULARY, width=16, layers=3, heads=4, kv_heads=4, head_dim=4, mlp_width=64, max_positions=64,
        family="gpt2", norm="layer", position="learned", activation="gelu_tanh", gated_mlp=False, attention_bias=True,
        attention_output_bias=True, mlp_bias=True, tied_embeddings=True,
    ),
}  # fmt: skip


@functools.cache
def params(shape: str, seed: int = 0) -> Any:
    """Parameters well away from the initial ones: attention is not uniform, biases are not zero."""
    tree = models.init(SHAPES[shape], jax.random.key(seed))
    flat, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed + 1), len(flat))
    return structure.unflatten(
        [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(flat, keys, strict=True)]
    )


def talker() -> Any:
    """Parameters of "gpt2" that say words (and end), so that their texts have one tokenisation."""
    tree, encode = params("gpt2"), tokenizer().encode
    said = [tokenizer().eos_token_id, *(encode(f" {word}")[0] for word in WORDS)]
    # One column of the final hidden state is 10 wherever it stands, and only what is to be said reads it.
    norm = {"scale": tree["final_norm"]["scale"].at[0].set(0), "bias": tree["final_norm"]["bias"].at[0].set(10)}
    table = tree["embed"]["tokens"].at[:, 0].set(0).at[np.array(said), 0].set(1)
    return {**tree, "final_norm": norm, "embed": {**tree["embed"], "tokens": table}}


def write_model(folder: Path, shape: str = "llama", seed: int = 0) -> Path:
    """A Hugging Face folder that ``load_pretrained`` and ``load_tokenizer`` read."""
    models.save_pretrained(folder, SHAPES[shape], params(shape, seed), tokenizer())
    return folder


def words(count: int, source: random.Random) -> str:
    return "".join(f" {source.choice(WORDS)}" for _ in range(count))


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def ranked_records() -> list[dict[str, Any]]:
    """Three prompts, three rated answers each: 3 + 2 + 3 pairs, of five different sizes."""
    source = random.Random(1)
    kinds = [(4, (3, 5, 2), (3, 1, 2)), (6, (2, 4, 3), (1, 1, 0)), (4, (3, 5, 2), (2, 3, 1))]
    return [
        {"prompt": words(prompt, source), "responses": [words(n, source) for n in answers], "ratings": list(ratings)}
        for prompt, answers, ratings in kinds
    ]


def pair_records() -> list[dict[str, Any]]:
    """The eight pairs of ``ranked_records``, a record each."""
    return [
        {"prompt": record["prompt"], "chosen": record["responses"][i], "rejected": record["responses"][j]}
        for record in ranked_records()
        for i, better in enumerate(record["ratings"])
        for j, worse in enumerate(record["ratings"])
        if better > worse
    ]


def demonstrations() -> list[dict[str, Any]]:
    """Eight demonstrations of three different sizes."""
    source = random.Random(2)
    sizes = [(4, 3), (4, 6), (7, 2), (4, 3), (4, 6), (7, 2), (4, 3), (4, 6)]
    return [{"prompt": words(prompt, source), "completion": words(answer, source)} for prompt, answer in sizes]


def feedback_records() -> list[dict[str, Any]]:
    """Eight records with feedback: pairs, and three answers of which two may be as good; of many sizes."""
    source = random.Random(3)
    kinds = [
        (4, (3, 5), (1, 0)), (6, (2, 4, 3), (1, 2, 0)), (2, (6, 2), (0, 1)), (5, (3, 3, 4), (2, 2, 1)),
        (3, (1, 2), (1, 0)), (7, (4, 2), (0, 1)), (4, (2, 5, 1), (0, 1, 2)), (3, (5, 3), (1, 0)),
    ]  # fmt: skip
    return [
        {"prompt": words(prompt, source), "responses": [words(n, source) for n in answers], "ratings": list(ratings)}
        for prompt, answers, ratings in kinds
    ]


TEMPLATES = """
between = " "
user = "it:"
assistant = "to:"

[neutral]
answer = "it was:"
dialogue = "to:"

[[pair]]
name = "good-bad"
text = "good: {positive} bad: {negative}"

[[pair]]
name = "good-bad-plot"
text = "good plot: {positive} bad plot: {negative}"

[[pair]]
name = "bad-good"
text = "bad: {negative} good: {positive}"

[[pair]]
name = "bad-good-film"
text = "bad film: {negative} good film: {positive}"
"""
"""Templates of ``WORDS``, of two or three tokens each."""


def templates() -> data.TemplateSet:
    return parse_templates(tomllib.loads(TEMPLATES), "toy")


def chains(records: list[dict[str, Any]] | None = None, **form: Any) -> data.ChainExamples:
    """Chains of ``feedback_records`` under ``TEMPLATES``; ``sources`` and ``weights`` mix them, ``form`` the rest."""
    mixed = {name: form.pop(name) for name in ("sources", "weights", "seed") if name in form}
    some = feedback_records() if records is None else records
    return data.build_chains(some, tokenizer(), data.ChainFormat(**form), templates=templates(), **mixed)[0]


def pretraining(rows: int = 16, length: int = 12) -> recipes.Pretraining:
    """Windows of documents of several sizes, packed into rows."""
    source = random.Random(4)
    documents = [{"text": words(count, source)} for count in (30, 5, 8, 3, 21, 12, 6, 40)]
    return recipes.Pretraining(data.text_windows(documents, tokenizer(), length=length)[0], rows, length)


def examples(records: list[dict[str, Any]], kind: Any = None) -> list[data.Example]:
    return data.build_examples(records, tokenizer(), kind=kind)[0]


@dataclass(frozen=True)
class Run:
    """What some updates did."""

    losses: np.ndarray
    grad_norms: np.ndarray
    params: list[dict[str, np.ndarray]]
    """Before the first update and after each; on several processes before and after the first and after the last."""
    metrics: list[dict[str, float]]
    tree: list[Any]
    """``params`` as the model takes them."""

    @property
    def gradient(self) -> dict[str, np.ndarray]:
        """That of the first update, from what plain SGD did with it, times the learning rate."""
        return {name: before - self.params[1][name] for name, before in self.params[0].items()}


def leaves(tree: Any) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path): np.array(sharding.to_host(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def train(
    shape: str | models.ModelConfig,
    some_examples: data.Examples,
    make_objective: Callable[[models.ModelConfig], recipes.Objective],
    *,
    start: Any = None,
    steps: int = STEPS,
    learning_rate: float = 0.1,
    reference: Any = None,
    cache_reference: bool = False,
    pretraining: recipes.Pretraining | None = None,
    eval_examples: data.Examples = (),
    folder: Path | None = None,
    **options: Any,
) -> Run:
    """``recipes.fit`` with plain SGD on whole-dataset batches, on one device unless ``mesh`` says more; recorded.

    On several processes they share ``folder``, and only the first knows the metrics.
    """
    config = recipes.FitConfig(**{
        "max_steps": steps,
        "batch_size": len(some_examples),
        "mesh": "data=1",
        "eval_every": 1,
        "optimizer": OptimizerConfig(optimizer="sgd", learning_rate=learning_rate),
    } | options)  # fmt: skip
    model = SHAPES[shape] if isinstance(shape, str) else shape
    start = params(str(shape)) if start is None else start

    def run(keep: Callable[[int, Any], dict[str, float]], directory: Path) -> None:
        recipes.fit(
            model,
            start,
            some_examples,
            make_objective,
            config,
            reference=reference,
            cache_reference=cache_reference,
            pretraining=pretraining,
            eval_examples=eval_examples,
            directory=directory,
            evaluate=keep,
            report=lambda done, total, note: None,
        )

    return record(run, steps, folder)


def record(run: Callable[..., None], steps: int, folder: Path | None = None) -> Run:
    """What ``run(keep, directory)`` did, which calls ``keep(step, params)`` before the first update and after each."""
    trees: list[Any] = []

    def keep(step: int, tree: Any) -> dict[str, float]:
        assert step == len(trees)
        read = jax.process_count() == 1 or step in (0, 1, steps)  # each reading is a collective a leaf
        trees.append(jax.tree.map(lambda leaf: np.array(sharding.to_host(leaf)), tree) if read else {})
        return {}

    with tempfile.TemporaryDirectory() if folder is None else contextlib.nullcontext(folder) as directory:
        run(keep, Path(directory))
        rows = []
        if jax.process_index() == 0:
            rows = [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert len(rows) == (steps if jax.process_index() == 0 else 0)
    assert len(trees) == steps + 1
    return Run(
        losses=np.array([row["loss"] for row in rows]),
        grad_norms=np.array([row["grad_norm"] for row in rows]),
        params=[leaves(tree) for tree in trees],
        metrics=rows,
        tree=trees,
    )


def assert_same_run(found: Run, expected: Run) -> None:
    """Equal losses, gradients and parameters, each to float32's tolerance of its own size; and something was learnt."""
    assert abs(expected.losses[-1] - expected.losses[0]) > 0.01 * abs(expected.losses[0])
    np.testing.assert_allclose(found.losses, expected.losses, rtol=FLOAT32, atol=FLOAT32)
    np.testing.assert_allclose(found.grad_norms, expected.grad_norms, rtol=FLOAT32)
    assert found.params[0].keys() == expected.params[0].keys()
    for name, gradient in expected.gradient.items():
        # Two parameters are subtracted for it: each is known to half a unit in its last place.
        rounding = np.finfo(np.float32).eps * np.abs(expected.params[0][name]).max()
        atol = FLOAT32 * np.abs(gradient).max() + rounding
        np.testing.assert_allclose(found.gradient[name], gradient, rtol=FLOAT32, atol=atol, err_msg=name)
    for name, value in expected.params[-1].items():
        atol = FLOAT32 * np.abs(value).max()
        np.testing.assert_allclose(found.params[-1][name], value, rtol=FLOAT32, atol=atol, err_msg=name)
