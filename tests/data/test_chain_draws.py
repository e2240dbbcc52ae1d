"""Chains are drawn: each is written right, by a plain account of the same rules, and draws are fair and repeatable."""

import collections
import functools
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data import (
    ChainFormat,
    Mixture,
    PairTemplate,
    TemplateSet,
    Truncation,
    build_chains,
    extra_specs,
    load_templates,
)
from jaxalign.errors import InputError
from tests.data import chain_text
from tests.data.chain_text import ENCODERS, GPT2, HH, LLAMA

PAIR = {"prompt": "The film", "chosen": "It is good.", "rejected": "It was bad."}
FOUR = {"prompt": "The film", "responses": ["one", "two", "three", "four"], "ratings": [1, 7.5, 2, 9]}
ODD = TemplateSet(
    "odd",
    (
        PairTemplate("a", "\nBest:\n\n{positive}; worst:{negative}"),
        PairTemplate("b", "worst: \n{negative} - best {positive}"),
        PairTemplate("c", "the good:  {positive}\n\n the bad: {negative}", auxiliary=True),
    ),
    load_templates("talk").graded,
    between=" ",
    neutral={"answer": "And now, without a word about its quality, an answer:"},
)
SETS = {name: load_templates(name) for name in ("paper", "released")} | {"odd": ODD}

SAID = st.text("aeTh .:\n", min_size=1, max_size=9).map(str.strip).filter(bool)


@st.composite
def cases(draw):
    """A record and a format that suits it."""
    count = draw(st.integers(2, 4))
    each = functools.partial(st.lists, min_size=count, max_size=count)
    record = {
        "prompt": draw(st.one_of(st.just(""), SAID, st.text("aT.\n ", max_size=9).filter(lambda s: s[:1] != " "))),
        "responses": draw(each(SAID).filter(lambda responses: len(set(responses)) > 1)),
        "ratings": draw(st.none() | each(st.integers(-2, 2)).filter(lambda ratings: len(set(ratings)) > 1)),
        "finished": draw(each(st.booleans())),
    }
    if record["ratings"] is None or draw(st.booleans()):
        record["feedback"] = draw(each(st.none() | SAID))
    structures = draw(st.sets(st.sampled_from(["p", "n", "pn", "np", "aux", "chain"]), min_size=1))
    form = ChainFormat(
        structures=tuple(structures),
        emit=draw(st.sampled_from(["one", "one", "each"])),
        end_of_output=draw(st.sampled_from(["each", "last"])),
        repeat_prompt=draw(st.sampled_from(["none", "dialogues", "all"])) if structures - {"p", "n"} else "none",
        chain_length=draw(st.integers(2, 4)) if "chain" in structures else 4,
    )
    return record, form, SETS[draw(st.sampled_from(sorted(SETS)))], ENCODERS[draw(st.sampled_from(sorted(ENCODERS)))]


def account(prompt, chain, form, templates, encoder):
    """(text, ids, which are outputs) by the rules in words: nothing of the writer."""
    said, ids, mask = prompt, encoder.first(prompt), [False] * len(encoder.first(prompt))

    def add(text, tokens, output):
        nonlocal said
        said += text
        ids.extend(tokens)
        mask.extend([output] * len(tokens))

    again = form.repeat_prompt == "all"  # the prompts are texts
    for place, (marker, (output,), _) in enumerate(chain):
        if place and again:
            add(templates.between + prompt, encoder.following(templates.between + prompt), False)
        words = marker.text
        if not (place and marker.joined and not again):
            words = words.lstrip(" \n,;-") if marker.joined else words.lstrip()
            if said and not said[-1].isspace():
                words = templates.between + words
        add(words, encoder.following(words) if ids else encoder.first(words), False)
        ends = output.finished and (form.end_of_output == "each" or place == len(chain) - 1)
        add(marker.space + output.content, encoder.following(marker.space + output.content), True)
        if ends:
            add(encoder.decode([encoder.eos]), [encoder.eos], True)
    return said, ids, mask


def assert_roles(record, chain, form):
    """Alone an output is the record's best or worse; behind others, below the best of them or not."""
    flags = [negative for _, _, negative in chain]
    if record["ratings"] is None:
        assert not any(flags)
        count = len(record["responses"])
        assert len(chain) == (min(count, form.chain_length) if "chain" in form.weights else count)
        return
    assert len(chain) <= max({"p": 1, "n": 1, "chain": form.chain_length}.get(name, 2) for name in form.weights)
    if len(chain) > 1:
        assert True in flags
        assert False in flags
    ratings = [
        {r for r, said in zip(record["ratings"], record["responses"], strict=True) if said == output.content}
        for _, (output,), _ in chain
    ]  # of the same words there may be several
    assert flags in [
        [r < (max(some) if len(some) > 1 else max(record["ratings"])) for r in some]
        for some in itertools.product(*ratings)
    ]


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(0, 3))
def test_every_draw_is_written_by_the_rules(case, seed):
    record, form, templates, encoder = case
    chains, _ = build_chains([record], encoder, form, templates=templates, seed=seed)
    again, _ = build_chains([record], encoder, form, templates=templates, seed=seed)
    for index, used in itertools.product(range(len(chains)), range(4)):
        example, chain = chains.draw(index, used), chains.chain(index, used)
        assert again.draw(index, used).tokens.tolist() == example.tokens.tolist()
        text, ids, mask = account(record["prompt"], chain, form, templates, encoder)
        assert example.tokens.tolist() == ids
        assert chain_text.supervised(example).tolist() == [False, *mask[1:]]
        shown = chain_text.text(encoder, example).replace("[", "").replace("]", "")
        start = encoder.decode(encoder.first("")) if not record["prompt"] and encoder.bos is None else ""
        assert shown == start + text
        outputs = [output for _, (output,), _ in chain]
        ends = [output for output in outputs if output.finished]
        if form.end_of_output == "last":
            ends = [output for output in outputs[-1:] if output.finished]
        assert (example.targets == encoder.eos).sum() == len(ends)
        assert_roles(record, chain, form)
        assert len(ids) <= chains.sizes.tokens[index]
        assert len(example.targets) <= chains.sizes.targets[index]
        assert max(ids) <= chains.largest_token


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(8, 30))
def test_no_draw_is_longer_than_the_limit(case, limit):
    record, form, templates, encoder = case
    try:
        chains, counters = build_chains(
            [record], encoder, form, templates=templates, truncation=Truncation(limit, prompt="keep_end")
        )
    except InputError as error:
        assert "leave no room for an output" in str(error)  # noqa: PT017
        return
    whole, _ = build_chains([record], encoder, form, templates=templates)
    if not counters.truncated["prompt: keep_end"]:
        assert counters.truncated["chain: cut"] == (whole.sizes.tokens > limit).sum()
    for index, used in itertools.product(range(len(chains)), range(4)):
        example = chains.draw(index, used)
        assert len(example.tokens) <= chains.sizes.tokens[index] <= limit
        assert len(example.targets) >= 1
        if not counters.truncated["prompt: keep_end"]:
            assert example.tokens.tolist() == whole.draw(index, used).tokens[:limit].tolist()


def test_draws_follow_from_seed_index_and_use():
    records = [FOUR, {**FOUR, "prompt": "The story"}, PAIR]
    form = ChainFormat(structures=("p", "pn", "np", "chain"))

    def texts(seed, order):
        chains, _ = build_chains(records, GPT2, form, seed=seed)
        return {(index, used): chains.draw(index, used).tokens.tolist() for index, used in order}

    order = [(index, used) for index in range(3) for used in range(12)]
    first = texts(5, order)
    assert first == texts(5, order[::-1])
    other = texts(6, order)
    for index in range(3):
        assert len({tuple(first[index, used]) for used in range(12)}) > 4
        assert [first[index, used] for used in range(12)] != [other[index, used] for used in range(12)]
    # The same outputs, but not the same draws.
    assert [ids[2:] for (index, _), ids in first.items() if index == 0] != [
        ids[2:] for (index, _), ids in first.items() if index == 1
    ]


def assert_about(counts, shares):
    """Counts of draws are within five standard deviations of what is expected, and of nothing else."""
    total = sum(counts.values())
    assert set(counts) == set(shares)
    for name, share in shares.items():
        assert abs(counts[name] - total * share) <= 5 * math.sqrt(total * share * (1 - share)), name


@pytest.mark.parametrize("kind", ["answer", "summary", "dialogue"])
def test_all_templates_and_both_orders_are_drawn_alike(kind):
    paper = load_templates("paper")
    chains, _ = build_chains([{**PAIR, "kind": kind}], GPT2)
    counts = collections.Counter(tuple(marker.text for marker, _, _ in chains.chain(0, used)) for used in range(1600))
    templates = paper.of_kind(kind)
    assert_about(counts, {tuple(m.text for m in t.markers): 1 / len(templates) for t in templates})


def test_structures_are_drawn_by_their_weights():
    form = ChainFormat(structures=("p=2", "n", "np=0.5", "chain=1.5"), template_names=("bare-good-bad", "bare-bad-good",
                       "graded-answer"))  # fmt: skip
    chains, _ = build_chains([FOUR], GPT2, form)

    def structure(used):
        chain = chains.chain(0, used)
        if len(chain) == 1:
            return "n" if chain[0][2] else "p"
        return "np" if len(chain) == 2 else "chain"

    counts = collections.Counter(map(structure, range(1400)))
    assert_about(counts, {"p": 0.4, "n": 0.2, "np": 0.1, "chain": 0.3})


def test_outputs_and_orders_are_drawn_alike():
    def counts(record, structure, **form):
        chains, _ = build_chains([record], GPT2, ChainFormat(structures=(structure,), **form))
        said = (tuple(output.content for _, (output,), _ in chains.chain(0, used)) for used in range(1200))
        return collections.Counter(said)

    names = dict(zip(FOUR["responses"], FOUR["ratings"], strict=True))
    better = [(a, b) for a in names for b in names if names[a] > names[b]]
    assert_about(counts(FOUR, "pn"), dict.fromkeys(better, 1 / 6))
    assert_about(counts(FOUR, "n"), dict.fromkeys([("one",), ("two",), ("three",)], 1 / 3))
    three = {**FOUR, "responses": ["one", "two", "three"], "ratings": [1, 2, 3]}
    found = counts(three, "chain")
    assert_about(found, dict.fromkeys([(a, b, c) for a in three["responses"] for b in three["responses"]
                                       for c in three["responses"] if len({a, b, c}) == 3], 1 / 6))  # fmt: skip


def test_sizes_are_attained_but_for_a_few_tokens():
    for record, form in [
        (PAIR, {"structures": ("pn",), "template_names": ("bare-good-bad",)}),
        (PAIR, {"structures": ("p",), "template_names": ("bare-good-bad",)}),
        (PAIR, {"structures": ("p",), "markers": "none"}),
        (PAIR, {}),
        (FOUR, {"structures": ("p", "chain")}),
        (FOUR, {"structures": ("pn",), "repeat_prompt": "all"}),
        (HH, {"mark_turns": "all", "template_names": ("bare-good-bad", "bare-bad-good")}),
        ({**FOUR, "ratings": None, "feedback": ["a", "b", "c", "d"]}, {}),
        ({**PAIR, "kind": "dialogue"}, {"template_names": ("bare-good-bad", "bare-bad-good")}),
    ]:
        for encoder in (GPT2, LLAMA):
            chains, _ = build_chains([record], encoder, ChainFormat(**form))
            draws = [chains.draw(0, used) for used in range(120)]
            tokens, targets = chains.sizes.tokens[0], chains.sizes.targets[0]
            assert 0 <= targets - max(len(draw.targets) for draw in draws) <= 2
            slack = 24 if "chain" in form.get("structures", ()) else 4  # as if every grade had the most words
            assert 0 <= tokens - max(len(draw.tokens) for draw in draws) <= slack, form
    learnt, _ = build_chains([PAIR], GPT2, ChainFormat(learn_markers=True))
    assert learnt.sizes.targets.tolist() == learnt.sizes.tokens.tolist()


BEGUN = {"prompt": "\n\nAssistant: You\n\nHuman: hello", "chosen": "actors", "rejected": "no"}


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=list(ENCODERS))
@pytest.mark.parametrize("kind", ["answer", "dialogue"])
def test_sizes_hold_where_an_output_comes_first_of_all_or_opens_a_turn(encoder, kind):
    forms = [
        ChainFormat(structures=("p", "n"), markers=markers, mark_turns="all")
        for markers in ("feedback", "neutral", "none")
    ]
    if encoder is not ENCODERS["bare"]:  # it has no chat template
        forms += [
            ChainFormat(structures=("p", "n"), markers=markers, dialogue="chat_template")
            for markers in ("feedback", "neutral", "none")
        ]
    for form in forms:
        record = {**BEGUN, "kind": kind}
        if form.dialogue == "chat_template":
            record["prompt"] = [{"role": "user", "content": "hello"}]
        chains, _ = build_chains([record], encoder, form)
        for used in range(40):
            example = chains.draw(0, used)
            assert len(example.tokens) <= chains.sizes.tokens[0]
            assert len(example.targets) <= chains.sizes.targets[0]
            assert example.tokens.max() <= chains.largest_token


def test_sizes_of_several_records():
    records = [PAIR, {**PAIR, "ratings": None, "chosen": "a " * 30}, PAIR]
    chains, _ = build_chains(records, GPT2, truncation=Truncation(50), sources=[0, 1, 0], weights=[1, 2])
    sizes = chains.sizes
    assert sizes.tokens.tolist() == [sizes.tokens[0], 50, sizes.tokens[0]]
    assert sizes.pairs.tolist() == [0, 0, 0]
    assert sizes.sequences.tolist() == [1, 1, 1]
    assert sizes.record_ids.tolist() == [0, 1, 2]
    assert all(column.dtype == np.int64 for column in (sizes.tokens, sizes.targets, sizes.sequences))
    assert isinstance(chains.mixture, Mixture)
    assert chains.mixture.source.tolist() == [0, 1, 0]
    assert chains.mixture.weights == (1, 2)


def test_the_largest_token_may_be_in_a_marker_or_in_feedback():
    class Letters:
        bos_token_id, eos_token_id = None, 0

        def encode(self, text, *, add_special_tokens=True):
            return [ord(letter) for letter in text]

        def decode(self, token_ids):
            return "".join(map(chr, token_ids))

    record = {"prompt": "a", "responses": ["b", "c"], "ratings": [1, 2]}

    def largest(record, **form):
        return chr(build_chains([record], Letters(), ChainFormat(**form))[0].largest_token)

    assert largest(record, template_names=("bare-good-bad", "bare-bad-good")) == "o"
    assert largest({**record, "prompt": "é"}) == "é"
    assert largest({**record, "feedback": ["ä", "z"]}) == "ä"
    assert largest({**record, "feedback": ["ä", "z"]}, structures=("p",), markers="none") == "c"
    assert largest({**record, "kind": "summary"}, structures=("p",), markers="neutral") == "y"


def test_examples_of_all_draws_carry_the_same_arrays():
    chains, _ = build_chains([PAIR, FOUR, HH], GPT2, ChainFormat(structures=("p", "np")))
    specs = extra_specs([chains.draw(index, used) for index in range(3) for used in range(5)])
    assert [(spec.name, spec.level, spec.shape, spec.dtype) for spec in specs] == [
        ("draw", "sequence", (), np.dtype(np.int32)),
        ("negative", "target", (), np.dtype(bool)),
    ]


def test_every_draw_has_a_number_of_its_own():
    for form in (ChainFormat(), ChainFormat(structures=("p", "n", "pn"), emit="each")):
        chains, _ = build_chains([PAIR, FOUR, HH], GPT2, form)
        count, seen = len(chains), {}
        for index, used in itertools.product(range(count), range(5)):
            (number,) = chains.draw(index, used).sequence_extras["draw"]
            assert number == index + used * count
            assert seen.setdefault(int(number), (index, used)) == (index, used)
        assert len(seen) == 5 * count
        (number,) = chains.draw(1, 2**31 // count + 1).sequence_extras["draw"]  # after years
        assert number == (1 + (2**31 // count + 1) * count) % 2**31


def test_the_fingerprint_is_of_all_that_decides_draws():
    def name(records=(PAIR, FOUR), encoder=GPT2, form=None, **options):
        return build_chains(list(records), encoder, form or ChainFormat(), **options)[0].fingerprint()

    assert name() == name()
    assert len(name()) == 64
    assert name(form=ChainFormat(templates="talk"), templates=load_templates("paper")) == name()
    changed = [
        name([FOUR, PAIR]),
        name([PAIR]),
        name([PAIR, {**FOUR, "ratings": [1, 7.5, 2, 8]}]),
        name([PAIR, {**FOUR, "finished": [True, True, True, False]}]),
        name([PAIR, {**FOUR, "feedback": ["a", None, None, None]}]),
        name([PAIR, {**FOUR, "kind": "summary"}]),
        name([PAIR, {**FOUR, "prompt": "The story"}]),
        name(encoder=LLAMA),
        name(seed=1),
        name(truncation=Truncation(200)),
        name(form=ChainFormat(structures=("pn",))),
        name(form=ChainFormat(structures=("pn", "np=2"))),
        name(form=ChainFormat(emit="each")),
        name(form=ChainFormat(end_of_output="last")),
        name(form=ChainFormat(repeat_prompt="all")),
        name(form=ChainFormat(repeat_prompt="dialogues")),
        name(form=ChainFormat(structures=("p", "n"))),
        name(form=ChainFormat(structures=("p", "n"), emit="each")),
        name(form=ChainFormat(templates="talk")),
        name(sources=[0, 1], weights=[1, 1]),
        name(sources=[0, 1], weights=[1, 2]),
    ]
    assert len({name(), *changed}) == len(changed) + 1
