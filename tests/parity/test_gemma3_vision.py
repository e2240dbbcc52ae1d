"""Live parity with transformers on the language model of a Gemma 3 with a vision tower."""

import jax.numpy as jnp
import numpy as np
import torch
import transformers

from jaxalign import models
from tests.models.tiny import relative_error
from tests.parity.cases import LENGTH, SIZES, VOCABULARY, randomise, rope
from tests.tolerances import PARITY_LOGITS

TEXT = {
    **SIZES, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 4, "num_attention_heads": 4,
    "head_dim": 16, "num_key_value_heads": 2, "sliding_window": 5, "sliding_window_pattern": 3,
    "query_pre_attn_scalar": 16, "max_position_embeddings": 64,
    "rope_parameters": {"full_attention": rope("linear", 3e3, factor=8.0), "sliding_attention": rope(theta=50.0)},
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


def whole():
    return transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(
            text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4, image_token_index=90, boi_token_index=91,
            eoi_token_index=92,
        )
    )  # fmt: skip


def test_the_language_model_alone_gives_the_same_logits(tmp_path):
    theirs = randomise(whole)
    theirs.save_pretrained(tmp_path / "whole")
    tokens = np.random.default_rng(0).integers(1, VOCABULARY - 10, (2, LENGTH))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    config, params = models.load_pretrained(tmp_path / "whole")
    assert config.family == "gemma3_text"
    assert relative_error(models.logits(config, params, jnp.asarray(tokens)), expected) <= PARITY_LOGITS

    models.save_pretrained(tmp_path / "text", config, params)
    alone, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text", output_loading_info=True)
    assert {name: list(found) for name, found in info.items() if len(found)} == {}
    assert type(alone) is transformers.Gemma3ForCausalLM
    weights = theirs.model.language_model.state_dict()
    found = alone.model.state_dict()
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(found[name], value), name
    assert torch.equal(alone.lm_head.weight, theirs.lm_head.weight)
    with torch.no_grad():
        assert relative_error(alone.eval()(torch.from_numpy(tokens)).logits.numpy(), expected) <= PARITY_LOGITS
