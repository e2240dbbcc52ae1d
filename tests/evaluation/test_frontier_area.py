"""The Pareto front and the area under the frontier: by hand, against the truth of simulations."""

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.evaluation import (
    FrontierPoint,
    Interval,
    _frontier_area,
    frontier_area,
    frontier_area_difference,
    frontier_area_rows,
    markdown_table,
    pareto_front,
    plot_frontier,
)
from tests.evaluation.test_frontier import curve, point
from tests.tolerances import COVERAGE_SKEWED, FLOAT64


def area(points, kl_range, **options):
    return {row.method: row for row in frontier_area([points], kl_range=kl_range, **options)}


def test_the_front_is_what_no_other_beats():
    points = [
        point("A", "", 0, 0.0, 0.0), point("A", "", 1, 2.0, 1.0), point("A", "", 2, 4.0, 0.9),
        point("B", "", 1, 2.0, 0.8), point("B", "", 2, 5.0, 2.0), point("C", "", 1, 1.0, -1.0),
    ]  # fmt: skip
    front = pareto_front(points[::-1])
    assert [(one.method, one.step) for one in front] == [("A", 0), ("A", 1), ("B", 2)]
    assert pareto_front([]) == []
    twins = [point("A", "", 0, 1.0, 1.0), point("B", "", 0, 1.0, 1.0)]
    assert len(pareto_front(twins)) == 2  # neither beats the other


def test_the_front_is_drawn_as_a_staircase():
    points = [point("A", "", 0, 0.0, 0.0), point("A", "", 1, 2.0, 1.0), point("A", "", 2, 3.0, 0.5)]
    (axes,) = plot_frontier(points, pareto=True).axes
    (line,) = [line for line in axes.get_lines() if line.get_label() == "Pareto front"]
    np.testing.assert_allclose(line.get_xydata(), [[0, 0], [2, 1]], atol=FLOAT64)
    assert line.get_drawstyle() == "steps-post"


def test_area_of_a_straight_line_and_of_one_that_falls():
    points = curve("up", "", [(0, 0.0), (4, 2.0)]) + curve("down", "", [(0, 1.0), (4, -1.0)])
    found = area(points, (0.0, 4.0))
    assert found["up"].area.estimate == pytest.approx(1.0, abs=FLOAT64)  # exact: a straight line
    assert found["down"].area.estimate == pytest.approx(1.0, abs=FLOAT64)  # it could have stopped at its start
    assert area(points, (2.0, 4.0))["up"].area.estimate == pytest.approx(1.5, abs=FLOAT64)
    assert found["up"].reached
    further = area(points, (0.0, 8.0))["up"]
    assert further.area.estimate == pytest.approx((1.0 + 2.0) / 2, abs=FLOAT64)
    assert not further.reached


def test_the_better_setting_counts_at_each_budget():
    points = curve("A", "beta 1", [(0, 0.0), (1, 1.0)]) + curve("A", "beta 0.1", [(0, 0.0), (4, 2.0)])
    # 1/2 up to KL 1, then 1 until the other curve passes it at 2, then up to 2.
    assert area(points, (0.0, 4.0))["A"].area.estimate == pytest.approx(
        (0.5 + 1 + 3) / 4, abs=1e-3
    )  # the trapezoid rule


def test_runs_are_averaged_and_must_agree():
    runs = [
        curve("A", "", [(0, 0.0), (4, top)], noise=0.3, seed=number) for number, top in enumerate((2.0, 2.4, 1.6, 2.0))
    ]
    (found,) = frontier_area(runs, kl_range=(0.5, 4.0), resamples=500)
    single = [frontier_area([run], kl_range=(0.5, 4.0), resamples=500)[0].area for run in runs]
    assert found.runs == 4
    assert found.area.estimate == pytest.approx(np.mean([one.estimate for one in single]), abs=FLOAT64)
    assert found.area.low < found.area.estimate < found.area.high
    with pytest.raises(InputError, match="run 2 has other methods than run 1"):
        frontier_area([runs[0], curve("B", "", [(0, 0), (1, 1)])], kl_range=(0.0, 1.0))
    for bad in (([], (0.0, 1.0)), (runs, (1.0, 1.0)), (runs, (-1.0, 1.0))):
        with pytest.raises(InputError, match="needs a run and a KL range"):
            frontier_area(bad[0], kl_range=bad[1])


@pytest.fixture
def few_budgets(monkeypatch):
    """Straight lines have the same area under the trapezoid rule whatever its steps."""
    monkeypatch.setattr(_frontier_area, "_STEPS", 4)


@pytest.mark.usefixtures("few_budgets")
def test_its_interval_covers():
    """Rewards noisy over prompts on a line of known area."""
    generator = np.random.default_rng(0)
    prompts, hits = 48, 0
    for seed in range(300):
        shared = generator.normal(size=prompts)
        points = [
            FrontierPoint(
                "A", "", step, Interval(0, 0, 0), Interval(0, 0, 0), np.full(prompts, 2.0 * step),
                step + shared + 0.5 * generator.normal(size=prompts),
            )
            for step in range(3)
        ]  # fmt: skip
        found = area(points, (0.0, 4.0), resamples=300, seed=seed)["A"].area
        hits += found.low <= 1.0 <= found.high
    assert abs(hits / 300 - 0.95) < COVERAGE_SKEWED


@pytest.mark.usefixtures("few_budgets")
def test_its_interval_covers_over_runs_and_prompts():
    """Eight runs whose slopes differ, on prompts that they share."""
    generator = np.random.default_rng(0)
    nowhere, prompts, hits = Interval(0, 0, 0), 48, 0
    for seed in range(300):
        shared, runs = generator.normal(size=prompts), []
        for slope in 1 + 0.5 * generator.normal(size=8):
            rewards = [slope * step + shared + 0.5 * generator.normal(size=prompts) for step in range(3)]
            kls = [np.full(prompts, 2.0 * step) for step in range(3)]
            runs.append([FrontierPoint("A", "", k, nowhere, nowhere, kls[k], rewards[k]) for k in range(3)])
        found = frontier_area(runs, kl_range=(0.0, 4.0), resamples=100, seed=seed)[0].area
        hits += found.low <= 1.0 <= found.high
    assert abs(hits / 300 - 0.95) < COVERAGE_SKEWED


def test_a_difference_of_areas_is_that_of_the_areas_with_prompts_paired():
    """What every prompt adds to both methods cancels; runs are averaged, each kept."""
    runs = []
    for number, top in enumerate((2.0, 2.4, 1.6)):
        noisy = {"noise": 0.5, "seed": number}
        runs.append(curve("A", "", [(0, 0.0), (4, top)], **noisy) + curve("B", "", [(0, 0.0), (4, 1.0)], **noisy))
    found = frontier_area_difference(runs, "A", "B", kl_range=(0.0, 4.0), resamples=300)
    apart = [frontier_area([run], kl_range=(0.0, 4.0), resamples=10) for run in runs]
    assert found.by_run == pytest.approx([one.area.estimate - two.area.estimate for one, two in apart], abs=FLOAT64)
    assert found.difference.estimate == pytest.approx(np.mean(found.by_run), abs=FLOAT64)
    assert (found.method_reached, found.baseline_reached) == (True, True)

    alone = frontier_area_difference(runs[:1], "A", "B", kl_range=(0.0, 4.0), resamples=300)
    areas = frontier_area(runs[:1], kl_range=(0.0, 4.0), resamples=300)
    assert alone.difference.high - alone.difference.low < areas[0].area.high - areas[0].area.low
    same = frontier_area_difference([runs[0]] * 2, "A", "A", kl_range=(0.0, 4.0), resamples=50)
    assert same.difference == Interval(0.0, 0.0, 0.0)
    turned = frontier_area_difference(runs, "B", "A", kl_range=(0.0, 4.0), resamples=300)
    assert turned.difference.estimate == pytest.approx(-found.difference.estimate, abs=FLOAT64)
    with pytest.raises(InputError, match="no point of 'C'"):
        frontier_area_difference(runs, "A", "C", kl_range=(0.0, 4.0))


@pytest.mark.usefixtures("few_budgets")
@pytest.mark.parametrize("count", [3, 8])
def test_the_interval_of_a_difference_covers_over_runs_and_prompts(count):
    """Two methods whose slopes differ by 1 and, from run to run, by chance."""
    generator = np.random.default_rng(1)
    nowhere, prompts, hits = Interval(0, 0, 0), 48, 0
    for seed in range(300):
        shared, runs = generator.normal(size=prompts), []
        for _ in range(count):
            points = []
            for name, slope in (("A", 2 + 0.5 * generator.normal()), ("B", 1 + 0.5 * generator.normal())):
                for step in range(3):
                    rewards = slope * step + shared + 0.5 * generator.normal(size=prompts)
                    points.append(
                        FrontierPoint(name, "", step, nowhere, nowhere, np.full(prompts, 2.0 * step), rewards)
                    )
            runs.append(points)
        found = frontier_area_difference(runs, "A", "B", kl_range=(0.0, 4.0), resamples=100, seed=seed).difference
        hits += found.low <= 1.0 <= found.high
    assert abs(hits / 300 - 0.95) < COVERAGE_SKEWED


def test_the_table_says_the_range():
    rows = frontier_area_rows(frontier_area([curve("A", "", [(0, 0.0), (4, 2.0)])], kl_range=(0.0, 6.0)))
    assert rows[0]["KL budgets (nats/sequence)"] == "0 to 6"
    assert rows[0]["reached the end"] == "no"
    assert markdown_table(rows).splitlines()[2].startswith("| A | 0 to 6 | 1.3")
