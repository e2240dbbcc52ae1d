"""The command line as several processes: flags, one folder, one writer; and one of them that fails."""

import json
import sys

from tests.processes import run_together
from tests.recipes import toy


def command(port, process, count, folder, dataset):
    """``jaxalign sft`` as one of several processes; the last has its own idea of ``dataset``, a JSON list."""
    import jax

    jax.config.update("jax_num_cpu_devices", 1)
    from jaxalign.cli import main

    names = json.loads(dataset)
    flags = {
        "--model": f"{folder}/model", "--dataset": f"{folder}/{names[min(process, len(names) - 1)]}",
        "--output-dir": f"{folder}/run", "--max-steps": 2, "--batch-size": 8, "--coordinator": f"localhost:{port}",
        "--num-processes": count, "--process-id": process,
    }  # fmt: skip
    sys.exit(main(["sft", *(str(part) for pair in flags.items() for part in pair)]))


def test_two_processes_make_one_folder(tmp_path):
    toy.write_model(tmp_path / "model")
    toy.write_jsonl(tmp_path / "train.jsonl", toy.demonstrations())
    run_together("tests.cli.test_processes:command", 2, tmp_path, json.dumps(["train.jsonl"]))
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "config.json", "final", "metrics.jsonl"]
    config = json.loads((run / "config.json").read_text())
    assert config["batch_size"] == 8
    assert not {"coordinator", "num_processes", "process_id"} & config.keys()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    # The same run goes on alone, and has nothing left to do.
    from jaxalign.cli import main

    again = ["--model", "model", "--dataset", "train.jsonl", "--output-dir", "run", "--max-steps", "2"]
    again = [str(tmp_path / part) if part in ("model", "train.jsonl", "run") else part for part in again]
    assert main(["sft", *again, "--batch-size", "8", "--mesh", "data=1"]) == 0


def test_a_process_that_was_given_something_else_ends_them_all(tmp_path):
    toy.write_model(tmp_path / "model")
    toy.write_jsonl(tmp_path / "train.jsonl", toy.demonstrations())
    found = run_together(
        "tests.cli.test_processes:command", 2, tmp_path, json.dumps(["train.jsonl", "other.jsonl"]), status=2
    )
    one, other = (json.dumps(str(tmp_path / name)) for name in ("train.jsonl", "other.jsonl"))
    message = f"jaxalign: --dataset: process 1 was given {other}, process 0 {one}; all processes must have the same"
    assert [errors.strip().splitlines()[-1] for errors in found] == [message, message]
    assert not (tmp_path / "run").exists()
