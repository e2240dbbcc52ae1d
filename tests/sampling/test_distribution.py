"""Sampled frequencies against the enumerated distribution of a tiny vocabulary."""

import jax
import numpy as np
import pytest

from jaxalign import models
from jaxalign.sampling import generate
from tests.sampling.models_under_test import LLAMA, memoryless, parameters

PROBABILITIES = np.asarray([0.30, 0.22, 0.16, 0.12, 0.08, 0.06, 0.04, 0.02])


def truncated(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The definition, by enumeration: temperature, top-k, top-p, min-p, each on what the one before leaves."""
    p = PROBABILITIES ** (1 / temperature)
    p /= p.sum()
    order = np.argsort(-p)
    keep = order[: top_k or len(p)]
    mass = np.cumsum(p[keep]) / p[keep].sum()
    keep = keep[: np.searchsorted(mass, top_p) + 1]
    keep = keep[p[keep] >= min_p * p[keep].max()]
    q = np.zeros_like(p)
    q[keep] = p[keep] / p[keep].sum()
    return q, np.log(p)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.25},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.8, "min_p": 0.3},
    ],
    ids=str,
)
def test_frequencies(settings):
    config, params = memoryless(PROBABILITIES)
    steps, prompts = 80, 64
    samples = generate(config, params, [[1]] * prompts, jax.random.key(0), max_new_tokens=steps, **settings)
    wanted, log_probs = truncated(**settings)
    total = steps * prompts
    counts = np.bincount(samples.tokens.ravel(), minlength=len(wanted))
    assert (counts[wanted == 0] == 0).all()
    kept = wanted > 0
    chi_square = ((counts - total * wanted) ** 2 / (total * np.where(kept, wanted, 1)))[kept].sum()
    degrees = kept.sum() - 1
    assert chi_square < degrees + 5 * np.sqrt(2 * degrees) + 5
    # Log-probs are those before truncation.
    np.testing.assert_allclose(samples.log_probs, log_probs[samples.tokens], atol=1e-5)


def test_two_token_texts_follow_the_models_joint_distribution():
    config = LLAMA.replace(vocab_size=5)
    params, prompt, count = parameters(config, seed=2), [1, 4], 4096
    samples = generate(
        config, params, [prompt], jax.random.key(5), max_new_tokens=2, samples_per_prompt=count, batch_size=1024
    )
    texts = np.asarray([[*prompt, first, second] for first in range(5) for second in range(5)])
    log_probs = np.asarray(jax.nn.log_softmax(models.logits(config, params, texts)))
    rows = np.arange(25)
    joint = np.exp(log_probs[rows, 1, texts[:, 2]] + log_probs[rows, 2, texts[:, 3]])
    assert joint.sum() == pytest.approx(1, abs=1e-5)
    counts = np.bincount(samples.tokens[:, 0] * 5 + samples.tokens[:, 1], minlength=25)
    # Expected total variation of n draws is about sqrt(25 / (2 pi n)) = 0.03.
    assert np.abs(counts / count - joint).sum() / 2 < 0.05
    np.testing.assert_allclose(
        samples.log_probs.sum(1), np.log(joint)[samples.tokens[:, 0] * 5 + samples.tokens[:, 1]], atol=1e-4
    )
