"""Whatever is wrong with the input: one line that names it, exit status 2, no traceback."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxalign.cli import main
from tests.recipes import toy

GOOD = {"prompt": "the film", "chosen": " was good", "rejected": " was bad"}


@pytest.fixture
def dpo(refused, model, tmp_path):
    """``dpo`` on rows (a JSON value or a raw line each) with more flags; its one line of complaint."""

    def run(rows, *flags):
        path = toy.write_jsonl(tmp_path / "rows.jsonl", rows)
        line = refused("dpo", "--model", model, "--dataset", path, "--output-dir", tmp_path / "out", *flags)
        return line.replace(str(path), "FILE")

    return run


def without(name):
    return {field: value for field, value in GOOD.items() if field != name}


BAD_ROWS = {
    "a missing field": (without("rejected"), "FILE: row 3: missing field 'rejected'"),
    "another missing field": (without("chosen"), "FILE: row 3: missing field 'chosen'"),
    "no answer at all": (
        {"prompt": "the film"},
        "FILE: row 3: missing field 'completion' (or 'chosen' and 'rejected')",
    ),
    "a null": (GOOD | {"chosen": None}, "FILE: row 3: missing field 'chosen'"),
    "a number": (GOOD | {"chosen": 5}, "FILE: row 3: field 'chosen': expected a string or a list of messages, got int"),
    "a number for a prompt": (GOOD | {"prompt": 1.5}, "FILE: row 3: field 'prompt': expected a string"),
    "an empty completion": (GOOD | {"rejected": "  "}, "FILE: row 3: field 'rejected': empty completion"),
    "a list": ([1, 2], "FILE: row 3: expected an object, got list"),
    "a demonstration": ({"prompt": "a", "completion": "b"}, "FILE: row 3: not a preference: it needs prompt, chosen"),
    "ratings without answers": ({"prompt": "a", "ratings": [1, 2]}, "FILE: row 3: missing field 'responses'"),
    "too few ratings": ({"prompt": "a", "responses": ["b", "c"], "ratings": [1]}, "FILE: row 3: field 'ratings': 1 "),
    "a NaN": ('{"prompt": "a", "chosen": "b", "rejected": "c", "margin": NaN}', "FILE: row 3: invalid JSON: NaN"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_with_file_row_and_field(case, dpo):
    row, message = BAD_ROWS[case]
    assert dpo([GOOD, GOOD, row, GOOD]).startswith(message)


def test_a_json_error_names_its_row(dpo):
    rows = [json.dumps(GOOD)] * 6 + ['{"prompt": "the film", "chosen": " was'] + [json.dumps(GOOD)] * 2
    assert dpo(rows).startswith("FILE: row 7: invalid JSON: Unterminated string")


def test_in_a_process_of_its_own_the_line_is_all_there_is(model, tmp_path):
    path = toy.write_jsonl(tmp_path / "rows.jsonl", [GOOD] * 6 + ["{"])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "jaxalign",
            "dpo",
            "--model",
            model,
            "--dataset",
            path,
            "--output-dir",
            tmp_path / "out",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"jaxalign: {path}: row 7: invalid JSON: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_prompt_over_the_limit_is_named_with_what_to_do(dpo):
    line = dpo([GOOD, GOOD | {"prompt": "the film" + " was good" * 20}], "--max-length", 16)
    assert line.startswith("FILE: row 2: field 'prompt' has ")
    assert "keep_end" in line
    assert "drop" in line


def test_bad_rows_can_be_left_out_and_are_counted(shell, model, tmp_path):
    rows = [GOOD] * 3 + [without("rejected"), "{", GOOD | {"prompt": "the film" + " was good" * 20}]
    path = toy.write_jsonl(tmp_path / "rows.jsonl", rows)
    status, _, errors = shell(
        "dpo", "--model", model, "--dataset", path, "--output-dir", tmp_path / "out", "--max-length", 16,
        "--on-bad-row", "skip", "--prompt-truncation", "drop", "--batch-size", 2, "--mesh", "data=1",
        "--max-steps", 1,
    )  # fmt: skip
    assert status == 0, errors
    assert "rows_read 6, examples 3" in errors
    assert "missing field 'rejected'" in errors
    assert "invalid JSON" in errors
    assert "prompt over the limit" in errors


def test_nothing_left_is_an_error(dpo):
    line = dpo([without("rejected")] * 2, "--on-bad-row", "skip")
    assert line.startswith("FILE: row 1: nothing to train on (")


def test_an_empty_file(dpo):
    assert dpo([]) == "FILE: no rows"


# --- files and folders ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(refused, model, files, tmp_path):
    """A command with good --model, --dataset, --output-dir where ``flags`` do not give them."""

    def run(command, *flags):
        data = files["pairs" if command == "dpo" else "demonstrations"]
        defaults = {"--model": model, "--dataset": data, "--output-dir": tmp_path / "out"}
        kept = [part for name, value in defaults.items() if name not in flags for part in (name, value)]
        return refused(command, *kept, *flags)

    return run


def test_a_missing_dataset_file(run, tmp_path):
    assert run("sft", "--dataset", tmp_path / "none.jsonl") == f"{tmp_path}/none.jsonl: no such file or folder"


def test_a_dataset_of_an_unknown_kind(run, tmp_path):
    (tmp_path / "data.txt").write_text("text")
    assert run("sft", "--dataset", tmp_path / "data.txt").startswith(f"{tmp_path}/data.txt: unknown kind of file")


def test_an_unknown_split(run):
    assert run("dpo", "--dataset-split", "test").endswith("no split 'test', a single file has only 'train'")


def test_a_missing_evaluation_file(run, tmp_path):
    assert run("sft", "--eval-dataset", tmp_path / "none.csv") == f"{tmp_path}/none.csv: no such file or folder"


@pytest.mark.parametrize("command", ["sft", "dpo"])
def test_a_folder_that_is_no_model(command, run, tmp_path):
    line = run(command, "--model", tmp_path)
    assert line == f"{tmp_path}: no config.json: not a Hugging Face model folder"


def test_a_model_of_an_unknown_kind(run, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    assert "model_type = 'mamba' is not implemented; known: " in run("dpo", "--model", tmp_path)


def test_a_model_without_weights(run, model, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    assert run("dpo", "--model", tmp_path).startswith(f"{tmp_path}: no model.safetensors")


def test_a_model_without_tokenizer(run, model, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    assert run("dpo", "--model", tmp_path).startswith(f"{tmp_path}: no tokenizer that can be read (")


def test_a_damaged_model(run, model, tmp_path):
    for path in model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    assert run("sft", "--model", tmp_path).startswith(f"{tmp_path}/model.safetensors: damaged safetensors file")


def test_a_model_folder_that_is_not_there(run, tmp_path):
    assert run("sft", "--model", tmp_path / "a" / "b") == f"{tmp_path}/a/b: no such folder"


def test_a_reference_that_is_no_model(run, tmp_path):
    assert run("dpo", "--reference", tmp_path).startswith(f"{tmp_path}: no config.json")


def test_a_reference_of_another_shape(run, tmp_path):
    toy.write_model(tmp_path / "gpt2", "gpt2")
    assert run("dpo", "--reference", tmp_path / "gpt2") == (
        "--reference: the reference model has another architecture than --model"
    )


def test_an_output_folder_that_is_a_file(run, tmp_path):
    (tmp_path / "out").write_text("here")
    assert run("sft") == f"--output-dir: {tmp_path}/out is a file, not a folder"
    assert (
        run("sft", "--output-dir", tmp_path / "out" / "run") == f"--output-dir: {tmp_path}/out is a file, not a folder"
    )


def test_preference_records_need_an_answer_to_learn(run, files):
    line = run("sft", "--dataset", files["pairs"])
    assert line.startswith(f"{files['pairs']}: row 1: a preference has several answers: --answer chosen (or rejected) ")


def test_a_completion_past_the_models_positions(run, tmp_path):
    path = toy.write_jsonl(tmp_path / "long.jsonl", [{"prompt": "the film", "completion": " was good" * 60}])
    assert run("sft", "--dataset", path, "--batch-size", 8).startswith("--max-length: record 0 has positions up to ")


# --- flags ------------------------------------------------------------------------------------------------------------

BAD_FLAGS = {
    "keep every": (["--keep-every", "750"], "--keep-every: 750 is no multiple of --save-every 500"),
    "keep best": (["--keep-best-by", "eval/loss"], "--keep-best-by eval/loss: evaluations must fall on checkpoints"),
    "step timeout": (["--step-timeout", "0"], "--step-timeout: must be above 0, is 0.0"),
    "loss spike": (["--loss-spike", "-5"], "--loss-spike: must be above 0, is -5.0"),
    "an unknown loss": (["--loss", "sigmod"], "--loss: expected one of sigmoid, ipo, hinge, "),
    "an unread option": (["--loss", "ipo", "--label-smoothing", "0.1"], "--label-smoothing: not read by loss ipo; "),
    "a value out of range": (["--beta", "-0.1"], "--beta: must be above 0, is -0.1"),
    "a value of another kind": (["--beta", "x"], "Error parsing --beta: could not convert string to float: 'x'"),
    "a fraction of steps": (["--max-steps", "2.5"], "Error parsing --max-steps: "),
    "a misspelt flag": (["--lerning-rate", "1e-5"], "unknown flag --lerning-rate; did you mean --learning-rate?"),
    "misspelt with a value": (["--optimiser=sgd"], "unknown flag --optimiser; did you mean --optimizer?"),
    "an unknown flag": (["--zzzzzzz", "1"], "unknown flag --zzzzzzz; jaxalign dpo --help lists them all"),
    "a flag without value": (["--beta"], "Missing value for argument '--beta'. Expected 1 values."),
    "a stray word": (["extra"], "Unrecognized options: extra"),
    "a short limit": (["--max-length", "1"], "--max-length: must be at least 2, is 1"),
    "no room for an answer": (
        ["--max-length", "8", "--max-prompt-length", "8"],
        "--max-prompt-length: 8 leaves no room for an answer in --max-length 8",
    ),
    "evaluation of nothing": (["--eval-every", "5"], "--eval-every: there is nothing to evaluate on without --eval-"),
    "a split of nothing": (["--eval-split", "test"], "--eval-split: there is nothing to evaluate on without --eval-"),
    "no rows": (["--dataset-limit", "0"], "--dataset-limit: must be at least 1, is 0"),
    "weights without losses": (["--loss-weights", "1", "2"], "--loss-weights: 2 weights for 1 losses"),
    "an unread reference": (["--loss", "simpo", "--reference", "x"], "--reference: loss simpo reads no reference"),
    "an unread cache": (
        ["--loss", "orpo", "--reference-log-probs", "cached"],
        "--reference-log-probs cached: loss orpo reads no reference",
    ),
    "a cache of what moves": (
        ["--reference-update-every", "2", "--reference-log-probs", "cached"],
        "--reference-log-probs cached: a reference that moves cannot be cached",
    ),
    "a rate without movement": (
        ["--reference-update-rate", "0.5"],
        "--reference-update-rate: the reference does not move without --reference-update-every",
    ),
    "a rate above 1": (
        ["--reference-update-every", "2", "--reference-update-rate", "1.5"],
        "--reference-update-rate: must be in (0, 1], is 1.5",
    ),
    "a moving unread reference": (
        ["--loss", "orpo", "--reference-update-every", "2"],
        "--reference-update-every: loss orpo reads no reference",
    ),
    "micro-batches of coupled rows": (
        ["--loss", "aot", "--accumulation", "2"],
        "--accumulation: loss aot couples the pairs of a batch; it needs them all at once (1)",
    ),
    "another reference above frozen layers": (
        ["--reference", "x", "--frozen-layers", "1"],
        "--reference: with --frozen-layers the reference shares what does not train; leave it out",
    ),
    "a cache of nothing": (["--cache-trunk"], "--cache-trunk: nothing to cache without --frozen-layers"),
    "too many frozen layers": (["--frozen-layers", "9"], "--frozen-layers: the model has 3 layers, not 9"),
    "an odd mesh": (["--mesh", "fsdp=3,fsdp=2"], "--mesh fsdp=3,fsdp=2: fsdp is given twice"),
    "an unknown axis": (["--sharding-rules", "width=fsdp"], "--sharding-rules width=fsdp: unknown axis 'w"),
    "an axis of no mesh": (["--sharding-rules", "mlp=", "vocab=model"], "--sharding-rules vocab=model: unknown mesh"),
    "a kernel of whole rows": (
        ["--attention", "cudnn", "--mesh", "sequence=4"],
        "--attention cudnn: --mesh sequence=4 splits rows of tokens; there ring attends",
    ),
    "a kernel of split rows": (["--attention", "ring"], "--attention ring: rows of tokens are whole without --mesh"),
    "one array split twice": (["--sharding-rules", "vocab=fsdp"], "--sharding-rules vocab=fsdp: the mesh axis fsdp"),
    "more devices than there are": (["--mesh", "data=999"], "--mesh data=999 needs 999 devices"),
    "rows that do not divide": (
        ["--batch-size", "3", "--mesh", "data=2"],
        "--batch-size: 3 rows do not divide into 2 data shards (--mesh)",
    ),
    "a negative learning rate": (["--learning-rate", "-1"], "--learning-rate -1.0: must "),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_a_bad_flag_is_named(case, run):
    flags, message = BAD_FLAGS[case]
    line = run("dpo", *flags)
    assert line.startswith(message)
    assert "│" not in line
    assert "╭" not in line


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("sft", ["--mesh", "dta=8"], "--mesh dta=8: unknown axis 'dta'; did you mean 'data'?"),
        ("sft", ["--mesh", "data=999"], "--mesh data=999"),
        (
            "sft",
            ["--batch-size", "3", "--mesh", "data=2"],
            "--batch-size: 3 rows do not divide into 2 data shards (--mesh)",
        ),
        (
            "sft",
            ["--attention", "splash", "--mesh", "sequence=2"],
            "--attention splash: --mesh sequence=2 splits rows of",
        ),
        (
            "ppo",
            ["--attention", "splash", "--mesh", "sequence=2"],
            "--attention splash: --mesh sequence=2 splits rows of",
        ),
        (
            "ppo",
            ["--batch-size", "3", "--mesh", "data=2"],
            "--batch-size: 3 episodes do not divide into --minibatches 1",
        ),
    ],
)
def test_the_mesh_is_checked_before_anything_is_read(command, flags, message, refused):
    paths = ["--model", "not-there", "--dataset", "not-there.jsonl", "--output-dir", "never"]
    more = ["--reward", "not.there:reward"] if command == "ppo" else []
    assert refused(command, *paths, *more, *flags).startswith(message)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_parsers_box_is_one_line_in_every_encoding(encoding, monkeypatch):
    """The parser draws other boxes where standard output cannot show its best ones."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    errors = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    with contextlib.redirect_stderr(errors):
        assert main(["dpo"]) == 2
        assert main(["dpo", "--model", "m", "--dataset", "d", "--output-dir", "o", "--beta", "x"]) == 2
        assert main(["dpo", "--model", "m", "--dataset", "d", "--output-dir", "o", "--loss", "ipo", "oops"]) == 2
        assert main(["dpo", "--model", "m", "--dataset", "d", "--output-dir", "o", "--beta", "-1"]) == 2
    first, second, third, fourth = errors.getvalue().splitlines()
    assert first == "jaxalign: missing: --model, --dataset, --output-dir"
    assert second == "jaxalign: Error parsing --beta: could not convert string to float: 'x'"
    assert third.startswith("jaxalign: --loss: expected one of sigmoid, ipo, hinge, ")
    assert third.endswith("unlikelihood, got 'oops'")
    assert fourth == "jaxalign: --beta: must be above 0, is -1.0"


def test_missing_flags_are_named(refused):
    assert refused("dpo") == "missing: --model, --dataset, --output-dir"
    assert refused("sft", "--model", "m", "--output-dir", "o") == "missing: --dataset"


def test_an_unknown_command(refused):
    assert refused("dop") == "unknown command 'dop'; did you mean 'dpo'?"
    assert refused("xyz") == (
        "unknown command 'xyz'; the commands are sft, dpo, reward, ppo, hindsight, collect, preview, plan, sample, "
        "judge, evaluate, convert, doctor"
    )


def test_flags_may_have_underscores_equal_signs_and_no_value(run):
    """All three reach the config's own checks, so all three were understood."""
    line = run("dpo", "--max_steps=3", "--packing", "--row_length", "16", "--beta=-1", "--dtype=float32")
    assert line == "--beta: must be above 0, is -1.0"
    assert run("dpo", "--packing", "False", "--row-length", "16").startswith("--row-length: rows are as long as")
    assert run("dpo", "--row-length", "16", "--packing", "--seed", "-1").startswith("--seed: must be at least 0")
