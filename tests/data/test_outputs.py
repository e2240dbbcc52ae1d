"""Records of several systems' outputs: both forms read, whatever is wrong named by place and field."""

import json

import pandas
import pytest

from jaxalign import data
from jaxalign.errors import InputError

ROWS = [{"prompt": "Why?", "outputs": {"dpo": "Because.", "sft": "So."}}]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_every_kind_of_file_holds_them(tmp_path, suffix):
    path = tmp_path / f"outputs.{suffix}"
    if suffix == "jsonl":
        path.write_text(json.dumps(ROWS[0]) + "\n")
    elif suffix == "csv":
        cells = [{**row, "outputs": json.dumps(row["outputs"])} for row in ROWS]
        pandas.DataFrame(cells).to_csv(path, index=False)
    else:
        pandas.DataFrame(ROWS).to_parquet(path)
    (record,) = data.load_records(path)
    assert data.named_outputs(record) == ("Why?", {"dpo": "Because.", "sft": "So."})


def test_a_null_output_is_a_system_that_has_none():
    record = {"prompt": "Why?", "outputs": {"dpo": "Because.", "base": None, "sft": "So."}}
    assert list(data.named_outputs(record)[1]) == ["dpo", "sft"]


def test_pairs_are_read_with_their_prompt_beside_or_inside_them():
    assert data.named_outputs({"prompt": "a", "chosen": "b", "rejected": "c"}) == (
        "a",
        {"chosen": "b", "rejected": "c"},
    )
    inside = {"chosen": "\n\nHuman: x\n\nAssistant: y", "rejected": "\n\nHuman: x\n\nAssistant: z"}
    prompt, outputs = data.named_outputs(inside)
    assert prompt == "\n\nHuman: x\n\nAssistant:"
    assert outputs == {"chosen": " y", "rejected": " z"}
    prompt, outputs = data.named_outputs({
        "prompt": [{"role": "user", "content": "x"}],
        "outputs": {"a": "y", "b": [{"role": "assistant", "content": "z"}]},
    })  # fmt: skip
    assert prompt == [{"role": "user", "content": "x"}]
    assert outputs == {"a": "y", "b": [{"role": "assistant", "content": "z"}]}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": "a"}, "missing field 'outputs'"),
        ({"outputs": {"x": "a", "y": "b"}}, "missing field 'prompt'"),
        ({"prompt": "a", "outputs": {"x": "a"}}, "needs at least 2 systems, has x"),
        ({"prompt": "a", "outputs": {}}, "needs at least 2 systems, has none"),
        ({"prompt": "a", "outputs": ["x", "y"]}, "expected an object of system -> answer, got list"),
        ({"prompt": "a", "outputs": "x"}, "expected an object of system -> answer, got text"),
        ({"prompt": "a", "outputs": {"x": " ", "y": "b"}}, "field 'outputs.x': empty completion"),
        ({"prompt": "a", "outputs": {" ": "a", "y": "b"}}, "a system without a name"),
        ({"prompt": "a", "outputs": {"x": 3, "y": "b"}}, "field 'outputs.x': expected a string"),
        ({"prompt": 1, "outputs": {"x": "a", "y": "b"}}, "field 'prompt': expected a string"),
        ({"prompt": "a", "outputs": {"x": "a", "y": [{"role": "assistant", "content": "b"}]}}, "field 'outputs.y' is"),
        ({"prompt": "a", "chosen": "a"}, "missing field 'rejected'"),
        ({"prompt": "a", "outputs": {"x": "\ud800", "y": "b"}}, "surrogate"),
    ],
)
def test_what_is_wrong_is_named(record, words):
    with pytest.raises(InputError, match=r"^f\.jsonl: row 3: ") as caught:
        data.named_outputs(record, "f.jsonl: row 3")
    assert words in str(caught.value)
