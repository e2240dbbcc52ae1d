"""Pairwise judges, called and checked."""

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.sampling import compare_texts

PROMPTS, FIRST, SECOND = ["a", "b", "c", "d"], ["1", "22", "3", "4"], ["11", "2", "3", ""]


def longer(prompts, first, second):
    longest = [len(one) - len(other) for one, other in zip(first, second, strict=True)]
    return ["first" if by > 0 else "second" if by < 0 else "tie" for by in longest]


def test_verdicts():
    assert compare_texts(longer, PROMPTS, FIRST, SECOND) == ["second", "first", "tie", "first"]
    assert compare_texts(lambda *texts: np.asarray(longer(*texts)), ["a"], ["1"], [""]) == ["first"]
    assert compare_texts(lambda *texts: pytest.fail("asked of nothing"), [], [], []) == []


def test_what_cannot_be_read_is_invalid():
    verdicts = [" First\n", "both are good", None, 1]
    assert compare_texts(lambda *texts: verdicts, PROMPTS, FIRST, SECOND) == ["first", "invalid", "invalid", "invalid"]


@pytest.mark.parametrize("defect", ["raises", "leaves out"])
@pytest.mark.parametrize("culprit", range(4))
def test_the_prompt_that_it_fails_on_is_found(culprit, defect):
    def judge(prompts, first, second):
        if PROMPTS[culprit] not in prompts:
            return longer(prompts, first, second)
        if defect == "raises":
            raise ConnectionError("no server")
        return longer(prompts, first, second)[:-1]

    message = {"raises": "judge: it raised ConnectionError: no server", "leaves out": "judge: expected 1 verdicts"}
    with pytest.raises(
        InputError, match=rf"^{message[defect]}.*row {culprit} alone \(prompt '{PROMPTS[culprit]}', first"
    ):
        compare_texts(judge, PROMPTS, FIRST, SECOND, names=[f"row {index}" for index in range(4)])


@pytest.mark.parametrize("returned", ["first", None, 3])
def test_no_list(returned):
    with pytest.raises(InputError, match="judge: expected a list of verdicts, got "):
        compare_texts(lambda *texts: returned, PROMPTS, FIRST, SECOND)


def test_unequal_lists():
    with pytest.raises(InputError, match="judge: 4 prompts but 1 second"):
        compare_texts(longer, PROMPTS, FIRST, [""])
