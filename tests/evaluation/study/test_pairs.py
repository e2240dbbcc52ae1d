"""Which pairs a file makes, and what of a study is refused."""

import json

import pytest

from jaxalign.errors import InputError
from jaxalign.evaluation import study
from tests.evaluation.study.running import make_pairs


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_two_systems_or_ours_against_each(tmp_path):
    rows = [
        {"prompt": "a", "outputs": {"x": "1", "y": "2", "z": "3"}},
        {"prompt": "b", "outputs": {"z": "6", "x": "4", "y": "4"}},
    ]
    path = write(tmp_path / "outputs.jsonl", rows)
    pairs, same = study.read_pairs(path)
    assert same == 1
    # The order of the file's first row, whatever the others' is.
    assert [(pair.row, *pair.systems, *pair.outputs) for pair in pairs] == [
        (1, "x", "y", "1", "2"), (1, "x", "z", "1", "3"), (1, "y", "z", "2", "3"),
        (2, "x", "z", "4", "6"), (2, "y", "z", "4", "6"),
    ]  # fmt: skip
    pairs, same = study.read_pairs(path, ours="z")
    assert same == 0
    assert [pair.systems for pair in pairs] == [("z", "x"), ("z", "y")] * 2
    assert [pair.outputs for pair in pairs] == [("3", "1"), ("3", "2"), ("6", "4"), ("6", "4")]


def test_what_cannot_be_compared_is_refused_by_file_and_row(tmp_path):
    path = write(tmp_path / "outputs.jsonl", [{"prompt": "a", "outputs": {"x": "1", "y": "2"}}, {"prompt": "b"}])
    with pytest.raises(InputError, match=r"outputs.jsonl: row 2: missing field 'outputs'"):
        study.read_pairs(path)
    write(path, [{"prompt": "a", "outputs": {"x": "1", "y": "2"}}])
    with pytest.raises(InputError, match=r"row 1: no output of 'z' \(--ours\); it has x, y"):
        study.read_pairs(path, ours="z")
    write(path, [{"prompt": "a", "outputs": {"x": "1", "y": "1"}}])
    with pytest.raises(InputError, match="nothing to compare: in every row the outputs are the same text"):
        study.read_pairs(path)
    assert [pair.outputs for pair in study.read_pairs(path, keep_equal=True)[0]] == [("1", "1")]


def test_a_pair_knows_its_line(tmp_path):
    path = tmp_path / "outputs.jsonl"
    path.write_text("\n" + json.dumps({"prompt": "a", "outputs": {"x": "1", "y": "2"}}) + "\n")
    (pair,), _ = study.read_pairs(path)
    assert (pair.row, pair.place) == (1, f"{path}: row 2")


def test_axes_by_name_or_with_a_question_of_ones_own():
    assert [axis.name for axis in study.read_axes(["accuracy, coherence", "coverage"])] == [
        "accuracy", "coherence", "coverage"
    ]  # fmt: skip
    (own,) = study.read_axes(["tone=Which is kinder, or calmer?"])
    assert (own.name, own.question) == ("tone", "Which is kinder, or calmer?")
    for specs, words in (
        (["kindness"], "the axes are accuracy, "),
        (["tone= "], "name=Question"),
        (["helpful", "helpful"], "named twice"),
        ([], "at least one"),
    ):
        with pytest.raises(InputError, match=words):
            study.read_axes(specs)


def test_settings_that_contradict_each_other_are_refused():
    axes = study.read_axes(["overall"])
    for settings, words in (
        ({"ratings_per_item": 0}, "at least 1"),
        ({"ratings_per_item": 3, "raters": ("anna", "ben")}, "as many --raters"),
        ({"title": " "}, "--title"),
    ):
        with pytest.raises(InputError, match=words):
            study.Study(pairs=make_pairs(1), axes=axes, **settings)
    assert study.read_raters(["anna,  ben  b. ", "Žofie"]) == ("anna", "ben b.", "Žofie")
    for names in (["anna,"], ["anna,Anna"], ["x" * 61], ["an\u202ena"], ["\ud800"]):
        with pytest.raises(InputError):
            study.read_raters(names)
