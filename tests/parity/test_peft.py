"""Live parity with PEFT: it computes with our adapters what we do, and we with its, for every family."""

import copy
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file

from jaxalign import models
from jaxalign.errors import InputError
from tests.models.tiny import relative_error
from tests.parity.cases import CASES, LENGTH, VOCABULARY, build
from tests.tolerances import PARITY_LOGITS

FAMILIES = list(CASES)
TOKENS = np.random.default_rng(0).integers(1, VOCABULARY, (2, LENGTH))
LOGITS = jax.jit(models.logits, static_argnums=0)


@dataclasses.dataclass
class Base:
    theirs: torch.nn.Module
    config: models.ModelConfig
    params: dict

    def their_logits(self, folder: Path) -> np.ndarray:
        """Of the base under the adapter of a folder, as PEFT loads it."""
        adapted = peft.PeftModel.from_pretrained(copy.deepcopy(self.theirs), folder).eval()
        return torch_logits(adapted)


def torch_logits(model) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits.numpy()


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    found: dict[str, Base] = {}

    def base(family: str) -> Base:
        if family not in found:
            theirs = build(family, next(iter(CASES[family])))
            folder = tmp_path_factory.mktemp(family)
            theirs.save_pretrained(folder)
            found[family] = Base(theirs, *models.load_pretrained(folder))
        return found[family]

    return base


def random_adapter(config: models.ModelConfig, dtype=jnp.float32):
    """An adapter well away from zero, every number its own."""
    tree = models.init_lora(config, jax.random.key(0))
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return structure.unflatten(
        [
            (leaf + 0.1 * jax.random.normal(key, leaf.shape)).astype(dtype)
            for leaf, key in zip(leaves, keys, strict=True)
        ]
    )


def their_adapter(base: Base, folder: Path, **fields) -> Path:
    """An adapter that PEFT made, B random too, written by PEFT."""
    torch.manual_seed(1)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 6, "target_modules": "all-linear"} | fields
    )
    model = peft.get_peft_model(copy.deepcopy(base.theirs), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def assert_agree(base: Base, folder: Path, config: models.ModelConfig, tree) -> None:
    """Ours and PEFT's logits, adapted; and the adapter does something."""
    ours = LOGITS(config, models.combine(tree, base.params), TOKENS)
    theirs = base.their_logits(folder)
    assert relative_error(ours, theirs) <= PARITY_LOGITS
    assert relative_error(theirs, torch_logits(base.theirs)) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rank_stabilised", [False, True], ids=["lora", "rslora"])
def test_peft_loads_ours_and_agrees(bases, family, rank_stabilised, tmp_path):
    base = bases(family)
    config = base.config.replace(lora=models.LoRA(rank=3, alpha=5.0, rank_stabilised=rank_stabilised))
    tree = random_adapter(config)
    models.save_adapter(tmp_path, config, tree, base_name="somewhere/base")
    assert_agree(base, tmp_path, config, tree)
    # And back, bit for bit.
    again, found = models.load_adapter(tmp_path, base.config)
    assert dataclasses.replace(again.lora, targets=(".*",)) == config.lora
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, found, tree)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("use_rslora", [False, True], ids=["lora", "rslora"])
def test_we_load_pefts_and_agree(bases, family, use_rslora, tmp_path):
    base = bases(family)
    their_adapter(base, tmp_path / "theirs", use_rslora=use_rslora)
    config, tree = models.load_adapter(tmp_path / "theirs", base.config)
    assert config.lora.rank_stabilised == use_rslora
    assert_agree(base, tmp_path / "theirs", config, tree)
    # And back, bit for bit: a fused module keeps its one A.
    models.save_adapter(tmp_path / "ours", config, tree)
    ours, theirs = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


# Fused by thirds, fused by head, two of a fused three, gate and up fused, not fused.
SOME = {
    "gpt2": ("query|value", "down"), "gpt_neox": ("key",), "phi3": ("query|key", "up"), "llama": ("query", "gate"),
}  # fmt: skip


@pytest.mark.parametrize("family", SOME)
def test_some_parts_above_the_first_layer(bases, family, tmp_path):
    base = bases(family)
    config, params = models.restack(base.config, base.params, (1, base.config.layers - 1))
    config = config.replace(lora=models.LoRA(rank=2, alpha=3.0, targets=SOME[family], first_layer=1))
    tree = random_adapter(config)
    assert set(tree["stacks"]) == {"1"}
    models.save_adapter(tmp_path, config, tree)
    assert_agree(Base(base.theirs, config, params), tmp_path, config, tree)
    again, found = models.load_adapter(tmp_path, config.replace(lora=None))
    assert again.lora.first_layer == 1
    jax.tree.map(np.testing.assert_array_equal, found, tree)
    # In a model of one stack the layers without an adapter get zeros.
    whole_config, whole = models.load_adapter(tmp_path, base.config)
    assert_agree(base, tmp_path, whole_config, whole)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"target_modules": ["q_proj", "v_proj"]}),
        ("llama", {"target_modules": r".*\.1\.mlp\.(gate|up)_proj"}),
        ("llama", {"layers_to_transform": [0, 2], "target_modules": ["k_proj", "down_proj"]}),
        ("llama", {"layers_to_transform": 1, "layers_pattern": "layers", "target_modules": ["o_proj"]}),
        ("llama", {"exclude_modules": ["q_proj"]}),
        ("llama", {
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}, "alpha_pattern": {"q_proj": 9, "down_proj": 1.5},
        }),
        ("llama", {"init_lora_weights": "orthogonal"}),
        ("gpt2", {"target_modules": ["c_attn"], "rank_pattern": {"c_attn": 8}, "use_rslora": True}),
        ("gpt_neox", {"rank_pattern": {"query_key_value": 12}, "alpha_pattern": {"query_key_value": 18}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)  # fmt: skip
def test_what_else_peft_can_say(bases, family, fields, tmp_path):
    base = bases(family)
    their_adapter(base, tmp_path / "theirs", **fields)
    config, tree = models.load_adapter(tmp_path / "theirs", base.config)
    assert_agree(base, tmp_path / "theirs", config, tree)
    models.save_adapter(tmp_path / "ours", config, tree)
    assert_agree(base, tmp_path / "ours", config, tree)


def test_bfloat16_adapters_keep_every_bit(bases, tmp_path):
    base = bases("gpt2")
    config = base.config.replace(lora=models.LoRA(rank=2, alpha=4))
    tree = random_adapter(config, jnp.bfloat16)
    models.save_adapter(tmp_path, config, tree)
    _, found = models.load_adapter(tmp_path, base.config)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
    jax.tree.map(np.testing.assert_array_equal, found, tree)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "use_dora = true is not implemented"),
        ({"bias": "all"}, 'bias = "all" is not implemented'),
        ({"modules_to_save": ["lm_head"]}, r'modules_to_save = \["lm_head"\] is not implemented'),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights = "pissa" is not implemented: .* convert it with PEFT'),
        ({"lora_bias": True}, "lora_bias = true is not implemented"),
        ({"target_modules": ["embed_tokens"]}, "tensor .*embed_tokens.* adapts nothing that can be adapted here"),
        ({"target_modules": ["lm_head", "q_proj"]}, "tensor .*lm_head.* adapts nothing that can be adapted here"),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices = \[1\] is not implemented"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)  # fmt: skip
def test_what_is_not_implemented_is_refused_by_name(bases, fields, message, tmp_path):
    base = bases("llama")
    their_adapter(base, tmp_path, **fields)
    with pytest.raises(InputError, match=message):
        models.load_adapter(tmp_path, base.config)


def test_a_new_adapter_has_pefts_distribution(bases):
    """A's numbers are uniform up to the bound that PEFT's have; B is zero."""
    base = bases("gpt2")
    model = peft.get_peft_model(copy.deepcopy(base.theirs), peft.LoraConfig(r=64, target_modules=["c_fc", "c_proj"]))
    theirs = dict(model.named_parameters())
    ours = models.init_lora(base.config.replace(lora=models.LoRA(rank=64, alpha=1)), jax.random.key(0))["stacks"]["0"]
    prefix = "base_model.model.transformer.h.0."
    for part, name in (("up", "mlp.c_fc"), ("down", "mlp.c_proj"), ("output", "attn.c_proj")):
        theirs_a = theirs[f"{prefix}{name}.lora_A.default.weight"].detach().numpy()
        ours_a = np.asarray(ours[part]["lora_a"])
        bound = 1 / np.sqrt(theirs_a.shape[1])
        for found in (theirs_a, ours_a):
            assert 0.99 * bound < np.abs(found).max() <= bound
            assert np.std(found) == pytest.approx(bound / np.sqrt(3), rel=0.03)
        assert not np.any(ours[part]["lora_b"])
