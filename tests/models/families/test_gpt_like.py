"""GPT-2, GPT-NeoX, GPT-J, OPT: config.json of published models in and out, and one clear line for what is refused."""

import json

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.models._rope import RopeScaling
from jaxalign.models.families import FAMILIES
from tests.models.families.published_gpt import (
    GPT2,
    GPTJ_6B,
    OPT_125M,
    OPT_350M,
    PUBLISHED,
    PYTHIA_14B,
    PYTHIA_14B_AS_TRANSFORMERS_5_SAVES_IT,
)
from tests.models.families.test_llama_like import DELETE, read, write


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_read(name):
    fields, meaning = PUBLISHED[name]
    config = read(fields)
    assert {field: getattr(config, field) for field in meaning} == meaning
    assert config.family == fields["model_type"]
    hash(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_written_is_read_as_the_same_model(name):
    config = read(PUBLISHED[name][0])
    assert read(write(config)) == config


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_written_has_the_published_numbers(name):
    fields = PUBLISHED[name][0]
    written = write(read(fields))
    of_the_file = {"_name_or_path", "architectures", "torch_dtype", "dtype", "transformers_version"}
    same = {name: value for name, value in fields.items() if name not in of_the_file and value not in (None, False)}
    assert {name: written.get(name) for name in same} == same


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_reads_what_is_written_as_it_reads_the_published_file(name):
    import transformers

    fields = PUBLISHED[name][0]
    of_the_file = {"architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path"}

    def values(source):
        config = transformers.AutoConfig.for_model(**json.loads(json.dumps(source)))
        return {key: value for key, value in config.to_dict().items() if key not in of_the_file}

    assert values(write(read(fields))) == values(fields)


def test_transformers_4_finds_the_rotated_share_where_it_looks_for_it():
    written = write(read(PYTHIA_14B_AS_TRANSFORMERS_5_SAVES_IT))
    assert (written["rotary_pct"], written["rotary_emb_base"]) == (0.25, 10000)


@pytest.mark.parametrize(
    ("changes", "meaning"),
    [
        ({"use_parallel_residual": False}, {"block": "pre_norm"}),
        ({"rotary_pct": 1.0}, {"rotary_dim": None}),
        ({"rotary_pct": DELETE, "rotary_emb_base": DELETE}, {"rotary_dim": 32, "rope_theta": 10000.0}),
        ({"rotary_pct": DELETE, "partial_rotary_factor": 0.5}, {"rotary_dim": 64}),
        ({"rotary_pct": 0.27}, {"rotary_dim": 34}),  # 34.56
        ({"attention_bias": False}, {"attention_bias": False, "attention_output_bias": False, "mlp_bias": True}),
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
            {"rope_scaling": RopeScaling("linear", 4.0), "rotary_dim": 32},
        ),
    ],
)
def test_what_gpt_neox_says(changes, meaning):
    config = read(PYTHIA_14B, **changes)
    assert {field: getattr(config, field) for field in meaning} == meaning
    assert read(write(config)) == config


@pytest.mark.parametrize("rotated", range(2, 97, 2))
def test_every_rotated_share_is_written_so_that_rounding_down_gives_it_back(rotated):
    config = read(PYTHIA_14B, hidden_size=1536).replace(rotary_dim=rotated)  # heads of 96
    written = write(config)
    assert int(96 * written["rotary_pct"]) == rotated
    assert written["rope_parameters"]["partial_rotary_factor"] == written["rotary_pct"]


@pytest.mark.parametrize(
    ("changes", "meaning"),
    [
        ({"enable_bias": False}, {"attention_bias": False, "attention_output_bias": False, "mlp_bias": False}),
        ({"activation_function": "gelu"}, {"activation": "gelu"}),
        ({"_remove_final_layer_norm": True}, {"final_norm": False, "block": "pre_norm"}),
        ({"word_embed_proj_dim": DELETE}, {"embedding_width": None}),
        ({"word_embed_proj_dim": 512}, {"embedding_width": 512, "block": "pre_norm"}),
        ({"tie_word_embeddings": False}, {"tied_embeddings": False}),
        ({"learned_embeddings": True, "scale_embeddings": False}, {"position": "learned", "embedding_scale": None}),
    ],
)
def test_what_opt_says(changes, meaning):
    config = read(OPT_125M, **changes)
    assert {field: getattr(config, field) for field in meaning} == meaning
    assert read(write(config)) == config


@pytest.mark.parametrize(
    ("fields", "changes", "message"),
    [
        (GPT2, {"n_head": 7}, r"n_head = 7 does not divide n_embd = 768"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = true is not implemented"),
        (PYTHIA_14B, {"num_attention_heads": 7}, "num_attention_heads = 7 does not divide hidden_size = 2048"),
        (PYTHIA_14B, {"hidden_act": "mish"}, "hidden_act = 'mish' is not implemented"),
        (PYTHIA_14B, {"rotary_pct": 1.5}, "rotary_pct = 1.5 is more than a whole head"),
        (PYTHIA_14B, {"rotary_pct": "half"}, "must be a positive number, is 'half'"),
        (PYTHIA_14B, {"rotary_pct": 0.26}, "rotary_dim: rotary positions need an even size"),  # 33.28
        (PYTHIA_14B, {"use_qk_norm": True}, "field 'use_qk_norm' = true is unknown"),
        (PYTHIA_14B, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type = 'dynamic'"),
        (
            PYTHIA_14B, {"rope_parameters": {"rope_theta": 500}},
            "rotary_emb_base = 10000 contradicts rope_parameters.rope_theta = 500",
        ),
        (
            PYTHIA_14B, {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "rotary_pct = 0.25 contradicts rope_parameters.partial_rotary_factor = 0.5",
        ),
        (PYTHIA_14B, {"partial_rotary_factor": 1.0}, "rotary_pct = 0.25 contradicts partial_rotary_factor = 1.0"),
        (GPTJ_6B, {"rotary": False}, "rotary = false is not implemented"),
        (GPTJ_6B, {"rotary_dim": None}, "'rotary_dim' must be a positive integer, is None"),
        (GPTJ_6B, {"rotary_dim": 63}, "rotary_dim: rotary positions need an even size"),
        (GPTJ_6B, {"rotary_dim": 258}, "rotary_dim: rotary positions need an even size up to a head's"),
        (GPTJ_6B, {"scale_attn_weights": False}, "scale_attn_weights = false is not implemented"),
        (GPTJ_6B, {"n_head": 15}, "n_head = 15 does not divide n_embd = 4096"),
        (GPTJ_6B, {"n_head": DELETE}, "'n_head' is missing"),
        (OPT_125M, {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine = false is not"),
        (OPT_125M, {"learned_embeddings": False}, "learned_embeddings = false is not implemented"),
        (OPT_125M, {"scale_embeddings": True}, "field 'scale_embeddings' = true is unknown"),
        (OPT_125M, {"word_embed_proj_dim": 0}, "'word_embed_proj_dim' must be a positive integer"),
        (OPT_125M, {"num_attention_heads": 7}, "num_attention_heads = 7 does not divide hidden_size = 768"),
    ],
)  # fmt: skip
def test_what_is_not_implemented_is_named(fields, changes, message):
    with pytest.raises(InputError, match=message) as error:
        read(fields, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "change"),
    [
        (GPT2, {"block": "parallel"}),
        (GPT2, {"windows": (4,)}),
        (GPT2, {"attention_output_bias": False}),
        (PYTHIA_14B, {"block": "post_norm"}),
        (PYTHIA_14B, {"mlp_bias": False}),
        (PYTHIA_14B, {"attention_output_bias": False}),
        (PYTHIA_14B, {"kv_heads": 4}),
        (PYTHIA_14B, {"final_norm": False}),
        (PYTHIA_14B, {"logit_soft_cap": 30.0}),
        (GPTJ_6B, {"rope_theta": 500.0}),
        (GPTJ_6B, {"unembedding_bias": False}),
        (GPTJ_6B, {"attention_bias": True}),
        (GPTJ_6B, {"gated_mlp": True}),
        (OPT_125M, {"position_offset": 0}),
        (OPT_125M, {"norm_epsilon": 1e-6}),
        (OPT_125M, {"attention_scale": 1.0}),
        (OPT_350M, {"final_norm": True}),
    ],
)
def test_a_model_that_no_folder_can_hold(fields, change):
    config = read(fields).replace(**change)
    with pytest.raises(InputError, match=f"a {config.family} folder cannot hold ModelConfig.{next(iter(change))}"):
        FAMILIES[config.family].write_config(config)


def test_a_rope_theta_that_no_learned_position_reads_is_no_obstacle():
    config = read(OPT_125M)
    assert FAMILIES["opt"].write_config(config.replace(rope_theta=5.0)) == FAMILIES["opt"].write_config(config)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gptj", "opt"])
def test_a_family_s_tensors_hold_every_number_once(family):
    # Numbered tensors in, leaves out: nothing lost, nothing twice, and the same tensors back.
    for fields, _ in PUBLISHED.values():
        if fields["model_type"] != family:
            continue
        config = read(_small(fields))
        for weight in FAMILIES[family].weights(config):
            numbers = np.arange(np.prod(weight.shape)).reshape(weight.shape)
            parts = weight.split(numbers)
            assert len(parts) == len(weight.leaves)
            assert sorted(np.concatenate([part.ravel() for part in parts])) == list(range(numbers.size)), weight.name
            np.testing.assert_array_equal(weight.join(parts), numbers, err_msg=weight.name)


def test_gptj_pairs_neighbours_and_we_pair_halves():
    config = read(_small(GPTJ_6B), rotary_dim=4)  # heads of 6: the last two are not rotated
    (query,) = [w for w in FAMILIES["gptj"].weights(config) if w.leaves == (("query", "kernel"),)]
    rows = np.broadcast_to(np.arange(config.width)[:, None], query.shape)  # every number says its row
    (leaf,) = query.split(rows)
    assert leaf.shape == (12, 2, 6)
    np.testing.assert_array_equal(leaf[0], [[0, 2, 1, 3, 4, 5], [6, 8, 7, 9, 10, 11]])


def _small(fields):
    """The same model with twelve dimensions and two heads."""
    sizes = {
        "gpt2": {"n_embd": 12, "n_head": 2, "n_layer": 1, "vocab_size": 5, "n_positions": 4},
        "gptj": {"n_embd": 12, "n_head": 2, "n_layer": 1, "vocab_size": 5, "n_positions": 4, "rotary_dim": 4},
        "gpt_neox": {
            "hidden_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 5,
            "intermediate_size": 7, "rotary_pct": 1.0, "rope_parameters": None,
        },
        "opt": {
            "hidden_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 5, "ffn_dim": 7,
            "max_position_embeddings": 4, "word_embed_proj_dim": 12 if fields.get("do_layer_norm_before") else 8,
        },
    }  # fmt: skip
    return {**fields, **sizes[fields["model_type"]]}
