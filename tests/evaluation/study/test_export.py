"""The export: what is in each file, read back with what reads it; nothing a spreadsheet would run."""

import csv
import json

import pytest

from jaxalign import data
from jaxalign.errors import InputError
from jaxalign.evaluation import study
from jaxalign.evaluation._tables import spreadsheet_text
from tests.data import toy
from tests.evaluation.study.running import OURS, THEIRS, make_pairs, new_id

TURNS = [{"role": "user", "content": "Hello"}]
AXES = ("accuracy", "overall")


@pytest.fixture
def path(tmp_path):
    """Three raters of three pairs; what they prefer on "overall" is written below, on "accuracy" always ours."""
    pairs = [*make_pairs(2), study.Pair(3, TURNS, (OURS, THEIRS), ("Hi", [{"role": "assistant", "content": "No"}]))]
    made = study.Study(pairs=pairs, axes=study.read_axes(AXES), raters=("anna", "ben", "=cleo"))
    preferred = {1: "oot", 2: "ott", 3: "o-t"}  # a letter a rater: ours, theirs or neither
    with study.Store.open(tmp_path / "study.sqlite", made) as store:
        for rater in (1, 2, 3):
            for position in (1, 2, 3):
                view = store.view(rater, position)
                shown = {"o": ("first", "second"), "t": ("second", "first"), "-": ("tie", "tie")}
                words = {
                    "accuracy": shown["o"][view.flipped],
                    "overall": shown[preferred[view.pair.row][rater - 1]][view.flipped],
                }
                said = study.Answer(
                    id=new_id(),
                    position=position,
                    preferences=words,
                    seconds=2.25,
                    comment="=1+1" if rater == 1 else "",
                )
                store.submit(rater, said)
    return tmp_path / "study.sqlite"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_judgement_is_a_row(path, tmp_path):
    done = study.export_study(path, tmp_path / "out")
    with (tmp_path / "out" / "judgements.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert done.judgements == len(rows) == 3 * 3 * 2
    assert {(row["system_a"], row["system_b"]) for row in rows} == {(OURS, THEIRS)}
    overall = {(row["rater"], row["item"]): row["preference"] for row in rows if row["axis"] == "overall"}
    assert overall["anna", "1"] == OURS
    assert overall["ben", "2"] == THEIRS
    assert overall["ben", "3"] == "tie"
    assert {row["preference"] for row in rows if row["axis"] == "accuracy"} == {OURS}
    assert {row["flipped"] for row in rows} == {"true", "false"}
    assert {row["seconds"] for row in rows} == {"2.2"}
    assert all(row["received"].endswith("+00:00") for row in rows)
    # Formulas are text: nothing here begins with what a spreadsheet runs.
    assert {row["comment"] for row in rows} == {"'=1+1", ""}
    assert {row["rater"] for row in rows} == {"anna", "ben", "'=cleo"}
    assert not [cell for row in rows for cell in row.values() if cell[:1] in ("=", "+", "-", "@")]


@pytest.mark.parametrize("cell", ["=1", "+1", "-1", "@x", " =1", "\t=1", "\r\n=1", "\uff1d1"])
def test_formulas_are_text(cell):
    assert spreadsheet_text(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["", "a=1", "fine, thank you", "1-2"])
def test_words_stay_as_they_are(cell):
    assert spreadsheet_text(cell) == cell


def test_records_are_the_majority_or_every_judgement(path, tmp_path):
    done = study.export_study(path, tmp_path / "out")
    assert (done.axis, done.records, done.tied) == ("overall", 2, 1)
    records = {json.dumps(record["prompt"]): record for record in lines(tmp_path / "out" / "preferences.jsonl")}
    assert records['"Prompt 1"'] == {"prompt": "Prompt 1", "chosen": "Better 1", "rejected": "Worse 1"}
    assert records['"Prompt 2"'] == {"prompt": "Prompt 2", "chosen": "Worse 2", "rejected": "Better 2"}
    done = study.export_study(path, tmp_path / "out", preferences="every")
    assert (done.records, done.tied) == (8, 1)
    done = study.export_study(path, tmp_path / "out", axis="accuracy")
    assert (done.records, done.tied) == (3, 0)


def test_the_trainers_read_the_records(path, tmp_path):
    study.export_study(path, tmp_path / "out", axis="accuracy")
    records = data.load_records(tmp_path / "out" / "preferences.jsonl")
    assert [data.record_kind(record) for record in records] == ["preference"] * 3
    examples, counters = data.build_examples(records, toy.byte_level())
    assert len(examples) == 3
    assert not counters.skipped
    assert all(example.pairs.shape == (1, 2) for example in examples)


def test_verdicts_count_the_wins_of_ours(path, tmp_path):
    study.export_study(path, tmp_path / "out")
    verdicts = lines(tmp_path / "out" / "verdicts.jsonl")
    assert len(verdicts) == 18
    assert all((one["method"], one["against"], one["judge"]) == (OURS, THEIRS, "people") for one in verdicts)
    found = {(one["rater"], json.dumps(one["prompt"]), one["axis"]): one for one in verdicts}
    assert found["anna", '"Prompt 2"', "overall"]["outcome"] == "win"
    assert found["ben", '"Prompt 2"', "overall"]["outcome"] == "lose"
    assert found["ben", json.dumps(TURNS), "overall"]["outcome"] == "tie"
    assert {(one["ours"], one["theirs"]) for one in verdicts} == {
        ("Better 1", "Worse 1"), ("Better 2", "Worse 2"), ("Hi", "No")
    }  # fmt: skip
    study.export_study(path, tmp_path / "out", ours=THEIRS)
    turned = {
        (one["rater"], json.dumps(one["prompt"]), one["axis"]): one
        for one in lines(tmp_path / "out" / "verdicts.jsonl")
    }
    other = {"win": "lose", "lose": "win", "tie": "tie"}
    assert {key: other[one["outcome"]] for key, one in turned.items()} == {
        key: one["outcome"] for key, one in found.items()
    }


def test_what_is_not_in_the_study_is_refused(path, tmp_path):
    for options, words in (
        ({"axis": "coverage"}, "--axis: the study asked about accuracy, overall, not 'coverage'"),
        ({"ours": "system"}, "--ours: no system 'system'"),
    ):
        with pytest.raises(InputError, match=words):
            study.export_study(path, tmp_path / "out", **options)
    made = study.Study(pairs=make_pairs(1), axes=study.read_axes(["helpful,harmless"]))
    study.Store.open(tmp_path / "other.sqlite", made).close()
    with pytest.raises(InputError, match="--axis: say whose"):
        study.export_study(tmp_path / "other.sqlite", tmp_path / "out")
    assert not (tmp_path / "out").exists()
