"""Scores against what they cost."""

import pytest

from jaxalign.errors import InputError
from jaxalign.evaluation import Interval, ScorePoint, plot_scores, save_figure

pytest.importorskip("matplotlib")


def point(cost, score, runs=()):
    return ScorePoint(cost, Interval(score, score - 0.1, score + 0.1), runs)


def test_a_panel_a_cost(tmp_path):
    curves = {"DPO": [point(1, 0.5), point(2, 0.7, (0.6, 0.8))], "PPO": [point(1, 0.5), point(8, 0.6)]}
    figure = plot_scores({"time": curves, "tokens": curves}, label="judge", target=0.65)
    first, second = figure.axes
    assert (first.get_xlabel(), second.get_xlabel(), first.get_ylabel()) == ("time", "tokens", "judge")
    assert first.get_xscale() == "log"
    drawn = {line.get_label(): line for line in first.lines if not line.get_label().startswith("_")}
    assert list(drawn) == ["target", "DPO", "PPO"]
    assert drawn["PPO"].get_xydata().tolist() == [[1, 0.5], [8, 0.6]]
    crosses = [line for line in first.lines if line.get_marker() == "x"]
    assert [line.get_xydata().tolist() for line in crosses] == [[[2, 0.6], [2, 0.8]]]
    bars = [line.get_xydata()[:, 1].tolist() for line in first.lines if line.get_alpha() == 0.5]
    assert bars[1] == [pytest.approx(0.6), pytest.approx(0.8)]
    for path in save_figure(figure, tmp_path / "scores"):
        assert path.stat().st_size > 0


def test_what_cannot_be_drawn():
    with pytest.raises(InputError, match="no points"):
        plot_scores({"time": {"DPO": []}})
    with pytest.raises(InputError, match="cost 0"):
        plot_scores({"time": {"DPO": [point(0, 0.5)]}})
    figure = plot_scores({"time": {"DPO": [point(0, 0.5)]}}, logarithmic=False)
    assert figure.axes[0].get_xscale() == "linear"
