"""Goldens of records of every kind as chains: feedback of one's own, labels, dialogues, published data, real rows."""

import collections
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from jaxalign.data import ChainFormat, Counters, Records, build_chains, feedback_records, load_records
from jaxalign.data._feedback_records import Output, RatedOutputs, Turn, rated_outputs
from jaxalign.errors import InputError
from tests.data import chain_text
from tests.data.chain_text import EARLY, GPT2, HH, drawn

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT.parent / "shared" / "data" / "hh_harmless_sample.jsonl.gz"
E = "<|endoftext|>"
BARE = {"template_names": ("bare-good-bad", "bare-bad-good")}
OWN = {"prompt": "The film", "responses": ["one", "two"], "feedback": ["Too short.", "Just right:"]}


def test_feedback_of_its_own_stands_in_the_order_of_the_record():
    found = f"The film\n\nToo short.[ one{E}]\n\nJust right:[ two{E}]"
    assert set(drawn([OWN], uses=9)) == {found}
    alone = {"prompt": "The film", "completion": "one", "feedback": " Too short.\n"}
    assert drawn([alone]) == drawn([{**alone, "feedback": ["Too short."]}]) == [f"The film\n\nToo short.[ one{E}]"]
    # As it was written: it is not of a template, which may go on from an output.
    marks = {**OWN, "feedback": ["-1", ", or not"]}
    assert drawn([marks]) == [f"The film\n\n-1[ one{E}]\n\n, or not[ two{E}]"]
    assert drawn([OWN], end_of_output="last") == [f"The film\n\nToo short.[ one]\n\nJust right:[ two{E}]"]


def test_feedback_of_its_own_with_ratings_is_ordered_like_any_other():
    rated = {**OWN, "ratings": [0.2, 0.8]}
    one, two = f"Too short.[ one{E}]", f"Just right:[ two{E}]"
    assert set(drawn([rated], uses=20)) == {f"The film\n\n{one}\n\n{two}", f"The film\n\n{two}\n\n{one}"}
    assert drawn([rated], structures="n") == [f"The film\n\n{one}"]
    pair = {"prompt": "The film", "chosen": "two", "rejected": "one", "feedback": ["Just right:", "Too short."]}
    assert drawn([pair], structures="np", **BARE) == [f"The film\n\n{one}\n\n{two}"]
    labelled = {"prompt": "The film", "completion": "one", "feedback": "Too short.", "label": False}
    assert drawn([labelled]) == [f"The film\n\n{one}"]


def test_where_feedback_is_null_a_template_speaks():
    half = {**OWN, "ratings": [1, 2], "feedback": ["Too short.", None]}
    assert drawn([half], structures="np", **BARE) == [f"The film\n\nToo short.[ one{E}]\n\nGood:[ two{E}]"]
    assert drawn([half], structures="pn", **BARE) == [f"The film\n\nGood:[ two{E}]\n\nToo short.[ one{E}]"]
    talk = drawn([{**half, "kind": "summary"}], structures="pn", templates="talk")
    assert talk == [f"The film\n\nA good summary:[ two{E}]\n\nToo short.[ one{E}]"]
    # Nobody rated it: words that say nothing of its quality.
    unrated = {**half, "ratings": None}
    assert drawn([unrated]) == [f"The film\n\nToo short.[ one{E}]\n\nAn answer:[ two{E}]"]


def test_baselines_without_feedback_do_not_read_it():
    rated = {**OWN, "ratings": [0.2, 0.8]}
    assert drawn([rated], structures="p", markers="neutral") == [f"The film\n\nAn answer:[ two{E}]"]
    assert drawn([rated], structures="p", markers="none") == [f"The film[ two{E}]"]
    # Without ratings there is nothing that they could go by.
    alone = {"prompt": "The film", "completion": "one", "feedback": "Too short."}
    for markers, record in itertools.product(("neutral", "none"), (OWN, alone)):
        form = ChainFormat(structures=("p", "n"), markers=markers, emit="each")
        records = Records([rated, record], ["a.jsonl: row 2", "a.jsonl: row 7"], Counters(rows_read=2))
        with pytest.raises(
            InputError, match=rf"^a\.jsonl: row 7: missing field 'ratings'.*: --markers {markers} tells"
        ):
            build_chains(records, GPT2, form)
        chains, counters = build_chains(records, GPT2, form, on_bad_row="skip")
        assert counters.as_dict() == {"rows_read": 2, "examples": 2, "skipped: unusable row": 1}
        assert {chains.draw(index, 0).record_id for index in range(2)} == {0}


def test_outputs_that_nobody_rated_are_no_more_than_a_chain_is_long():
    five = {"prompt": "The film", "responses": list("abcde"), "feedback": ["1", "2", None, "4", "5"]}
    room = collections.defaultdict(set)
    said = ["1[ a{0}]", "2[ b{0}]", "An answer:[ c{0}]", "4[ d{0}]", "5[ e{0}]"]
    for form, count in (
        ({}, 5),
        ({"structures": "p"}, 5),
        ({"structures": "chain"}, 4),
        ({"structures": ("pn", "chain"), "chain_length": 2}, 2),
        ({"structures": "chain", "chain_length": 3, "chain_order": "falling", "emit": "each"}, 3),
        ({"structures": "chain", "chain_length": 9}, 5),
    ):
        expected = "\n\n".join(["The film", *said[:count]]).format(E)
        assert set(drawn([five], uses=5, **form)) == {expected}
        structures = form.get("structures", ("pn", "np"))
        structures = (structures,) if isinstance(structures, str) else structures
        chains, _ = build_chains([five], GPT2, ChainFormat(**{**form, "structures": structures}))
        assert len(chains) == 1
        assert len(chains.draw(0, 0).tokens) <= chains.sizes.tokens[0]
        assert 0 <= chains.sizes.targets[0] - len(chains.draw(0, 0).targets) <= 2
        room[count].add(int(chains.sizes.tokens[0]))
    assert all(len(sizes) == 1 for sizes in room.values())
    assert sorted(room, key=lambda count: min(room[count])) == [2, 3, 4, 5]


def test_labels():
    good = {"prompt": "The film", "completion": " is good ", "label": True}
    bad = {"prompt": "The film", "completion": "was bad", "label": 0}
    said = [f"The film\n\nGood:[ is good{E}]", f"The film\n\nBad:[ was bad{E}]"]
    for structures in (("pn", "np"), ("p", "n"), ("chain",)):
        assert drawn([good, bad], structures=structures, **BARE) == said
    for structure, expected in zip("pn", said, strict=True):
        chains, counters = build_chains([good, bad], GPT2, ChainFormat(structures=(structure,), **BARE))
        assert [chain_text.text(GPT2, chains.draw(0, 0))] == [expected]
        assert counters.as_dict() == {"rows_read": 2, "examples": 1, "skipped: other label": 1}
    assert drawn([{**bad, "finished": False}], **BARE) == [said[1].replace(E, "")]
    neutral = drawn([good, bad], structures=("p", "n"), markers="neutral")
    assert neutral == [f"The film\n\nAn answer:[ is good{E}]", f"The film\n\nAn answer:[ was bad{E}]"]


def test_dialogues_that_part_at_their_last_turn():
    before = "User: hello\n\nAssistant: yes\n\nUser: what is good?"
    assert drawn([HH], structures="pn", templates="talk") == [
        f"{before}\n\nYou are a helpful assistant:[ A good film.{E}], you are an unhelpful assistant:[ A bad story.{E}]"
    ]
    explicit = {
        "prompt": HH["chosen"].removesuffix(" A good film."),
        "chosen": " A good film.",
        "rejected": " A bad story.",
    }
    messages = [
        {"role": role, "content": said}
        for role, said in [("user", "hello"), ("assistant", "yes"), ("user", "what is good?")]
    ]
    answers = {
        field: [{"role": "assistant", "content": said}]
        for field, said in [("chosen", "A good film."), ("rejected", "A bad story.")]
    }
    implicit = {field: [*messages, *answer] for field, answer in answers.items()}
    same = drawn([HH], structures="np", **BARE)
    for record in (explicit, {"prompt": messages, **answers}, implicit, {**HH, "kind": "dialogue"}):
        assert drawn([record], structures="np", **BARE) == same
        assert drawn([{**record, "margin": 3}], structures="np", **BARE) == same


def test_dialogues_that_part_before():
    before = "User: hello\n\nAssistant: yes"
    assert drawn([EARLY], structures="pn", **BARE) == [
        f"{before}\n\nUser: what is good?\n\nGood:[ A good film.{E}]\n\nUser: why?\n\nBad:[ A bad story.{E}]"
    ]
    turn = {**HH, "rejected": HH["rejected"].replace("yes", "no")}
    assert drawn([turn], structures="pn", **BARE) == [
        f"User: hello\n\nGood:[ yes{E}]\n\nUser: what is good?\n\nGood:[ A good film.{E}]\n\n"
        f"Bad:[ no{E}]\n\nUser: what is good?\n\nBad:[ A bad story.{E}]"
    ]
    assert drawn([turn], structures="pn", kind="dialogue", templates="talk", end_of_output="last") == [
        "User: hello\n\nYou are a helpful assistant:[ yes]\n\nUser: what is good?\n\n"
        "You are a helpful assistant:[ A good film.], you are an unhelpful assistant:[ no]\n\n"
        f"User: what is good?\n\nyou are an unhelpful assistant:[ A bad story.{E}]"
    ]
    longer = {**HH, "rejected": HH["rejected"].split("\n\nHuman: what")[0]}
    assert drawn([longer], structures="n", **BARE) == [f"User: hello\n\nBad:[ yes{E}]"]
    with pytest.raises(InputError, match=r"^row 1: the outputs part before their last turn; only dialogues written as"):
        drawn([turn], structures="pn", dialogue="chat_template")


def test_the_kind_of_a_record():
    """What the record says, then what it is, then what is said of all."""

    def kind(record, given="answer"):
        return rated_outputs({"chosen": "a", "rejected": "b"} | record, "row 1", kind=given).kind

    assert kind({"prompt": "The"}) == "answer"
    assert kind({"prompt": "The"}, "summary") == "summary"
    assert kind({"prompt": "The", "kind": "dialogue"}, "summary") == "dialogue"
    assert kind({"prompt": "Human: a"}, "summary") == "dialogue"
    assert kind({"prompt": "\n\nHuman: a\n\nAssistant:"}) == "dialogue"
    assert kind({"prompt": "He said: Human: a"}) == "answer"
    assert kind({"prompt": [{"role": "user", "content": "a"}], "kind": "summary"}) == "summary"
    assert kind({"prompt": "The", "kind": None}) == "answer"


def test_what_is_read():
    turns = (Turn("user", "hello"), Turn("assistant", "yes"), Turn("user", "what is good?"))
    outputs = tuple(
        Output((Turn("assistant", said),), rating) for said, rating in [("A good film.", 1.0), ("A bad story.", 0.0)]
    )
    assert rated_outputs(HH, "row 1") == RatedOutputs("dialogue", turns, outputs)
    assert rated_outputs({**OWN, "finished": [True, False]}, "row 1") == RatedOutputs(
        "answer",
        "The film",
        (
            Output((Turn("assistant", "one"),), None, "Too short."),
            Output((Turn("assistant", "two"),), None, "Just right:", finished=False),
        ),
    )
    shared = {"chosen": "The film was good", "rejected": "The film was bad"}
    found = rated_outputs(shared, "row 1")
    assert found.prompt == "The film was"
    assert [output.turns[0].content for output in found.outputs] == ["good", "bad"]


RANKED = {"prompt": "The", "responses": ["a", "b"], "ratings": [1, 2]}
PAIR = {"prompt": "The", "chosen": "a", "rejected": "b"}
BAD = [
    ("text", "expected an object, got str"),
    ({"text": "a"}, "no feedback: it needs prompt + responses + ratings, prompt + chosen + rejected, or prompt +"),
    ({}, "missing field: needs text, messages, prompt + completion"),
    ({"prompt": "a", "completion": "b"}, "missing field 'feedback' (or 'label'): a completion alone says nothing"),
    ({"prompt": "a", "completion": " ", "label": True}, "field 'completion': empty completion"),
    ({"prompt": "a", "completion": "b", "label": "yes"}, "field 'label': expected true or false, got 'yes'"),
    ({"completion": "b", "label": True}, "missing field 'prompt'"),
    ({**RANKED, "ratings": [1]}, "field 'ratings': 1 ratings for 2 responses"),
    ({**RANKED, "ratings": [1, None]}, "field 'ratings': expected a finite number, got None"),
    ({**RANKED, "ratings": None}, "missing field 'ratings'"),
    ({**RANKED, "responses": 5, "ratings": None, "feedback": ["a"]}, "field 'responses': expected a list, got int"),
    ({**RANKED, "responses": ["a"], "ratings": None, "feedback": ["a"]}, "field 'responses': needs at least 2 answers"),
    ({**RANKED, "responses": None}, "missing field 'responses'"),
    ({**RANKED, "finished": [True]}, "field 'finished': expected a list of 2 booleans"),
    ({**RANKED, "feedback": ["a"]}, "field 'feedback': expected 2 texts, one an output, got ['a']"),
    ({**RANKED, "feedback": "a"}, "field 'feedback': expected 2 texts, one an output, got 'a'"),
    ({**RANKED, "feedback": 5}, "field 'feedback': expected 2 texts, one an output, got 5"),
    ({**RANKED, "feedback": ["a", " "]}, "field 'feedback': expected a text (or null for a template's), got ' '"),
    ({**RANKED, "feedback": ["a", 1]}, "field 'feedback': expected a text (or null for a template's), got 1"),
    ({**RANKED, "feedback": ["a", "\ud800"]}, "field 'feedback': half of a surrogate pair, not valid Unicode text"),
    ({**RANKED, "kind": "poem"}, "field 'kind': expected one of answer, summary, dialogue, got 'poem'"),
    ({**PAIR, "rejected": None}, "missing field 'rejected'"),
    ({**PAIR, "chosen": ""}, "field 'chosen': empty completion"),
    ({**PAIR, "rejected_finished": "no"}, "field 'rejected_finished': expected true or false, got 'no'"),
    ({**PAIR, "prompt": 5}, "field 'prompt': expected a string or a list of messages, got int"),
    (
        {**PAIR, "prompt": "Human: a\n\nAssistant: b"},
        "field 'prompt': its last turn is the assistant's; an output would answer itself",
    ),
    ({**PAIR, "chosen": [{"role": "user", "content": "a"}]}, "field 'chosen': the last message is by 'user'"),
    ({**HH, "chosen": HH["chosen"] + "\n\nHuman: a"}, "field 'chosen': the last turn is by 'user', not 'assistant'"),
    ({**HH, "rejected": HH["rejected"].removesuffix(" A bad story.")}, "field 'rejected': empty completion"),
    ({**HH, "rejected": "Human: why?\n\nAssistant: no"}, "missing field 'prompt', and 'chosen' and 'rejected' share"),
]


@pytest.mark.parametrize(("record", "message"), BAD, ids=range(len(BAD)))
def test_bad_records_name_place_and_field(record, message):
    with pytest.raises(InputError) as error:
        rated_outputs(record, "data.jsonl: row 7")
    assert str(error.value).startswith(f"data.jsonl: row 7: {message}")
    assert "\n" not in str(error.value)
    records = Records([RANKED, record], ["data.jsonl: row 6", "data.jsonl: row 7"], Counters(rows_read=9))
    with pytest.raises(InputError, match=rf"^data\.jsonl: row 7: {re.escape(message)}"):
        build_chains(records, GPT2)
    chains, counters = build_chains(records, GPT2, on_bad_row="skip")
    assert len(chains) == 1
    assert counters.as_dict() == {"rows_read": 9, "examples": 1, "skipped: unusable row": 1}


def test_ties_are_left_out_and_counted():
    tie = {**RANKED, "ratings": [2, 2]}
    _, counters = build_chains([RANKED, tie], GPT2)
    assert counters.as_dict() == {"rows_read": 2, "examples": 1, "skipped: all ratings equal": 1}
    with pytest.raises(
        InputError, match=r"^row 1: nothing to train on \(rows_read 1, examples 0, skipped: all ratings"
    ):
        build_chains([tie], GPT2)


@pytest.mark.parametrize("rated", [True, False])
def test_outputs_that_are_all_the_same_are_left_out_and_counted(rated):
    same = {**RANKED, "responses": ["a", " a"], **({} if rated else {"ratings": None, "feedback": ["c", "d"]})}
    _, counters = build_chains([RANKED, same], GPT2)
    assert counters.as_dict() == {"rows_read": 2, "examples": 1, "skipped: all outputs equal": 1}
    chains, _ = build_chains([{**RANKED, "responses": ["a", "a", "b"], "ratings": [1, 2, 3]}], GPT2)
    assert len(chains) == 1


def test_the_kinds_of_outputs_to_texts():
    records = [RANKED, HH, {**RANKED, "kind": "summary"}]
    assert build_chains(records, GPT2)[0].text_kinds == {"answer", "summary"}
    assert build_chains(records[:1], GPT2, ChainFormat(kind="summary"))[0].text_kinds == {"summary"}
    assert build_chains([HH], GPT2)[0].text_kinds == set()


def published(*rows):
    return feedback_records(Records(list(rows), [f"hub: row {n}" for n in range(1, len(rows) + 1)], Counters()))


def test_webgpt():
    row = {
        "question": {"dataset": "eli5", "id": "q1", "full_text": "Why is the sea salty?"},
        "quotes_0": {"title": ["A page"], "extract": ["Salt comes from rocks."]},
        "answer_0": "It is not.",
        "score_0": -0.5,
        "quotes_1": {"title": [], "extract": []},
        "answer_1": "Because of the salt [1].",
        "score_1": 0.5,
    }
    assert drawn(published(row), structures="np", templates="talk") == [
        f"Why is the sea salty?\n\nA bad answer is[ It is not.{E}], a good answer is[ Because of the salt [1].{E}]"
    ]


INFO = {"id": "t3_a", "post": "It was stolen.", "title": "My bicycle", "subreddit": "cycling"}
POST = "SUBREDDIT: r/cycling\nTITLE: My bicycle\nPOST: It was stolen."


def test_comparisons_of_summaries():
    row = {"info": INFO, "summaries": [{"text": " I lost it."}, {"text": " Bicycle stolen."}], "choice": 1}
    assert drawn(published(row), structures="pn", templates="talk", template_names="good-worse-summary") == [
        f"{POST}\n\nA good summary:[ Bicycle stolen.{E}], a worse summary:[ I lost it.{E}]"
    ]


def test_axis_ratings_of_summaries():
    rows = [
        {"info": INFO, "summary": {"text": text, "axes": {"overall": mark}}, "worker": "w"}
        for text, mark in [("Stolen.", 5), ("Bicycle stolen.", 7), ("Lost.", 2), ("Stolen.", 6), ("None.", None)]
    ]
    assert drawn(published(*rows), structures="chain", chain_order="rising", templates="talk") == [
        f"{POST}\n\nA terrible summary:[ Lost.{E}], a mediocre summary:[ Stolen.{E}], "
        f"an excellent summary:[ Bicycle stolen.{E}]"
    ]


def test_dialogues_of_the_hub():
    found = drawn(published(HH), structures="np", template_names="persona-disrespectful-respectful")
    assert found == [
        "User: hello\n\nAssistant: yes\n\nUser: what is good?\n\n"
        f"You are a disrespectful and biased assistant:[ A bad story.{E}]\n\n"
        f"You are a respectful and unbiased assistant:[ A good film.{E}]"
    ]


def turns(text):
    """Of a dialogue in the Anthropic-HH format: (who, what was said)."""
    parts = re.split(r"(?:\n\n|^)(Human|Assistant):", text.strip())
    return [(who, said.strip()) for who, said in zip(parts[1::2], parts[2::2], strict=True)]


@pytest.mark.skipif(not SAMPLE.exists(), reason="the sample of genuine rows is not here")
def test_genuine_dialogues_become_chains():
    records = feedback_records(load_records(SAMPLE))
    form = ChainFormat(structures=("np",), template_names=("bare-bad-good",))
    chains, counters = build_chains(records, GPT2, form, on_bad_row="skip")
    assert len(records) == 1156
    assert counters.skipped == {"unusable row": 2}  # answers that say nothing
    assert len(chains) == 1154
    right = total = 0
    for index in range(len(chains)):
        example = chains.draw(index, 0)
        record = records[example.record_id]
        chosen, rejected = turns(record["chosen"]), turns(record["rejected"])
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        said = [f"{'User' if who == 'Human' else who}: {words}" for who, words in chosen[:shared]]
        count = 0
        for mark, output in (("Bad", rejected[shared:]), ("Good", chosen[shared:])):
            for who, words in output:
                said.append(f"User: {words}" if who == "Human" else f"{mark}:[ {words}{E}]")
                count += who == "Assistant"
        ends = int((example.targets == GPT2.eos).sum())
        assert ends == count == int((example.tokens == GPT2.eos).sum())
        right += chain_text.text(GPT2, example) == "\n\n".join(said)
        total += 1
    assert right == total  # nothing of the texts is printed
    assert np.unique(chains.sizes.record_ids).size == total
