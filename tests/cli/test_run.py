"""``jaxalign sft`` and ``dpo`` in this process: what they write, what may change between a run and its continuation."""

import json
import math
import shutil

import jax
import numpy as np
import pytest

from jaxalign import models, recipes
from tests.recipes import toy
from tests.tolerances import FLOAT32


@pytest.fixture(scope="module")
def finished(model, files, tmp_path_factory):
    """A ``dpo`` run of two steps, and its command."""
    from jaxalign.cli import main

    folder = tmp_path_factory.mktemp("run")
    flags = [
        "dpo", "--model", str(model), "--dataset", str(files["pairs"]), "--output-dir", str(folder), "--batch-size",
        "4", "--mesh", "data=1", "--max-steps", "2", "--learning-rate", "1e-3", "--eval-dataset", str(files["ranked"]),
    ]  # fmt: skip
    assert main(flags) == 0
    return folder, flags


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def bits(tree):
    return [(leaf.dtype, leaf.tobytes()) for leaf in map(np.asarray, jax.tree.leaves(tree))]


def test_a_run_leaves_metrics_config_checkpoints_and_a_model(finished, model):
    folder, _ = finished
    assert {path.name for path in folder.iterdir()} == {"checkpoints", "config.json", "final", "metrics.jsonl"}
    steps = [row for row in rows(folder) if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=FLOAT32)
    assert {"grad_norm", "learning_rate", "rewards/margin", "log_ratios/chosen", "tokens"} <= steps[0].keys()
    evaluations = [row for row in rows(folder) if "eval/loss" in row]
    assert [row["step"] for row in evaluations] == [0, 2]
    assert evaluations[0]["eval/loss"] == pytest.approx(math.log(2), abs=FLOAT32)
    assert evaluations[1]["eval/loss"] < evaluations[0]["eval/loss"]
    described = json.loads((folder / "config.json").read_text())
    assert described["beta"] == 0.1
    assert described["optimizer"]["learning_rate"] == 1e-3
    config, params = models.load_pretrained(folder / "final")
    assert config.replace(extra=()) == toy.SHAPES["llama"]
    assert bits(params) != bits(models.load_pretrained(model)[1])


def test_the_same_command_again_is_done_at_once(finished, shell):
    folder, flags = finished
    before = (folder / "final" / "model.safetensors").read_bytes(), rows(folder)
    status, _, errors = shell(*flags)
    assert status == 0
    assert "2 steps done" in errors
    assert ((folder / "final" / "model.safetensors").read_bytes(), rows(folder)) == before


CHANGES = {
    "beta": (["--beta", "0.2"], "--beta is 0.2, but "),
    "the optimizer's": (["--learning-rate", "2e-3"], "--learning-rate is 0.002, but "),
    "the seed": (["--seed", "1"], "--seed is 1, but "),
    "a choice": (["--loss", "ipo"], '--loss is ["ipo"], but '),
    "a flag, and with it the data": (["--dataset-limit", "5"], "--dataset-limit is 5, but "),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_flag_is_refused_by_name(case, finished, refused):
    folder, flags = finished
    more, message = CHANGES[case]
    kept = list(flags)
    if more[0] in kept:
        del kept[kept.index(more[0]) : kept.index(more[0]) + 2]
    before = (folder / "config.json").read_text()
    line = refused(*kept, *more)
    assert line.startswith(message)
    assert f"{folder}/checkpoints was started with " in line
    assert line.endswith("go on with the same value, or give another --output-dir")
    assert (folder / "config.json").read_text() == before


def test_more_steps_and_other_saving_are_no_change(model, files, shell, tmp_path):
    flags = [
        "sft", "--model", model, "--dataset", files["demonstrations"], "--output-dir", tmp_path, "--batch-size", 4,
        "--mesh", "data=1", "--schedule", "constant", "--save-every", 10,
    ]  # fmt: skip
    assert shell(*flags, "--max-steps", 1)[0] == 0
    status, _, errors = shell(*flags[:-2], "--save-every", 1, "--max-steps", 3, "--keep-checkpoints", 1)
    assert status == 0, errors
    assert "3 steps done" in errors
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]


def test_where_the_reference_is_computed_may_change(model, files, shell, tmp_path, caplog):
    flags = [
        "dpo", "--model", model, "--dataset", files["pairs"], "--batch-size", 4, "--mesh", "data=1", "--optimizer",
        "sgd", "--learning-rate", 0.1,
    ]  # fmt: skip
    half, whole = tmp_path / "half", tmp_path / "whole"
    assert shell(*flags, "--output-dir", whole, "--max-steps", 3)[0] == 0
    assert shell(*flags, "--output-dir", half, "--max-steps", 1)[0] == 0
    status, _, errors = shell(*flags, "--output-dir", half, "--max-steps", 3, "--reference-log-probs", "cached")
    assert status == 0, errors
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("jaxalign")]
    assert said.startswith(f"{half} goes on with --reference-log-probs cached (it was in_step): the same to rounding")
    assert [row["loss"] for row in rows(half)] == pytest.approx([row["loss"] for row in rows(whole)], rel=FLOAT32)


def test_other_rows_in_the_same_file_are_refused(model, shell, refused, tmp_path):
    path = toy.write_jsonl(tmp_path / "rows.jsonl", toy.demonstrations())
    flags = [
        "sft", "--model", model, "--dataset", path, "--output-dir", tmp_path / "out", "--batch-size", 8, "--max-steps",
        1,
    ]  # fmt: skip
    assert shell(*flags)[0] == 0
    toy.write_jsonl(path, toy.demonstrations()[::-1])
    assert refused(*flags) == (
        f"{tmp_path}/out/checkpoints was started with other tokenised data: go on with the same, or give another "
        "--output-dir"
    )


def test_a_reference_that_moves_starts_at_the_one_given(model, files, shell, tmp_path):
    """One update of TR-DPO with --reference, against the loss of the two models."""
    other = toy.write_model(tmp_path / "other", seed=3)
    status, _, errors = shell(
        "dpo", "--model", model, "--reference", other, "--dataset", files["pairs"], "--output-dir", tmp_path / "out",
        "--reference-update-every", 5, "--batch-size", 8, "--mesh", "fsdp=8", "--max-steps", 1,
    )  # fmt: skip
    assert status == 0, errors
    pairs = toy.examples(toy.pair_records())
    scores = [recipes.example_log_probs(toy.SHAPES["llama"], toy.params("llama", seed), pairs) for seed in (0, 3)]
    ratios = [policy - reference for policy, reference in zip(*scores, strict=True)]
    margins = np.array([
        ratio[pair.target_sequence == 0].sum() - ratio[pair.target_sequence == 1].sum()
        for ratio, pair in zip(ratios, pairs, strict=True)
    ])  # fmt: skip
    expected = np.mean(np.logaddexp(0, -0.1 * margins))
    assert abs(expected - math.log(2)) > 0.01
    assert rows(tmp_path / "out")[0]["loss"] == pytest.approx(expected, rel=FLOAT32)


@pytest.mark.parametrize("name", ["pairs", "ranked"])
def test_preferred_ft_is_sft_on_the_chosen_answers(name, model, files, shell, tmp_path):
    if name == "ranked":  # sft has no answer to take from them
        status, _, errors = shell(
            "sft", "--model", model, "--dataset", files[name], "--output-dir", tmp_path, "--answer", "chosen"
        )
        assert status == 2
        assert errors.splitlines()[-1] == f"jaxalign: {files[name]}: row 1: missing field 'chosen'"
        return
    common = [
        "--model", model, "--dataset", files[name], "--batch-size", 8, "--max-steps", 2, "--optimizer", "sgd",
        "--learning-rate", 0.1, "--warmup-steps", 0, "--clip-norm", 0, "--schedule", "constant", "--mesh", "data=1",
    ]  # fmt: skip
    assert shell("sft", *common, "--answer", "chosen", "--output-dir", tmp_path / "sft")[0] == 0
    assert shell("dpo", *common, "--loss", "preferred_ft", "--output-dir", tmp_path / "dpo")[0] == 0
    losses = [[row["loss"] for row in rows(tmp_path / recipe)] for recipe in ("sft", "dpo")]
    np.testing.assert_allclose(*losses, rtol=FLOAT32)
    trees = [models.load_pretrained(tmp_path / recipe / "final")[1] for recipe in ("sft", "dpo")]
    for left, right in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(left, right, rtol=FLOAT32, atol=FLOAT32 * float(np.abs(right).max()))


def test_a_step_that_is_not_finite_is_one_line_and_status_1(files, shell, tmp_path):
    params = toy.params("llama")
    broken = {**params, "final_norm": {"scale": params["final_norm"]["scale"].at[0].set(np.nan)}}
    models.save_pretrained(tmp_path / "model", toy.SHAPES["llama"], broken, toy.tokenizer())
    status, output, errors = shell(
        "sft", "--model", tmp_path / "model", "--dataset", files["demonstrations"], "--output-dir", tmp_path / "out",
        "--batch-size", 8, "--max-steps", 2, "--mesh", "data=1",
    )  # fmt: skip
    assert (status, output) == (1, "")
    message, records = errors.splitlines()[-1].split(" [")
    assert message == "jaxalign: step 1: loss is not finite; records"
    assert sorted(json.loads(f"[{records.removesuffix(', counted from 0')}")) == list(range(8))
    assert "Traceback" not in errors
    assert not (tmp_path / "out" / "final").exists()


def test_results_whose_checkpoints_are_gone_are_not_overwritten(refused, model, files, tmp_path):
    from jaxalign.cli import main

    def train(run, *flags):
        common = ["--model", model, "--dataset", files["demonstrations"], "--output-dir", tmp_path, "--batch-size", 8]
        return run("sft", *common, "--save-every", 1, *flags)

    def shell(*arguments):
        assert main([str(argument) for argument in arguments]) == 0

    metrics = tmp_path / "metrics.jsonl"
    train(shell, "--max-steps", 3)
    rows = metrics.read_bytes()
    shutil.rmtree(tmp_path / "checkpoints")
    assert "holds a final model but no checkpoint" in train(refused, "--max-steps", 1)
    shutil.rmtree(tmp_path / "final")
    said = train(refused, "--max-steps", 1)
    assert f"{tmp_path}: holds the metrics of 3 steps but no checkpoint to go on from" in said
    (tmp_path / "checkpoints").mkdir()  # emptied: the third step is further than a run comes without any
    assert "the metrics of 3 steps" in train(refused, "--max-steps", 1)
    assert metrics.read_bytes() == rows
    # What a run leaves that is killed before its first checkpoint: the second save waits for the first.
    metrics.write_bytes(b"".join(rows.splitlines(keepends=True)[:2]) + b'{"step": 3, "lo')
    train(shell, "--max-steps", 1)
    assert len(metrics.read_bytes().splitlines()) == 1
