"""The sampler draws from the model of every family: soft-caps, biases, windows and projected embeddings included."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import InputError
from jaxalign.sampling import generate
from tests.sampling.models_under_test import dense_log_probs, prompts_of
from tests.tolerances import FLOAT32

GOLDEN = Path(__file__).parents[1] / "models" / "golden"
NAMES = sorted(path.name for path in GOLDEN.iterdir() if (path / "config.json").is_file())


@pytest.mark.parametrize("name", NAMES)
def test_log_probs_are_the_full_forwards(name):
    config, params = models.load_pretrained(GOLDEN / name)
    prompts = prompts_of(config, [3, 9])
    samples = generate(config, params, prompts, jax.random.key(3), max_new_tokens=10, samples_per_prompt=2)
    for index, (response, log_probs) in enumerate(zip(samples.responses(), samples.log_probs, strict=True)):
        expected = dense_log_probs(config, params, prompts[index // 2], response)
        np.testing.assert_allclose(log_probs, expected, rtol=10 * FLOAT32, atol=10 * FLOAT32)


def test_a_classifier_has_nothing_to_sample_from():
    config, params = models.load_pretrained(GOLDEN / "llama_tied")
    config = config.replace(labels=2)
    params = {**params, "score": {"kernel": np.zeros((2, config.width), np.float32)}}
    with pytest.raises(InputError, match="labels = 2: a classifier is no language model"):
        generate(config, params, [[1, 2]], jax.random.key(0), max_new_tokens=2)
