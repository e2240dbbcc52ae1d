"""An exported reward model in transformers: its scores are ours before the stored mean and scale are taken off."""

import copy

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from jaxalign import models
from jaxalign.recipes._raters import load_text_reward
from tests.recipes import toy
from tests.tolerances import PARITY_LOGITS

TEXTS = [" the film was good", " the plot was bad but it was fun to watch", " the fun"]


@pytest.mark.parametrize("pads_with_eos", [False, True])
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_the_exported_scores_are_ours_and_the_stored_shift(shape, pads_with_eos, tmp_path):
    config, params = models.add_score_head(toy.SHAPES[shape], toy.params(shape), jax.random.key(2))
    tokenizer = copy.deepcopy(toy.tokenizer())
    if pads_with_eos:
        tokenizer.pad_token = tokenizer.eos_token
    models.save_reward_model(tmp_path, models.RewardModel(config, params, mean=0.7, std=1.9), tokenizer)

    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    endings = [text + their_tokenizer.eos_token for text in TEXTS]
    inputs = their_tokenizer(endings, padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = theirs(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, 0].numpy()

    model = models.load_reward_model(tmp_path)
    ours = []
    for text in endings:
        ids = np.asarray([toy.tokenizer()(text)["input_ids"]])
        assert ids[0, -1] == toy.tokenizer().eos_token_id
        hidden = models.apply(model.config, model.params, ids)
        ours.append(float(models.score(model.config, model.params, hidden[0, -1])[0]))
    np.testing.assert_allclose(ours, scores, rtol=PARITY_LOGITS, atol=PARITY_LOGITS * np.abs(scores).max())
    assert np.ptp(scores) > 0.05

    reward = load_text_reward(str(tmp_path))
    found = reward([text[:4] for text in TEXTS], [text[4:] for text in TEXTS])
    np.testing.assert_allclose(found, (np.asarray(ours) - 0.7) / 1.9, rtol=1e-4, atol=1e-5)
