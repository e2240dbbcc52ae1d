"""Families of Llama's shape: config.json of published models in and out, and one clear line for what is refused."""

import json
import math

import pytest

from jaxalign.errors import InputError
from jaxalign.models import ModelConfig
from jaxalign.models._json import thaw
from jaxalign.models._rope import RopeScaling
from jaxalign.models.families import FAMILIES
from tests.models.families.published import (
    GEMMA_2_2B,
    GEMMA_3_1B,
    GEMMA_3_1B_AS_TRANSFORMERS_5_SAVES_IT,
    LLAMA_2_7B,
    LLAMA_32_1B,
    MISTRAL_7B_V01,
    PHI_3_MINI_4K,
    PHI_3_MINI_128K,
    PUBLISHED,
    QWEN3_06B,
    QWEN25_05B,
)

DELETE = object()


def read(fields, **changes):
    fields = {name: value for name, value in {**fields, **changes}.items() if value is not DELETE}
    return FAMILIES[fields["model_type"]].read_config(json.loads(json.dumps(fields)), "config.json")


def write(config):
    """config.json as it is saved."""
    extra = {name: thaw(value) for name, value in config.extra}
    family = FAMILIES[config.family]
    return json.loads(json.dumps({**extra, **family.write_config(config), "model_type": family.model_type}))


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
    # Facts about the file; flags at the only value there is; rope_parameters and layer_types are written besides.
    dropped = {
        "_name_or_path", "architectures", "torch_dtype", "dtype", "transformers_version", "_sliding_window_pattern",
        "use_mrope", "lm_head_bias",
    }  # fmt: skip
    same = {name: value for name, value in fields.items() if name not in dropped and value not in (None, False)}
    assert {name: written.get(name) for name in same} == same


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_reads_what_is_written_as_it_reads_the_published_file(name):
    import transformers

    fields = PUBLISHED[name][0]
    of_files = {
        "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "head_dim", "use_mrope",
        "sliding_window_pattern", "lm_head_bias", "mlp_bias", "attention_bias", "rope_interleaved",
    }  # fmt: skip

    def values(source):
        config = transformers.AutoConfig.for_model(**json.loads(json.dumps(source)))
        found = {key: value for key, value in config.to_dict().items() if key not in of_files}
        found["rope_parameters"].pop("type", None)
        return found

    assert values(write(read(fields))) == values(fields)


def test_transformers_4_finds_the_scaling_where_it_looks_for_it():
    written = write(read(LLAMA_32_1B))
    assert written["rope_scaling"] == LLAMA_32_1B["rope_scaling"]
    assert written["rope_theta"] == 500000.0
    assert set(write(read(PHI_3_MINI_128K))["rope_scaling"]) == {"type", "short_factor", "long_factor"}
    assert write(read(GEMMA_3_1B))["sliding_window_pattern"] == 6
    assert write(read(GEMMA_3_1B))["rope_local_base_freq"] == 10000


def test_both_spellings_of_gemma_3_are_one_model():
    config, other = read(GEMMA_3_1B), read(GEMMA_3_1B_AS_TRANSFORMERS_5_SAVES_IT)
    assert config == other.replace(extra=config.extra)


def test_llama_3_scaling():
    assert read(LLAMA_32_1B).rope_scaling == RopeScaling(
        "llama3", 32.0, 8192, low_frequency_factor=1.0, high_frequency_factor=4.0
    )
    inside = {**LLAMA_32_1B["rope_scaling"], "rope_theta": 500000.0}
    config = read(LLAMA_32_1B, rope_scaling=DELETE, rope_theta=DELETE, rope_parameters=inside)
    assert config == read(LLAMA_32_1B)


def test_yarn_as_qwen_recommends_it():
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = read(QWEN25_05B, rope_scaling=yarn)
    assert config.rope_scaling == RopeScaling("yarn", 4.0, 32768, attention_factor=0.1 * math.log(4.0) + 1)
    assert read(write(config)) == config
    assert "attention_factor" not in write(config)["rope_scaling"]
    config = read(QWEN25_05B, rope_scaling={**yarn, "attention_factor": 0.5, "truncate": False, "beta_fast": 16})
    assert (config.rope_scaling.attention_factor, config.rope_scaling.truncate) == (0.5, False)
    assert read(write(config)) == config
    # Without the original context it is the config's; mscale and mscale_all_dim divide (DeepSeek).
    config = read(QWEN25_05B, rope_scaling={"type": "yarn", "factor": 4.0, "mscale": 2.0, "mscale_all_dim": 1.0})
    assert config.rope_scaling.original_positions == 32768
    expected = (0.2 * math.log(4.0) + 1) / (0.1 * math.log(4.0) + 1)
    assert config.rope_scaling.attention_factor == pytest.approx(expected, rel=1e-12)
    assert read(write(config)) == config


def test_longrope_keeps_what_it_does_not_use():
    config = read(PHI_3_MINI_128K)
    scaling = config.rope_scaling
    assert scaling.factors == tuple(PHI_3_MINI_128K["rope_scaling"]["short_factor"])
    assert scaling.attention_factor == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)), rel=1e-12)
    assert read(PHI_3_MINI_128K, rope_scaling={**PHI_3_MINI_128K["rope_scaling"], "type": "su"}) == config
    sharper = {**PHI_3_MINI_128K["rope_scaling"], "attention_factor": 1.5}
    assert read(write(read(PHI_3_MINI_128K, rope_scaling=sharper))).rope_scaling.attention_factor == 1.5
    with pytest.raises(InputError, match="long factors"):
        write(config.replace(extra=()))


@pytest.mark.parametrize(
    ("fields", "changes", "windows"),
    [
        (MISTRAL_7B_V01, {"sliding_window": DELETE}, (4096,)),
        (QWEN25_05B, {"use_sliding_window": True, "max_window_layers": 22}, (*[None] * 22, 32768, 32768)),
        (QWEN25_05B, {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 8}, (8,)),
        (QWEN25_05B, {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": None}, (None,)),
        (
            QWEN3_06B,
            {"use_sliding_window": True, "sliding_window": 8, "num_hidden_layers": 4,
             "layer_types": ["sliding_attention", "full_attention"] * 2},
            (8, None),
        ),
        (GEMMA_2_2B, {"num_hidden_layers": 1}, (4096,)),
        (GEMMA_3_1B, {"num_hidden_layers": 4, "sliding_window_pattern": 3}, (512, 512, None)),
        (PHI_3_MINI_4K, {"sliding_window": None}, (None,)),
    ],
)  # fmt: skip
def test_windows(fields, changes, windows):
    config = read(fields, **changes)
    assert config.layer_windows == config.replace(windows=windows).layer_windows
    if len(windows) <= config.layers:
        assert config.windows == windows
    assert read(write(config)) == config


def refused(parts, fields, **changes):
    with pytest.raises(InputError) as error:
        read(fields, **changes)
    message = str(error.value)
    assert "\n" not in message
    assert "config.json" in message
    for part in parts:
        assert part in message


LLAMA3 = LLAMA_32_1B["rope_scaling"]
YARN = {"rope_type": "yarn", "factor": 4.0}
LONG = PHI_3_MINI_128K["rope_scaling"]


@pytest.mark.parametrize(
    ("fields", "changes", "parts"),
    [
        (LLAMA_2_7B, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ("rope_scaling.rope_type", "'dynamic'")),
        (LLAMA_2_7B, {"rope_scaling": {"type": "linear"}}, ("rope_scaling.factor", "positive number", "None")),
        (LLAMA_2_7B, {"rope_scaling": {"type": "linear", "factor": -1}}, ("rope_scaling.factor", "-1")),
        (LLAMA_2_7B, {"rope_scaling": {"type": "linear", "factor": 2, "beta": 1}}, ("rope_scaling.beta",)),
        (LLAMA_2_7B, {"rope_scaling": 2.0}, ("rope_scaling", "object")),
        (LLAMA_2_7B, {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2}}, ("type", "contradicts")),
        (LLAMA_2_7B, {"rope_theta": "big"}, ("rope_theta", "'big'")),
        (LLAMA_2_7B, {"partial_rotary_factor": 0.5}, ("partial_rotary_factor", "0.5")),
        (LLAMA_2_7B, {"rope_parameters": {"partial_rotary_factor": 0.5}}, ("partial_rotary_factor",)),
        (LLAMA_2_7B, {"num_attention_heads": 31}, ("31", "4096")),
        (LLAMA_2_7B, {"no_rope_layers": [1, 1, 0]}, ("'no_rope_layers'", "unknown")),
        (LLAMA_2_7B, {"sliding_window": 128}, ("sliding_window = 128",)),
        (LLAMA_2_7B, {"quantization_config": {"bits": 4}}, ("quantization_config",)),
        (LLAMA_2_7B, {"rms_norm_eps": 0}, ("rms_norm_eps",)),
        (LLAMA_32_1B, {"rope_parameters": {"rope_theta": 3.0, **LLAMA3}}, ("rope_theta", "contradicts", "3.0")),
        (LLAMA_32_1B, {"rope_parameters": {"rope_type": "default"}}, ("rope_scaling contradicts rope_parameters",)),
        (LLAMA_32_1B, {"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, ("rope_scaling.low_freq_factor",)),
        (LLAMA_32_1B, {"rope_scaling": LONG}, ("'longrope'",)),
        (MISTRAL_7B_V01, {"sliding_window": 0}, ("sliding_window",)),
        (MISTRAL_7B_V01, {"layer_types": ["full_attention"] * 32}, ("'layer_types'",)),
        (QWEN25_05B, {"dual_chunk_attention_config": {"chunk_size": 8}}, ("'dual_chunk_attention_config'",)),
        (QWEN25_05B, {"layer_types": ["sliding_attention"] * 24}, ("layer_types", "sliding_window")),
        (QWEN25_05B, {"layer_types": ["full_attention"] * 3}, ("layer_types", "24")),
        (QWEN25_05B, {"layer_types": ["linear_attention"] * 24}, ("layer_types",)),
        (QWEN25_05B, {"attention_bias": True}, ("'attention_bias'",)),
        (GEMMA_2_2B, {"use_bidirectional_attention": True}, ("use_bidirectional_attention",)),
        (GEMMA_2_2B, {"hidden_activation": "mish"}, ("hidden_activation", "'mish'")),
        (GEMMA_2_2B, {"query_pre_attn_scalar": None}, ("query_pre_attn_scalar",)),
        (GEMMA_2_2B, {"attn_logit_softcapping": 0}, ("attn_logit_softcapping",)),
        (GEMMA_3_1B, {"attn_logit_softcapping": 50.0}, ("attn_logit_softcapping = 50.0",)),
        (GEMMA_3_1B, {"rope_parameters": {"rope_theta": 1e6}}, ("rope_parameters", "full_attention")),
        (GEMMA_3_1B, {"rope_parameters": {"sliding_attention": YARN}}, ("rope_parameters.sliding_attention", "yarn")),
        (GEMMA_3_1B, {"rope_parameters": {"full_attention": {"rope_theta": 5}}}, ("full_attention.rope_theta = 5",)),
        (GEMMA_3_1B, {"layer_types": ["full_attention"] * 26}, ("layer_types", "sliding_window_pattern = 6")),
        (PHI_3_MINI_4K, {"rope_scaling": YARN}, ("'yarn'",)),
        (PHI_3_MINI_4K, {"head_dim": 64}, ("head_dim = 64", "96")),
        (PHI_3_MINI_128K, {"rope_scaling": {**LONG, "short_factor": [1.0]}}, ("short_factor", "48")),
        (PHI_3_MINI_128K, {"rope_scaling": {**LONG, "long_factor": "x"}}, ("rope_scaling.long_factor",)),
        (
            PHI_3_MINI_128K,
            {"rope_scaling": {**LONG, "original_max_position_embeddings": 8192}},
            ("original_max_position_embeddings", "4096", "8192", "contradicts"),
        ),
        (PHI_3_MINI_4K, {"full_attn_mod": 2}, ("full_attn_mod = 2",)),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(fields, changes, parts):
    refused(parts, fields, **changes)


@pytest.mark.parametrize(
    ("fields", "changes", "field"),
    [
        (LLAMA_2_7B, {"attention_bias": True}, "attention"),  # without the output's
        (LLAMA_2_7B, {"windows": (4,)}, "windows"),
        (LLAMA_2_7B, {"rotary_dim": 64}, "rotary_dim"),
        (LLAMA_2_7B, {"logit_soft_cap": 3.0}, "logit_soft_cap"),
        (LLAMA_2_7B, {"block": "sandwich_norm"}, "block"),
        (LLAMA_2_7B, {"rope_scaling": RopeScaling("longrope", 1.0, 16, factors=(1.0,) * 64)}, "rope_scaling"),
        (MISTRAL_7B_V01, {"windows": (4, None)}, "windows"),
        (MISTRAL_7B_V01, {"qk_norm": True}, "qk_norm"),
        (QWEN25_05B, {"attention_bias": False}, "attention_bias"),
        (QWEN25_05B, {"windows": (4, 8)}, "windows"),
        (QWEN3_06B, {"qk_norm": False}, "qk_norm"),
        (GEMMA_2_2B, {"attention_scale": 0.3}, "attention_scale"),
        (GEMMA_2_2B, {"embedding_scale": None}, "embedding_scale"),
        (GEMMA_2_2B, {"local_rope_theta": 5.0}, "local_rope_theta"),
        (GEMMA_3_1B, {"local_rope_theta": None}, "local_rope_theta"),
        (GEMMA_3_1B, {"attention_soft_cap": 5.0}, "attention_soft_cap"),
        (PHI_3_MINI_4K, {"mlp_bias": True}, "mlp_bias"),
        (PHI_3_MINI_4K, {"rope_scaling": RopeScaling("linear", 2.0)}, "rope_scaling"),
    ],
)
def test_a_model_that_no_folder_can_hold(fields, changes, field):
    with pytest.raises(InputError, match=f"ModelConfig.{field}"):
        write(read(fields).replace(**changes))


def test_a_model_without_a_folder_behind_it_is_written():
    config = ModelConfig(
        family="qwen2", vocab_size=8, width=8, layers=3, heads=2, kv_heads=1, head_dim=6, mlp_width=8,
        max_positions=16, attention_bias=True, windows=(None, 4), rope_scaling=RopeScaling("linear", 2.0),
    )  # fmt: skip
    assert read(write(config)).replace(extra=()) == config


def test_tables_name_every_leaf_once():
    for fields, _ in PUBLISHED.values():
        config = read(fields)
        table = FAMILIES[config.family].weights(config)
        leaves = [leaf for weight in table for leaf in weight.leaves]
        assert len(set(leaves)) == len(leaves)
        assert len({weight.name for weight in table}) == len(table)
        classifier = FAMILIES[config.family].weights(config.replace(labels=2))
        assert {weight.name for weight in classifier} ^ {weight.name for weight in table} <= {
            "score.weight", "lm_head.weight",
        }  # fmt: skip
