"""Two and four processes train as one does: losses, gradients, parameters; a run handed over between them."""

import json
import pickle
import shutil

import numpy as np
import pytest

from tests.processes import run_together
from tests.recipes import matrix, toy
from tests.tolerances import FLOAT32

# Four devices, two or one a process. With "tensor=4", or with one device a process any tensor axis, the model spans
# processes, which then have the same rows; with "sequence=4" each has a piece of every row. DPO is the run that two
# processes hand over to four.
MESHES = {
    2: {"sft": "tensor=4", "reward": "data=4", "hindsight": "data=2,fsdp=2", "ppo": "fsdp=4"},
    4: {"reward": "fsdp=4", "sft": "sequence=4", "ppo": "data=2,tensor=2"},
}
HANDED = {2: (4, "data=2,fsdp=2"), 4: (matrix.STEPS, "data=4")}
CLOCK = ("seconds", "tokens_per_second", "rollout/")
# Which of two nearly equal numbers is larger, counted: rounding decides.
COUNTED = ("clipfrac",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the runs of two and then of four processes are; the second go on with what the first hand over."""
    folder = tmp_path_factory.mktemp("processes")
    for count, meshes in MESHES.items():
        outputs = run_together(
            "tests.recipes.several_processes:train", count, folder, json.dumps(meshes), json.dumps(HANDED[count])
        )
        said = [json.loads(output.splitlines()[-1]) for output in outputs]
        (folder / f"said-{count}.json").write_text(json.dumps(said))
        if count == 2:
            shutil.copytree(folder / "handed", folder / "to-one")
    return folder


def assert_same_metrics(found, expected):
    for row, whole in zip(found, expected, strict=True):
        assert row.keys() == whole.keys()
        for name in row:
            if not name.startswith(CLOCK) and not any(part in name for part in COUNTED):
                # Differences of nearly equal log-probs are known to their rounding, 1e-6 nats of 10, and no better.
                assert row[name] == pytest.approx(whole[name], rel=FLOAT32, abs=FLOAT32), name


@pytest.mark.parametrize(("count", "recipe"), [(count, recipe) for count in MESHES for recipe in MESHES[count]])
def test_several_processes_are_one(folder, recipe, count):
    found = pickle.loads((folder / f"{recipe}-{count}.pickle").read_bytes())
    expected = matrix.run(recipe)
    assert len(found.losses) == matrix.STEPS
    toy.assert_same_run(found, expected)
    assert_same_metrics(found.metrics, expected.metrics)


@pytest.mark.parametrize("count", list(MESHES))
def test_all_know_the_same_and_one_does_what_is_done_once(folder, count):
    said = json.loads((folder / f"said-{count}.json").read_text())
    assert len(said) == count
    for one in said:
        assert one["known"] == said[0]["known"]
        assert one["metrics"] == said[0]["metrics"]
    # Every rollout is rated once, whole, by the first process.
    assert [one["rated"] for one in said] == [[8] * matrix.STEPS, *[[]] * (count - 1)]
    for recipe in MESHES[count]:
        run = folder / f"{recipe}-{count}"
        assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "config.json", "metrics.jsonl"]
        steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert steps == [0, *(step for step in range(1, matrix.STEPS + 1) for _ in range(2))]


def test_a_run_of_two_processes_goes_on_in_four_and_in_one(folder):
    expected = matrix.run("dpo")
    metrics = matrix.continued(folder / "to-one", matrix.STEPS, "data=1")[1]
    assert metrics["loss"] == pytest.approx(expected.losses[-1], rel=FLOAT32)
    rows = [json.loads(line) for line in (folder / "handed" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, matrix.STEPS + 1))
    assert_same_metrics(rows, expected.metrics)
    for path, step in (("handed-2", HANDED[2][0]), ("handed-4", matrix.STEPS)):
        found = pickle.loads((folder / f"{path}.pickle").read_bytes())
        for name, value in expected.params[step].items():
            np.testing.assert_allclose(found[name], value, rtol=FLOAT32, atol=FLOAT32 * np.abs(value).max())
