"""Which outputs of a record become sequences, what each stands for, and before which its prompt is given again."""

import dataclasses

import numpy as np

from jaxalign.data import ChainFormat, build_chains
from jaxalign.recipes._hindsight_presets import HINDSIGHT_PRESETS
from tests.data import chain_text
from tests.data.chain_text import CHAT, GPT2, HH, drawn

E = "<|endoftext|>"
PAIR = {"prompt": "The film", "chosen": "It is good.", "rejected": "It was bad."}
FOUR = {"prompt": "The film", "responses": ["one", "two", "three", "four"], "ratings": [1, 7.5, 2, 9]}
BARE = {"template_names": ("bare-good-bad", "bare-bad-good")}


def test_emit_each_makes_every_output_of_p_and_n_a_sequence_of_its_own():
    four = {**FOUR, "ratings": [1, 9, 2, 9]}
    label = {"prompt": "The film", "completion": "five", "label": False}
    form = ChainFormat(structures=("n", "pn", "p"), emit="each", **BARE)
    chains, counters = build_chains([four, label], GPT2, form)
    assert counters.as_dict() == {"rows_read": 2, "examples": 6}

    def shown(used):
        return [chain_text.text(GPT2, chains.draw(index, used)) for index in range(len(chains))]

    def alone(word, *outputs):
        return [f"The film\n\n{word}:[ {output}{E}]" for output in outputs]

    for used in range(9):
        found = shown(used)
        assert found.pop(2).count(E) == 2  # the pair is drawn
        assert found == [*alone("Bad", "one", "three"), *alone("Good", "two", "four"), *alone("Bad", "five")]
    examples = [chains.draw(index, 0) for index in (0, 1, 3, 4, 5)]
    assert [set(one.target_extras["negative"].tolist()) for one in examples] == [
        {True}, {True}, {False}, {False}, {True},
    ]  # fmt: skip
    assert [one.record_id for one in examples] == [0, 0, 0, 0, 1]
    # Each takes the room of its own output.
    long = {**four, "responses": ["one", "two", "again " * 20, "four"]}
    sizes = build_chains([long], GPT2, ChainFormat(structures=("p", "n"), emit="each", **BARE))[0].sizes.tokens
    assert (sizes > sizes.min() + 15).tolist() == [False, False, False, True]
    # Supervised fine-tuning on all.
    assert drawn([four], structures=("p", "n"), emit="each", markers="none") == [
        f"The film[ {output}{E}]" for output in ("two", "four", "one", "three")
    ]
    assert drawn([four], structures="p", emit="each", **BARE) == alone("Good", "two", "four")


def test_negative_is_what_stands_for_the_worse():
    def negative(record, structure, **form):
        example = build_chains([record], GPT2, ChainFormat(structures=(structure,), **form))[0].draw(0, 0)
        flags = example.target_extras["negative"]
        assert flags.dtype == bool
        ends = np.flatnonzero(example.targets == GPT2.eos)
        return [set(part.tolist()) for part in np.split(flags, ends[:-1] + 1)]

    assert negative(PAIR, "p") == [{False}]
    assert negative(PAIR, "n") == [{True}]
    assert negative(PAIR, "pn") == [{False}, {True}]
    assert negative(PAIR, "np") == [{True}, {False}]
    assert negative(FOUR, "chain", chain_order="falling") == [{False}, {True}, {True}, {True}]
    assert negative({**FOUR, "ratings": [-3, -1, -1, -2]}, "chain", chain_order="rising") == [
        {True}, {True}, {False}, {False},
    ]  # fmt: skip
    # In a chain of three of the four, what is below the best of the three.
    three = ChainFormat(structures=("chain",), chain_length=3)
    chains, seen = build_chains([FOUR], GPT2, three)[0], set()
    for used in range(60):
        chain = chains.chain(0, used)
        said = [output.content for _, (output,), _ in chain]
        best = max(said, key=lambda word: FOUR["ratings"][FOUR["responses"].index(word)])
        assert [worse for _, _, worse in chain] == [word != best for word in said]
        seen.add(best)
    assert seen == {"two", "four"}
    # Of a pair the better stands for the better, whether or not a third is better still.
    for structure, flags in (("pn", [False, True]), ("np", [True, False]), ("aux", None)):
        chains, seen = build_chains([FOUR], GPT2, ChainFormat(structures=(structure,)))[0], set()
        for used in range(60):
            chain = chains.chain(0, used)
            first, second = (FOUR["ratings"][FOUR["responses"].index(output.content)] for _, (output,), _ in chain)
            assert [worse for _, _, worse in chain] == ([first < second, second < first] if flags is None else flags)
            seen.add(max(first, second))
        assert seen == {2, 7.5, 9}
    # Alone: by what it stands for, the record's best or any other.
    assert negative(FOUR, "p") == [{False}]
    assert negative({**FOUR, "ratings": [9, 9, 9, 8]}, "n") == [{True}]
    assert negative(HH, "np", mark_turns="all") == [{True}, {True}, {False}]
    assert negative({"prompt": "a", "completion": "b", "label": False}, "n") == [{True}]
    assert negative({"prompt": "a", "completion": "b", "label": True}, "np") == [{False}]
    assert negative({"prompt": "a", "completion": "b", "feedback": "c"}, "np") == [{False}]


def test_the_released_code_repeats_dialogues_and_no_texts():
    fields = {field.name for field in dataclasses.fields(ChainFormat)}
    released = {name: value for name, value in HINDSIGHT_PRESETS["released"].items() if name in fields}
    assert released["repeat_prompt"] == "dialogues"
    good, bad = "A helpful answer:", "An unhelpful answer:"
    for record, dialogue in ((PAIR, False), (HH, True), ({**PAIR, "prompt": CHAT["prompt"]}, True)):
        texts = set(drawn([record], uses=9, **released))
        repeated = set(drawn([record], uses=9, **{**released, "repeat_prompt": "all"}))
        once = set(drawn([record], uses=9, **{**released, "repeat_prompt": "none"}))
        assert texts == (repeated if dialogue else once)
        assert len(repeated | once) == 4
    asked = "User: hello\n\n{0}[ yes{1}]\n\nUser: what is good?\n\n{0}[ {2}{1}]"
    first, second = asked.format(good, E, "A good film."), asked.format(bad, E, "A bad story.")
    assert set(drawn([HH], uses=9, **released)) == {f"{first}\n\n{second}", f"{second}\n\n{first}"}
    first, second = f"{good}[ It is good.{E}]", f"{bad}[ It was bad.{E}]"
    assert set(drawn([PAIR], uses=9, **released)) == {
        f"The film\n\n{first}\n\n{second}",
        f"The film\n\n{second}\n\n{first}",
    }
