"""A classifier as a text reward: log-odds of a label by name, texts in buckets, long ones by a named policy."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxalign import data, models
from jaxalign.errors import InputError
from jaxalign.sampling import ClassifierReward, _classifier, classifier_reward, score_texts
from tests.models.tiny import LLAMA, uncompiled_params
from tests.tiny_sentiment import POSITIONS, reviews, save_classifier, tokenizer
from tests.tolerances import FLOAT32

TEXTS = ["a wonderful film", "dreadful", "", *(row["text"][: 40 + 3 * index] for index, row in enumerate(reviews(5)))]
LONG = " ".join(row["text"] for row in reviews(5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def reward(folder):
    return classifier_reward(folder, label="positive", batch_size=4)


def alone(config, params, rows):
    """Logits of rows of ids, each its own batch, in one shape; float64 ``[N, labels]``."""
    width = max(map(len, rows))
    padded = np.asarray([row + [0] * (width - len(row)) for row in rows])
    mask = np.arange(width) < np.asarray([[len(row)] for row in rows])
    run = jax.jit(models.classify, static_argnames="config")
    each = [run(config, params, padded[i : i + 1], mask[i : i + 1])[0] for i in range(len(rows))]
    return np.asarray(each, np.float64)


def logits(folder, texts, cut=None):
    """Each text's on its own, float64 ``[N, labels]``; or those of ids that are given."""
    tokens = data.load_tokenizer(folder)
    rows = [tokens(text)["input_ids"] for text in texts] if cut is None else [cut]
    return alone(*models.load_classifier(folder), rows)


def assert_same(scores, expected):
    np.testing.assert_allclose(scores, expected, rtol=0, atol=FLOAT32 * np.max(np.abs(expected)))


def test_two_labels_give_the_difference_of_their_logits(folder, reward):
    scores = reward.score(TEXTS)
    assert (scores.dtype, scores.shape) == (np.float64, (len(TEXTS),))
    expected = logits(folder, TEXTS)
    assert np.ptp(expected[:, 1] - expected[:, 0]) > 0.1
    assert_same(scores, expected[:, 1] - expected[:, 0])
    assert reward.name == folder
    assert reward.truncated == 0
    assert reward.score([]).shape == (0,)


def test_it_is_a_text_reward(reward):
    scores = score_texts(reward, ["a film", "dull"], [" so moving", ""])
    np.testing.assert_array_equal(scores, reward.score(["a film so moving", "dull"]))
    with pytest.raises(InputError, match="1 prompts but 0 completions"):
        reward(["a film"], [])
    with pytest.raises(InputError, match="completion 1 must be strings"):
        reward(["a film", [{"role": "user", "content": "a film"}]], ["", ""])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_and_order_change_nothing(folder, reward, batch_size):
    expected = reward.score(TEXTS)
    other = classifier_reward(folder, label="POSITIVE", batch_size=batch_size)
    assert_same(other.score(TEXTS), expected)
    assert_same(other.score(TEXTS[::-1]), expected[::-1])


def test_few_shapes_are_compiled(folder):
    reward = classifier_reward(folder, label="positive", batch_size=8)
    before = _classifier._classify._cache_size()
    words = [f"w{i}" for i in range(30)]
    for count in (9, 17, 20, 33, 40):
        reward.score([" ".join(words[: 1 + index % 8]) for index in range(count)])
    lengths = {len(tokenizer()(" ".join(words[: 1 + index]))["input_ids"]) for index in range(8)}
    assert len(lengths) == 8
    assert _classifier._classify._cache_size() - before <= 3  # of lengths 8, 16, 24


def test_the_label_against_the_rest(tmp_path):
    three = save_classifier(tmp_path / "three", labels=("negative", "neutral", "positive"))
    log_p = log_softmax(logits(three, TEXTS[:3]), axis=-1)
    for index, label in enumerate(("negative", "neutral", "positive")):
        log_rest = np.log(-np.expm1(log_p[:, index]))
        assert_same(classifier_reward(three, label=label).score(TEXTS[:3]), log_p[:, index] - log_rest)


def test_outputs_that_stand_for_themselves(tmp_path):
    single = save_classifier(tmp_path / "single", labels=("score",))
    assert_same(classifier_reward(single).score(TEXTS[:3]), logits(single, TEXTS[:3])[:, 0])
    several = save_classifier(tmp_path / "several", problem_type="multi_label_classification")
    assert_same(classifier_reward(several, label="POSITIVE").score(TEXTS[:3]), logits(several, TEXTS[:3])[:, 1])


def test_several_names_for_a_label(folder, reward):
    other = classifier_reward(folder, label=("good", "Positive"), batch_size=4)
    np.testing.assert_array_equal(other.score(TEXTS[:2]), reward.score(TEXTS[:2]))


@pytest.mark.parametrize(
    ("labels", "label", "message"),
    [
        (("LABEL_0", "LABEL_1"), "positive", "label: none of .*0: 'LABEL_0', 1: 'LABEL_1'.* is called 'positive'"),
        (("positive", "POSITIVE"), "positive", "label: 2 of .* are called 'positive'"),
        (("positive", "pos"), ("positive", "pos"), "label: 2 of .* called 'positive' or 'pos'"),
        (("bad", "good"), None, "label: say which one of {0: 'bad', 1: 'good'} is wanted"),
    ],
)
def test_labels_that_do_not_tell_are_refused(tmp_path, labels, label, message):
    with pytest.raises(InputError, match=message):
        classifier_reward(save_classifier(tmp_path, labels), label=label)


def test_long_texts(folder, reward):
    with pytest.raises(InputError, match=rf"text 1 has \d+ tokens, room is for {POSITIONS}.*keep_end"):
        reward.score(["short", LONG])
    ids = tokenizer()(LONG)["input_ids"]
    assert len(ids) > 10 * POSITIONS
    cuts = {"keep_start": [*ids[: POSITIONS - 1], ids[-1]], "keep_end": [ids[0], *ids[-POSITIONS + 1 :]]}
    found = {}
    for policy, cut in cuts.items():
        cutting = classifier_reward(folder, label="positive", truncation=policy)
        found[policy] = cutting.score(["short", LONG])
        expected = logits(folder, [], cut)[0]
        assert_same(found[policy][1:], [expected[1] - expected[0]])
        assert cutting.truncated == 1
        assert_same(found[policy][0], reward.score(["short"])[0])
    assert abs(found["keep_start"][1] - found["keep_end"][1]) > 0.01


def test_flags_and_tokenizers_that_do_not_fit(folder, tmp_path):
    with pytest.raises(InputError, match="batch_size is 0"):
        classifier_reward(folder, label="positive", batch_size=0)
    with pytest.raises(InputError, match="truncation is 'cut', must be one of error, keep_start, keep_end"):
        classifier_reward(folder, label="positive", truncation="cut")
    with pytest.raises(InputError, match="no tokenizer that can be read"):
        classifier_reward(tmp_path / "nothing", label="positive")
    small = save_classifier(tmp_path / "small", vocab_size=200)
    with pytest.raises(InputError, match=r"text 0 has token \d+, outside the model's vocabulary of 200"):
        classifier_reward(small, label="positive").score(["a wonderful film"])
    config, params = models.load_classifier(folder)
    with pytest.raises(InputError, match="1 names for the model's 2 labels"):
        ClassifierReward(config, params, tokenizer(), models.Labels(("good",), exclusive=False))


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    folder = save_classifier(tmp_path)
    path = Path(folder) / "config.json"
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.M"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(InputError):
        classifier_reward(folder, label="positive")
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def decoder():
    """A decoder with one output, in memory."""
    config = LLAMA.replace(vocab_size=320, layers=1, labels=1, max_positions=64)
    return config, uncompiled_params(config)


def test_a_decoder_with_a_score_head_reads_the_last_real_token(decoder):
    config, params = decoder
    tokens = np.random.default_rng(0).integers(0, 320, (2, 9))
    mask = np.ones((2, 9), bool)
    mask[0, 6:], mask[1, :3] = False, False
    found = jax.jit(models.classify, static_argnames="config")(config, params, tokens, mask)
    assert (found.dtype, found.shape) == (jnp.float32, (2, 1))
    rows = np.stack([tokens[0, :6], tokens[1, 3:]])
    hidden = jax.jit(models.apply, static_argnames="config")(config, params, rows)
    expected = models.score(config, params, hidden[:, -1])
    assert np.ptp(expected) > 0.1
    assert_same(found, expected)


def test_a_decoder_with_a_score_head_is_a_reward(decoder):
    config, params = decoder
    reward = ClassifierReward(config, params, tokenizer(), models.Labels(("score",), exclusive=False), batch_size=2)
    rows = [tokenizer()(text)["input_ids"] for text in TEXTS]
    assert_same(reward.score(TEXTS), alone(config, params, rows)[:, 0])


def test_a_text_without_tokens(decoder):
    config, params = decoder
    bare = tokenizer()
    bare.backend_tokenizer.post_processor = None
    reward = ClassifierReward(config, params, bare, models.Labels(("score",), exclusive=False))
    with pytest.raises(InputError, match="text 1 has no tokens"):
        reward.score(["fine", ""])


def test_configs_are_values(folder):
    config, _ = models.load_classifier(folder)
    assert config == dataclasses.replace(config)
    assert hash(config) == hash(dataclasses.replace(config))
