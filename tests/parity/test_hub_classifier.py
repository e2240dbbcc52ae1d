"""The foreign sentiment classifier as a text reward: torch's own numbers, labels by name, nothing random or pickled."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from experiments.assets.hub import ClassifierReward
from jaxalign.errors import InputError
from tests.parity.tiny_sentiment import POSITIONS, reviews, save_classifier
from tests.tolerances import FLOAT32

TEXTS = ["a wonderful film", "dreadful", "", *(row["text"] for row in reviews(5))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("classifier"))


def by_torch(folder, text):
    """One text on its own, no padding: logits, cut to the model's positions."""
    model = transformers.RobertaForSequenceClassification.from_pretrained(folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        text, return_tensors="pt", truncation=True, max_length=POSITIONS
    )
    with torch.no_grad():
        return model(**tokens).logits[0].double().numpy()


def assert_same(scores, expected):
    np.testing.assert_allclose(scores, expected, rtol=0, atol=FLOAT32 * np.max(np.abs(expected)))


def test_scores_are_torch_s_own(folder):
    reward = ClassifierReward(folder)
    scores = reward.log_odds(TEXTS)
    assert scores.dtype == np.float64
    assert scores.shape == (len(TEXTS),)
    expected = [logits[1] - logits[0] for logits in (by_torch(folder, text) for text in TEXTS)]
    assert np.ptp(expected) > 0.1
    assert_same(scores, expected)
    assert reward.name == folder
    assert reward.log_odds([]).shape == (0,)


def test_prompt_and_completion_are_joined(folder):
    reward = ClassifierReward(folder)
    np.testing.assert_array_equal(
        reward(["a film", "dull"], [" so moving", ""]), reward.log_odds(["a film so moving", "dull"])
    )
    with pytest.raises(ValueError, match="zip"):
        reward(["a film"], [])


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batch_size_changes_nothing(folder, batch_size):
    expected = ClassifierReward(folder, batch_size=2).log_odds(TEXTS)
    assert_same(ClassifierReward(folder, batch_size=batch_size).log_odds(TEXTS), expected)


def test_long_texts_are_cut_to_the_positions(folder):
    reward = ClassifierReward(folder)
    long = " ".join(row["text"] for row in reviews(5))
    assert len(reward._tokenizer(long)["input_ids"]) > 10 * POSITIONS
    logits = by_torch(folder, long)
    assert_same(reward.log_odds([long, "short"])[:1], [logits[1] - logits[0]])


def test_a_label_is_found_by_its_name(folder, tmp_path):
    expected = ClassifierReward(folder).log_odds(TEXTS)
    turned = save_classifier(tmp_path / "turned", labels=("pos", "neg"))
    np.testing.assert_array_equal(ClassifierReward(turned).log_odds(TEXTS), -expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("LABEL_0", "LABEL_1"), "{0: 'LABEL_0', 1: 'LABEL_1'}"),
        (("negative", "neutral", "positive"), "2: 'positive'"),
        (("positive", "POSITIVE"), "'POSITIVE'"),
    ],
)
def test_labels_that_do_not_tell_are_refused(tmp_path, labels, message):
    with pytest.raises(InputError, match="cannot tell which label is positive") as caught:
        ClassifierReward(save_classifier(tmp_path, labels))
    assert message in str(caught.value)


def test_an_untrained_head_is_refused(tmp_path):
    """The body of a classifier without its head: transformers fills in a random one."""
    folder = save_classifier(tmp_path)
    config = (tmp_path / "config.json").read_text()
    transformers.RobertaModel.from_pretrained(folder).save_pretrained(folder)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match=r"not a trained classifier: .* missing, first 'classifier"):
        ClassifierReward(folder)


def test_pickled_weights_and_other_folders_are_refused(tmp_path):
    folder = save_classifier(tmp_path / "pickled")
    state = transformers.RobertaForSequenceClassification.from_pretrained(folder).state_dict()
    torch.save(state, Path(folder) / "pytorch_model.bin")
    (Path(folder) / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no classifier that can be read"):
        ClassifierReward(folder)
    with pytest.raises(InputError, match="no tokenizer that can be read"):
        ClassifierReward(str(tmp_path / "nothing"))


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    folder = save_classifier(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(InputError):
        ClassifierReward(folder)
    assert not (tmp_path / "ran").exists()
