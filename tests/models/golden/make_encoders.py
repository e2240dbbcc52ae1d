"""Writes ``encoders/`` beside this file: tiny random encoder classifiers saved by transformers, and torch's own logits.

Needs the ``parity`` extra. Run from the repository root: ``python -m tests.models.golden.make_encoders``.

Each folder is what ``from_pretrained`` opens; ``expected.npz`` holds right-padded tokens ``[B, T]``, their mask and
float32 logits ``[B, labels]``.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent / "encoders"
LENGTHS = np.asarray((11, 4, 1))


def classifiers() -> dict[str, transformers.PreTrainedModel]:
    shared = {"vocab_size": 41, "max_position_embeddings": 16, "initializer_range": 0.3}
    sizes = shared | {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    }  # fmt: skip
    names = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}
    return {
        "roberta": transformers.RobertaForSequenceClassification(
            transformers.RobertaConfig(**sizes, **names, type_vocab_size=1, layer_norm_eps=1e-5)
        ),
        "bert": transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, num_labels=3)),
        "distilbert": transformers.DistilBertForSequenceClassification(
            transformers.DistilBertConfig(**shared, **names, dim=16, n_layers=2, n_heads=2, hidden_dim=24)
        ),
    }


def main() -> None:
    torch.manual_seed(0)
    for name, model in classifiers().items():
        # Biases and norms start at constants, which would hide a swap.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
        model.eval().save_pretrained(HERE / name)
        padding = model.config.pad_token_id
        tokens = np.random.default_rng(0).integers(padding + 1, 41, (len(LENGTHS), max(LENGTHS)))
        mask = np.arange(max(LENGTHS)) < LENGTHS[:, None]
        tokens = np.where(mask, tokens, padding)
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask.astype(np.int64))).logits
        np.savez_compressed(HERE / name / "expected.npz", tokens=tokens, mask=mask, logits=logits.numpy())


if __name__ == "__main__":
    main()
