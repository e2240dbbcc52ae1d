"""Raters by name: functions of modules and files, folders of classifiers."""

import sys

import jax
import numpy as np
import pytest

from jaxalign import data, models
from jaxalign.errors import InputError
from jaxalign.recipes._raters import load_text_reward
from jaxalign.recipes._reward_rater import RewardModelReward
from jaxalign.recipes._scores import sequence_scores
from jaxalign.sampling import classifier_reward, score_texts
from tests.recipes import toy
from tests.tiny_sentiment import save_classifier
from tests.tolerances import FLOAT32

SOURCE = """
import dataclasses
import helper_of_ratings
from math import sqrt

@dataclasses.dataclass
class Length:
    unit: float = 1.0

    def __call__(self, prompts, completions):
        return [helper_of_ratings.length(completion) * self.unit for completion in completions]

    def twice(self, prompts, completions):
        import helper_of_ratings as later

        return [2 * later.length(completion) for completion in completions]

class Needs(Length):
    def __init__(self, something):
        pass

made = Length(3.0)
number = 5
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "helper_of_ratings.py").write_text("length = len\n")
    path = tmp_path / "random.py"  # not to be taken for Python's own
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize(("name", "unit"), [("Length", 1), ("made", 3), ("made.twice", 2)])
def test_a_function_of_a_file(file, name, unit):
    import random

    reward = load_text_reward(f"{file}:{name}")
    assert score_texts(reward, ["a", "b"], ["", "two"]).tolist() == [0, 3 * unit]
    assert sys.modules["random"] is random


def test_a_function_of_a_module(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry not in ("", ".")])
    (tmp_path / "ratings_here").mkdir()
    (tmp_path / "ratings_here" / "best.py").write_text("def score(p, c):\n    return [1.0] * len(p)\n")
    monkeypatch.chdir(tmp_path)
    assert score_texts(load_text_reward("ratings_here.best:score"), ["a"], [""]).tolist() == [1]


def test_a_classifier(tmp_path):
    folder = save_classifier(tmp_path)
    texts = ["a wonderful film", "dreadful"]
    found = score_texts(load_text_reward(f"{folder}#Positive"), texts, ["", " plot"])
    np.testing.assert_array_equal(found, classifier_reward(folder, label="positive")(texts, ["", " plot"]))
    with pytest.raises(InputError, match=r"^--rater: .* has the labels NEGATIVE, POSITIVE: write .*#LABEL for the one"):
        load_text_reward(str(folder), flag="--rater")
    with pytest.raises(InputError, match=r"none of the model's labels .* is called 'good'"):
        load_text_reward(f"{folder}#good")


TEXTS = [
    (" the film", " was good"),
    (" bad plot and", ""),
    ("", " fun film"),
    (" it was", " good to watch but bad" * 3),
]


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    config, params = models.add_score_head(toy.SHAPES["llama"], toy.params("llama"), jax.random.key(5))
    params["score"]["kernel"] *= 3
    models.save_reward_model(folder, models.RewardModel(config, params, mean=0.5, std=2.0), toy.tokenizer())
    return folder


def test_a_reward_model_reads_texts_as_it_is_trained_on_records(reward_folder):
    """Each text against a batch of its own, laid out as the recipe lays out a record."""
    reward = load_text_reward(str(reward_folder), batch_size=3)
    model = models.load_reward_model(reward_folder)
    prompts, completions = zip(*TEXTS, strict=True)
    finished = [True, True, False, False]
    found = score_texts(reward, prompts, completions, finished=finished)
    score = jax.jit(sequence_scores, static_argnames="config")
    shape = data.BatchShape(tokens=32, targets=16)
    for index in (0, 2, 3):
        record = {"prompt": prompts[index], "completion": completions[index], "finished": finished[index]}
        example = data.completion_example(record, toy.tokenizer())
        expected = float(score(model.config, model.params, data.collate([[example]], shape))[0, 0])
        np.testing.assert_allclose(found[index], (expected - 0.5) / 2, rtol=FLOAT32, atol=FLOAT32)
    assert np.ptp(found) > 0.1
    ended = score_texts(reward, prompts, completions)
    np.testing.assert_allclose(ended[:2], found[:2], rtol=FLOAT32, atol=FLOAT32)
    assert (np.abs(ended[2:] - found[2:]) > 0.01).all()  # the EOS tells
    assert reward([], []).shape == (0,)


def test_a_reward_model_refuses(reward_folder):
    reward = load_text_reward(str(reward_folder))
    with pytest.raises(InputError, match=r"prompt 1 alone .*prompt ' good', completion"):
        score_texts(reward, ["a", " good"], [" film", " film" * 64])
    with pytest.raises(InputError, match="is a int, not a string"):
        score_texts(reward, ["a"], [3])
    with pytest.raises(InputError, match="no supervised token is left"):
        score_texts(reward, ["a"], [""], finished=[False])
    with pytest.raises(InputError, match="batch_size is 0"):
        RewardModelReward(models.load_reward_model(reward_folder), toy.tokenizer(), batch_size=0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{file}", "say which function of the file: .*random.py:FUNCTION"),
        ("{file}x.py:f", "no such file"),
        ("{file}:nothing", "has no 'nothing'; it has: Length, Needs, made$"),
        ("{file}:Length.nothing", "has no 'Length.nothing'; it has: twice$"),
        ("{file}:number", "is a int, no function"),
        ("{file}:Needs", r"random.py:Needs\(\) raised TypeError: .*'something'"),
        ("{file}:number.real.real.x", "has no 'number.real.real.x'; it has no functions"),
        ("no_such_module_x.sub:f", "no module named no_such_module_x$"),
        ("json.nothing:f", "no module named json.nothing$"),
        ("json/nothing:f", "json/nothing: neither a file that ends with .py nor the name of a module"),
        ("json:", "'json:' is neither"),
        ("{file}/none", "no such folder"),
    ],
)
def test_what_is_not_there(file, spec, message):
    with pytest.raises(InputError, match=message) as caught:
        load_text_reward(spec.format(file=file))
    assert str(caught.value).startswith("--reward: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a = 1\nb = missing\n", r"raised NameError: name 'missing' is not defined \(line 2\)"),
        ("a = (\n", r"raised SyntaxError: "),
        ("import no_such_module_y\n", r"raised ModuleNotFoundError: .*no_such_module_y"),
    ],
)
def test_a_file_that_does_not_run(file, source, message):
    file.write_text(source)
    with pytest.raises(InputError, match=message) as caught:
        load_text_reward(f"{file}:a")
    assert caught.value.__cause__ is not None


def test_a_module_that_does_not_run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ratings_broken.py").write_text("import no_such_module_z\n")
    with pytest.raises(InputError, match=r"ratings_broken raised ModuleNotFoundError: .*no_such_module_z"):
        load_text_reward("ratings_broken:f")
    (tmp_path / "ratings_broken.py").write_text("1 / 0\n")
    with pytest.raises(InputError, match=r"ratings_broken raised ZeroDivisionError: division by zero"):
        load_text_reward("ratings_broken:f")
