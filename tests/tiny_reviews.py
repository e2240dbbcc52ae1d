"""The reviews' tasks in miniature: a random model long enough for chains, its study, and one device for both."""

import dataclasses
import functools

import jax
import pytest

from experiments._hindsight import Training
from experiments._hindsight_reviews import LEAD
from jaxalign import models, sharding
from tests.experiments.test_paper_preset import study_of
from tests.models.tiny import uncompiled_params
from tests.tiny_sentiment import tokenizer

CONFIG = models.ModelConfig(
    family="gpt2", vocab_size=320, width=16, layers=2, heads=2, kv_heads=2, head_dim=8, mlp_width=32,
    max_positions=320, norm="layer", position="learned", activation="gelu_tanh", gated_mlp=False,
    attention_bias=True, attention_output_bias=True, mlp_bias=True, tied_embeddings=True,
)  # fmt: skip
TRAINING = Training(
    steps=2, outputs=4, learning_rate=1e-2, warmup_steps=0, max_length=200, pretraining_batch_size=2,
    pretraining_length=24,
)  # fmt: skip


def plain_tokenizer():
    """One that puts nothing around a text."""
    tokens = tokenizer()
    tokens.backend_tokenizer.post_processor = None
    return tokens


def save_model(folder):
    models.save_pretrained(folder, CONFIG, uncompiled_params(CONFIG), plain_tokenizer())
    return str(folder)


def study_in(folder):
    """The paper preset's study by path, without fine-tuning before it."""
    return dataclasses.replace(study_of(folder), model=save_model(folder / "model"), lead=LEAD, sft_steps=0)


@pytest.fixture
def one_device(monkeypatch):
    for name in ("make_mesh", "parse_mesh"):
        monkeypatch.setattr(sharding, name, functools.partial(getattr(sharding, name), devices=jax.devices()[:1]))
