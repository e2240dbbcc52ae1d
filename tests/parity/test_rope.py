"""Rotary frequencies of published sizes against transformers' own table of functions."""

import copy

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from jaxalign.models._rope import rotary_tables
from jaxalign.models.families import FAMILIES
from tests.models.families.published import LLAMA_2_7B, LLAMA_32_1B, PHI_3_MINI_128K, PHI_4_MINI, QWEN3_06B, QWEN25_05B
from tests.tolerances import FLOAT32

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
CASES = {
    "llama3": LLAMA_32_1B,
    "linear": {**LLAMA_2_7B, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "yarn": {**QWEN25_05B, "max_position_embeddings": 131072, "rope_scaling": YARN},
    "yarn_without_original": {**QWEN3_06B, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "yarn_untruncated": {**QWEN25_05B, "rope_scaling": {**YARN, "truncate": False, "beta_fast": 64, "beta_slow": 2}},
    "yarn_mscale": {**QWEN25_05B, "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.8}},
    "yarn_attention_factor": {**QWEN25_05B, "rope_scaling": {**YARN, "attention_factor": 1.25}},
    "longrope": PHI_3_MINI_128K,
    "longrope_part_of_a_head": PHI_4_MINI,
}


@pytest.mark.parametrize("name", CASES)
def test_frequencies_and_attention_factor(name):
    fields = copy.deepcopy(CASES[name])  # transformers writes into what it reads
    config = FAMILIES[fields["model_type"]].read_config(fields, "config.json")
    theirs = transformers.AutoConfig.for_model(**fields)
    frequencies, factor = ROPE_INIT_FUNCTIONS[theirs.rope_parameters["rope_type"]](theirs)
    size = config.head_dim if config.rotary_dim is None else config.rotary_dim
    plain = 1 / config.rope_theta ** (np.arange(0, size, 2) / size)
    ours = config.rope_scaling.stretch(plain.astype(np.float32), config.rope_theta)
    np.testing.assert_allclose(ours, frequencies.numpy(), rtol=FLOAT32, atol=0)
    assert config.rope_scaling.attention_factor == pytest.approx(factor, rel=1e-12)
    # The tables of the first positions: what the decoder rotates by.
    cos, sin = rotary_tables(config, jnp.arange(8)[None])
    angles = np.arange(8)[:, None] * frequencies.numpy()
    np.testing.assert_allclose(cos[0, :, 0], factor * np.cos(angles), atol=FLOAT32)
    np.testing.assert_allclose(sin[0, :, 0], factor * np.sin(angles), atol=FLOAT32)
    if name in ("llama3", "yarn"):  # kept, between, divided in full: all three are there
        stretched = plain / frequencies.numpy()
        full = config.rope_scaling.factor
        assert stretched[0] == pytest.approx(1, rel=1e-5)
        assert stretched[-1] == pytest.approx(full, rel=1e-5)
        assert np.any((stretched > 1.01) & (stretched < 0.99 * full))
