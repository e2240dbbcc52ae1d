"""Claims and verdicts of the sentiment study on measurements made by hand: who wins, what ties, where a sign points."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from experiments._sentiment import DPO, OTHER_PAIRS, UNWEIGHTED, Measurement
from experiments._sentiment_claims import best_point, claims
from experiments._sentiment_judged import START, pairwise, representatives
from experiments._sentiment_runs import Run, methods, seeded
from experiments.imdb_sentiment import PRESETS
from jaxalign.evaluation import paired_test_rows, pairwise_rows
from tests.tolerances import FLOAT64

PREFIXES = 6
STUDY = PRESETS["mini"]
ASSETS = SimpleNamespace(held_out=[SimpleNamespace(opening="This film")] * PREFIXES)  # reviews may open alike


def measured(*, step=1, kl=1.0, reward=0.0, judge=0.5, nats=3.0, word="good", each=1):
    count = PREFIXES * each
    shift = np.linspace(-0.1, 0.1, count)
    return Measurement(
        step=step, prompt=np.repeat(np.arange(PREFIXES), each).tolist(), kl=[kl] * count, kl_k3=[kl] * count,
        reward=(reward + shift).tolist(), judge=[judge] * count, log_perplexity=(nats + shift).tolist(),
        lengths=[8] * count, texts=[f" {word} {word} {word} {index}" for index in range(count)],
    )  # fmt: skip


def run_of(*points):
    return Run(list(points), folder=None, inputs={})


def found(study=STUDY, **changes):
    """Every method of the preset with two points; DPO's reward is 2, the others' 1, a seed adds a tenth."""
    results = {}
    for method in methods(study):
        last = {"reward": (2.0 if method.name == DPO else 1.0) + 0.1 * method.seed, **changes.get(method.name, {})}
        results[method] = run_of(measured(reward=last["reward"] / 2), measured(step=2, kl=3.0, **last))
    return results


def test_a_claim_is_positive_where_the_paper_is_right():
    results = found(**{
        UNWEIGHTED: {"nats": 4.0, "word": "very"}, OTHER_PAIRS: {"judge": 0.7}, "PPO": {"reward": 2.5},
    })  # fmt: skip
    start = measured(step=0, kl=0.0)
    verdicts = {claim.claim: claim for claim in claims(STUDY, start, results)}
    reward = verdicts["DPO reaches a higher reward than PPO does with a learned reward"]
    assert (reward.verdict, len(reward.by_seed)) == ("reversed", 3)
    assert reward.by_seed == pytest.approx([-0.5, -0.4, -0.3], abs=FLOAT64)
    assert verdicts["DPO's frontier lies above that of PPO-GT"].verdict == "holds"
    assert verdicts["DPO's frontier lies above that of Unlikelihood"].verdict == "holds"
    assert verdicts["DPO's frontier lies above that of PPO"].verdict == "reversed"
    # A frontier through (0, 0), (1, r / 2), (3, r) has the mean height 19 r / 24 up to 6; r is 1 more in each seed.
    assert STUDY.compare_at[-1] == 6.0
    area = verdicts["DPO's frontier lies above that of Preferred-FT"]
    assert area.by_seed == pytest.approx([19 / 24] * 3, abs=1e-3)
    perplexity = next(claim for name, claim in verdicts.items() if "less likely under" in name)
    assert (perplexity.verdict, perplexity.found.estimate) == ("holds", pytest.approx(1.0, abs=FLOAT64))
    repeated = next(claim for name, claim in verdicts.items() if "repeat themselves" in name)
    assert (repeated.verdict, repeated.found.estimate) == ("undecided", 0.0)
    assert "DPO 0." in repeated.why
    assert not perplexity.why
    assert "the best points lie at 3.0 nats (DPO) and 3.0 (PPO)" in reward.why
    chance = {"accuracy": 0.51, "low": 0.48, "high": 0.55}
    blamed = {claim.claim for claim in claims(STUDY, start, results, calibration=chance) if "chance" in claim.why}
    assert blamed == {reward.claim, "DPO's frontier lies above that of PPO"}
    other = verdicts["DPO can use another model's pairs"]
    assert (other.verdict, other.found.estimate) == ("holds", pytest.approx(0.2, abs=FLOAT64))


def test_a_baseline_of_one_seed_decides_nothing():
    study = dataclasses.replace(STUDY, unlikelihood_seeds=(0,))
    verdicts = {claim.claim: claim for claim in claims(study, measured(step=0, kl=0.0), found(study))}
    alone = verdicts["DPO's frontier lies above that of Unlikelihood"]  # above in each of DPO's seeds, all against one
    assert alone.found.low > 0
    assert min(alone.by_seed) > 0
    assert (alone.verdict, alone.reason) == ("undecided", "Unlikelihood has one training seed")
    assert "interval over DPO's training seeds" in alone.statistic


def test_best_of_n_is_a_baseline_without_seeds():
    start = measured(step=0, kl=0.0)
    best = [measured(step=2, kl=0.5, reward=0.6).point("Best-of-N", "", seed=0)]
    (found_one,) = [claim for claim in claims(STUDY, start, found(), best_of_n=best) if "Best-of-N" in claim.claim]
    assert (found_one.verdict, len(found_one.by_seed), found_one.source) == ("holds", 3, "")
    assert "interval over DPO's training seeds" in found_one.statistic
    better = [measured(step=2, kl=0.5, reward=4.0).point("Best-of-N", "", seed=0)]
    (found_one,) = [claim for claim in claims(STUDY, start, found(), best_of_n=better) if "Best-of-N" in claim.claim]
    assert found_one.verdict == "reversed"


def test_the_best_point_is_one_for_all_seeds():
    runs = [run_of(*(measured(reward=reward) for reward in rewards)) for rewards in ((1.0, 3.0, 0.0), (4.0, 3.0, 0.0))]
    assert best_point(runs) == 1


def test_every_two_methods_meet_once_and_near_scores_tie():
    start = measured(step=0, judge=0.5, each=4)
    start.reward[1::4] = [9.0] * PREFIXES  # the second sample of each prefix is the best
    start.judge[1::4] = [0.9] * PREFIXES
    policies = {"A": measured(judge=0.52, each=2), "B": measured(judge=0.7)}
    policies["A"].judge[1::2] = [0.0] * PREFIXES  # its first samples are what is compared
    study = dataclasses.replace(STUDY, held_out=PREFIXES)
    pairs = pairwise(study, ASSETS, start, policies)
    said = {(pair.method, pair.against): pair.outcome for pair in pairs}
    assert said == {
        ("A", "B"): "lose", ("A", "Best-of-4"): "lose", ("A", START): "tie",
        ("B", "Best-of-4"): "lose", ("B", START): "win", ("Best-of-4", START): "win",
    }  # fmt: skip
    assert len(pairs) == 6 * PREFIXES
    assert len({pair.prompt for pair in pairs}) == PREFIXES
    assert [str(row["tie"]) for row in pairwise_rows(pairs)].count("100.0") == 1
    tests = paired_test_rows([pair for pair in pairs if pair.against == START])
    assert [(row["first"], row["second"]) for row in tests] == [("A", "B"), ("A", "Best-of-4"), ("B", "Best-of-4")]


def test_a_method_is_shown_by_the_setting_with_most_seeds_or_the_best():
    results = found(dataclasses.replace(STUDY, unlikelihood_seeds=(0,)))
    chosen = representatives(results)
    assert chosen[DPO].setting == f"beta {STUDY.dpo_seeds_at:g}"
    assert chosen["Preferred-FT"] is seeded(list(results), "Preferred-FT")[0]
    best = [method for method in results if method.name == "Unlikelihood"][2]
    results[best] = run_of(measured(), measured(step=2, reward=5.0))
    assert representatives(results)["Unlikelihood"] is best
