"""The frontier: known interpolations, paired differences, tables and the figure."""

import csv
import io
import sys

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.evaluation import (
    FrontierPoint,
    Interval,
    csv_table,
    difference_rows,
    frontier_rows,
    interpolate_reward_at_kl,
    markdown_table,
    plot_frontier,
    reward_difference_at_kl,
    save_figure,
)
from tests.tolerances import COVERAGE_SKEWED, FLOAT64


def point(method, setting, step, kl, reward, *, noise=0.0, seed=0, prompts=64, **options):
    """A point whose means are exactly ``kl`` and ``reward``; every prompt has two samples."""
    generator = np.random.default_rng(seed)

    def spread(mean):
        offsets = noise * generator.normal(size=(prompts, 1)) * np.ones((1, 2))
        return (mean + offsets - offsets.mean()).ravel()

    return FrontierPoint.from_samples(
        method, setting, step, kl=spread(kl), reward=spread(reward), prompt=np.repeat(np.arange(prompts), 2), **options
    )


def curve(method, setting, places, **options):
    return [point(method, setting, 10 * i, kl, reward, **options) for i, (kl, reward) in enumerate(places)]


def at(points, kl):
    return {row.method: (row.reward.estimate, row.reached) for row in interpolate_reward_at_kl(points, kl)}


def test_straight_lines_between_points():
    points = curve("DPO", "beta 0.1", [(0, 0.0), (2, 1.0), (6, 2.0)])
    assert at(points, 1)["DPO"] == (pytest.approx(0.5), True)
    assert at(points, 2)["DPO"] == (pytest.approx(1.0), True)
    assert at(points, 4)["DPO"] == (pytest.approx(1.5), True)


def test_order_is_by_step_not_by_appearance():
    points = curve("DPO", "beta 0.1", [(0, 0.0), (2, 1.0), (6, 2.0)])
    assert at(points[::-1], 4) == at(points, 4)


def test_a_curve_that_falls_keeps_its_best():
    points = curve("Unlikelihood", "", [(0, 0.0), (1, 0.5), (3, -1.0)])
    assert at(points, 3)["Unlikelihood"] == (pytest.approx(0.5), True)


def test_not_reached_keeps_the_best_and_says_so():
    points = curve("Preferred-FT", "", [(0, 0.0), (1.5, 0.3)])
    assert at(points, 6)["Preferred-FT"] == (pytest.approx(0.3), False)


def test_the_best_setting_counts():
    points = curve("DPO", "beta 1", [(0, 0.0), (2, 0.8)]) + curve("DPO", "beta 0.1", [(0, 0.0), (4, 2.0)])
    assert at(points, 2)["DPO"] == (pytest.approx(1.0), True)  # beta 0.1, halfway
    assert at(points, 0.5)["DPO"] == (pytest.approx(0.25), True)


def test_a_curve_may_turn_back_in_kl():
    """KL can fall again along training; every crossing counts, the best one wins."""
    points = curve("DPO", "", [(0, 0.0), (4, 1.0), (2, 3.0)])
    assert at(points, 3)["DPO"][0] == pytest.approx(3.0)


def test_without_a_start_below_the_kl_it_refuses():
    with pytest.raises(ValueError, match="add its start"):
        interpolate_reward_at_kl([point("DPO", "", 10, 3.0, 1.0)], 1.0)


def test_points_of_other_prompts_are_refused():
    points = [point("DPO", "", 0, 0.0, 0.0), point("DPO", "", 1, 1.0, 1.0, prompts=32)]
    with pytest.raises(ValueError, match="same prompts"):
        interpolate_reward_at_kl(points, 1.0)


def test_difference_is_paired_over_prompts():
    """Rewards share a large prompt effect: the difference is far better known than either."""
    options = {"noise": 3.0, "seed": 1}
    points = curve("DPO", "", [(0, 0.0), (4, 2.0)], **options) + curve("SFT+", "", [(0, 0.0), (4, 1.0)], **options)
    row = reward_difference_at_kl(points, "DPO", "SFT+", [4.0])[0]
    alone = next(r for r in interpolate_reward_at_kl(points, 4.0) if r.method == "DPO").reward
    assert row.difference.estimate == pytest.approx(1.0)
    assert row.method_reward - row.baseline_reward == pytest.approx(row.difference.estimate, abs=FLOAT64)
    assert 0 < row.difference.low < row.difference.high
    assert row.difference.high - row.difference.low < 0.9 * (alone.high - alone.low)
    assert (row.method_reached, row.baseline_reached) == (True, True)


def test_difference_interval_covers():
    """Points whose rewards and KLs are noisy over prompts; the truth lies on the noiseless lines."""
    generator = np.random.default_rng(0)
    prompts, hits, datasets = 48, 0, 300

    def noisy(method, step, kl, reward, shared):
        kls = np.full(prompts, kl) + (0.3 * generator.normal(size=prompts) if step else 0.0)
        rewards = reward + shared + 0.5 * generator.normal(size=prompts)
        unused = Interval(kl, kl, kl)  # the comparison reads what each prompt contributed
        return FrontierPoint(method, "", step, unused, unused, kls, rewards)

    for seed in range(datasets):
        shared = generator.normal(size=prompts)
        points = [noisy("A", s, 2.0 * s, 1.0 * s, shared) for s in range(4)]
        points += [noisy("B", s, 2.0 * s, 0.5 * s, shared) for s in range(4)]
        row = reward_difference_at_kl(points, "A", "B", [3.0], resamples=300, seed=seed)[0]
        hits += row.difference.low <= 0.75 <= row.difference.high
    assert abs(hits / datasets - 0.95) < COVERAGE_SKEWED


def test_unknown_method_is_named():
    with pytest.raises(ValueError, match="'PPO'"):
        reward_difference_at_kl(curve("DPO", "", [(0, 0), (1, 1)]), "DPO", "PPO", [1.0])


def test_json_round_trip_is_exact():
    first = point("DPO", "beta 0.1", 10, 1.0, 0.3, noise=0.7, extras={"judge": 0.1})
    second = FrontierPoint.from_json(first.to_json())
    assert second.to_json() == first.to_json()
    np.testing.assert_array_equal(second.reward_per_prompt, first.reward_per_prompt)


def sample_points():
    points = curve("DPO", "beta 0.1", [(0, -0.2), (2, 0.6), (5, 1.4)], noise=0.5, extras={"judge": 0.25})
    points += curve("DPO", "beta 1", [(0, -0.2), (1, 0.5), (2, 0.7)], noise=0.5)
    points += curve("Preferred-FT", "", [(0, -0.2), (3, 0.1)], noise=0.5)
    for n, kl in ((1, 0.0), (2, 0.19), (4, 0.64)):
        points.append(point("Best-of-N", "", n, kl, 0.4 * n - 0.6, kl_is_bound=True))
    return points


def test_tables_hold_every_number():
    rows = frontier_rows(sample_points())
    lines = markdown_table(rows).splitlines()
    assert lines[0] == "| method | setting | step | KL (nats/sequence) | KL is | reward | judge |"
    assert lines[1] == "| --- | --- | ---: | ---: | --- | ---: | ---: |"
    assert len(lines) == 2 + 11
    assert lines[-1].startswith("| Best-of-N |  | 4 | 0.640 | upper bound | 1.000 [1.000, 1.000] |")
    parsed = list(csv.DictReader(io.StringIO(csv_table(rows))))
    assert float(parsed[1]["reward"]) == pytest.approx(0.6, abs=FLOAT64)
    assert float(parsed[1]["reward low"]) < 0.6 < float(parsed[1]["reward high"])
    assert parsed[1]["judge"] == "0.25"
    assert parsed[-1]["judge"] == ""


def test_difference_table_marks_what_was_not_reached():
    rows = difference_rows(reward_difference_at_kl(sample_points(), "DPO", "Preferred-FT", [2.0, 4.0]))
    assert "(not reached)" not in rows[0]["baseline reward"]
    assert rows[1]["baseline reward"] == "0.100 (not reached)"
    assert "not reached" in markdown_table(rows)


def test_a_cell_cannot_break_the_table():
    assert markdown_table([{"text": "a|b\nc"}]).splitlines()[-1] == "| a\\|b c |"


def test_figure_has_units_a_legend_and_best_of_n(tmp_path):
    figure = plot_frontier(sample_points(), reward_label="Reward, log-odds of positive")
    axes = figure.axes[0]
    assert "nats per sequence" in axes.get_xlabel()
    assert axes.get_ylabel() == "Reward, log-odds of positive"
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["DPO, beta 0.1", "DPO, beta 1", "Preferred-FT", "Best-of-N (KL bound)"]
    assert [text.get_text() for text in axes.texts] == ["N=4"]
    lines = {line.get_label(): line for line in axes.get_lines()}
    first, second = lines["DPO, beta 0.1"], lines["DPO, beta 1"]
    assert first.get_color() == second.get_color() != lines["Preferred-FT"].get_color()
    assert first.get_linestyle() != second.get_linestyle()
    assert first.get_marker() != second.get_marker()
    np.testing.assert_allclose(first.get_xdata(), [0, 2, 5], atol=FLOAT64)
    png, svg = save_figure(figure, tmp_path / "plots" / "frontier")
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "nats per sequence" in svg.read_text()


def test_the_same_points_give_the_same_svg(tmp_path):
    paths = [save_figure(plot_frontier(sample_points()), tmp_path / name)[1] for name in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_missing_matplotlib_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"jaxalign\[eval\]"):
        plot_frontier(sample_points())
