"""The sampler against the dense model: log-probs, greedy text, masks, invariances, compilations, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import InputError
from jaxalign.sampling import Samples, _engine, generate
from jaxalign.sampling._schedule import StopStrings
from tests.data.toy import byte_level
from tests.sampling.models_under_test import (
    FAMILIES,
    GPT2,
    LLAMA,
    dense_log_probs,
    dense_logits,
    parameters,
    prompts_of,
)
from tests.tolerances import FLOAT32

KEY = jax.random.key(11)
# Log-probs of a cached decode against one forward pass: float32 sums in another order, logits of size up to ~20.
LOG_PROBS = {"rtol": 10 * FLOAT32, "atol": 10 * FLOAT32}


def assert_same(left: Samples, right: Samples):
    np.testing.assert_array_equal(left.tokens, right.tokens)
    np.testing.assert_array_equal(left.mask, right.mask)
    np.testing.assert_array_equal(left.finished, right.finished)
    np.testing.assert_allclose(left.log_probs, right.log_probs, **LOG_PROBS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 20}, {"temperature": 1.3, "top_p": 0.8}])
def test_log_probs_are_the_full_forwards(family, settings):
    config = FAMILIES[family]
    params, prompts = parameters(config), prompts_of(config, [1, 2, 5, 9, 17])
    samples = generate(config, params, prompts, KEY, max_new_tokens=12, batch_size=4, **settings)
    assert samples.mask.all()
    assert not samples.finished.any()
    for prompt, response, log_probs in zip(prompts, samples.responses(), samples.log_probs, strict=True):
        wanted = dense_log_probs(config, params, prompt, response, settings.get("temperature", 1.0))
        np.testing.assert_allclose(log_probs, wanted, **LOG_PROBS)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_the_argmax_of_the_full_forward(family):
    config = FAMILIES[family]
    params, prompts = parameters(config), prompts_of(config, [3, 8, 11])
    samples = generate(config, params, prompts, KEY, max_new_tokens=8, temperature=0)
    for prompt, response, log_probs in zip(prompts, samples.responses(), samples.log_probs, strict=True):
        best = dense_logits(config, params, [*prompt, *response])[len(prompt) - 1 : -1].argmax(-1)
        assert response == best.tolist()
        np.testing.assert_allclose(log_probs, dense_log_probs(config, params, prompt, response), **LOG_PROBS)


def test_split_stacks_and_prepared_parameters_change_nothing():
    params, prompts = parameters(LLAMA), prompts_of(LLAMA, [4, 6])
    whole = generate(LLAMA, params, prompts, KEY, max_new_tokens=5)
    assert_same(whole, generate(LLAMA, models.unstack(LLAMA, params), prompts, KEY, max_new_tokens=5))
    split = LLAMA.replace(stacks=(1, 1))
    stack = params["stacks"]["0"]
    params = params | {"stacks": {"0": jax.tree.map(lambda x: x[:1], stack), "1": jax.tree.map(lambda x: x[1:], stack)}}
    assert_same(whole, generate(split, params, prompts, KEY, max_new_tokens=5))


def test_responses_end_with_their_first_stop_token():
    params, prompts = parameters(LLAMA), prompts_of(LLAMA, [2, 3, 4, 5] * 6)
    free = generate(LLAMA, params, prompts, KEY, max_new_tokens=20)
    stops = [3, *range(40, 60)]
    stopped = generate(LLAMA, params, prompts, KEY, max_new_tokens=20, stop_tokens=stops, pad_token=3)
    ends = np.isin(free.tokens, stops)
    assert 0 < ends.any(1).sum() < len(prompts)  # both kinds of row are there
    np.testing.assert_array_equal(stopped.finished, ends.any(1))
    # pad is itself a stop token here: the mask must not be guessed from ids.
    for row in range(len(prompts)):
        length = int(ends[row].argmax()) + 1 if ends[row].any() else 20
        assert stopped.mask[row].tolist() == [True] * length + [False] * (20 - length)
        assert stopped.tokens[row, :length].tolist() == free.tokens[row, :length].tolist()
        assert (stopped.tokens[row, length:] == 3).all()
        assert (stopped.log_probs[row, length:] == 0).all()
        np.testing.assert_allclose(stopped.log_probs[row, :length], free.log_probs[row, :length], **LOG_PROBS)
    np.testing.assert_array_equal(stopped.lengths, stopped.mask.sum(1))


@pytest.fixture
def steps_run(monkeypatch):
    """Decoding steps of every call of the jitted loop, as they end."""
    steps, decode = [], _engine.decode

    def counted(*arguments):
        rows = decode(*arguments)
        steps.append(int(rows.step))
        return rows

    monkeypatch.setattr(_engine, "decode", counted)
    return steps


def test_early_exit_runs_as_many_steps_as_the_longest_response(steps_run):
    params, prompts = parameters(LLAMA), prompts_of(LLAMA, [2, 3, 4])
    stops = range(0, 300, 5)  # one token in five ends a response
    part = generate(LLAMA, params, prompts, KEY, max_new_tokens=64, stop_tokens=stops, batch_size=4)
    # Four rows for three prompts: the empty one does not keep the loop alive.
    assert steps_run == [part.lengths.max()]
    assert steps_run[0] < 64
    generate(LLAMA, params, prompts, KEY, max_new_tokens=6, batch_size=4)
    generate(LLAMA, params, prompts, KEY, max_new_tokens=6, stop_tokens=range(300), batch_size=4)
    assert steps_run[1:] == [6, 1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_batch_size_changes_nothing(family, batch_size):
    config = FAMILIES[family]
    params, prompts = parameters(config), prompts_of(config, [9, 1, 30, 4, 12, 7])
    settings = {"max_new_tokens": 6, "stop_tokens": range(0, 40), "samples_per_prompt": 3}
    whole = generate(config, params, prompts, KEY, batch_size=6, **settings)
    assert_same(whole, generate(config, params, prompts, KEY, batch_size=batch_size, **settings))


def test_a_sample_depends_on_its_own_prompt_and_indices_alone():
    params, prompts = parameters(LLAMA), prompts_of(LLAMA, [5, 6, 40])
    whole = generate(LLAMA, params, prompts, KEY, max_new_tokens=6)
    first = generate(LLAMA, params, prompts[:1], KEY, max_new_tokens=6)  # a shorter bucket, fewer rows
    assert_same(whole.rows(np.arange(1)), first)
    longer = generate(LLAMA, params, prompts[:1], KEY, max_new_tokens=9)
    np.testing.assert_array_equal(longer.tokens[:, :6], first.tokens)
    other = generate(LLAMA, params, prompts[:1], jax.random.key(12), max_new_tokens=6)
    assert (other.tokens != first.tokens).any()


def test_samples_of_a_prompt_share_its_prefill_and_differ():
    params, prompts = parameters(LLAMA), prompts_of(LLAMA, [5, 9])
    four = generate(LLAMA, params, prompts, KEY, max_new_tokens=6, samples_per_prompt=4)
    assert four.tokens.shape == (8, 6)
    assert len({tuple(row) for row in four.tokens[:4].tolist()}) == 4
    # Sample 0 of prompt i is what a call with one sample gives; sample j has fold_in(prompt, j)'s randomness.
    one = generate(LLAMA, params, prompts, KEY, max_new_tokens=6)
    assert_same(four.rows(np.asarray([0, 4])), one)
    for prompt, row in zip([0, 0, 0, 0, 1, 1, 1, 1], range(8), strict=True):
        wanted = dense_log_probs(LLAMA, params, prompts[prompt], four.tokens[row].tolist())
        np.testing.assert_allclose(four.log_probs[row], wanted, **LOG_PROBS)
    five = generate(LLAMA, params, prompts, KEY, max_new_tokens=6, samples_per_prompt=5, batch_size=2)
    assert_same(four, five.rows(np.asarray([0, 1, 2, 3, 5, 6, 7, 8])))


def test_equal_prompts_with_equal_seeds_have_equal_samples():
    params, (prompt, other) = parameters(GPT2), prompts_of(GPT2, [7, 12])
    one = generate(GPT2, params, [prompt], KEY, max_new_tokens=6, seeds=[2**32 - 1])
    many = generate(
        GPT2, params, [other, prompt, prompt, prompt], KEY, max_new_tokens=6, seeds=[4, 2**32 - 1, 3, 2**32 - 1]
    )
    assert_same(many.rows(np.asarray([1])), one)
    assert_same(many.rows(np.asarray([3])), one)
    assert (many.tokens[2] != one.tokens[0]).any()


# Prompts of three buckets, responses that end by a stop token, by their own limit, or at the longest.
RAGGED = {"lengths": [9, 1, 30, 4, 12, 7, 2, 18, 5, 26, 3], "limits": [20, 3, 20, 9, 1, 20, 14, 20, 6, 2, 20]}


@pytest.mark.parametrize("windows", [(None,), (5, None)], ids=["whole", "windows"])
@pytest.mark.parametrize("family", FAMILIES)
def test_refilling_changes_no_sample(family, windows, steps_run):
    """Rows taken over in the middle of others' responses, the ring of columns gone round, caches widened on the way."""
    config = FAMILIES[family].replace(windows=windows)
    params, prompts = parameters(config), prompts_of(config, RAGGED["lengths"])
    settings = {"max_new_tokens": RAGGED["limits"], "stop_tokens": range(0, 20), "samples_per_prompt": 2}
    plain = generate(config, params, prompts, KEY, batch_size=4, refill=False, **settings)
    plain_steps = steps_run[-1]
    assert set(plain.lengths) >= {1, 2, 3, 20}  # some are cut by their own limits, some run on
    assert plain.finished.any()
    assert (plain.lengths.reshape(-1, 2) <= np.asarray(RAGGED["limits"])[:, None]).all()
    for batch_size in (1, 3, 4, 16):
        assert_same(plain, generate(config, params, prompts, KEY, batch_size=batch_size, **settings))
    generate(config, params, prompts, KEY, batch_size=4, **settings)
    refilled = steps_run[-1]
    assert plain.mask.sum() / 4 <= refilled < 0.8 * plain_steps


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_refilling_changes_no_token_in_rows_of_one_number(dtype):
    """Another number of rows may round otherwise, and in bfloat16 that turns tokens."""
    config = LLAMA.replace(compute_dtype=dtype)
    params, prompts = parameters(config), prompts_of(config, RAGGED["lengths"])
    settings = {"max_new_tokens": RAGGED["limits"], "samples_per_prompt": 2, "batch_size": 4}
    plain, refilled = (generate(config, params, prompts, KEY, refill=refill, **settings) for refill in (False, True))
    np.testing.assert_array_equal(plain.tokens, refilled.tokens)
    if dtype == "float32":
        assert_same(plain, refilled)


def test_long_prompts_are_computed_a_few_at_a_time(monkeypatch):
    params, prompts = parameters(LLAMA), prompts_of(LLAMA, (33, 40, 25, 31, 37))
    wanted = generate(LLAMA, params, prompts, KEY, max_new_tokens=5, batch_size=5)
    monkeypatch.setattr(_engine, "PREFILL_SCORES", 2 * 48 * 48)
    _engine.stage.clear_cache()
    assert_same(wanted, generate(LLAMA, params, prompts, KEY, max_new_tokens=5, batch_size=5))
    _engine.stage.clear_cache()


def test_order_changes_no_sample_where_seeds_are_given():
    params, prompts = parameters(LLAMA), prompts_of(LLAMA, RAGGED["lengths"])
    seeds, settings = np.arange(100, 111), {"stop_tokens": range(0, 20), "batch_size": 3}
    whole = generate(LLAMA, params, prompts, KEY, max_new_tokens=12, seeds=seeds, **settings)
    order = np.random.default_rng(0).permutation(len(prompts))
    turned = generate(
        LLAMA, params, [prompts[i] for i in order], KEY, max_new_tokens=12, seeds=seeds[order], **settings
    )
    assert_same(whole.rows(order), turned)


def letters(tokens):
    return "".join("abcdefgh"[token % 8] for token in tokens)


@pytest.mark.parametrize("batch_size", [2, 16])
def test_stop_strings_end_a_response_at_the_token_that_completes_one(batch_size):
    params, prompts = parameters(LLAMA), prompts_of(LLAMA, [2, 3, 4, 9] * 4)
    free = generate(LLAMA, params, prompts, KEY, max_new_tokens=30, stop_tokens=range(3))
    strings, progress = ("ab", "hgf", "c"), []
    stopped = generate(
        LLAMA, params, prompts, KEY, max_new_tokens=30, stop_tokens=range(3), stop_strings=strings, decode=letters,
        batch_size=batch_size, on_progress=lambda done, total: progress.append(done),
    )  # fmt: skip
    by_string = 0
    for row, tokens in enumerate(free.responses()):
        text = len(tokens) - bool(free.finished[row])  # a stop token is not text
        ends = [n for n in range(1, text + 1) if any(string in letters(tokens[:n]) for string in strings)]
        kept = tokens[: ends[0]] if ends else tokens
        by_string += bool(ends)
        assert stopped.responses()[row] == kept
        assert bool(stopped.finished[row]) == (bool(ends) or bool(free.finished[row]))
        np.testing.assert_allclose(stopped.log_probs[row, : len(kept)], free.log_probs[row, : len(kept)], **LOG_PROBS)
    assert by_string > 4
    assert progress[-1] == len(prompts)


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prefix_equals_none(family, monkeypatch):
    config = FAMILIES[family]
    params = parameters(config)
    template = prompts_of(config, [21], seed=5)[0]
    prompts = [template + own for own in prompts_of(config, [1, 8, 3, 14])]
    widths = []
    extend = models.extend

    def watched(config, params, tokens, *arguments, **keywords):
        widths.append(tokens.shape)
        return extend(config, params, tokens, *arguments, **keywords)

    monkeypatch.setattr(models, "extend", watched)
    settings = {"max_new_tokens": 7, "samples_per_prompt": 2}
    jax.clear_caches()
    shared = generate(config, params, prompts, KEY, **settings)
    assert widths[:2] == [(1, 16), (4, 24)]  # 16 of the 21 once, the rest with each prompt
    apart = generate(config, params, prompts, KEY, share_prefix=False, **settings)
    assert (4, 48) in widths
    assert_same(shared, apart)


def test_identical_prompts_share_all_but_the_last_tokens():
    params, prompt = parameters(LLAMA), prompts_of(LLAMA, [17])[0]
    samples = generate(LLAMA, params, [prompt] * 3, KEY, max_new_tokens=4)
    assert len({tuple(row) for row in samples.tokens.tolist()}) == 3
    for row in range(3):
        wanted = dense_log_probs(LLAMA, params, prompt, samples.tokens[row].tolist())
        np.testing.assert_allclose(samples.log_probs[row], wanted, **LOG_PROBS)


def test_nothing_is_compiled_twice_within_a_bucket(monkeypatch):
    params = parameters(LLAMA)
    traces = []
    extend = models.extend

    def counted(*arguments, **keywords):
        traces.append(1)
        return extend(*arguments, **keywords)

    monkeypatch.setattr(models, "extend", counted)
    jax.clear_caches()
    settings = {"max_new_tokens": 5, "batch_size": 4}
    generate(LLAMA, params, prompts_of(LLAMA, [3, 8, 5, 2, 6, 7, 1]), KEY, **settings)
    first = len(traces)
    assert first == 2  # one prefill, one decoding step: the second chunk and its filling rows reuse them
    for seed in range(3):
        prompts = prompts_of(LLAMA, [seed + 1, 8, 4, 5], seed)
        generate(LLAMA, params, prompts, jax.random.key(seed), temperature=0.5 + seed, stop_tokens=[seed], **settings)
    assert len(traces) == first  # seeds, temperatures and stop tokens are data
    generate(LLAMA, params, prompts_of(LLAMA, [9, 8, 4, 5]), KEY, **settings)
    assert len(traces) == first + 2  # the next bucket
    for limits in ([5, 1, 2, 3, 4, 5, 1], [1, 1, 7, 3, 2, 8, 1]):
        generate(LLAMA, params, prompts_of(LLAMA, [3, 8, 5, 2, 6, 7, 1]), KEY, **settings | {"max_new_tokens": limits})
        assert len(traces) == first + 3  # limits are data, up to their bucket


def test_progress_is_reported_as_responses_end():
    calls = []
    generate(
        LLAMA, parameters(LLAMA), prompts_of(LLAMA, [3] * 5), KEY, max_new_tokens=2, samples_per_prompt=2,
        batch_size=4, on_progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert calls == [(4, 10), (8, 10), (10, 10)]


def test_bfloat16_cache_and_compute():
    config = LLAMA.replace(compute_dtype="bfloat16")
    params, prompts = models.init(config, KEY), prompts_of(config, [3, 9])
    samples = generate(config, params, prompts, KEY, max_new_tokens=4)
    assert samples.log_probs.dtype == np.float32
    half = generate(LLAMA, params, prompts, KEY, max_new_tokens=4, cache_dtype="bfloat16")
    for part in (samples, half):
        for prompt, response, log_probs in zip(prompts, part.responses(), part.log_probs, strict=True):
            # Logits of size one and a bfloat16 rounding or two on their way.
            np.testing.assert_allclose(log_probs, dense_log_probs(LLAMA, params, prompt, response), atol=0.1)


@pytest.mark.parametrize("make", [jax.random.PRNGKey, jax.random.key, lambda seed: jax.random.key(seed, impl="rbg")])
def test_any_kind_of_key(make):
    params, prompts = parameters(LLAMA), prompts_of(LLAMA, [3, 3, 3])
    whole = generate(LLAMA, params, prompts, make(0), max_new_tokens=4)
    assert_same(whole, generate(LLAMA, params, prompts, make(0), max_new_tokens=4, batch_size=1))
    assert (whole.tokens != generate(LLAMA, params, prompts, make(1), max_new_tokens=4).tokens).any()


def test_parameters_that_are_not_finite_are_an_error():
    params = parameters(LLAMA)
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[0].set(jnp.nan)
    with pytest.raises(FloatingPointError, match=r"prompts\[0\]"):
        generate(LLAMA, params, [[1, 2]], KEY, max_new_tokens=3)


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([], {}, "prompts is empty"),
        ([[1], []], {}, r"prompts\[1\] is empty"),
        ([[1], [2, 300]], {}, r"prompts\[1\]\[1\] = 300 is outside the vocabulary of 300"),
        ([[-1]], {}, r"prompts\[0\]\[0\] = -1 is outside"),
        ([[1.5]], {}, r"prompts\[0\] is not a flat list of integer"),
        ([[[1]]], {}, r"prompts\[0\] is not a flat list of integer"),
        ([[1], [1] * 93], {}, r"prompts\[1\] has 93 tokens.*room for 92"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens must be at least 1 .*is 0"),
        ([[1], [2]], {"max_new_tokens": [3, 0]}, r"max_new_tokens\[1\] must be at least 1 .*is 0"),
        ([[1], [2]], {"max_new_tokens": [3]}, "max_new_tokens has 1 numbers for 2 prompts"),
        ([[1]], {"max_new_tokens": 2.5}, "max_new_tokens must be integers"),
        ([[1]], {"seeds": [-1]}, r"seeds\[0\] must be at least 0 and below 4294967296, is -1"),
        ([[1]], {"stop_strings": ["a"]}, "stop_strings needs decode"),
        ([[1]], {"stop_strings": "a"}, "stop_strings must be a list of texts"),
        ([[1]], {"stop_strings": ["a", ""], "decode": str}, r"stop_strings\[1\] is empty"),
        ([[1]], {"max_new_tokens": 96}, "max_positions"),
        ([[1]], {"temperature": -0.1}, "temperature must be finite and at least 0, is -0.1"),
        ([[1]], {"temperature": float("nan")}, "temperature"),
        ([[1]], {"top_p": 0.0}, r"top_p must be in \(0, 1\], is 0.0"),
        ([[1]], {"top_p": 1.5}, "top_p"),
        ([[1]], {"min_p": 1.0}, "min_p"),
        ([[1]], {"top_k": -1}, "top_k"),
        ([[1]], {"samples_per_prompt": 0}, "samples_per_prompt"),
        ([[1]], {"batch_size": 0}, "batch_size"),
        ([[1]], {"pad_token": 300}, "pad_token"),
        ([[1]], {"stop_tokens": [5, 300]}, "stop_tokens: 300 is outside"),
    ],
)  # fmt: skip
def test_bad_input(prompts, settings, message):
    params = models.init(LLAMA, KEY)
    with pytest.raises(InputError, match=message):
        generate(LLAMA, params, prompts, KEY, **({"max_new_tokens": 4} | settings))


@pytest.mark.parametrize("string", ["☃", "é☃", "b\n", "end of it"])
def test_stop_strings_of_partial_characters(string):
    """Byte-level pieces: a character of several tokens is there with its last one, however often one looks."""
    tokenizer = byte_level()
    text = "a snowman né☃ab\n, the end of it all " * 3
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert len(tokens) > len(text.split())
    stop = StopStrings((string,), tokenizer.decode)
    wanted = next(n for n in range(len(tokens) + 1) if string in tokenizer.decode(tokens[:n]))
    for step in (1, 3, 8, 50):
        known, found = 0, None
        while found is None:
            found = stop.end(tokens[: known + step], known)
            known += step
        assert found == wanted


def test_a_look_reads_what_is_new():
    """Not the whole response every time: looks at N tokens would cost N^2."""
    read = []

    def decode(tokens):
        read.append(len(tokens))
        return "x" * len(tokens)

    stop = StopStrings(("ab", "é"), decode)
    assert stop.end(list(range(1000)), 992) is None
    assert sum(read) <= 8 + 2 + 8
