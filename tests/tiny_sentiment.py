"""Tiny random models with a real tokenizer, and reviews that they know the words of."""

import json
from pathlib import Path

import numpy as np

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # RoBERTa's, with its ids 0-3
POSITIONS = 40
WORDS = {0: ("dreadful", "tedious", "clumsy"), 1: ("wonderful", "moving", "graceful")}


def reviews(per_label: int) -> list[dict]:
    """Rows of the hub's schema, texts all different, every fourth word telling the label."""
    generator = np.random.default_rng(0)
    rows = []
    for index in range(per_label):
        for label, telling in WORDS.items():
            words = [f"w{i}" for i in generator.integers(0, 40, 24)]
            words[::4] = generator.choice(telling, len(words[::4]))
            rows.append({"text": f"{words[1]} film {label}{index} " + " ".join(words), "label": label})
    return rows


def write_reviews(path: Path, per_label: int) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in reviews(per_label)))
    return str(path)


def tokenizer():
    """A byte-level BPE of 320 tokens; encoding puts <s> and </s> around, as RoBERTa's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([row["text"] for row in reviews(50)], trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    bos, pad, eos, unknown = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, unk_token=unknown, pad_token=pad
    )


def save_classifier(folder: Path, labels=("NEGATIVE", "POSITIVE"), **changes) -> str:
    """A random RoBERTa classifier with its tokenizer, whose logits are well apart, written without torch."""
    from safetensors.numpy import save_file

    from jaxalign.models.encoders import ENCODERS

    fields = {
        "model_type": "roberta", "architectures": ["RobertaForSequenceClassification"], "vocab_size": 320,
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5,
        "id2label": dict(enumerate(labels)), **changes,
    }  # fmt: skip
    family = ENCODERS["roberta"]
    config = family.read_config(fields, "config.json", len(labels))
    generator = np.random.default_rng(0)
    tensors = {}
    for weight in family.weights(config):
        for layer in range(config.layers if weight.per_layer else 1):
            name = weight.name.format(layer=layer)
            noise = 0.5 * generator.standard_normal(weight.shape)
            tensors[name] = (noise + name.endswith("LayerNorm.weight")).astype(np.float32)
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
    (Path(folder) / "config.json").write_text(json.dumps(fields))
    tokenizer().save_pretrained(folder)
    return str(folder)
