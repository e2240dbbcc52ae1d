"""Costs of three pipelines in miniature: what is counted is what was done, and a finished run is kept."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import _results
from experiments._alignment_cost import PIPELINES, Part, Point, Run
from experiments._alignment_cost_result import Shared, result_of
from experiments._hindsight import Scale
from experiments._model_sizes import count_parameters
from experiments.rlhf_without_rl import PRESETS, main, run
from jaxalign import models
from tests.tiny_reviews import CONFIG, TRAINING, one_device, study_in  # noqa: F401
from tests.tolerances import FLOAT64


@pytest.fixture
def comparison(tmp_path):
    study = study_in(tmp_path)
    return dataclasses.replace(
        PRESETS["paper"],
        study=dataclasses.replace(study, rlhf=dataclasses.replace(study.rlhf, points=2)), hindsight=TRAINING,
        scale=Scale(dtype="bfloat16", accumulation=2), target=2.0, measure_every=1, seeds=(0, 1),
    )  # fmt: skip


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def runs_of(output):
    found = [json.loads(path.read_text()) for path in sorted(output.glob("stages/*-seed-*/value.json"))]
    return {(row["pipeline"], row["seed"]): Run.from_json(row) for row in found}


@pytest.mark.usefixtures("one_device")
def test_three_pipelines_to_a_target_that_none_reaches(tmp_path, comparison, capsys):
    output = tmp_path / "out"
    first = run(comparison, output, "paper")
    runs = runs_of(output)
    assert list(runs) == [(name, seed) for name in ("CoH", "DPO", "PPO") for seed in (0, 1)]
    dpo, coh, ppo = (runs[name, 0] for name in ("DPO", "CoH", "PPO"))
    assert not any(one.reached for one in runs.values())
    assert [point.update for point in dpo.points] == [1, 2]  # measured after each of its updates
    assert [part.stage for part in ppo.parts] == ["reward model", "PPO"]
    assert dpo.total("generated_tokens") == coh.total("generated_tokens") == 0
    # 2 rollouts of 8 responses, 1 to 8 tokens each, passed over once.
    assert 16 <= ppo.parts[1].generated_tokens <= 128
    assert ppo.parts[1].trained_tokens == ppo.parts[1].generated_tokens
    # Policy, critic and a reward model of its own, each with its moments; the two scored ones have a head besides.
    assert ppo.trained_parameters == 3 * dpo.trained_parameters + 2 * CONFIG.width
    # A policy with RMSprop's mean squares and a reference; of PPO a critic with its own and a reward model besides.
    size = 4 * count_parameters(jax.eval_shape(lambda: models.init(CONFIG, jax.random.key(0))))
    assert 3 * size <= dpo.held_bytes < 8 * size <= ppo.held_bytes
    assert not list((output / "runs").glob("*/*"))
    *_, shared = first.tables[0].rows
    study = comparison.study
    most = study.prompts * study.samples_per_prompt * study.max_new_tokens
    assert 0 < int(str(shared["tokens generated"]).replace(",", "")) <= most
    row = next(row for row in first.tables[0].rows if row["method"] == "PPO")
    assert row["models held"] == "4: policy, critic, reference, reward"
    assert row["target reached"] == "0 of 2 seeds"
    assert sum("did not reach 2 with seeds 0, 1" in remark for remark in first.remarks) == 3
    claims = {claim.claim: claim for claim in _results.load(output).claims}
    assert claims["PPO generates more tokens than DPO"].verdict == "holds"
    assert not any("less time" in name for name in claims)  # nobody's time is one to the target

    before = snapshot(output / "stages")
    capsys.readouterr()
    assert run(comparison, output, "paper") == first
    assert "running" not in capsys.readouterr().out
    assert snapshot(output / "stages") == before


@pytest.mark.usefixtures("one_device")
def test_a_run_stops_at_the_target(tmp_path, comparison):
    output = tmp_path / "out"
    found = run(dataclasses.replace(comparison, target=0.0, seeds=(0,)), output, "paper")
    for one in runs_of(output).values():
        assert one.reached
        assert [point.update for point in one.points] == [1]
        assert one.parts[-1].updates == 1
        assert len(one.judge) == comparison.study.held_out
    assert not any("did not reach" in remark for remark in found.remarks)


def made(pipeline, seed, *, seconds, generated=0, judge=0.7):
    last = Part(
        stage=pipeline.stages[-1], updates=4, seconds=seconds, trained_tokens=10, generated_tokens=generated,
        held_bytes=100 * len(pipeline.resident),
    )  # fmt: skip
    before = [dataclasses.replace(last, stage=name, seconds=1.0, generated_tokens=0) for name in pipeline.stages[:-1]]
    points = [Point(update=2, judge=judge - 0.1), Point(update=4, judge=judge)]
    return Run(
        pipeline=pipeline.name, seed=seed, reached=True, parts=[*before, last], points=points,
        judge=[judge, judge + 0.01, judge - 0.01], trained_parameters=5,
    )  # fmt: skip


def test_claims_and_table_follow_the_runs(tmp_path, comparison):
    dpo, coh, ppo = PIPELINES
    runs = [
        made(pipeline, seed, seconds=seconds + seed / 10, generated=generated)
        for pipeline, seconds, generated in ((dpo, 2.0, 0), (coh, 4.0, 0), (ppo, 7.0, 5000))
        for seed in (0, 1)
    ]
    shared = Shared(samples=40, tokens=1234, seconds=4.1)
    found = result_of(comparison, runs, [0.5, 0.5, 0.5], shared, tmp_path, preset="paper", seconds=1.0)
    verdicts = {claim.claim: claim.verdict for claim in found.claims}
    assert verdicts == {
        "DPO takes less time than PPO": "holds",
        "CoH takes less time than PPO": "holds",
        "CoH takes less time than DPO": "reversed",
        "PPO generates more tokens than DPO": "holds",
        "Chain of Hindsight reaches at least DPO's score": "undecided",
    }
    # By hand: two seeds have one degree of freedom, and Student's quantile is 12.7.
    own = np.log([8.0 / 2.0, 8.1 / 2.1])
    time = next(claim.found for claim in found.claims if claim.claim == "DPO takes less time than PPO")
    reach = 12.706204736174694 * abs(own[0] - own[1]) / 2
    np.testing.assert_allclose([time.low, time.high], [own.mean() - reach, own.mean() + reach], rtol=FLOAT64)
    rows = found.tables[0].rows
    assert [row["time / DPO's"] for row in rows] == ["1.00", "1.98", "3.93", "2.00"]
    assert [row["memory / DPO's"] for row in rows[:3]] == ["1.00", "0.50", "2.00"]
    assert rows[-1]["tokens generated"] == "1,234"
    assert (tmp_path / "cost.svg").stat().st_size > 0
    assert _results.save(tmp_path, found).is_file()


def test_what_an_update_cost_so_far():
    one = made(PIPELINES[2], 0, seconds=8.0, generated=400)
    assert one.cost_at(0, "seconds") == 1.0  # the reward model
    assert one.cost_at(2, "seconds") == 5.0
    assert one.cost_at(4, "generated_tokens") == one.total("generated_tokens") == 400


def test_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--preset", "gpu", "--help"])
    assert stop.value.code == 0
    assert "--target-kl" in capsys.readouterr().out
