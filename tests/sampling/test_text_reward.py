"""Text rewards, called and checked: every defect is one line that names the prompt."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.sampling import score_texts

PROMPTS = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff", "ggggggg"]
COMPLETIONS = ["", " one", "", " two", "", " three", ""]


def lengths(prompts, completions):
    return [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]


@pytest.mark.parametrize(
    "of",
    [list, tuple, np.asarray, jnp.asarray, lambda s: np.asarray(s, object), lambda s: [np.float16(x) for x in s]],
    ids=["list", "tuple", "numpy", "jax", "object", "scalars"],
)
def test_scores_of_every_number_type(of):
    scores = score_texts(lambda p, c: of(lengths(p, c)), PROMPTS, COMPLETIONS)
    assert scores.dtype == np.float64
    assert scores.tolist() == lengths(PROMPTS, COMPLETIONS)


def test_bfloat16_scores():
    scores = score_texts(lambda p, c: jnp.asarray([0.5, 0.25], jnp.bfloat16), ["a", "b"], ["", ""])
    assert scores.tolist() == [0.5, 0.25]


def test_it_is_called_once_with_lists_of_its_own():
    calls = []

    def reward(prompts, completions):
        calls.append((list(prompts), list(completions)))
        prompts.clear()
        completions.clear()
        return np.arange(7)

    prompts = list(PROMPTS)
    score_texts(reward, prompts, COMPLETIONS)
    assert prompts == PROMPTS
    assert calls == [(PROMPTS, COMPLETIONS)]


def test_no_texts_are_not_rated():
    def reward(prompts, completions):
        raise AssertionError

    assert score_texts(reward, [], []).shape == (0,)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "expected 2 scores, one a prompt, got 1, called with prompt 0 and the 1 after it"),
        ([[1.0, 2.0]], r"expected 1 score, one a prompt, got shape \[1, 2\], called with prompt 0 alone"),
        (0.5, r"got shape \[\], called with prompt 0 alone"),
        ([1.0, 1e39], r"score of prompt 1 is beyond float32: 1e\+39 \(prompt 'bb', completion ' one'\)"),
        ([1.0, float("inf")], r"score of prompt 1 is not finite: inf \(prompt 'bb', completion ' one'\)"),
        (jnp.asarray([1.0, jnp.nan]), r"score of prompt 1 is not finite: nan \(prompt 'bb', completion ' one'\)"),
        ([1.0, None], r"score of prompt 1 is not a number: None \(prompt 'bb', completion ' one'\)"),
        (["x", 1.0], "score of prompt 0 is not a number: 'x'"),
        (np.asarray([1.0, None]), "score of prompt 1 is not a number: None"),
        ([0, True], "score of prompt 1 is not a number: True"),
        (np.asarray([0, 10**400]), "scores must be real numbers"),
        (np.asarray([1j, 2j]), "scores must be real numbers: not complex128, called with prompt 0 alone"),
        (np.asarray([True, False]), "scores must be real numbers: not bool"),
        ("ab", "scores must be real numbers: not <U2"),
        (None, "scores must be real numbers: not None, called with prompt 0 alone"),
        ({"a": 1}, "scores must be real numbers: not a dict"),
        ([[1.0], [1.0, 2.0]], "scores must be real numbers: setting an array element"),
    ],
)
def test_bad_scores(returned, message):
    with pytest.raises(InputError, match=message) as caught:
        score_texts(lambda prompts, completions: returned, PROMPTS[:2], COMPLETIONS[:2])
    assert "\n" not in str(caught.value)
    assert "prompt 'a'" in str(caught.value) or "prompt 'bb'" in str(caught.value)


@pytest.mark.parametrize("culprit", range(len(PROMPTS)))
@pytest.mark.parametrize("defect", ["raises", "leaves out", "is complex", "is NaN"])
def test_the_text_that_it_fails_on_is_found(culprit, defect):
    def reward(prompts, completions):
        bad = PROMPTS[culprit] in prompts
        if bad and defect == "raises":
            raise KeyError("no\nsuch word")
        scores = lengths(prompts, completions)
        if bad and defect == "leaves out":
            del scores[prompts.index(PROMPTS[culprit])]
        elif bad and defect == "is NaN":
            scores[prompts.index(PROMPTS[culprit])] = np.nan
        return np.asarray(scores, complex if bad and defect == "is complex" else float)

    message = rf"row {culprit + 3}.*\(prompt '{PROMPTS[culprit]}', completion '{COMPLETIONS[culprit]}'\)$"
    with pytest.raises(InputError, match=message) as caught:
        score_texts(reward, PROMPTS, COMPLETIONS, names=[f"row {index + 3}" for index in range(7)])
    assert "\n" not in str(caught.value)
    if defect == "raises":
        assert "it raised KeyError: 'no\\nsuch word', called with row" in str(caught.value)
        assert isinstance(caught.value.__cause__, KeyError)


def test_a_failure_of_no_single_text_says_so():
    def reward(prompts, completions):
        if len(prompts) > 3:
            raise TimeoutError("too\n  many")
        return [0.0] * len(prompts)

    with pytest.raises(
        InputError, match=r"TimeoutError: too many, called with prompt 0 and the 6 after it, though not for each"
    ) as caught:
        score_texts(reward, PROMPTS, COMPLETIONS)
    assert isinstance(caught.value.__cause__, TimeoutError)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: out of memory"), KeyboardInterrupt()]
)
def test_what_is_no_fault_of_a_text_is_not_asked_again(error):
    calls = []

    def reward(prompts, completions):
        calls.append(prompts)
        raise error

    with pytest.raises(type(error)) as caught:
        score_texts(reward, PROMPTS, COMPLETIONS)
    assert caught.value is error
    assert len(calls) == 1


def test_long_texts_and_messages_are_quoted_by_their_end():
    prompt = [{"role": "user", "content": "x" * 100 + "\nwhy?"}]
    with pytest.raises(InputError, match=r"prompt \.\.\.'x{55}\\nwhy\?', completion \.\.\.'y{60}'\)$"):
        score_texts(lambda p, c: [np.nan], [prompt], ["y" * 100])
    with pytest.raises(InputError, match=r"prompt 7, completion"):
        score_texts(lambda p, c: [np.nan], [7], [""])


def test_unequal_lists():
    with pytest.raises(InputError, match="2 prompts but 1 completions"):
        score_texts(lambda p, c: [0.0], ["a", "b"], [""])
    with pytest.raises(InputError, match="1 prompts but 2 names"):
        score_texts(lambda p, c: [0.0], ["a"], [""], names=["x", "y"])


def test_who_asks_is_told_what_is_finished():
    def reward(prompts, completions, finished=None):
        return [int(flag) for flag in finished] if finished is not None else [-1.0] * len(prompts)

    class Reward:
        def __call__(self, prompts, completions, *, finished):
            return reward(prompts, completions, finished)

    flags = np.asarray([True, False, True])
    for each in (reward, Reward()):
        assert score_texts(each, PROMPTS[:3], COMPLETIONS[:3], finished=flags).tolist() == [1, 0, 1]
    assert score_texts(reward, PROMPTS[:3], COMPLETIONS[:3]).tolist() == [-1] * 3
    assert score_texts(lengths, PROMPTS[:1], COMPLETIONS[:1], finished=[True]).tolist() == [1]
    with pytest.raises(InputError, match="2 prompts but 1 finished"):
        score_texts(reward, ["a", "b"], ["", ""], finished=[True])
