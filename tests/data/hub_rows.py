"""Rows of published data sets with the features that the hub declares, the records they become, and a hub of them."""

import inspect


def features():
    """By "ID:CONFIG", the features of each as the hub declares them."""
    from datasets import ClassLabel, Features, List, Value

    text = Value("string")
    info = dict.fromkeys(("id", "post", "title", "subreddit", "site", "article"), text)
    axes = {name: Value("int32") for name in ("overall", "accuracy", "coverage", "coherence")}
    quotes = {"title": List(text), "extract": List(text)}
    tokens = {"prefix": List(Value("int32")), "completion": List(Value("int32"))}
    return {
        "stanfordnlp/imdb": Features({"text": text, "label": ClassLabel(names=["neg", "pos"])}),
        "CarperAI/openai_summarize_tldr": Features({"prompt": text, "label": text}),
        "openai/summarize_from_feedback:comparisons": Features(
            {
                "info": info,
                "summaries": List({"text": text, "policy": text, "note": text}),
                "choice": Value("int32"),
                "worker": text,
                "batch": text,
                "split": text,
                "extra": {"confidence": Value("int32")},
            }
        ),
        "openai/summarize_from_feedback:axis": Features(
            {
                "info": info,
                "summary": {"text": text, "policy": text, "note": text, "axes": axes | {"compatible": Value("bool")}},
                "worker": text,
                "batch": text,
                "split": text,
            }
        ),
        "Anthropic/hh-rlhf": Features({"chosen": text, "rejected": text}),
        "openai/webgpt_comparisons": Features(
            {"question": {"dataset": text, "id": text, "full_text": text}}
            | {f"quotes_{k}": quotes for k in (0, 1)}
            | {f"answer_{k}": text for k in (0, 1)}
            | {f"tokens_{k}": tokens for k in (0, 1)}
            | {f"score_{k}": Value("float32") for k in (0, 1)}
        ),
    }


POST = {
    "id": "t3_a",
    "post": "It rained.\nA lot.",
    "title": "Rain",
    "subreddit": "weather",
    "site": None,
    "article": None,
}
NEWS = {"id": "cnn1", "post": None, "title": None, "subreddit": None, "site": "cnn", "article": "It rained all day."}
ASKED = "SUBREDDIT: r/weather\nTITLE: Rain\nPOST: It rained.\nA lot.\nTL;DR:"


def comparison(info, choice):
    summaries = [{"text": text, "policy": "sup4", "note": None} for text in (" Rain fell.", " Sun shone.")]
    rest = {"worker": "w", "batch": "b0", "split": "train", "extra": {"confidence": 7}}
    return {"info": info, "summaries": summaries, "choice": choice} | rest


def mark(text, overall, worker):
    axes = {"overall": overall, "accuracy": 7, "coverage": 5, "coherence": 6, "compatible": None}
    summary = {"text": text, "policy": "ref", "note": "", "axes": axes}
    return {"info": POST, "summary": summary, "worker": worker, "batch": "b1", "split": "test"}


def webgpt(scores):
    row = {"question": {"dataset": "eli5", "id": "q", "full_text": "Why is the sea salty?"}}
    for k, (answer, score) in enumerate(zip(("Rivers bring salt [1].", "It is not."), scores, strict=True)):
        row |= {f"quotes_{k}": {"title": ["Sea (site.org)"], "extract": ["Salt."]}, f"answer_{k}": answer}
        row |= {f"tokens_{k}": {"prefix": [1, 2], "completion": [3]}, f"score_{k}": score}
    return row


HH = {
    "chosen": "\n\nHuman: Hi.\n\nAssistant: Yes?\n\nHuman: Rain?\n\nAssistant: It may.",
    "rejected": "\n\nHuman: Hi.\n\nAssistant: Yes?\n\nHuman: Rain?\n\nAssistant: Never ask.",
}
REVIEWS = [{"text": "A fine film.<br /><br />Go.", "label": 1}, {"text": "Dull from the start.", "label": -1}]
ROWS = {
    "stanfordnlp/imdb": REVIEWS,
    "CarperAI/openai_summarize_tldr": [{"prompt": ASKED, "label": "Rain fell."}],
    "openai/summarize_from_feedback:comparisons": [comparison(POST, 0), comparison(NEWS, 1)],
    "openai/summarize_from_feedback:axis": [
        mark(" Rain.", 6, "a"), mark(" Wet.", 2, "a"), mark(" Rain.", 4, "b"), mark(" Dry.", None, "a")
    ],
    "Anthropic/hh-rlhf": [HH],
    "openai/webgpt_comparisons": [webgpt((0.5, -0.5)), webgpt((0.0, 0.0)), webgpt((-1.0, 1.0))],
}  # fmt: skip
QUESTION = "Question: Why is the sea salty?\n\nAnswer:"
SALTY = (" Rivers bring salt [1].", " It is not.")


def pair(prompt, chosen, rejected, kind):
    return {"prompt": prompt, "kind": kind, "chosen": chosen, "rejected": rejected}


RECORDS = {
    "stanfordnlp/imdb": REVIEWS,
    "CarperAI/openai_summarize_tldr": [{"prompt": ASKED, "kind": "summary", "completion": " Rain fell."}],
    "openai/summarize_from_feedback:comparisons": [
        pair(ASKED, " Rain fell.", " Sun shone.", "summary"),
        pair("ARTICLE: It rained all day.\nTL;DR:", " Sun shone.", " Rain fell.", "summary"),
    ],
    "openai/summarize_from_feedback:axis": [pair(ASKED, " Rain.", " Wet.", "summary")],
    "Anthropic/hh-rlhf": [
        pair("\n\nHuman: Hi.\n\nAssistant: Yes?\n\nHuman: Rain?\n\nAssistant:", " It may.", " Never ask.", "dialogue")
    ],
    "openai/webgpt_comparisons": [
        pair(QUESTION, *SALTY, "answer"),
        pair(QUESTION, *SALTY[::-1], "answer"),
    ],
}
LEFT_OUT = {"openai/webgpt_comparisons": {"tie": 1}, "openai/summarize_from_feedback:axis": {"no rating on overall": 1}}
FILES = {
    "stanfordnlp/imdb": "plain_text/{}-00000-of-00001.parquet",
    "CarperAI/openai_summarize_tldr": "data/{}-00000-of-00001-3cbd295cedeecf91.parquet",
    "openai/summarize_from_feedback:comparisons": "comparisons/{}/0000.parquet",
    "openai/summarize_from_feedback:axis": "axis/{}/0000.parquet",
    "Anthropic/hh-rlhf": "harmless-base/{}.jsonl.gz",
    "openai/webgpt_comparisons": "data/{}-00000-of-00001.parquet",
}
"""Where the hub keeps a split's rows."""


def dataset(name):
    import datasets

    return datasets.Dataset.from_list(ROWS[name], features=features()[name])


def install(monkeypatch):
    """Put a hub that has them all where the real one is asked; what it was asked. Its arguments are the real one's."""
    import datasets

    real, asked = inspect.signature(datasets.load_dataset), []

    def load(*args, **options):
        given = real.bind(*args, **options).arguments
        asked.append(given)
        config = given.get("name")
        return dataset(given["path"] + (f":{config}" if config else ""))

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked
