"""Published feedback data sets to rated records: each schema, what is left out and counted, what is malformed."""

import copy
import gzip
import json
from pathlib import Path

import pytest

from jaxalign.data._published import feedback_records, load_feedback
from jaxalign.data._records import preference, ranked, record_kind
from jaxalign.data._sources import Records, load_records
from jaxalign.errors import InputError

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT.parent / "shared" / "data" / "hh_harmless_sample.jsonl.gz"
SCRIPT = RuntimeError("Dataset scripts are no longer supported, but found summarize_from_feedback.py")


def webgpt(answers=("Because of the salt.", "It is not."), scores=(0.5, -0.5)):
    row = {"question": {"dataset": "eli5", "id": "q1", "full_text": "Why is the sea salty?"}}
    for index, (answer, score) in enumerate(zip(answers, scores, strict=True)):
        row[f"quotes_{index}"] = {"title": ["A page"], "extract": ["Salt comes from rocks."]}
        row[f"answer_{index}"] = answer
        row[f"tokens_{index}"] = {"prefix": [1, 2], "completion": [3]}
        row[f"score_{index}"] = score
    return row


def info(name="t3_a", post="My bicycle was stolen.\nWhat now?", **parts):
    return {"id": name, "post": post, "title": "Stolen", "subreddit": "cycling", "site": None, "article": None} | parts


NEWS = info("9f", None, title=None, subreddit=None, site="cnn", article="It rained all day.")
PROMPT = "SUBREDDIT: r/cycling\nTITLE: Stolen\nPOST: My bicycle was stolen.\nWhat now?"


def comparison(choice=1, texts=(" I lost it.", " Bicycle stolen, what now?"), **parts):
    return {
        "info": info(),
        "summaries": [{"text": text, "policy": "sup1", "note": None} for text in texts],
        "choice": choice,
        "worker": "w1",
        "batch": "batch1",
        "split": "train",
        "extra": {"confidence": None},
    } | parts


def rated(text, overall, worker="w1", about=None, **axes):
    axes = {"overall": overall, "accuracy": None, "coverage": None, "coherence": None, "compatible": None} | axes
    return {
        "info": info() if about is None else about,
        "summary": {"text": text, "policy": "ref", "note": "fine", "axes": axes},
        "worker": worker,
        "batch": "tldraxis1",
        "split": "test",
    }


DIALOGUE = {
    "chosen": "\n\nHuman: Hello?\n\nAssistant: Good day.",
    "rejected": "\n\nHuman: Hello?\n\nAssistant: Go away.",
}
OWN = [
    {"prompt": "p", "responses": ["a", "b", "c"], "ratings": [1, 2, 3], "kind": "summary", "feedback": ["x", "y", "z"]},
    {"prompt": "p", "chosen": "a", "rejected": "b", "summary": {"text": "of ours"}, "info": {}},
    {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " Human: a", "rejected": " Human: b"},
    {"chosen": "The end was good", "rejected": "The end was bad"},
    {"prompt": "p", "completion": "c", "label": True},
    {"document": "long", "summary": "short"},
]


def load(tmp_path, rows, *, name="data.jsonl", **options):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_feedback(str(path), **options)


def changed(row, *keys, value=None, remove=False):
    """A copy of a row with one field, at any depth, changed or removed."""
    row = copy.deepcopy(row)
    inner = row
    for key in keys[:-1]:
        inner = inner[key]
    if remove:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return row


def test_webgpt_answers_with_their_scores(tmp_path):
    rows = [webgpt(), webgpt(scores=(0, 0)), webgpt(answers=("", "Yes.")), webgpt(("A.", "B."), (-1, 1))]
    records = load(tmp_path, rows)
    assert records[0] == {
        "prompt": "Why is the sea salty?",
        "responses": ["Because of the salt.", "It is not."],
        "ratings": [0.5, -0.5],
        "kind": "answer",
    }
    assert (records[1]["responses"], records[1]["ratings"]) == (["A.", "B."], [-1.0, 1.0])
    assert [records.place(index).rsplit(": ", 1)[1] for index in range(2)] == ["row 1", "row 4"]
    assert records.counters.as_dict() == {
        "rows_read": 4,
        "examples": 0,
        "skipped: empty answer": 1,
        "skipped: tie": 1,
    }


def test_comparisons_of_posts_and_articles(tmp_path):
    rows = [
        comparison(1),
        comparison(0),
        comparison(info=NEWS),
        comparison(info={"article": "It rained.", "title": "Rain"}),  # the raw files have no nulls
        comparison(info=info(title="  ", subreddit=None)),
        comparison(texts=("One.", " ")),
    ]
    records = load(tmp_path, rows)
    texts = [" I lost it.", " Bicycle stolen, what now?"]
    assert records[0] == {"prompt": PROMPT, "responses": texts, "ratings": [0.0, 1.0], "kind": "summary"}
    assert records[1]["ratings"] == [1.0, 0.0]
    assert [record["prompt"] for record in records[2:]] == [
        "ARTICLE: It rained all day.",
        "TITLE: Rain\nARTICLE: It rained.",
        "POST: My bicycle was stolen.\nWhat now?",
    ]
    assert records.counters.skipped == {"empty answer": 1}


AXIS_ROWS = [
    rated("Good.", 6, "w1", accuracy=7),
    rated("Rain.", 3, about=NEWS),
    rated("Bad.", 2, accuracy=7),
    rated("Good.", 7, "w2", accuracy=None),
    rated("Odd.", None, accuracy=1),
    rated("Sun.", 3, about=NEWS),
    rated("Alone.", 4, about=info("t3_b")),
    rated("Alone.", 5, "w2", about=info("t3_b")),
]


def test_axis_rows_are_grouped_by_post_and_raters_averaged(tmp_path):
    records = load(tmp_path, [webgpt(), *AXIS_ROWS, DIALOGUE])
    assert records[1] == {
        "prompt": PROMPT,
        "responses": ["Good.", "Bad."],
        "ratings": [6.5, 2.0],
        "kind": "summary",
    }
    assert [record["kind"] for record in records] == ["answer", "summary", "dialogue"]
    assert [records.place(index).rsplit(": ", 1)[1] for index in range(3)] == ["row 1", "row 2", "row 10"]
    assert records.counters.rows_read == 10
    assert records.counters.skipped == {"no rating on overall": 1, "tie": 2, "one rated summary": 2}  # in rows
    other = load(tmp_path, AXIS_ROWS, axis="accuracy")
    assert list(other) == [
        {"prompt": PROMPT, "responses": ["Good.", "Bad.", "Odd."], "ratings": [7.0, 7.0, 1.0], "kind": "summary"}
    ]
    assert other.counters.skipped == {"no rating on accuracy": 5}


def test_posts_without_an_id_are_grouped_by_their_text(tmp_path):
    one, other = info(None), info("", "Another post.")
    rows = [rated("A.", 1, about=one), rated("B.", 2, about=other), rated("C.", 3, about=one)]
    records = load(tmp_path, [*rows, rated("D.", 4, about=other)])
    assert [record["responses"] for record in records] == [["A.", "C."], ["B.", "D."]]
    assert records[1]["prompt"] == "SUBREDDIT: r/cycling\nTITLE: Stolen\nPOST: Another post."


def test_an_unknown_axis_is_named_before_anything_is_read(tmp_path):
    with pytest.raises(InputError) as error:
        load_feedback(str(tmp_path / "absent.jsonl"), axis="beauty")
    assert str(error.value) == "axis is 'beauty', must be one of overall, accuracy, coverage, coherence"
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(DIALOGUE))
    records = load_records(path)
    with pytest.raises(InputError, match="axis is 'beauty'"):
        feedback_records(records, axis="beauty")
    with pytest.raises(InputError, match="on_bad_row is 'ignore'"):
        feedback_records(records, on_bad_row="ignore")  # type: ignore[arg-type]


def test_dialogues_get_their_kind(tmp_path):
    records = load(tmp_path, [DIALOGUE, {**DIALOGUE, "kind": "chat"}])
    assert list(records) == [{**DIALOGUE, "kind": "dialogue"}, {**DIALOGUE, "kind": "chat"}]


def test_other_rows_pass_through_untouched(tmp_path):
    records = load(tmp_path, OWN)
    assert list(records) == OWN
    assert not records.counters.skipped


def test_mixed_files_keep_order_and_are_records_that_train(tmp_path):
    rows = [OWN[0], AXIS_ROWS[0], comparison(), DIALOGUE, AXIS_ROWS[2], webgpt()]
    records = load(tmp_path, rows)
    assert [record["kind"] for record in records] == ["summary", "summary", "summary", "dialogue", "answer"]
    for index, record in enumerate(records):
        if record_kind(record) == "ranked":
            ranked(record, records.place(index))
        else:
            assert preference(record, records.place(index))[1:] == (" Good day.", " Go away.")


def test_the_input_is_left_as_it_was(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [DIALOGUE, webgpt(scores=(0, 0))]))
    source = load_records(path)
    feedback_records(source)
    assert dict(source[0]) == DIALOGUE
    assert not source.counters.skipped


BAD = [
    (changed(webgpt(), "question", value="Why?"), "field 'question': expected an object, got str"),
    (changed(webgpt(), "question", remove=True), "missing field 'question'"),
    (changed(webgpt(), "question", "full_text", remove=True), "field 'question': missing field 'full_text'"),
    (changed(webgpt(), "question", "full_text", value=" "), "field 'question': field 'full_text': empty text"),
    (changed(webgpt(), "answer_1", remove=True), "missing field 'answer_1'"),
    (changed(webgpt(), "answer_0", value=["a"]), "field 'answer_0': expected a string, got list"),
    (changed(webgpt(), "score_1", value="high"), "field 'score_1': expected a finite number, got 'high'"),
    (changed(webgpt(), "score_0", value=None), "missing field 'score_0'"),
    (changed(webgpt(), "score_0", value=True), "field 'score_0': expected a finite number, got True"),
    (comparison(2), "field 'choice': expected 0 or 1, got 2"),
    (comparison(True), "field 'choice': expected 0 or 1, got True"),
    (comparison(None), "missing field 'choice'"),
    (comparison(summaries=None), "missing field 'summaries'"),
    (comparison(summaries="a"), "field 'summaries': expected a list, got str"),
    (comparison(texts=("a", "b", "c")), "field 'summaries': needs 2 summaries, has 3"),
    (comparison(summaries=["a", "b"]), "field 'summaries': summary 1 is a str, not an object"),
    (
        changed(comparison(), "summaries", 1, "text", value=5),
        "field 'summaries': summary 2: field 'text': expected a str",
    ),
    (changed(comparison(), "summaries", 1, "text"), "field 'summaries': summary 2: missing field 'text'"),
    (comparison(info=None), "missing field 'info'"),
    (comparison(info="post"), "field 'info': expected an object, got str"),
    (comparison(info=info(post="")), "field 'info': neither 'post' nor 'article' says anything"),
    (comparison(info=info(title=3)), "field 'info': field 'title': expected a string, got int"),
    (changed(rated("a", 1), "info"), "missing field 'info'"),
    (changed(rated("a", 1), "info", "id", value=7), "field 'info': field 'id': expected a string, got int"),
    (changed(rated("a", 1), "summary", value="a"), "field 'summary': expected an object, got str"),
    (changed(rated("a", 1), "summary", "axes"), "field 'summary': missing field 'axes'"),
    (changed(rated("a", 1), "summary", "text"), "field 'summary': missing field 'text'"),
    (rated("a", "6"), "field 'summary': field 'axes': field 'overall': expected a finite number, got '6'"),
    ({"chosen": DIALOGUE["chosen"]}, "missing field 'rejected'"),
    ({**DIALOGUE, "chosen": [1]}, "field 'chosen': expected a string, got list"),
    ({**DIALOGUE, "rejected": "\n\nHuman: \ud800"}, "field 'rejected': half of a surrogate pair"),
]


@pytest.mark.parametrize(("row", "message"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_malformed_rows_name_row_and_field(tmp_path, row, message):
    rows = [DIALOGUE, row]
    with pytest.raises(InputError) as error:
        load(tmp_path, rows)
    assert str(error.value).startswith(f"{tmp_path / 'data.jsonl'}: row 2: {message}")
    assert "\n" not in str(error.value)
    records = load(tmp_path, rows, on_bad_row="skip")
    assert [record["kind"] for record in records] == ["dialogue"]
    assert sum(records.counters.skipped.values()) == 1


def test_skipped_rows_are_counted_by_reason_without_numbers(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [comparison(2), comparison(3), comparison(), changed(webgpt(), "score_0", value="x")]
    path.write_text("\n".join([*map(json.dumps, rows), "{"]))
    records = load_feedback(str(path), on_bad_row="skip")
    assert [records.place(index) for index in range(len(records))] == [f"{path}: row 3"]
    assert records.counters.rows_read == 5
    assert records.counters.skipped == {
        "invalid JSON": 1,
        "field 'choice': expected N or N": 2,
        "field 'score_N': expected a finite number": 1,
    }


def test_nothing_left_is_an_error_that_says_why(tmp_path):
    with pytest.raises(InputError) as error:
        load(tmp_path, [webgpt(scores=(0, 0)), rated("One.", 3)])
    assert str(error.value) == (
        f"{tmp_path / 'data.jsonl'}: row 1: no record is left "
        "(rows_read 2, examples 0, skipped: one rated summary 1, skipped: tie 1)"
    )


def test_every_local_format_gives_the_same_records(tmp_path):
    """Columnar files give every row every field, and every object every key: null where there is none."""
    import datasets

    rows = [webgpt(), *AXIS_ROWS, comparison(), DIALOGUE, comparison(info=NEWS), OWN[0]]
    expected = list(load(tmp_path, rows))
    table = datasets.Dataset.from_list([{key: None for row in rows for key in row} | row for row in rows])
    table.to_parquet(tmp_path / "data.parquet")
    table.save_to_disk(tmp_path / "saved")
    with gzip.open(tmp_path / "data.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("data.parquet", "saved", "data.jsonl.gz"):
        records = load_feedback(str(tmp_path / name))
        # Rows that pass through keep the nulls of their file.
        said = [{key: value for key, value in record.items() if value is not None} for record in records]
        assert said == expected, name
        assert records.counters.skipped == {"no rating on overall": 1, "tie": 2, "one rated summary": 2}


def test_scores_that_are_not_numbers_in_parquet(tmp_path):
    import datasets

    datasets.Dataset.from_list([webgpt(), webgpt(scores=(float("nan"), 1.0))]).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(InputError, match=r"row 2: field 'score_0': expected a finite number, got nan"):
        load_feedback(str(tmp_path / "data.parquet"))


def hub(monkeypatch, rows, scripts=()):
    """A hub of one data set; the calls of it."""
    import datasets

    asked = []

    def answer(name, config=None, *, split, data_files=None):
        asked.append((name, config, split) if data_files is None else (name, data_files, split))
        if name in scripts:
            raise SCRIPT
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", answer)
    return asked


def test_a_hub_id_with_a_configuration(monkeypatch):
    asked = hub(monkeypatch, [comparison(), comparison(0), comparison()])
    records = load_feedback("openai/summarize_from_feedback:comparisons", "validation", limit=2)
    load_feedback("Anthropic/hh-rlhf", "test")
    assert asked == [
        ("openai/summarize_from_feedback", "comparisons", "validation"),
        ("Anthropic/hh-rlhf", None, "test"),
    ]
    assert [record["ratings"] for record in records] == [[0.0, 1.0], [1.0, 0.0]]
    assert records.place(1) == "openai/summarize_from_feedback:comparisons: row 2"


def test_a_script_on_the_hub_is_read_from_the_hubs_parquet_export(monkeypatch):
    name = "openai/summarize_from_feedback"
    asked = hub(monkeypatch, AXIS_ROWS, scripts=[name])
    records = load_feedback(f"{name}:axis", "test", limit=4)
    files = f"hf://datasets/{name}@refs%2Fconvert%2Fparquet/axis/test/*.parquet"
    assert asked == [(name, "axis", "test"), ("parquet", {"test": files}, "test")]
    assert list(records) == [
        {"prompt": PROMPT, "responses": ["Good.", "Bad."], "ratings": [6.5, 2.0], "kind": "summary"}
    ]
    assert records.place(0) == f"{name}:axis: row 1"
    assert records.counters.rows_read == 4
    assert records.counters.skipped == {"one rated summary": 1}
    hub(monkeypatch, [webgpt()], scripts=["openai/webgpt_comparisons"])
    assert len(load_feedback("openai/webgpt_comparisons", limit=9)) == 1


def test_a_script_without_an_export_is_one_line(monkeypatch):
    import datasets

    def refuse(name, config=None, *, split, data_files=None):
        if data_files is None:
            raise SCRIPT
        raise FileNotFoundError("Unable to find it\n(at all)")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError) as error:
        load_feedback("openai/summarize_from_feedback:axis")
    assert str(error.value) == (
        "openai/summarize_from_feedback: a script on the hub, and no Parquet export of configuration 'axis', "
        "split 'train': Unable to find it"
    )


def test_other_errors_of_the_hub_are_not_hidden(monkeypatch):
    import datasets

    def fail(*args, **options):
        raise RuntimeError("something else")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(RuntimeError, match="something else"):
        load_feedback("openai/webgpt_comparisons")


def test_a_local_path_with_a_colon(tmp_path, monkeypatch):
    records = load(tmp_path, [DIALOGUE], name="pairs:2024.jsonl")
    assert records.place(0) == f"{tmp_path}/pairs:2024.jsonl: row 1"
    monkeypatch.chdir(tmp_path)
    assert len(load_feedback("pairs:2024.jsonl")) == 1
    with pytest.raises(InputError, match=r"/absent:2024\.jsonl: no such file or folder"):
        load_feedback(str(tmp_path / "absent:2024.jsonl"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"folder: a configuration .* only for hub ids"):
        load_feedback("folder:axis")


def test_an_empty_source_has_no_place():
    from jaxalign.data._counters import Counters

    with pytest.raises(InputError, match=r"records: no record is left \(rows_read 0"):
        feedback_records(Records([], [], Counters()))


@pytest.mark.skipif(not SAMPLE.exists(), reason="the sample of genuine rows is not here")
def test_genuine_dialogues_are_all_known():
    source = load_records(SAMPLE)
    records = feedback_records(source)
    assert len(records) == len(source) == 1156
    assert all(record == {**row, "kind": "dialogue"} for record, row in zip(records, source, strict=True))
    assert records.place(1155) == source.place(1155)
    assert not records.counters.skipped
