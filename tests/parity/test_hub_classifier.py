"""The foreign sentiment classifier as a text reward: torch's own numbers from the same folder, one text at a time."""

import numpy as np
import pytest
import torch
import transformers

from jaxalign.sampling import classifier_reward
from tests.tiny_sentiment import POSITIONS, reviews, save_classifier, tokenizer
from tests.tolerances import PARITY_LOGITS

TEXTS = ["a wonderful film", "dreadful", "", "a <pad> film<pad>", *(row["text"] for row in reviews(5))]


def by_torch(folder, texts):
    """Each text on its own, no padding: logits, cut to the model's positions."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        with torch.no_grad():
            row = tokens(text, return_tensors="pt", truncation=True, max_length=POSITIONS)
            rows.append(model(**row).logits[0].double().numpy())
    return np.stack(rows)


def test_scores_are_torch_s_own(tmp_path):
    folder = save_classifier(tmp_path)
    long = " ".join(row["text"] for row in reviews(5))
    reward = classifier_reward(folder, label="positive", batch_size=4, truncation="keep_start")
    scores = reward.score([*TEXTS, long])
    logits = by_torch(folder, [*TEXTS, long])
    expected = logits[:, 1] - logits[:, 0]
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(scores, expected, rtol=0, atol=PARITY_LOGITS * np.max(np.abs(logits)))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_decoder_with_a_score_head(kind, tmp_path):
    torch.manual_seed(0)
    special = {"vocab_size": 320, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "num_labels": 1}
    if kind == "llama":
        theirs = transformers.LlamaForSequenceClassification(
            transformers.LlamaConfig(
                **special, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                max_position_embeddings=POSITIONS, initializer_range=0.3,
            )
        )  # fmt: skip
    else:
        theirs = transformers.GPT2ForSequenceClassification(
            transformers.GPT2Config(
                **special, n_embd=16, n_layer=2, n_head=2, n_positions=POSITIONS, initializer_range=0.3
            )
        )
    theirs.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    # A padding token inside a text would be taken for padding by transformers.
    texts = [text for text in TEXTS if "<pad>" not in text]
    scores = classifier_reward(tmp_path, batch_size=4, truncation="keep_start")(texts, [""] * len(texts))
    expected = by_torch(tmp_path, texts)[:, 0]
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(scores, expected, rtol=0, atol=PARITY_LOGITS * np.max(np.abs(expected)))
