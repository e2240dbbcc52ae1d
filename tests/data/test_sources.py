"""Files, folders and hub ids to rows; everything that can be wrong with them is one line that names it."""

import gzip
import json

import pytest

from jaxalign.data import load_records
from jaxalign.errors import InputError

ROWS = [{"prompt": f"p{i}", "completion": f"line one\nline two, {i}", "label": bool(i % 2)} for i in range(8)]


def write_jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_jsonl_rows_and_places(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl")
    records = load_records(path)
    assert list(records) == ROWS
    assert records.place(6) == f"{path}: row 7"
    assert records.counters.rows_read == 8
    assert records[2:4].place(1) == f"{path}: row 4"
    assert records[2:4].counters.rows_read == 2


def test_every_local_format_gives_the_same_rows(tmp_path):
    import datasets

    write_jsonl(tmp_path / "a.jsonl")
    (tmp_path / "b.json").write_text(json.dumps(ROWS))
    write_jsonl(tmp_path / "c.json")  # JSON lines under the name .json
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n\n" for row in ROWS))  # blank lines between
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(tmp_path / "e.parquet")
    table.to_csv(tmp_path / "f.csv")
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": table, "test": table.select([3])}).save_to_disk(tmp_path / "splits")
    for name in ("a.jsonl", "b.json", "c.json", "d.jsonl.gz", "e.parquet", "f.csv", "saved", "splits"):
        assert [dict(row) for row in load_records(tmp_path / name)] == ROWS, name
    assert list(load_records(tmp_path / "splits", split="test")) == [ROWS[3]]
    assert list(load_records(tmp_path / "e.parquet", limit=2)) == ROWS[:2]


def test_csv_of_long_texts_and_lists(tmp_path):
    long = "word " * 40_000  # over the csv module's own limit of a field
    path = tmp_path / "data.csv"
    path.write_text(f'prompt,responses,ratings\n"{long}","[""a"", ""b""]","[1, 0.5]"\n', encoding="utf-8")
    assert dict(load_records(path)[0]) == {"prompt": long, "responses": ["a", "b"], "ratings": [1, 0.5]}


def test_json_error_in_row_7(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl")
    lines = path.read_text().splitlines()
    lines[6] = '{"prompt": "p", '
    path.write_text("\n".join(lines))
    with pytest.raises(InputError) as error:
        load_records(path)
    assert str(error.value).startswith(f"{path}: row 7: invalid JSON: ")
    assert "\n" not in str(error.value)


def test_bad_rows_are_skipped_and_counted_on_request(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a"}\n[1]\n{"text": NaN}\n{"text"\n{"text": "b"}\n')
    records = load_records(path, on_bad_row="skip")
    assert [row["text"] for row in records] == ["a", "b"]
    assert records.place(1) == f"{path}: row 5"
    assert records.counters.rows_read == 5
    assert records.counters.skipped == {"invalid JSON": 2, "expected an object, got list": 1}
    with pytest.raises(InputError, match="row 2: expected an object, got list"):
        load_records(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.jsonl", None, "absent.jsonl: no such file or folder"),
        ("empty.jsonl", "", "empty.jsonl: no rows"),
        ("list.json", '"text"', "list.json: expected a list of objects, got str"),
        ("broken.json", "[1,", "broken.json: invalid JSON: "),
        ("wide.csv", "text,label\na,1,2\n", "wide.csv: row 1: invalid CSV: 3 cells, the header has 2"),
        ("empty.csv", "", "empty.csv: empty file"),
        ("no.parquet", "text", "no.parquet: not a Parquet file: "),
        ("notes.txt", "text", "notes.txt: unknown kind of file"),
        ("fake.jsonl.gz", "text", "fake.jsonl.gz: not a readable gzip file"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as error:
        load_records(tmp_path / name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"text": "caf\xe9"}\n'.encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.jsonl: not UTF-8 text"):
        load_records(path)


def test_unknown_splits_folders_and_hub_ids(tmp_path):
    import datasets

    path = write_jsonl(tmp_path / "data.jsonl")
    with pytest.raises(InputError, match="no split 'test', a single file has only 'train'"):
        load_records(path, split="test")
    with pytest.raises(InputError, match=r"a configuration .* only for hub ids"):
        load_records(path, config="small")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match="no split 'validation', it has: train"):
        load_records(tmp_path / "saved", split="validation")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="not a data set folder"):
        load_records(tmp_path / "nothing")
    with pytest.raises(InputError, match="on_bad_row is 'ignore'"):
        load_records(path, on_bad_row="ignore")  # type: ignore[arg-type]


def test_an_unreachable_hub_id_is_one_line(monkeypatch):
    import datasets

    def refuse(*args, **options):
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub\n(offline)")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError) as error:
        load_records("owner/name")
    assert str(error.value).startswith("owner/name: no such file or folder, and no such data set on the hub: ")
    assert "\n" not in str(error.value)


def test_a_hub_id_is_asked_for_its_split_and_configuration(monkeypatch):
    import datasets

    asked = []

    def answer(name, config, *, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", answer)
    records = load_records("owner/name", "test", config="small", limit=3)
    assert asked == [("owner/name", "small", "test")]
    assert list(records) == ROWS[:3]
    assert records.place(2) == "owner/name: row 3"


@pytest.mark.parametrize(
    ("name", "beside"), [("org/d@test", {"split": "validation"}), ("org/d:one", {"config": "another"})]
)
def test_a_name_and_an_argument_that_disagree(name, beside):
    with pytest.raises(InputError, match=f"^{name}: two different .*'(test|one)' .*'(validation|another)'"):
        load_records(name, **beside)


def test_a_name_and_an_argument_that_agree(tmp_path):
    write_jsonl(tmp_path / "test.jsonl")
    assert list(load_records(f"{tmp_path}@test", "test")) == list(load_records(f"{tmp_path}@test")) == ROWS
