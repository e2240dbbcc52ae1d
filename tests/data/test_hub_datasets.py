"""Rows of the hub's exact features, in the files that it keeps, as the records that recipes train on."""

import gzip
import json
import re
from pathlib import Path

import pytest

from jaxalign.data import PUBLISHED, build_examples, build_prompts, load_dataset
from jaxalign.data._published import COLUMNS
from jaxalign.errors import InputError
from tests.data import hub_rows, toy
from tests.data.hub_rows import FILES, HH, LEFT_OUT, RECORDS, REVIEWS, ROWS

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"


@pytest.fixture
def hub(monkeypatch):
    return hub_rows.install(monkeypatch)


def check(name, records):
    assert list(records) == RECORDS[name]
    assert records.counters.skipped == LEFT_OUT.get(name, {})
    assert records.counters.rows_read == len(ROWS[name])


@pytest.mark.parametrize("name", ROWS)
def test_a_hub_id_gives_records(hub, name):
    split = "test" if name.endswith("axis") else "train"
    records = load_dataset(name, split)
    check(name, records)
    assert records.place(0) == f"{name}: row 1"
    config = name.partition(":")[2] or None
    assert [(one["path"], one["name"], one["split"]) for one in hub] == [(name.partition(":")[0], config, split)]
    check(name, load_dataset(f"{name}@{split}"))


@pytest.mark.parametrize("name", ROWS)
def test_the_hubs_files_and_a_saved_copy_give_the_same(tmp_path, name):
    split = "validation" if name.startswith("openai/sum") else "test"
    rows = hub_rows.dataset(name)
    for part in ("train", split):
        path = tmp_path / "copy" / FILES[name].format(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".gz":
            with gzip.open(path, "wt") as file:
                file.write("".join(json.dumps(row) + "\n" for row in ROWS[name]))
        else:
            rows.to_parquet(path)
    folder = tmp_path / "copy" / name.partition(":")[2]
    check(name, load_dataset(folder))
    check(name, load_dataset(f"{folder}@{split}"))
    check(name, load_dataset(path))  # one file
    rows.save_to_disk(tmp_path / "saved")
    check(name, load_dataset(tmp_path / "saved"))


@pytest.mark.parametrize("subset", ["helpful-base", "harmless-base", "helpful-online", "helpful-rejection-sampled"])
def test_parts_of_the_dialogues_are_folders_on_the_hub(hub, subset):
    check("Anthropic/hh-rlhf", load_dataset(f"Anthropic/hh-rlhf:{subset}", "test"))
    assert hub == [{"path": "Anthropic/hh-rlhf", "data_dir": subset, "split": "test"}]


def test_demonstrations_and_comparisons_of_summaries_fit_each_other(hub):
    """The prompt of a comparison is, token for token, that of a demonstration."""
    (shown,), _ = build_examples(load_dataset("CarperAI/openai_summarize_tldr"), toy.byte_level())
    (compared, _), _ = build_examples(load_dataset("openai/summarize_from_feedback:comparisons"), toy.byte_level())
    length = int((shown.branch == 0).sum())
    assert length == int((compared.branch == 0).sum()) > 20
    assert shown.tokens[:length].tolist() == compared.tokens[:length].tolist()
    # And the same summary is the same tokens.
    assert shown.tokens[shown.branch == 1].tolist() == compared.tokens[compared.branch == 1].tolist()


@pytest.mark.parametrize("name", [name for name in ROWS if "imdb" not in name])
def test_all_are_prompts_too(hub, name):
    prompts, _ = build_prompts(load_dataset(name), toy.byte_level())
    assert [prompt.content for prompt in prompts] == [record["prompt"] for record in RECORDS[name]]


def test_the_beginning_of_a_review_is_a_prompt(hub):
    records, tokenizer = load_dataset("stanfordnlp/imdb"), toy.byte_level()
    with pytest.raises(
        InputError, match=r"stanfordnlp/imdb: row 1: missing field 'prompt'; of a 'text' .*--text-prefix"
    ):
        build_prompts(records, tokenizer)
    some = [build_prompts(records, tokenizer, text_prefix=(2, 8), seed=seed)[0] for seed in range(20)]
    assert some[3] == build_prompts(records, tokenizer, text_prefix=(2, 8), seed=3)[0]
    lengths = [len(prompt.tokens) for prompts in some for prompt in prompts]
    assert set(lengths) == set(range(2, 9))
    assert len({tuple(map(len, (prompts[0].tokens, prompts[1].tokens))) for prompts in some}) > 8
    for prompts in some:
        for prompt, row in zip(prompts, REVIEWS, strict=True):
            assert row["text"].startswith(prompt.content)
            assert list(prompt.tokens) == tokenizer.encode(prompt.content)


def test_a_text_prefix_that_no_record_needs_is_refused():
    given = [{"prompt": "Why?"}, {"prompt": "How?", "text": "How?"}]
    assert len(build_prompts(given, toy.byte_level())[0]) == 2
    with pytest.raises(InputError, match="--text-prefix: every record has a prompt of its own"):
        build_prompts(given, toy.byte_level(), text_prefix=(2, 8))
    assert len(build_prompts([*given, {"text": "A film."}], toy.byte_level(), text_prefix=(2, 8))[0]) == 3


def test_dialogues_that_part_before_the_last_answer_are_refused_or_counted(tmp_path):
    parted = {"chosen": HH["chosen"], "rejected": "\n\nHuman: Hi.\n\nAssistant: No.\n\nHuman: Rain?\n\nAssistant: Yes."}
    shorter = {"chosen": HH["chosen"], "rejected": "\n\nHuman: Hi.\n\nAssistant: Yes! Bye."}
    silent = {"chosen": "\n\nHuman: Hi.\n\nAssistant:  ", "rejected": "\n\nHuman: Hi.\n\nAssistant: No."}
    alone = {"chosen": "\n\nHuman: Hi.", "rejected": "\n\nHuman: Hi."}
    path = tmp_path / "rows.jsonl"
    for row in (parted, shorter, dict(zip(shorter, reversed(shorter.values()), strict=True))):
        path.write_text(json.dumps(HH) + "\n" + json.dumps(row))
        with pytest.raises(InputError) as error:
            load_dataset(path)
        assert str(error.value) == (
            f"{path}: row 2: fields 'chosen' and 'rejected' do not share their prompt, all up to the last "
            r"'\n\nAssistant:' of each"
        )
    path.write_text("\n".join(map(json.dumps, (parted, HH, silent, shorter, alone))))
    records = load_dataset(path, on_bad_row="skip")
    check_one = [record["chosen"] for record in records]
    assert check_one == [" It may."]
    assert sorted(records.counters.skipped.values()) == [1, 1, 2]
    assert records.counters.skipped["empty answer"] == 1


def test_columns_that_nobody_knows_are_named_with_what_is_expected(tmp_path, hub, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"document": "long", "abstract": "short"}))
    with pytest.raises(InputError) as error:
        load_dataset(path)
    assert str(error.value).startswith(f"{path}: row 1: missing field: needs text, messages, prompt + completion, ")
    assert str(error.value).endswith(
        "it has: abstract, document; or the columns of a published data set (docs/datasets.md)"
    )
    monkeypatch.setitem(ROWS, "Anthropic/hh-rlhf", ROWS["CarperAI/openai_summarize_tldr"])
    features_of = hub_rows.features()
    features_of["Anthropic/hh-rlhf"] = features_of["CarperAI/openai_summarize_tldr"]
    monkeypatch.setattr(hub_rows, "features", lambda: features_of)
    with pytest.raises(InputError) as error:
        load_dataset("Anthropic/hh-rlhf:red-team-attempts")
    assert str(error.value) == (
        "Anthropic/hh-rlhf:red-team-attempts: row 1: expected chosen and rejected (both begin with Human:), as this "
        "data set has on the hub; the row has: prompt, label"
    )


def test_rows_of_ones_own_are_left_alone(tmp_path):
    rows = [
        {"prompt": "Say it.", "label": "toxic"},
        {"prompt": "p", "completion": "c", "label": True},
        {"text": "a", "label": "b"},
        {"chosen": "It was good", "rejected": "It was bad"},
        {"prompt": "p TL;DR:", "chosen": "a", "rejected": "b"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert list(load_dataset(path)) == rows


def test_the_page_names_every_data_set_with_its_columns():
    page = PAGE.read_text(encoding="utf-8")
    rows = {cells[1]: cells[2] for line in page.splitlines() if len(cells := line.split("|")) > 4 and "/" in cells[1]}
    for name, schemas in PUBLISHED.items():
        found = " ".join(columns for key, columns in rows.items() if f"`{name}" in key)
        for schema in schemas:
            for column in re.findall(r"\w+", re.sub(r"\(.*?\)|\band\b", "", COLUMNS[schema])):
                assert f"`{column}" in found, (name, column)
