"""Folders that hold more than a family's model: a vision tower around it, or code that was merged into transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign import models
from jaxalign.errors import InputError
from jaxalign.models._rope import RopeScaling
from jaxalign.models.families import FAMILIES
from tests.models.families.published import GEMMA_3_4B, PHI_3_MINI_4K

TINY = {
    "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 4, "sliding_window": 3,
}  # fmt: skip
PREFIXES = {
    "as on the hub": ("language_model.model.", "language_model.lm_head.", ""),
    "as in memory": ("model.language_model.", "lm_head.", "model."),
}


def write_config(folder, fields):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))


def test_the_language_model_of_a_published_config_with_a_vision_tower(tmp_path):
    write_config(tmp_path, GEMMA_3_4B)
    config = models.load_config(tmp_path)
    assert config.family == "gemma3_text"
    assert (config.width, config.layers, config.vocab_size, config.heads, config.kv_heads) == (2560, 34, 262208, 8, 4)
    assert (config.head_dim, config.max_positions, config.rope_theta, config.local_rope_theta) == (
        256,
        131072,
        1e6,
        1e4,
    )
    assert config.rope_scaling == RopeScaling("linear", 8.0)
    assert config.windows == (1024,) * 5 + (None,)
    assert dict(config.extra)["eos_token_id"] == (1, 106)


@pytest.fixture
def alone(tmp_path):
    """A folder of a language model, and its parameters."""
    fields = {**GEMMA_3_4B["text_config"], **TINY, "eos_token_id": 1}
    config = FAMILIES["gemma3_text"].read_config(fields, "config.json")
    params = models.init(config, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + jnp.arange(leaf.size).reshape(leaf.shape) / 8, params)
    models.save_pretrained(tmp_path / "alone", config, params)
    return tmp_path / "alone", config, params


@pytest.mark.parametrize("form", PREFIXES)
@pytest.mark.parametrize("twice", [False, True])
def test_the_language_model_is_read_out_of_a_folder_with_a_vision_tower(form, twice, alone, tmp_path):
    folder, config, params = alone
    body, head, others = PREFIXES[form]
    text = load_file(folder / "model.safetensors")
    if twice:
        text["lm_head.weight"] = text["model.embed_tokens.weight"]
    whole = {name.replace("lm_head.", head) if "lm_head" in name else body + name.removeprefix("model."): value
             for name, value in text.items()}  # fmt: skip
    whole[others + "vision_tower.vision_model.post_layernorm.weight"] = np.ones(3, np.float32)
    whole[others + "multi_modal_projector.mm_soft_emb_norm.weight"] = np.ones(3, np.float32)
    write_config(tmp_path / "whole", {**GEMMA_3_4B, "text_config": {**GEMMA_3_4B["text_config"], **TINY}})
    save_file(whole, tmp_path / "whole" / "model.safetensors")
    read, found = models.load_pretrained(tmp_path / "whole")
    assert read.replace(extra=()) == config.replace(extra=())
    jax.tree.map(np.testing.assert_array_equal, found, params)
    models.save_pretrained(tmp_path / "again", read, found)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["architectures"] == ["Gemma3ForCausalLM"]
    jax.tree.map(np.testing.assert_array_equal, models.load_pretrained(tmp_path / "again")[1], params)

    del whole[body + "norm.weight"]
    save_file(whole, tmp_path / "whole" / "model.safetensors")
    with pytest.raises(InputError, match=f"{body}norm.weight'"):
        models.load_pretrained(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"text_config": None}, "text_config"),
        ({"architectures": ["Gemma3ForSequenceClassification"]}, "Gemma3ForSequenceClassification"),
        ({"audio_config": {"layers": 2}}, "'audio_config'"),
    ],
)
def test_a_bad_config_with_a_vision_tower(changes, part, tmp_path):
    write_config(tmp_path, {**GEMMA_3_4B, **changes})
    with pytest.raises(InputError, match=part):
        models.load_config(tmp_path)


PHI_CODE = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}


@pytest.mark.parametrize("others", [{}, {"AutoTokenizer": "Xenova/gpt-4o"}])
def test_code_that_was_merged_into_transformers_is_neither_run_nor_kept(others, tmp_path):
    write_config(tmp_path, {**PHI_3_MINI_4K, "auto_map": {**PHI_CODE, **others}})
    config = models.load_config(tmp_path)
    assert config.windows == (2047,)
    assert "auto_map" not in dict(config.extra)


@pytest.mark.parametrize(
    "code", [{**PHI_CODE, "AutoModelForCausalLM": "modeling_mine.Phi3ForCausalLM"}, "modeling_phi3", None, {"a": ["b"]}]
)
def test_other_code_is_refused(code, tmp_path):
    fields = (
        {**PHI_3_MINI_4K, "auto_map": code} if code else {**PHI_3_MINI_4K, "auto_map": PHI_CODE, "model_type": "llama"}
    )
    write_config(tmp_path, fields)
    with pytest.raises(InputError, match="auto_map"):
        models.load_config(tmp_path)
