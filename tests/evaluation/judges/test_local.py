"""Judges on this machine: likelihood of a letter, sampled words, rewards."""

import copy
import re

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.evaluation.judges import (
    Comparison,
    Item,
    JudgePrompts,
    LikelihoodJudge,
    RewardJudge,
    SampledJudge,
    VerdictCache,
    compare,
    read_answer,
)
from tests.recipes import toy
from tests.sampling.models_under_test import dense_log_probs, memoryless
from tests.tolerances import FLOAT32

CONFIG = toy.SHAPES["llama"].replace(max_positions=128)
PROMPTS = JudgePrompts(
    name="short", text="{question} {prompt}, A:{first}, B:{second}; {answer}", questions={"overall": "fun?"},
    explained="Preferred: {choices}", direct="say", system="",
)  # fmt: skip
COMPARISONS = [
    Comparison(prompt=f" the film{' was' * i}", first=f" good{' fun' * (i % 3)}", second=" bad and bad")
    for i in range(7)
]
CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def likelihood(tokenizer=None, **changes):
    return LikelihoodJudge(CONFIG, toy.params("llama"), tokenizer or toy.tokenizer(), PROMPTS, **changes)


def ask(judge, comparisons):
    found = {}
    judge.judge(comparisons, found.__setitem__)
    return [found[index] for index in range(len(comparisons))]


def letters(verdict):
    return np.array(
        [float(number) for number in re.fullmatch(r"log-probs, nats: A (\S+), B (\S+)", verdict.text).groups()]
    )


def dense(question):
    """log pi of " A" and " B" after a question, each by a pass of its own."""
    encode = toy.tokenizer().encode
    ids, *letters = (encode(text, add_special_tokens=False) for text in (question, " A", " B"))
    return np.array([dense_log_probs(CONFIG, toy.params("llama"), ids, letter).sum() for letter in letters])


def test_likelihood_is_that_of_the_letters():
    for verdict, one in zip(ask(likelihood(batch_size=4), COMPARISONS), COMPARISONS, strict=True):
        question = PROMPTS.render(one, ties=False, form="direct") + "\n\nPreferred:"
        expected = dense(question)
        np.testing.assert_allclose(letters(verdict), expected, atol=FLOAT32 * np.abs(expected).max())
        assert verdict.preference == ("first" if expected[0] > expected[1] else "second")
        assert verdict.prompt_tokens == len(toy.tokenizer().encode(question, add_special_tokens=False))


def test_likelihood_does_not_depend_on_the_batch():
    alone = [letters(verdict) for verdict in ask(likelihood(batch_size=1), COMPARISONS)]
    for size, order in ((3, slice(None)), (8, slice(None, None, -1))):
        found = [letters(verdict) for verdict in ask(likelihood(batch_size=size), COMPARISONS[order])]
        np.testing.assert_allclose(found, alone[order], atol=FLOAT32 * np.abs(alone).max())


def test_a_chat_template_puts_the_question_in_a_persons_turn():
    tokenizer = copy.deepcopy(toy.tokenizer())
    tokenizer.chat_template = CHAT
    verdict = ask(likelihood(tokenizer), COMPARISONS[:1])[0]
    question = PROMPTS.render(COMPARISONS[0], ties=False, form="direct")
    expected = dense(f"[user]{question}<eos>[assistant]Preferred:")
    np.testing.assert_allclose(letters(verdict), expected, atol=FLOAT32 * np.abs(expected).max())
    plain = ask(likelihood(tokenizer, chat=False), COMPARISONS[:1])[0]
    assert plain == ask(likelihood(), COMPARISONS[:1])[0]
    assert likelihood(tokenizer).version != likelihood(tokenizer, chat=False).version == likelihood().version


def test_ties_within_a_margin():
    gaps = sorted(abs(float(np.subtract(*letters(verdict)))) for verdict in ask(likelihood(), COMPARISONS))
    margin = (gaps[2] + gaps[3]) / 2
    assert [verdict.preference for verdict in ask(likelihood(tie_margin=margin), COMPARISONS)].count("tie") == 3
    assert "tie" not in [verdict.preference for verdict in ask(likelihood(), COMPARISONS)]
    with pytest.raises(InputError, match="tie_margin must be at least 0 nats, is -1"):
        likelihood(tie_margin=-1)


def test_a_text_that_is_too_long_is_named():
    long = Comparison(prompt=" the" * 200, first="", second="")
    with pytest.raises(InputError, match="judge likelihood: comparison 1"):
        ask(likelihood(), [COMPARISONS[0], long])
    sampled = SampledJudge(CONFIG, toy.params("llama"), toy.tokenizer(), PROMPTS, max_new_tokens=4)
    with pytest.raises(InputError, match=r"judge sampled: comparison 1: \d+ tokens and an answer of 4 are more than"):
        ask(sampled, [COMPARISONS[0], long])


def test_the_version_knows_the_weights():
    other = LikelihoodJudge(CONFIG, toy.params("llama", 1), toy.tokenizer(), PROMPTS)
    assert likelihood().version == likelihood(batch_size=2).version != other.version


def sampled(seed=0, **changes):
    """A model that writes "A", "B" or ends, each a third of the time."""
    probabilities = np.full(toy.VOCABULARY, 1e-9)
    for token in (*(toy.tokenizer().encode(letter)[0] for letter in "AB"), toy.tokenizer().eos_token_id):
        probabilities[token] = 1 / 3
    config, params = memoryless(probabilities / probabilities.sum())
    settings = {"temperature": 1.0, "max_new_tokens": 3, "seed": seed} | changes
    return SampledJudge(config.replace(max_positions=128), params, toy.tokenizer(), PROMPTS, **settings)


def test_sampled_words_are_read_as_an_endpoints_are():
    some = [Comparison(prompt=f" the film {i}", first=" good", second=" bad") for i in range(40)]
    judge = sampled(batch_size=4)  # told in three parts
    found = ask(judge, some)
    assert {verdict.preference for verdict in found} == {"first", "second", "invalid"}
    for verdict in found:
        assert set(verdict.text) <= set("AB")
        cut = verdict.completion_tokens == len(verdict.text)  # no EOS among its tokens
        assert verdict.preference == read_answer(verdict.text, ties=False, finished=not cut)
    assert ask(sampled(batch_size=16), some[::-1]) == found[::-1]
    assert ask(sampled(seed=1), some) != found
    assert sampled(seed=1).version != judge.version == sampled(batch_size=16).version


def test_a_local_judge_and_the_cache(tmp_path):
    items = [Item(prompt=one.prompt, ours=one.first, theirs=one.second) for one in COMPARISONS]
    with VerdictCache(tmp_path / "cache.sqlite") as cache:
        first = compare(likelihood(), items, seed=0, cache=cache)
        assert {one.outcome for one in first} <= {"win", "lose"}
        assert compare(likelihood(), items, seed=0, cache=cache) == first
        assert len(cache) == len(items)


def test_the_larger_reward_wins_and_equal_ones_tie():
    calls = []

    def reward(prompts, completions):
        calls.append(list(zip(prompts, completions, strict=True)))
        return [len(text) for text in completions]

    some = [
        Comparison(prompt="p", first="aaa", second="b"),
        Comparison(prompt="p", first="b", second="aaa"),
        Comparison(prompt="p", first="b", second="c"),
        Comparison(prompt="q", first="same", second="same"),
    ]
    found = ask(RewardJudge(reward, name="length", batch_size=3), some)
    assert [verdict.preference for verdict in found] == ["first", "second", "tie", "tie"]
    assert found[0].text == "rewards: first 3.0, second 1.0"
    assert calls == [[("p", "aaa"), ("p", "b"), ("p", "c")], [("q", "same")]]


def test_a_reward_that_fails_is_named():
    with pytest.raises(InputError, match=r"reward: the score of prompt 1 is not finite"):
        ask(RewardJudge(lambda p, c: [0.0, float("nan")], name="bad"), COMPARISONS[:1])
