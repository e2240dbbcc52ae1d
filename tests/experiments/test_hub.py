"""Reviews of the hub's schema: the same cleaning and parts as the packaged ones, no sentences, clear errors."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from experiments.assets import hub
from experiments.assets.movie_reviews import MovieReviews, load_movie_reviews, text_key
from experiments.assets.sentiment import CharacterJudge, TfidfReward, accuracies
from jaxalign.errors import InputError
from tests.tiny_sentiment import reviews as tiny_reviews
from tests.tiny_sentiment import save_classifier

PARTS = [field.name for field in dataclasses.fields(MovieReviews)]
TELLING = (["dreadful", "tedious", "clumsy"], ["wonderful", "moving", "graceful"])


def reviews(per_label=100):
    """Rows of neutral words among which every fourth tells the label; texts all differ."""
    generator = np.random.default_rng(0)
    rows = []
    for index in range(per_label):
        for label in (0, 1):
            words = [f"filler{i}" for i in generator.integers(0, 50, 30)]
            words[::4] = generator.choice(TELLING[label], len(words[::4]))
            rows.append({"text": f"Film {label}{index}<br /><br />was  " + " ".join(words), "label": label})
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_parts_are_those_of_the_packaged_reader(tmp_path):
    rows = reviews(101)
    rows.append({"text": rows[0]["text"].replace("<br /><br />", ", ").upper(), "label": 1})
    found = hub.load_reviews(write(tmp_path / "rows.jsonl", rows), 3)
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label", "source"))
        writer.writerows((row["text"], row["label"], "imdb") for row in rows)
    expected = load_movie_reviews(3, csv_path=tmp_path / "rows.csv")
    for part in PARTS:
        assert getattr(found, part).texts == getattr(expected, part).texts, part
        np.testing.assert_array_equal(getattr(found, part).labels, getattr(expected, part).labels)
    # The last row is the first one with the other label: both are dropped, and a positive one for the balance.
    assert [len(getattr(found, part)) for part in PARTS] == [32, 80, 68, 20, 0, 0, 0]
    keys = [text_key(text) for part in PARTS for text in getattr(found, part).texts]
    assert len(keys) == len(set(keys)) == 200
    assert text_key(rows[-1]["text"]) not in keys
    assert not any("<br" in text or "  " in text for text in found.sft.texts)
    assert found.sft.labels.mean() == 0.5


def test_a_saved_folder_gives_the_same_as_a_file(tmp_path):
    import datasets

    rows = reviews()
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    both = {"train": datasets.Dataset.from_list(rows, features=features)}
    datasets.DatasetDict(both).save_to_disk(str(tmp_path / "saved"))
    from_folder = hub.load_reviews(str(tmp_path / "saved"), 0)
    from_file = hub.load_reviews(write(tmp_path / "rows.jsonl", rows), 0)
    assert from_folder.reward.texts == from_file.reward.texts
    assert hub.load_reviews(str(tmp_path / "rows.jsonl"), 1).reward.texts != from_file.reward.texts


@pytest.mark.parametrize("kind", [TfidfReward, CharacterJudge])
def test_raters_are_fitted_and_rated_without_sentences(tmp_path, kind):
    found = hub.load_reviews(write(tmp_path / "rows.jsonl", reviews()), 0)
    model = kind.fit(found.reward, found.reward_sentences)
    rated = accuracies(model, found.prompts, found.held_out_sentences)
    assert list(rated) == ["full reviews", "40-word prefixes"]
    assert all(value > 0.9 for value in rated.values())


def test_a_judge_with_nothing_to_calibrate_on_is_refused(tmp_path):
    found = hub.load_reviews(write(tmp_path / "rows.jsonl", reviews()), 0).judge
    negative = dataclasses.replace(found, labels=np.zeros_like(found.labels))
    with pytest.raises(InputError, match="character-judge: 68 reviews are too few"):
        CharacterJudge.fit(negative, negative.take(0))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": 1}, "field 'text'"),
        ({"text": " ", "label": 1}, "field 'text'"),
        ({"text": "fine"}, "field 'label'.*got None"),
        ({"text": "fine", "label": -1}, "field 'label'.*got -1"),
        ({"text": "fine", "label": "pos"}, "field 'label'.*got 'pos'"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    path = write(tmp_path / "rows.jsonl", [*reviews(), row])
    with pytest.raises(InputError, match=rf"rows\.jsonl: row 201: {message}"):
        hub.load_reviews(path, 0)


def test_too_few_reviews_and_missing_files_are_named(tmp_path):
    one_label = [row for row in reviews() if row["label"] == 0]
    with pytest.raises(InputError, match=r"rows\.jsonl: 0 reviews"):
        hub.load_reviews(write(tmp_path / "rows.jsonl", one_label), 0)
    with pytest.raises(InputError, match=r"198 reviews.*at least 200"):
        hub.load_reviews(write(tmp_path / "rows.jsonl", reviews()[:-1]), 0)
    with pytest.raises(InputError, match="no such file"):
        hub.load_reviews(str(tmp_path / "nothing.jsonl"), 0)


def test_a_classifier_is_a_reward_and_a_scorer_of_reviews(tmp_path):
    folder = save_classifier(tmp_path / "classifier", labels=("pos", "neg"))
    reward = hub.SentimentClassifier(folder)
    assert reward.name == folder
    long = " ".join(row["text"] for row in tiny_reviews(5))
    scores = reward.log_odds(text for text in ("a wonderful film", long))
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(reward(["a wonder"], ["ful film"]), reward.log_odds(["a wonderful film"]))
    turned = hub.SentimentClassifier(save_classifier(tmp_path / "turned", labels=("neg", "pos")))
    np.testing.assert_array_equal(turned.log_odds(["a wonderful film", long]), -scores)
    with pytest.raises(InputError, match=r"label: none of the model's labels .* is called 'positive' or 'pos'"):
        hub.SentimentClassifier(save_classifier(tmp_path / "unnamed", labels=("LABEL_0", "LABEL_1")))
